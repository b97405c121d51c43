"""A recipe: everything that decides what a run computes, checked before any process starts.

`load_recipe` reads YAML, applies dotted overrides (`train.lr=3e-4`) and reports every fault with the field as the user
wrote it, the value, and what would be right.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from data_pipeline.config import DataConfig
from distributed.errors import RunError
from model.config import ModelConfig, SigmaMoEConfig, Strict


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
    """

    size: int = Field(default=1, ge=1)
    attention: bool = False
    overlap: bool | None = None
    move: Literal["tokens"] = "tokens"


class RouterConfig(Strict):
    """`replay: record` writes every expert choice of the run; `replay: use` takes them from `choices` (a run name)."""

    replay: Literal["off", "record", "use"] = "off"
    choices: str | None = None

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
    """Held-out loss every `every` steps over `windows` windows a source (None: all of them)."""

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


class Recipe(Strict):
    """A whole run. `name` is the run's folder below `runs/`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")
    seed: int = 0
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    expert_parallel: ExpertParallelConfig = ExpertParallelConfig()
    router: RouterConfig = RouterConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    validation: ValidationConfig = ValidationConfig()
    logging: LoggingConfig = LoggingConfig()
    guard: GuardConfig = GuardConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _vocabulary_fits(self) -> Recipe:
        tokenizer = self.data.tokenizer
        if tokenizer.kind != "file" and tokenizer.vocab_size != self.model.vocab_size:
            raise ValueError(
                f"model.vocab_size is {self.model.vocab_size} but data.tokenizer.vocab_size is {tokenizer.vocab_size}; make them equal"
            )
        return self


def load_recipe(path: Path | str, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file and apply `key.path=value` overrides (values are YAML).

    Raises:
        RunError: the file cannot be read, an override names no field, or a value is wrong.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except OSError as fault:
        raise RunError(f"recipe {path}: {fault.strerror}; the recipes that come with Mootron are in configs/") from None
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as fault:
        raise RunError(f"recipe {path} is not YAML: {fault}") from None
    if not isinstance(values, dict):
        raise RunError(f"recipe {path} must be a mapping of fields, found {type(values).__name__}")
    for override in overrides or []:
        apply_override(values, override)
    return check_recipe(values, str(path))


def check_recipe(values: dict[str, Any], origin: str) -> Recipe:
    """Validate plain values; every fault is named by its dotted field."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as fault:
        lines = [_explain(error) for error in fault.errors()]
        raise RunError(f"recipe {origin}:\n  " + "\n  ".join(lines)) from None


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one dotted field in nested plain values, e.g. `train.lr=3e-4` or `data.sources.0.path=/texts`."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RunError(f"override '{override}' must read field.name=value, for example train.lr=3e-4")
    place: Any = values
    *parents, last = key.split(".")
    for part in parents:
        place = _descend(place, part, override)
    value = _parse_value(text)
    if isinstance(place, list):
        place[_list_index(place, last, override)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise RunError(f"override '{override}': {'.'.join(parents)} is a single value, not a group of fields")


def _descend(place: Any, part: str, override: str) -> Any:
    if isinstance(place, list):
        return place[_list_index(place, part, override)]
    if not isinstance(place, dict):
        raise RunError(f"override '{override}': {part} is below a single value")
    if place.get(part) is None:
        place[part] = {}
    return place[part]


def _list_index(place: list[Any], part: str, override: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise RunError(f"override '{override}': '{part}' must be a position from 0 to {len(place) - 1}")
    return int(part)


def _parse_value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):  # YAML 1.1 reads 3e-4 as a string
        try:
            return float(value)
        except ValueError:
            return value
    return value


# Discriminated unions put the chosen kind into pydantic's location; the user did not write it.
_UNION_TAGS = {"sigma_moe", "switchhead", "dense"}


def _explain(error: Any) -> str:
    location = [str(part) for part in error["loc"] if str(part) not in _UNION_TAGS]
    field = ".".join(location) or "recipe"
    given = error.get("input")
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(location[-1], _known_fields(error["loc"]), n=1, cutoff=0.5)
        return f"{field}: unknown field" + (f"; did you mean {near[0]}?" if near else "; remove it")
    if error["type"] == "missing":
        return f"{field}: required but not given"
    shown = "" if isinstance(given, dict | list | BaseModel) else f" (got {given!r})"
    return f"{field}: {error['msg'].removeprefix('Value error, ')}{shown}"


def _known_fields(location: tuple[Any, ...]) -> list[str]:
    """Names of the fields beside the unknown one."""
    names: list[str] = []
    pending: list[type[BaseModel]] = [Recipe]
    while pending:
        part = pending.pop()
        for name, field in part.model_fields.items():
            names.append(name)
            for inner in _inner_models(field.annotation):
                pending.append(inner)
    return names


def _inner_models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for argument in getattr(annotation, "__args__", ()):
        found.extend(_inner_models(argument))
    return found


def check_world(recipe: Recipe, workers: int) -> None:
    """Faults that depend on how many workers there are.

    Raises:
        RunError: expert parallelism or the batch does not fit the number of workers.
    """
    size = recipe.expert_parallel.size
    if workers % size:
        fits = [n for n in range(1, workers + 1) if workers % n == 0]
        raise RunError(f"expert_parallel.size is {size}, which does not divide {workers} workers; choose one of {fits}")
    if size > 1 and not isinstance(recipe.model.feed_forward, SigmaMoEConfig):
        kind = recipe.model.feed_forward.kind
        raise RunError(f"expert_parallel.size is {size} but model.feed_forward.kind is '{kind}', which has no experts; set it to 1")
    batch = recipe.train.global_batch
    if batch < workers:
        raise RunError(f"train.global_batch is {batch}, fewer than one sequence a worker; raise it to {workers} or more")
    if batch % workers and not recipe.train.uneven_batch:
        below, above = batch // workers * workers, -(-batch // workers) * workers
        raise RunError(
            f"train.global_batch is {batch}, which {workers} workers cannot share equally; "
            f"choose {below or above} or {above}, or set train.uneven_batch=true"
        )
