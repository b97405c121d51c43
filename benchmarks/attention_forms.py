"""SwitchHead whole (projections, routers, maps, softmax attention) beside the attention of the dense peer: forward and backward."""

from __future__ import annotations

import torch

from benchmarks.kernel_forms import Leaves
from benchmarks.timing import Form
from model.block import build_attention
from model.config import ModelConfig
from model.exchange import LocalExchange
from model.rotary import positions
from model.visit import Visit

LENGTH = 1024


def attention_forms(config: ModelConfig, peer: ModelConfig, tokens: int, dtype: torch.dtype, device: str) -> dict[str, Form]:
    """On sequences of 1,024 tokens, or one that is shorter. The peer's attention is not of equal work."""
    length = min(tokens, LENGTH)
    draw = Leaves(dtype, device)
    data_BTD, n_BTD = (draw(tokens // length, length, config.d_model) for _ in range(2))
    cotangent = draw(tokens // length, length, config.d_model).detach()

    def form(config: ModelConfig) -> Form:
        attention = build_attention(config, LocalExchange()).to(device, dtype)
        for parameter in attention.parameters():
            torch.nn.init.normal_(parameter, std=config.d_model**-0.5)
        angles = (config.attention.d_head, config.attention.rotary, torch.float32)
        where = positions(torch.zeros(1, length, dtype=torch.int64, device=device), 0, None, *angles)
        leaves = [data_BTD, n_BTD, *attention.parameters()]
        return lambda: torch.autograd.grad(attention(data_BTD, n_BTD, where, Visit())[0], leaves, cotangent)

    return {"ours": form(config), "dense": form(peer)}
