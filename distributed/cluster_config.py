"""Which workers make a run, and what is done when some are lost, as data: the `cluster:` part of a recipe."""

from __future__ import annotations

from pydantic import Field, model_validator

from model.slot_config import Strict


class ClusterConfig(Strict):
    """The workers of a run, and how it goes on after a loss."""

    workers: int | None = Field(default=None, ge=1)
    """Workers of the run; null: one a GPU, else two (a node, where `nodes` is given)."""
    nodes: int | None = Field(default=None, ge=1)
    """Spread them evenly over so many nodes; null: wherever they fit."""
    cpus_per_worker: float | None = Field(default=None, gt=0.0)
    """CPUs that Ray reserves for a worker, and its threads; null: an equal share, on a cluster at `address` 1."""
    address: str | None = None
    """A running Ray cluster, host:port or `auto`; null: a private one on this machine."""
    timeout_seconds: int = Field(default=600, ge=10)
    """How long a collective may wait for its peers, and a group for its places and its start."""
    min_workers: int = Field(default=1, ge=1)
    """After a loss the run goes on with what is left, at least so many."""
    max_workers: int | None = Field(default=None, ge=1)
    """The run grows when nodes come back, to at most so many; null: as many as it began with."""
    max_failures_an_hour: int = Field(default=5, ge=0)
    """More failures in an hour end the run."""
    max_failures_a_host: int = Field(default=3, ge=1)
    """A host with more in an hour is left out while others can do without it."""
    hang_seconds: float = Field(default=600.0, ge=2.0)
    """How long no rank may finish a step or enter a collective; longer than a checkpoint or validation takes."""
    start_seconds: float = Field(default=1800.0, ge=10.0)
    """How long the first step may take to come."""
    preflight: bool = True
    """Compare the hosts' versions and code, and try a collective, before training."""

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
