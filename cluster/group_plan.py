"""How many workers a group has and what each is given, in Ray's terms."""

from __future__ import annotations

from dataclasses import dataclass, replace

_PIN = 0.001  # Ray gives every node one unit of a resource named after its address


@dataclass(frozen=True)
class GroupPlan:
    """How many workers and what each is given; `nodes`: spread evenly over so many nodes (None: wherever they fit)."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: int = 0
    nodes: int | None = None
    timeout_seconds: float = 600.0

    @property
    def workers_per_node(self) -> int | None:
        """The same number on every node; None: any."""
        return self.workers // self.nodes if self.nodes else None

    def resized(self, workers: int) -> GroupPlan:
        """The same for another number of workers, as many a node as before."""
        per_node = self.workers_per_node
        return replace(self, workers=workers, nodes=workers // per_node if per_node else None)

    def bundles(self) -> tuple[list[dict[str, float]], str]:
        """Ray's resource bundles and placement strategy."""
        per_bundle = self.workers_per_node or 1
        bundle = {"CPU": self.cpus_per_worker * per_bundle}
        if self.gpus_per_worker:
            bundle["GPU"] = self.gpus_per_worker * per_bundle
        if self.nodes:
            return [bundle] * self.nodes, "STRICT_SPREAD"
        return [bundle] * self.workers, "PACK"

    def pinned_bundles(self, rooms: dict[str, int]) -> tuple[list[dict[str, float]], str]:
        """Bundles on the nodes of `rooms` (address: workers that fit there) and no others; fullest nodes first."""
        bundles, strategy = self.bundles()
        per_bundle = self.workers_per_node or 1
        places = [address for address, fits in sorted(rooms.items(), key=lambda item: -item[1]) for _ in range(fits // per_bundle)]
        if self.nodes:
            places = list(dict.fromkeys(places))
        return [{**bundle, f"node:{address}": _PIN} for bundle, address in zip(bundles, places, strict=False)], strategy
