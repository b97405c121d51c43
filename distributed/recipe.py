"""A recipe: everything that decides what a run computes. Read from YAML by `recipe_file`, checked before any process starts."""

from __future__ import annotations

import re

from pydantic import field_validator, model_validator

from data_pipeline.config import DataConfig
from distributed.cluster_config import ClusterConfig
from distributed.layout_config import ExpertParallelConfig, TableParallelConfig
from distributed.run_config import CheckpointConfig, GuardConfig, LoggingConfig, RouterConfig, ValidationConfig
from distributed.train_config import TrainConfig
from model.config import ModelConfig
from model.slot_config import Strict

NAME_RULE = "must be letters, digits, _ . - and begin with a letter or digit"


def is_run_name(name: str) -> bool:
    """Whether a run may have the name, which is its folder's."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.\-]*", name) is not None


class Recipe(Strict):
    """A whole run."""

    name: str
    """The run's folder below `runs/`: letters, digits, `_`, `.` and `-`."""
    seed: int = 0
    """Decides the starting values, the dropout and the repeats that are drawn."""
    model: ModelConfig
    """What the model is."""
    data: DataConfig
    """What it reads."""
    train: TrainConfig
    """How it is optimised."""
    expert_parallel: ExpertParallelConfig = ExpertParallelConfig()
    """How experts are partitioned over workers."""
    table_parallel: TableParallelConfig = TableParallelConfig()
    """How tables of memories and PEER are."""
    router: RouterConfig = RouterConfig()
    """Recording and replaying of expert choices."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When state is saved, where, and what is kept."""
    validation: ValidationConfig = ValidationConfig()
    """Held-out loss during training."""
    logging: LoggingConfig = LoggingConfig()
    """How often figures are written."""
    guard: GuardConfig = GuardConfig()
    """When a run is in trouble, and what is done."""
    cluster: ClusterConfig = ClusterConfig()
    """Its workers, and how it goes on after a loss."""

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not is_run_name(name):
            raise ValueError(NAME_RULE)
        return name

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
