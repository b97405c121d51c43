"""The shapes that `bench kernels` measures, by name: the paper's sizes, `d416` and the four widths of cvmm_codex's benchmark."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.kernel_forms import Shape
from benchmarks.map_forms import MapShape
from model.attention_config import SwitchHeadConfig
from model.config import ModelConfig
from model.moe_config import SigmaMoEConfig
from model.paper import PAPER


class Size(NamedTuple):
    """An expert layer, maps by name, and the tokens that an accelerator gets; the paper's model, for its floors."""

    layer: Shape
    maps: dict[str, MapShape]
    tokens: int
    config: ModelConfig | None


def _of_paper(config: ModelConfig) -> Size:
    """A visit's layers, on 64 sequences of 1,024 tokens, the paper's step."""
    feed_forward, attention = config.feed_forward, config.attention
    assert isinstance(feed_forward, SigmaMoEConfig) and isinstance(attention, SwitchHeadConfig)
    width, heads = config.d_model, attention.n_heads
    experts = (heads, attention.n_experts, attention.top_k)
    value = MapShape(width, attention.d_head, *experts, rows_in=1, rows_out=heads)
    output = MapShape(attention.d_head, width, *experts, rows_in=heads, rows_out=1)
    layer = Shape(width, feed_forward.d_expert, feed_forward.n_experts, feed_forward.top_k)
    return Size(layer, {"value": value, "output": output}, 65536, config)


def _of_codex(width: int, tokens: int, n_experts: int, switch: int | None) -> Size:
    """github.com/RobertCsordas/cvmm_codex, benchmark_moe_shapes.py: 8 experts of width 128, and `switch` routes to maps of width 64."""
    maps = _pair("ff", width, 128, n_experts, 8)
    if switch is not None:
        maps |= _pair("switch", width, 64, 16 * switch, switch)
    return Size(Shape(width, 128, n_experts, 8), maps, tokens, None)


def _pair(name: str, width: int, narrow: int, n_experts: int, taken: int) -> dict[str, MapShape]:
    """Into one row a route without weights, and out of those rows, weighted, into one a token."""
    into, out = ("up", "down") if name == "ff" else ("v", "o")
    return {
        f"{name}_{into}": MapShape(width, narrow, 1, n_experts, taken, rows_in=1, rows_out=taken),
        f"{name}_{out}": MapShape(narrow, width, 1, n_experts, taken, rows_in=taken, rows_out=1),
    }


SIZES = {
    "d416": Size(Shape(416, 128, 156, 12), {}, 65536, None),
    **{name: _of_paper(config) for name, config in PAPER.items()},
    "d768": _of_codex(768, 8192, 256, 24),
    "d1024": _of_codex(1024, 16384, 512, 32),
    "d2048": _of_codex(2048, 8192, 512, 64),
    "d4096": _of_codex(4096, 2048, 512, None),
}
