"""What a router's logits mean, in one pass over them: the K best experts, their sigmoids, the softmax summed over each sequence, and loads.

Shape suffixes: B sequences, T tokens, M routers side by side, E experts, K chosen, N blocks of tokens. Logits are float32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.router import Routed, count, softmax_sum, weigh

TILE_ENTRIES = 2048
"""Logits that one program holds."""


def route_triton(logits_BTME: Tensor, top_k: int, scores_BTME: Tensor | None = None, chosen: Tensor | None = None) -> Routed:
    """`kernels.router.route` of float32 logits; experts best first, of equal ones the lower number first.

    Differentiable in the logits through the weights and the softmax sum.

    Args:
        logits_BTME: float32.
        scores_BTME: compared in place of the logits (after expert dropout); float32.
        chosen: take these experts instead, in their order.
    """
    scores = logits_BTME.detach() if scores_BTME is None else scores_BTME
    return Routed(*_forward(logits_BTME.contiguous(), scores.contiguous(), top_k, chosen))


def route_reference(logits_BTME: Tensor, top_k: int, scores_BTME: Tensor | None = None, chosen: Tensor | None = None) -> Routed:
    """`route_triton` by torch's operators, in the logits' type."""
    scores = logits_BTME.detach() if scores_BTME is None else scores_BTME
    expert = scores.sort(dim=-1, descending=True, stable=True).indices[..., :top_k] if chosen is None else chosen
    return Routed(expert, weigh(logits_BTME, expert), softmax_sum(logits_BTME.transpose(1, 2)), count(expert, logits_BTME.shape[3]))


@torch.library.custom_op("mootron::route", mutates_args=())
def _forward(logits_BTME: Tensor, scores_BTME: Tensor, top_k: int, chosen: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n_sequences, n_tokens, n_routers, n_experts = logits_BTME.shape
    shape = (*logits_BTME.shape[:3], top_k)
    expert = torch.empty(shape, dtype=torch.int64, device=logits_BTME.device)
    weight = logits_BTME.new_empty(shape)
    padded, block, n_blocks = _blocks(n_tokens, n_experts)
    sum_BMNE = logits_BTME.new_empty(n_sequences, n_routers, n_blocks, n_experts)
    load_BMNE = torch.empty_like(sum_BMNE, dtype=torch.int32)
    if expert.numel():
        given = expert if chosen is None else chosen.contiguous()
        _route[(n_sequences * n_routers, n_blocks)](
            logits_BTME,
            scores_BTME,
            given,
            expert,
            weight,
            sum_BMNE,
            load_BMNE,
            n_tokens,
            n_routers,
            n_experts,
            GIVEN=chosen is not None,
            TOP_K=top_k,
            BLOCK=block,
            EXPERTS=padded,
        )
    return expert, weight, sum_BMNE.sum(2), load_BMNE.sum((0, 2))


@_forward.register_fake
def _(logits_BTME: Tensor, scores_BTME: Tensor, top_k: int, chosen: Tensor | None) -> Any:
    n_sequences, n_tokens, n_routers, n_experts = logits_BTME.shape
    weight = logits_BTME.new_empty(n_sequences, n_tokens, n_routers, top_k)
    load_ME = weight.new_empty(n_routers, n_experts, dtype=torch.int64)
    return torch.empty_like(weight, dtype=torch.int64), weight, logits_BTME.new_empty(n_sequences, n_routers, n_experts), load_ME


@torch.library.custom_op("mootron::route_backward", mutates_args=())
def _backward(logits_BTME: Tensor, expert: Tensor, dweight: Tensor, dsum_BME: Tensor) -> Tensor:
    """Gradient of the logits."""
    n_sequences, n_tokens, n_routers, n_experts = logits_BTME.shape
    dlogits_BTME = torch.empty_like(logits_BTME)
    padded, block, n_blocks = _blocks(n_tokens, n_experts)
    if dlogits_BTME.numel():
        _route_backward[(n_sequences * n_routers, n_blocks)](
            logits_BTME,
            expert,
            dweight.contiguous(),
            dsum_BME.contiguous(),
            dlogits_BTME,
            n_tokens,
            n_routers,
            n_experts,
            TOP_K=expert.shape[3],
            BLOCK=block,
            EXPERTS=padded,
        )
    return dlogits_BTME


@_backward.register_fake
def _(logits_BTME: Tensor, expert: Tensor, dweight: Tensor, dsum_BME: Tensor) -> Tensor:
    return torch.empty_like(logits_BTME)


def _blocks(n_tokens: int, n_experts: int) -> tuple[int, int, int]:
    """Experts padded to a power of two, tokens a program, blocks of tokens in a sequence."""
    padded = triton.next_power_of_2(max(n_experts, 2))
    block = max(1, TILE_ENTRIES // padded)
    return padded, block, triton.cdiv(n_tokens, block)


def _keep(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[0], output[0])
    ctx.mark_non_differentiable(output[0], output[3])


def _differentiate(ctx: Any, _: None, dweight: Tensor, dsum_BME: Tensor, __: None) -> tuple[Tensor, None, None, None]:
    return _backward(*ctx.saved_tensors, dweight, dsum_BME), None, None, None


_forward.register_autograd(_differentiate, setup_context=_keep)


@triton.jit
def _tile(
    n_tokens: tl.tensor, n_routers: tl.tensor, n_experts: tl.tensor, BLOCK: tl.constexpr, EXPERTS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """The rows [BLOCK] of logits that this program has, which of them are there, and where their entries lie."""
    sequence, router = (tl.program_id(0) // n_routers).to(tl.int64), tl.program_id(0) % n_routers
    token = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    row = (sequence * n_tokens + token) * n_routers + router
    column = tl.arange(0, EXPERTS)
    inside = (token < n_tokens)[:, None] & (column < n_experts)[None, :]
    return row, token < n_tokens, row[:, None] * n_experts + column[None, :], inside


@triton.jit
def _softmax(logit: tl.tensor, inside: tl.tensor) -> tl.tensor:
    """Over experts; rows that are not there are zero."""
    power = tl.where(inside, tl.exp(logit - tl.max(logit, 1)[:, None]), 0.0)
    return power / tl.maximum(tl.sum(power, 1), 1e-30)[:, None]


@triton.jit
def _route(
    logits_ptr: tl.tensor,
    scores_ptr: tl.tensor,
    given_ptr: tl.tensor,
    expert_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    load_ptr: tl.tensor,
    n_tokens: tl.tensor,
    n_routers: tl.tensor,
    n_experts: tl.tensor,
    GIVEN: tl.constexpr,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
    EXPERTS: tl.constexpr,
) -> None:
    """One router, some tokens of one sequence."""
    row, there, place, inside = _tile(n_tokens, n_routers, n_experts, BLOCK, EXPERTS)
    column = tl.arange(0, EXPERTS)
    logit = tl.load(logits_ptr + place, mask=inside, other=float("-inf"))
    sums = tl.sum(_softmax(tl.where(inside, logit, -1e30), inside), 0)
    block_place = (tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * n_experts
    tl.store(sum_ptr + block_place + column, sums, mask=column < n_experts)
    # Dropout masks scores with -inf, which still come before what is taken. Of NaNs some expert comes out, not a wild address.
    free = inside
    score = tl.load(scores_ptr + place, mask=inside, other=float("-inf"))
    for k in range(TOP_K):
        if GIVEN:
            best = tl.load(given_ptr + row * TOP_K + k, mask=there, other=0)
        else:
            highest = tl.max(tl.where(free, score, float("-inf")), 1)
            best = tl.min(tl.where(free & (score == highest[:, None]), column[None, :], n_experts - 1), 1).to(tl.int64)
        taken = column[None, :] == best[:, None]
        free = free & ~taken
        of_best = tl.sum(tl.where(taken, logit, 0.0), 1)
        tl.store(expert_ptr + row * TOP_K + k, best, mask=there)
        tl.store(weight_ptr + row * TOP_K + k, tl.sigmoid(of_best), mask=there)
    load = tl.sum((inside & ~free).to(tl.int32), 0)  # a token's experts are all different
    tl.store(load_ptr + block_place + column, load, mask=column < n_experts)


@triton.jit
def _route_backward(
    logits_ptr: tl.tensor,
    expert_ptr: tl.tensor,
    dweight_ptr: tl.tensor,
    dsum_ptr: tl.tensor,
    dlogits_ptr: tl.tensor,
    n_tokens: tl.tensor,
    n_routers: tl.tensor,
    n_experts: tl.tensor,
    TOP_K: tl.constexpr,
    BLOCK: tl.constexpr,
    EXPERTS: tl.constexpr,
) -> None:
    """One router, some tokens of one sequence."""
    row, there, place, inside = _tile(n_tokens, n_routers, n_experts, BLOCK, EXPERTS)
    column = tl.arange(0, EXPERTS)
    logit = tl.load(logits_ptr + place, mask=inside, other=-1e30)
    p = _softmax(logit, inside)
    dsum = tl.load(dsum_ptr + tl.program_id(0).to(tl.int64) * n_experts + column, mask=column < n_experts, other=0.0)
    dlogit = p * (dsum[None, :] - tl.sum(p * dsum[None, :], 1)[:, None])
    sigmoid = tl.sigmoid(logit)
    slope = sigmoid * (1.0 - sigmoid)
    for k in range(TOP_K):
        expert = tl.load(expert_ptr + row * TOP_K + k, mask=there, other=-1)
        dweight = tl.load(dweight_ptr + row * TOP_K + k, mask=there, other=0.0)
        dlogit += tl.where(column[None, :] == expert[:, None], dweight[:, None] * slope, 0.0)
    tl.store(dlogits_ptr + place, dlogit, mask=inside)
