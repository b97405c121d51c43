"""A recipe: everything that decides what a run computes. Read from YAML by `recipe_file`, checked before any process starts."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from data_pipeline.config import DataConfig
from model.config import ModelConfig
from model.slot_config import Strict


class ScheduleConfig(Strict):
    """Learning rate over steps.

    `cosine`: linear warm-up, then a cosine over `decay_steps` counted from the end of warm-up down to
    `final_fraction * lr` (the paper: decay_steps equals train.steps, so the last 4% are not reached).
    `wsd`: warm-up, stable, then a linear decay over the last `decay_steps`. `constant`: warm-up, then flat.
    """

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    decay_steps: int | None = Field(default=None, ge=1)
    final_fraction: float = Field(default=0.1, ge=0.0, le=1.0)


class TrainConfig(Strict):
    """The optimisation: one step is `global_batch` sequences whatever the number of workers."""

    steps: int = Field(ge=1)
    global_batch: int = Field(ge=1)
    micro_batch: int = Field(ge=1)
    uneven_batch: bool = False
    lr: float = Field(default=2.5e-4, gt=0.0)
    schedule: ScheduleConfig = ScheduleConfig()
    optimizer: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0.0)
    weight_decay: float = Field(default=0.01, ge=0.0)
    clip: float | None = Field(default=0.25, gt=0.0)
    precision: Literal["auto", "fp32", "bf16", "fp64"] = "auto"
    engine: Literal["auto", "deepspeed", "plain"] = "auto"
    zero_stage: Literal[1, 2] = 1
    recompute: Literal["none", "experts", "visit"] = "none"
    deterministic: bool = False


class ExpertParallelConfig(Strict):
    """Expert partitioning: `size` ranks share one set of experts; `size` divides the number of workers.

    `attention` partitions SwitchHead's experts too. `overlap` cuts a batch in two halves, so that one travels while the
    experts work on the other; `null` does so on accelerators only, since on a CPU the same cores do both.

    `move`: `tokens` go to their experts' owners and back; or `weights` come to the tokens, gathered once a step and kept over all
    visits, which takes memory for whole banks and their gradients; `auto` tries both on the run's ranks before the first step, with a
    feed-forward layer (attention's experts, if partitioned, move alike and are left out of the trial).
    """

    size: int = Field(default=1, ge=1)
    attention: bool = False
    overlap: bool | None = None
    move: Literal["tokens", "weights", "auto"] = "tokens"


class TableParallelConfig(Strict):
    """Tables of product-key memories and PEER cut along d: `size` ranks share one set; `size` divides the number of workers.

    Master weights, moments and gradients are cut with them. Equal results for every size.
    """

    size: int = Field(default=1, ge=1)


class RouterConfig(Strict):
    """`replay: record` writes every expert choice of the run; `replay: use` takes them from `choices` (a run name).

    `allow_micro_batch_scope`: statistics of routing may be of a micro-batch although the run may change its workers, and with them what
    a micro-batch is.
    """

    replay: Literal["off", "record", "use"] = "off"
    choices: str | None = None
    allow_micro_batch_scope: bool = False

    @model_validator(mode="after")
    def _choices_given(self) -> RouterConfig:
        if self.replay == "use" and not self.choices:
            raise ValueError("router.replay is 'use': router.choices must name the run whose expert choices to take")
        return self


class CheckpointConfig(Strict):
    """A checkpoint every `every` steps and at the end; keep the last `keep_last` and every `keep_every`-th step.

    `asynchronous`: go on training while it is written. `address`: where, as an fsspec address (file:///data, s3://bucket/prefix;
    `null`: the run's folder); below it each run has a folder of its name.
    """

    every: int = Field(default=100, ge=1)
    keep_last: int = Field(default=2, ge=1)
    keep_every: int | None = Field(default=None, ge=1)
    asynchronous: bool = True
    address: str | None = None

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, address: str | None) -> str | None:
        if address is not None and not re.match(r"[a-z0-9+.\-]+://.", address):
            raise ValueError("must be an address such as file:///data/checkpoints or s3://bucket/prefix")
        return address


class ValidationConfig(Strict):
    """Held-out loss every `every` steps over the first `windows` windows of every source (None: all of them)."""

    every: int = Field(default=100, ge=1)
    windows: int | None = Field(default=None, ge=1)
    batch: int = Field(default=16, ge=1)


class LoggingConfig(Strict):
    """How often figures are reduced over the ranks and written."""

    every: int = Field(default=10, ge=1)
    heat_maps_every: int = Field(default=100, ge=1)


class GuardConfig(Strict):
    """When a run is in trouble, and what is done.

    A gradient that is not finite skips its step; `not_finite_in_a_row` such steps are trouble, and so is a loss more than
    `spike_nats` above the median of the last `spike_window` steps for `spike_steps` steps in a row (`null`: not looked at).
    `action`: `stop` the run, or `roll_back` to the last checkpoint before and leave the samples of those steps out,
    at most `max_roll_backs` times in a run.
    """

    not_finite_in_a_row: int = Field(default=10, ge=1)
    spike_nats: float | None = Field(default=None, gt=0.0)
    spike_steps: int = Field(default=3, ge=1)
    spike_window: int = Field(default=50, ge=10)
    action: Literal["stop", "roll_back"] = "stop"
    max_roll_backs: int = Field(default=3, ge=1)


class ClusterConfig(Strict):
    """Workers of the run (`null`: one a GPU, else two) and the CPUs each may use (`null`: an equal share).

    `nodes`: spread them evenly over so many nodes (`null`: wherever they fit); `address`: of a running Ray cluster
    (`null`: a private one on this machine).

    After a loss the run goes on with what is left, at least `min_workers`, and grows when nodes come back, to at most
    `max_workers` (`null`: as many as it began with). More than `max_failures_an_hour` end it; a host with more than
    `max_failures_a_host` in an hour is left out while others can do without it. `hang_seconds`: how long no rank may
    finish a step or enter a collective (longer than a checkpoint or validation takes); `start_seconds`: how long the first
    step may take to come. `preflight`: compare the hosts before training.
    """

    workers: int | None = Field(default=None, ge=1)
    nodes: int | None = Field(default=None, ge=1)
    cpus_per_worker: float | None = Field(default=None, gt=0.0)
    address: str | None = None
    timeout_seconds: int = Field(default=600, ge=10)
    min_workers: int = Field(default=1, ge=1)
    max_workers: int | None = Field(default=None, ge=1)
    max_failures_an_hour: int = Field(default=5, ge=0)
    max_failures_a_host: int = Field(default=3, ge=1)
    hang_seconds: float = Field(default=600.0, ge=2.0)
    start_seconds: float = Field(default=1800.0, ge=10.0)
    preflight: bool = True

    @model_validator(mode="after")
    def _bounds_fit(self) -> ClusterConfig:
        bounds = [bound for bound in (self.min_workers, self.workers, self.max_workers) if bound is not None]
        if bounds != sorted(bounds):
            given = f"min_workers={self.min_workers}, workers={self.workers}, max_workers={self.max_workers}"
            raise ValueError(f"{given}: they must not decrease in this order")
        return self

    @property
    def elastic(self) -> bool:
        """Whether the run may go on with another number of workers than it began with."""
        return not self.min_workers == self.workers == (self.max_workers or self.workers)


class Recipe(Strict):
    """A whole run. `name` is the run's folder below `runs/`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")
    seed: int = 0
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    expert_parallel: ExpertParallelConfig = ExpertParallelConfig()
    table_parallel: TableParallelConfig = TableParallelConfig()
    router: RouterConfig = RouterConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    logging: LoggingConfig = LoggingConfig()
    guard: GuardConfig = GuardConfig()
    cluster: ClusterConfig = ClusterConfig()

    @property
    def micro_batch_fields(self) -> list[str]:
        """Fields that ask for statistics of a micro-batch."""
        return [f"model.{field}" for field, scope in self.model.statistic_scopes().items() if scope == "micro_batch"]

    @model_validator(mode="after")
    def _scopes_fit(self) -> Recipe:
        fields = self.micro_batch_fields
        if fields and self.cluster.elastic and not self.router.allow_micro_batch_scope:
            raise ValueError(
                f"{fields[0]}: a statistic of a micro-batch changes with the workers, which the run may change; change that field, keep "
                "the workers (cluster.workers=N cluster.min_workers=N cluster.max_workers=N), or set router.allow_micro_batch_scope=true"
            )
        return self

    @model_validator(mode="after")
    def _vocabulary_fits(self) -> Recipe:
        tokenizer = self.data.tokenizer
        if tokenizer.kind != "file" and tokenizer.vocab_size != self.model.vocab_size:
            raise ValueError(
                f"model.vocab_size is {self.model.vocab_size} but data.tokenizer.vocab_size is {tokenizer.vocab_size}; make them equal"
            )
        return self

    @model_validator(mode="after")
    def _attention_can_be_partitioned(self) -> Recipe:
        if self.expert_parallel.attention and self.model.attention.kind == "dense":
            raise ValueError("expert_parallel.attention is true, but model.attention 'dense' has no experts; leave it out")
        if self.expert_parallel.attention and self.model.attention.kind == "momha":
            raise ValueError(
                "expert_parallel.attention is true, but model.attention 'momha' needs the answers of a token's experts apart, "
                "which ranks add before they send them; set expert_parallel.attention=false"
            )
        return self

    @model_validator(mode="after")
    def _choices_have_a_shape(self) -> Recipe:
        if self.router.replay != "off" and self.model.halting.kind != "none":
            raise ValueError(
                f"router.replay is '{self.router.replay}', but with model.halting '{self.model.halting.kind}' visits have choices of some "
                "tokens only, and which ones is decided anew; set router.replay=off or model.halting.kind=none"
            )
        return self
