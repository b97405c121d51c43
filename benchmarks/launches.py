"""Every launch of a Triton kernel in the models' layers, found by running what launches them on tensors without data.

At the sizes of MoEUT-244M and of PEER's paper. Import it with TRITON_INTERPRET unset, as `benchmarks.compiled` sees to.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from benchmarks.peer_floors import PEER
from kernels import expert_mlp_triton, norm_read_triton, peer_triton, routed_linear_triton, router_triton, segment_sums_triton
from model.attention_config import SwitchHeadConfig
from model.moe_config import SigmaMoEConfig
from model.paper import PAPER

SIZE, TOKENS, LENGTH = "244M", 65536, 1024


class Launch(NamedTuple):
    """A kernel as some function launches it: its name there, the kernel, its arguments by name and the options of the compiler.

    `chosen`: of what runs by default; others wait for a device that is to choose.
    """

    name: str
    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]
    chosen: bool = True


def launches() -> Iterator[Launch]:
    """All of them, both ways: the FFN in its forms, SwitchHead's maps, the routers, what reads the stream, and PEER."""
    config = PAPER[SIZE]
    attention, feed_forward = config.attention, config.feed_forward
    assert isinstance(attention, SwitchHeadConfig) and isinstance(feed_forward, SigmaMoEConfig)
    yield from _layer(config.d_model, feed_forward, expert_mlp_triton.CHOSEN, "ffn")
    for form in ("two-kernel windowed", "fused windowed"):  # between them the kernels of all that is not chosen
        yield from (launch._replace(chosen=False) for launch in _layer(config.d_model, feed_forward, form, form))
    yield from _maps(config.d_model, attention)
    yield from _router("ffn router", 1, feed_forward.n_experts, feed_forward.top_k)
    yield from _router("attention router", attention.n_heads, attention.n_experts, attention.top_k)
    yield from _stream(config.d_model)
    yield from _peer()


def _layer(width: int, config: SigmaMoEConfig, form: str, name: str) -> Iterator[Launch]:
    n_experts, d_expert, n_routes = config.n_experts, config.d_expert, TOKENS * config.top_k
    x_SD, up_EDF, down_EFD = _narrow(TOKENS, width), _narrow(n_experts, width, d_expert), _narrow(n_experts, d_expert, width)
    row_Q, weight_Q = _index(n_routes), _wide(n_routes)
    arguments = (x_SD, row_Q, _index(n_routes), weight_Q, up_EDF, down_EFD, False, form)
    yield from recorded(f"{name} forward", expert_mlp_triton._forward._init_fn, *arguments)
    kept = (row_Q, weight_Q, up_EDF, down_EFD, _narrow(n_routes, d_expert), *_plan(n_routes, n_experts))
    yield from recorded(f"{name} backward", expert_mlp_triton._backward._init_fn, x_SD, x_SD, *kept, form, [True] * 4)


def _maps(width: int, config: SwitchHeadConfig) -> Iterator[Launch]:
    rows, n_matrices, n_routes = TOKENS * config.n_heads, config.n_heads * config.n_experts, TOKENS * config.n_heads * config.top_k
    x_SD, by_head = _narrow(TOKENS, width), _narrow(rows, config.d_head)
    in_Q, out_Q, weight_Q = _index(n_routes), _index(n_routes), _wide(n_routes)
    for name, x, y, n_out in (("value", x_SD, by_head, rows), ("output", by_head, x_SD, TOKENS)):
        w = _narrow(n_matrices, x.shape[1], y.shape[1])
        yield from recorded(f"{name} forward", routed_linear_triton._forward._init_fn, x, w, in_Q, out_Q, in_Q, weight_Q, n_out)
        kept = (in_Q, out_Q, weight_Q, *_plan(n_routes, n_matrices))
        yield from recorded(f"{name} backward", routed_linear_triton._backward._init_fn, y, x, w, *kept, [True] * 3)


def _router(name: str, routers: int, n_experts: int, top_k: int) -> Iterator[Launch]:
    logits, chosen = _wide(TOKENS // LENGTH, LENGTH, routers, n_experts), _index(TOKENS // LENGTH, LENGTH, routers, top_k)
    yield from recorded(f"{name} forward", router_triton._forward._init_fn, logits, logits, top_k, None)
    yield from recorded(f"{name} backward", router_triton._backward._init_fn, logits, chosen, chosen.float(), logits.sum(1))


def _stream(width: int) -> Iterator[Launch]:
    stream, y, gain_D, mean_N = _wide(TOKENS, width), _narrow(TOKENS, width), _narrow(width), _wide(TOKENS)
    for name, added in (("read", None), ("added read", y)):
        yield from recorded(f"{name} forward", norm_read_triton._forward._init_fn, stream, added, gain_D, gain_D, 1e-5, True)
        kept = (stream, gain_D, mean_N, mean_N, None if added is None else added.dtype)
        yield from recorded(f"{name} backward", norm_read_triton._backward._init_fn, stream, y, y, *kept)


def _peer() -> Iterator[Launch]:
    """Its dot and its sum are those of product-key memories as well."""
    x_TD, table_ND = _narrow(TOKENS, PEER.width), _narrow(PEER.n_experts, PEER.width)
    index_TR, weight_TR = _index(TOKENS, PEER.routes), _wide(TOKENS, PEER.routes)
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


def _narrow(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16, device="meta")


def _wide(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device="meta")


def _index(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.int64, device="meta")


def _plan(n_routes: int, n_experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors of a plan: order, ends, ends of tiles."""
    return _index(n_routes), _index(n_experts), _index(n_experts)
