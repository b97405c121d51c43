"""What the kernels become for GPUs: compiled here for all targets and compared with the table in benchmarks/compiled.json."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import triton

TABLE_NAME = "benchmarks/compiled.json"

ROOT = Path(__file__).resolve().parents[2]


def test_registers_spills_and_shared_memory_are_as_in_the_table() -> None:
    # A process of its own: in this one the kernels are the interpreter's.
    code = "import json; from benchmarks.compiled import compile_all; print(json.dumps(compile_all()))"
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    found, table = json.loads(done.stdout.splitlines()[-1]), json.loads((ROOT / TABLE_NAME).read_text())
    assert found and all(figures["sm_90"]["spilled"] == 0 for figures in found.values())
    if table["triton"] == triton.__version__:  # another compiler gives other registers
        assert found == table["launches"], "after a change that is meant: ./launch.sh bench compiled --write"
