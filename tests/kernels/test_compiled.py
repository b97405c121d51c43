"""What the kernels become for GPUs: compiled here and compared with the table in benchmarks/compiled.json.

For sm_90; for the other targets too with MOOTRON_LONG_TESTS=1.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import triton

TABLE_NAME = "benchmarks/compiled.json"

ROOT = Path(__file__).resolve().parents[2]
TARGETS = ["sm_80", "sm_90", "gfx942"] if os.environ.get("MOOTRON_LONG_TESTS") == "1" else ["sm_90"]


def test_registers_spills_and_shared_memory_are_as_in_the_table() -> None:
    # A process of its own: in this one the kernels are the interpreter's.
    code = f"import json; from benchmarks.compiled import compile_all; print(json.dumps(compile_all({TARGETS})))"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    found, table = json.loads(done.stdout.splitlines()[-1]), json.loads((ROOT / TABLE_NAME).read_text())
    assert found and all(figures["sm_90"]["spilled"] == 0 for figures in found.values())
    if table["triton"] == triton.__version__:  # another compiler gives other registers
        expected = {name: {target: row[target] for target in TARGETS if target in row} for name, row in table["launches"].items()}
        assert found == expected, "after a change that is meant: ./launch.sh bench compiled --write"
