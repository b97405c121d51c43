"""Keys and values of the tokens already read, one pair of tensors a visit.

A layer visited R times has R different keys for one token, so the cache has an entry for every visit of the depth schedule,
found by the visit's number, and not for every layer; it stays empty where a pass makes fewer repeats. Keys are kept rotated,
each by its own position.

Shape suffixes: B sequences, H heads, T new tokens, S tokens so far, d head width.
"""

from __future__ import annotations

from torch import Tensor


class VisitCache:
    """Keys and values of one visit, [B, H, S, d], in buffers that double when they are full."""

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def extend(self, key_BHTd: Tensor, value_BHTd: Tensor) -> tuple[Tensor, Tensor]:
        """Append the new tokens and return all keys and values, [B, H, S, d]."""
        start, self.length = self.length, self.length + key_BHTd.shape[2]
        self._keys = _room(self._keys, key_BHTd, start, self.length)
        self._values = _room(self._values, value_BHTd, start, self.length)
        self._keys[:, :, start : self.length] = key_BHTd
        self._values[:, :, start : self.length] = value_BHTd
        return self._keys[:, :, : self.length], self._values[:, :, : self.length]


class KVCache:
    """The cache of a whole model: an exact one, token-by-token decoding equals the full forward."""

    def __init__(self, n_visits: int) -> None:
        self.visits = [VisitCache() for _ in range(n_visits)]

    @property
    def length(self) -> int:
        """Tokens a sequence read so far."""
        return self.visits[0].length


def _room(buffer: Tensor | None, new: Tensor, used: int, needed: int) -> Tensor:
    if buffer is not None and needed <= buffer.shape[2]:
        return buffer
    larger = new.new_empty(*new.shape[:2], max(needed, 2 * used), new.shape[3])
    if buffer is not None:
        larger[:, :, :used] = buffer[:, :, :used]
    return larger
