"""How the model is optimised, as data: the `train:` part of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from model.slot_config import Strict


class ScheduleConfig(Strict):
    """Learning rate over steps."""

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    """`cosine`: linear warm-up, then a cosine. `wsd`: warm-up, stable, then a linear decay at the end. `constant`: warm-up, then flat."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of the linear warm-up, the last of which has the full rate."""
    decay_steps: int | None = Field(default=None, ge=1)
    """Length of the decay. `cosine`: counted from the end of warm-up; null: `train.steps`, as in the paper, so that
    the last part, as long as the warm-up, is not reached. `wsd`: the last so many steps; null: a fifth of the run."""
    final_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """What the decay ends at, as a share of `lr`."""


class TrainConfig(Strict):
    """The optimisation."""

    steps: int = Field(ge=1)
    """Optimizer steps of the run."""
    global_batch: int = Field(ge=1)
    """Sequences in a step, whatever the number of workers."""
    micro_batch: int = Field(ge=1)
    """Sequences that a worker computes at once, at most; gradients add up to those of the whole batch."""
    uneven_batch: bool = False
    """Allow numbers of workers that `global_batch` does not divide; some then have a sequence more than others, and the result is exact."""
    lr: float = Field(default=2.5e-4, gt=0.0)
    """The highest learning rate."""
    schedule: ScheduleConfig = ScheduleConfig()
    """Learning rate over steps."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Optimizer. `sgd` is plain, without momentum."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's two moments."""
    eps: float = Field(default=1e-8, gt=0.0)
    """AdamW's epsilon."""
    weight_decay: float = Field(default=0.01, ge=0.0)
    """Weight decay of all parameters."""
    clip: float | None = Field(default=0.25, gt=0.0)
    """Greatest norm of the whole gradient, beyond which it is scaled down; null: not clipped."""
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    """Type of weights and products; sums of gradients and the optimizer's masters are fp32 at least. `auto`: bf16 where the
    device computes in it, else fp32. `fp64`: one worker and the plain engine."""
    engine: Literal["auto", "deepspeed", "plain"] = "auto"
    """What steps the optimizer: `deepspeed`, or `plain` torch for one worker; `auto`: deepspeed where it is installed and a launcher
    connected the workers."""
    zero_stage: Literal[1, 2] = 1
    """DeepSpeed's ZeRO: 1 divides the optimizer's state among the workers, 2 gradients too."""
    recompute: Literal["none", "experts", "visit"] = "none"
    """What the backward computes again to save memory: nothing, the hidden activations of `experts`, or everything of a `visit`."""
    deterministic: bool = False
    """Use repeatable forms of torch's operators, and fail where there is none."""
