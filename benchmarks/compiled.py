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
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

os.environ.pop("TRITON_INTERPRET", None)  # read where a kernel is defined, so before the import

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from benchmarks.roofline import PEER
from model.config import SigmaMoEConfig, SwitchHeadConfig
from model.paper import PAPER

TARGETS = {"sm_80": GPUTarget("cuda", 80, 32), "sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)}
TABLE = Path(__file__).with_name("compiled.json")
SIZE, TOKENS = "244M", 65536
LARGEST_INT32 = 2**31 - 1


class Launch(NamedTuple):
    """A kernel as some function launches it: its name there, the kernel, its arguments by name and the options of the compiler."""

    name: str
    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]
    targets: tuple[str, ...] = tuple(TARGETS)


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


def compile_all() -> dict[str, dict[str, dict[str, int]]]:
    """launch -> target -> {"registers" a thread, "spilled" bytes a thread, "shared" bytes a program}."""
    return {launch.name: {name: figures(launch, name) for name in launch.targets} for launch in launches()}


def launches() -> Iterator[Launch]:
    """Every launch, both ways, of the FFN and SwitchHead's two maps (bf16), the routers (float32) and what reads the stream."""
    from kernels import expert_mlp_triton, norm_read_triton, routed_linear_triton, router_triton

    config = PAPER[SIZE]
    attention, feed_forward = config.attention, config.feed_forward
    assert isinstance(attention, SwitchHeadConfig) and isinstance(feed_forward, SigmaMoEConfig)
    width, d_expert, n_experts = config.d_model, feed_forward.d_expert, feed_forward.n_experts

    def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def routes(number: int) -> list[torch.Tensor]:
        return [tensor(number, dtype=torch.int64) for _ in range(2)]

    n_routes = TOKENS * feed_forward.top_k
    x_SD, up_EDF, down_EFD = tensor(TOKENS, width), tensor(n_experts, width, d_expert), tensor(n_experts, d_expert, width)
    row_Q, expert_Q = routes(n_routes)
    weight_Q = tensor(n_routes, dtype=torch.float32)
    plan = tensor(n_routes, dtype=torch.int64), tensor(n_experts, dtype=torch.int64), tensor(n_experts, dtype=torch.int64)
    kept = (row_Q, weight_Q, up_EDF, down_EFD, tensor(n_routes, d_expert), *plan)

    def ffn(name: str, form: str) -> list[Launch]:
        arguments = (x_SD, row_Q, expert_Q, weight_Q, up_EDF, down_EFD, False, form)
        forward = recorded(f"{name} forward", expert_mlp_triton._forward._init_fn, *arguments)
        return forward + recorded(f"{name} backward", expert_mlp_triton._backward._init_fn, x_SD, x_SD, *kept, form, [True] * 4)

    present = ffn("ffn", expert_mlp_triton.CHOSEN)
    yield from present
    seen = {_identity(launch) for launch in present}
    for form in ("two-kernel windowed", "fused windowed"):  # the kernels of all that is not chosen, for the device that is to choose
        for launch in ffn(form, form):
            if _identity(launch) not in seen:
                yield launch._replace(targets=("sm_90",))
            seen.add(_identity(launch))
    by_head = tensor(TOKENS * attention.n_heads, attention.d_head)
    n_routes, n_matrices = TOKENS * attention.n_heads * attention.top_k, attention.n_heads * attention.n_experts
    (in_Q, out_Q), weight_Q = routes(n_routes), tensor(n_routes, dtype=torch.float32)
    plan = tensor(n_routes, dtype=torch.int64), tensor(n_matrices, dtype=torch.int64), tensor(n_matrices, dtype=torch.int64)
    for name, x, y, n_out in (("value", x_SD, by_head, TOKENS * attention.n_heads), ("output", by_head, x_SD, TOKENS)):
        w = tensor(n_matrices, x.shape[1], y.shape[1])
        yield from recorded(f"{name} forward", routed_linear_triton._forward._init_fn, x, w, in_Q, out_Q, in_Q, weight_Q, n_out)
        yield from recorded(f"{name} backward", routed_linear_triton._backward._init_fn, y, x, w, in_Q, out_Q, weight_Q, *plan, [True] * 3)
    for name, routers, experts, top_k in (
        ("ffn router", 1, n_experts, feed_forward.top_k),
        ("attention router", attention.n_heads, attention.n_experts, attention.top_k),
    ):
        logits = tensor(TOKENS // 1024, 1024, routers, experts, dtype=torch.float32)
        chosen = tensor(*logits.shape[:3], top_k, dtype=torch.int64)
        yield from recorded(f"{name} forward", router_triton._forward._init_fn, logits, logits, top_k, None)
        arguments = (logits, chosen, chosen.float(), logits.sum(1))
        yield from recorded(f"{name} backward", router_triton._backward._init_fn, *arguments)
    stream, gain_D, mean_N = x_SD.float(), tensor(width), tensor(TOKENS, dtype=torch.float32)
    for name, added in (("read", None), ("added read", x_SD)):
        yield from recorded(f"{name} forward", norm_read_triton._forward._init_fn, stream, added, gain_D, gain_D, 1e-5, True)
        kept_rows = (stream, gain_D, mean_N, mean_N)
        y_dtype = None if added is None else added.dtype
        yield from recorded(f"{name} backward", norm_read_triton._backward._init_fn, stream, x_SD, x_SD, *kept_rows, y_dtype)
    yield from memory_launches()


def memory_launches() -> Iterator[Launch]:
    """Every launch of a forward and backward pass of PEER, bf16; its dot and its sum are those of product-key memories as well."""
    from kernels import peer_triton, segment_sums_triton

    def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x_TD, table_ND = tensor(TOKENS, PEER.width), tensor(PEER.n_experts, PEER.width)
    index_TR, weight_TR = (tensor(TOKENS, PEER.routes, dtype=dtype) for dtype in (torch.int64, torch.float32))
    for activation in ("relu", "gelu"):
        arguments = (x_TD, index_TR, weight_TR, table_ND, table_ND, activation)
        yield from recorded(f"peer forward, {activation}", peer_triton.peer_triton, *arguments)
    yield from recorded("peer dot", peer_triton.gather_dot_triton, x_TD, table_ND, index_TR)
    yield from recorded("peer sum", peer_triton.gather_sum_triton, weight_TR, table_ND, index_TR)
    tables = (index_TR, PEER.n_experts, [weight_TR], [x_TD])
    yield from recorded("peer tables", segment_sums_triton.segment_sums_triton, *tables)


def recorded(name: str, function: Any, *arguments: Any) -> list[Launch]:
    """The launches that `function` makes, of which none runs; twice the same counts once."""
    found: dict[str, Launch] = {}

    def run(kernel: Any, *values: Any, grid: Any, warmup: bool, **named: Any) -> None:
        keys = dict(zip(kernel.arg_names, values, strict=False)) | {key: value for key, value in named.items() if key in kernel.arg_names}
        options = {key: value for key, value in named.items() if key not in kernel.arg_names}
        number = sum(launch.kernel is kernel for launch in found.values())
        title = f"{name}: {kernel.__name__.strip('_')}" + (f" {number + 1}" if number else "")
        found[title] = Launch(title, kernel, keys, options)

    with mock.patch.object(JITFunction, "run", run):
        function(*arguments)
    return list(found.values())


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


def _identity(launch: Launch) -> str:
    """Equal for launches that run the same binary."""
    return repr((launch.kernel.__name__, _signature(launch), launch.options))


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
