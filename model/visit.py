"""One pass of a batch through a layer: what the layer is told of it beside the data."""

from __future__ import annotations

from dataclasses import dataclass, field

from model.cache import VisitCache
from model.router import Record
from model.skipping import Skipping


@dataclass
class Visit:
    """What attention and feed-forward of a layer know of the pass they are in.

    Attributes:
        cache: keys and values of this visit's earlier tokens, extended by this pass; None where nothing is decoded.
        record: what was chosen, filled when empty, obeyed when not.
        number: of the visit, the same whatever the repeats of a pass (`model.depth_config.Place`).
        repeat: how many times the layer was visited before.
        layer: which of the distinct layers.
        repeats: how many times this pass goes through the group.
        skipping: which tokens are computed, as rows [N, 1, D]; None: all, as [B, T, D].
    """

    cache: VisitCache | None = None
    record: Record = field(default_factory=dict)
    number: int = 0
    repeat: int = 0
    layer: int = 0
    repeats: int = 1
    skipping: Skipping | None = None
