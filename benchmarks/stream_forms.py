"""A visit's residual stream and its routers' logits, ours beside torch's operators: forward and backward.

Shape suffixes: T tokens, D model width, E experts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.kernel_forms import Leaves
from benchmarks.timing import Form
from kernels.norm_read import Read, norm_read, norm_read_reference
from kernels.wide_linear import wide_linear, wide_linear_reference
from model.attention_config import SwitchHeadConfig
from model.config import ModelConfig
from model.moe_config import SigmaMoEConfig

EPS = 1e-5


def stream_forms(config: ModelConfig, tokens: int, dtype: torch.dtype, device: str) -> dict[str, Form]:
    """The stream is read for attention, its result added and the sum read for the feed-forward, and that result added."""
    width = config.d_model
    draw, wide = Leaves(dtype, device), Leaves(torch.float32, device)
    x_TD, gain_D, bias_D = wide(tokens, width), draw(width), draw(width)
    answers = [draw(tokens, width) for _ in range(2)]
    cotangents = [wide(tokens, width).detach(), *(draw(tokens, width).detach() for _ in range(4))]
    leaves = [x_TD, *answers, gain_D, bias_D]

    def form(read: Callable[..., Read]) -> Form:
        def results() -> list[Tensor]:
            first = read(x_TD, None, gain_D, bias_D, EPS)
            second = read(first.x, answers[0], gain_D, bias_D, EPS)
            assert first.data is not None and second.data is not None
            return [second.x + answers[1], first.data, first.n, second.data, second.n]

        return lambda: torch.autograd.grad(results(), leaves, cotangents)

    return {"ours": form(norm_read), "dense": form(norm_read_reference)}


def logits_forms(config: ModelConfig, tokens: int, dtype: torch.dtype, device: str) -> dict[str, Form]:
    """The three routers of a visit, each by itself; torch's operators multiply inputs that were widened."""
    attention, feed_forward = config.attention, config.feed_forward
    assert isinstance(attention, SwitchHeadConfig) and isinstance(feed_forward, SigmaMoEConfig)
    by_head = attention.n_heads * attention.n_experts
    draw, wide = Leaves(dtype, device), Leaves(torch.float32, device)
    x_TD, weights = draw(tokens, config.d_model), [draw(out, config.d_model) for out in (by_head, by_head, feed_forward.n_experts)]
    cotangents = [wide(tokens, len(w_ED)).detach() for w_ED in weights]

    def form(linear: Callable[[Tensor, Tensor], Tensor]) -> Form:
        return lambda: torch.autograd.grad([linear(x_TD, w_ED) for w_ED in weights], [x_TD, *weights], cotangents)

    return {"ours": form(wide_linear), "dense": form(wide_linear_reference)}
