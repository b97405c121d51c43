"""Which numbers of repeats a model can be asked for."""

from __future__ import annotations

from model.config import ModelConfig
from model.errors import ModelError
from model.stream_config import AltUpConfig


def check_repeats(config: ModelConfig, repeats: int) -> None:
    """Refuse repeats that a pass cannot make: fewer than one, or more than there are parameters of single visits for.

    Raises:
        ModelError: naming those parameters.
    """
    if repeats < 1:
        raise ModelError(f"repeats is {repeats}; give 1 or more")
    most = config.depth.most_repeats
    if repeats <= most:
        return
    own = [f"depth.per_visit: {name}" for name in config.depth.per_visit]
    if isinstance(config.residual, AltUpConfig) and config.residual.coefficients == "visit":
        own.append("residual.coefficients: visit")
    if own:
        raise ModelError(f"repeats is {repeats}, but the model has parameters for {most} ({', '.join(own)}); give {most} or fewer")
