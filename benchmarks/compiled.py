"""What the Triton kernels become on a GPU, seen without one: registers, spills and shared memory of every launch of the models' layers.

    ./launch.sh bench compiled [--write]

The functions that launch kernels run on tensors without data, at the sizes of MoEUT-244M and of PEER's paper; each launch is compiled for
sm_80, sm_90 and gfx942 (those of forms of the FFN that are not chosen for sm_90 alone), and the figures are read from the binary.
--write puts them into benchmarks/compiled.json, with which a test compares.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)  # read where a kernel is defined, so before the import

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.launches import Launch, launches

TARGETS = {"sm_80": GPUTarget("cuda", 80, 32), "sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}
TABLE = Path(__file__).with_name("compiled.json")
LARGEST_INT32 = 2**31 - 1


def main(argv: list[str]) -> int:
    """Compile all and print; 1 where a kernel spills on sm_90."""
    parser = argparse.ArgumentParser(prog="bench compiled", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    args = parser.parse_args(argv)
    table = compile_all()
    print(f"{'launch':<44}{'target':>8}{'registers':>11}{'spilled':>9}{'shared':>9}")
    for name, figures in table.items():
        for target, figure in figures.items():
            print(f"{name:<44}{target:>8}{figure['registers']:>11}{figure['spilled']:>9}{figure['shared']:>9}")
    if args.write:
        TABLE.write_text(json.dumps({"triton": triton.__version__, "launches": table}, indent=1) + "\n")
    return int(any(figures["sm_90"]["spilled"] for figures in table.values()))


def compile_all(targets: Collection[str] = tuple(TARGETS)) -> dict[str, dict[str, dict[str, int]]]:
    """launch -> target -> {"registers" a thread, "spilled" bytes a thread, "shared" bytes a program}.

    What is not chosen is compiled for sm_90 alone, and not where a launch before it runs the same binary.
    """
    found: dict[str, dict[str, dict[str, int]]] = {}
    seen = set()
    for launch in launches():
        identity = repr((launch.kernel.__name__, _signature(launch), launch.options))
        if launch.chosen or identity not in seen:
            found[launch.name] = {name: figures(launch, name) for name in targets if launch.chosen or name == "sm_90"}
        seen.add(identity)
    return found


def figures(launch: Launch, target: str) -> dict[str, int]:
    """Compile for a target and read the binary."""
    types, constants, attributes = _signature(launch)
    source = ASTSource(launch.kernel, types, constants, attributes)
    options = launch.options | ({"num_stages": 2} if target == "gfx942" and "num_stages" in launch.options else {})
    compiled = triton.compile(source, target=TARGETS[target], options=options)
    read = _read_amd if target == "gfx942" else _read_nvidia
    return {**read(compiled.asm, target), "shared": compiled.metadata.shared}


def _signature(launch: Launch) -> tuple[dict[str, str], dict[Any, Any], dict[Any, Any]]:
    """Types by name, constants and divisibilities by place, as a launch on a device would find them."""
    types, constants, attributes = {}, {}, {}
    for place, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (value == 1 if isinstance(value, int) else False):
            types[parameter.name], constants[(place,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            types[parameter.name] = "*" + POINTERS[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            types[parameter.name] = "i32" if abs(value) <= LARGEST_INT32 else "i64"
            if value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
    return types, constants, attributes


POINTERS = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.int64: "i64", torch.int32: "i32"}


def _read_nvidia(asm: Any, target: str) -> dict[str, int]:
    ptxas = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(asm["ptx"])
        architecture = target + ("a" if target == "sm_90" else "")
        words = [str(ptxas), "-v", f"--gpu-name={architecture}", "kernel.ptx", "-o", "kernel.cubin"]
        said = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stderr
    spilled = sum(_number(rf"(\d+) bytes spill {kind}", said) for kind in ("stores", "loads"))
    return {"registers": _number(r"Used (\d+) registers", said), "spilled": spilled}


def _read_amd(asm: Any, target: str) -> dict[str, int]:
    count = {key: _number(rf"\.{key}:\s+(\d+)", asm["amdgcn"]) for key in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count")}
    return {"registers": count["vgpr_count"], "spilled": count["vgpr_spill_count"] + count["sgpr_spill_count"]}


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"the compiler's report has no '{pattern}'"
    return int(found[1])
