"""What `resume` may change: the written list. Anything else would make the run another run."""

from __future__ import annotations

from distributed.errors import RunError

MAY_CHANGE = {
    "train.steps": "train longer or shorter",
    "checkpoint.every": "how often",
    "checkpoint.keep_last": "how many",
    "checkpoint.keep_every": "how many",
    "checkpoint.asynchronous": "beside training or not",
    "validation.*": "how often and on how much",
    "logging.*": "how often",
    "cluster.*": "workers, CPUs, nodes, address, time-out",
    "expert_parallel.*": "how experts are laid over the workers",
    "table_parallel.*": "how tables are cut over the workers",
    "data.loader_workers": "processes that read ahead",
    "data.prefetch": "how far they read ahead",
    "data.on_damage": "what a damaged shard does",
    "router.allow_micro_batch_scope": "whether workers may change under statistics of a micro-batch",
    "guard.*": "what training trouble does",
}


def check_overrides(overrides: list[str]) -> None:
    """Refuse an override that a resumed run may not have.

    Raises:
        RunError: naming the field and the list.
    """
    for override in overrides:
        field = override.partition("=")[0]
        if not may_change(field):
            raise RunError(
                f"resume cannot change {field}: that would be another run; it may change {', '.join(MAY_CHANGE)}. "
                "To branch with other settings: ./launch.sh train --from RUN@STEP field=value"
            )


def may_change(field: str) -> bool:
    """Whether a dotted field is on the list."""
    group = field.rpartition(".")[0]
    return field in MAY_CHANGE or f"{group}.*" in MAY_CHANGE
