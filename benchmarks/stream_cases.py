"""The router, and what reads the residual stream, beside their references: see `kernel_cases`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.kernel_draw import WIDTHS, Draw, Pair, differentiated
from kernels.norm_read import Read, norm_read_reference
from kernels.norm_read_triton import norm_read_triton
from kernels.router_triton import route_reference, route_triton


def route_case(draw: Draw) -> Iterator[Pair]:
    shape = draw.number(0, 3), draw.one_of((1, 5, 40)), draw.one_of((1, 3)), draw.one_of((1, 2, 31, 155, 600))
    top_k = draw.one_of((1, min(2, shape[3]), min(12, shape[3])))
    logits_BTME, dsum_BME = draw.normal(*shape), draw.normal(shape[0], *shape[2:])
    dweight = draw.normal(*shape[:3], top_k)
    scores_BTME = None
    if draw.number(0, 1) and top_k < shape[3]:  # expert dropout: some masked, of which some may have to be taken
        scores_BTME = logits_BTME.masked_fill(draw.normal(*shape) > 0.7, -torch.inf)
    chosen = route_triton(draw.normal(*shape), top_k)[0] if draw.number(0, 3) == 0 else None
    found = route_triton(logits_BTME.requires_grad_(), top_k, scores_BTME, chosen)
    wide = logits_BTME.detach().double().requires_grad_()
    expected = route_reference(wide, top_k, None if scores_BTME is None else scores_BTME.double(), chosen)
    for name, mine, theirs in zip(found._fields, found, expected, strict=True):
        yield Pair(name, mine.detach(), theirs.detach())
    for result, dtype in ((found, torch.float32), (expected, torch.float64)):
        torch.autograd.backward(result[1:3], (dweight.to(dtype), dsum_BME.to(dtype)))
    assert logits_BTME.grad is not None and wide.grad is not None
    yield Pair("gradient", logits_BTME.grad, wide.grad)


def norm_read_case(draw: Draw) -> Iterator[Pair]:
    # Of width 1 the gain's gradient is 0, which has no relative error; a test of its own has it.
    width, n_rows = draw.one_of(WIDTHS[1:]), draw.number(0, 150)
    # The interpreter does not round to bfloat16: a float64 stream is to float32 weights what a float32 one is to bfloat16.
    stream = draw.normal(n_rows, width).to(draw.one_of((torch.float32, torch.float64)))
    leaves = [stream, draw.normal(width) + 1.0, draw.normal(width)]
    leaves += [draw.normal(n_rows, width)] if draw.number(0, 1) else []
    data = bool(draw.number(0, 1))

    def joined(operation: Callable[..., Read]) -> Callable[..., Tensor]:
        def results(x: Tensor, gain: Tensor, bias: Tensor, y: Tensor | None = None) -> Tensor:
            return torch.cat([tensor for tensor in operation(x, y, gain, bias, 1e-5, data) if tensor is not None])

        return results

    cotangent = draw.normal((3 if data else 2) * n_rows, width).to(stream.dtype)
    yield from differentiated(joined(norm_read_triton), joined(norm_read_reference), leaves, cotangent)
