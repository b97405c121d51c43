"""A picture of expert load: one row a visit, one column an expert, colour by load over the even share.

The scale is logarithmic, from a quarter of the even share (dark blue) over the even share (green) to four times it (yellow);
experts that got nothing are red. Colours in between are linear in RGB between the anchors below, which grow
lighter all the way, so that the order survives a grey print.

Shape suffixes: V visits, E experts, Y and X pixels, C colour channels (red, green, blue).
"""

from __future__ import annotations

import numpy as np

LOWEST, HIGHEST = 0.25, 4.0
DEAD = (200, 30, 40)
SEPARATOR = (255, 255, 255)
_ANCHORS = np.array([(24, 16, 72), (32, 80, 130), (44, 145, 120), (130, 200, 90), (250, 235, 60)], dtype=np.float64)


def colours(relative_VE: np.ndarray) -> np.ndarray:
    """RGB of every cell, uint8 [V, E, 3], for loads over the even share (1 is even, 0 is dead)."""
    tiny = np.finfo(np.float64).tiny
    octaves_VE = np.log2(np.maximum(relative_VE, tiny) / LOWEST)
    place_VE = np.clip(octaves_VE / np.log2(HIGHEST / LOWEST), 0.0, 1.0) * (len(_ANCHORS) - 1)
    below_VE = np.minimum(place_VE.astype(np.int64), len(_ANCHORS) - 2)
    fraction_VE1 = (place_VE - below_VE)[..., None]
    rgb_VEC = _ANCHORS[below_VE] * (1.0 - fraction_VE1) + _ANCHORS[below_VE + 1] * fraction_VE1
    rgb_VEC[relative_VE == 0] = DEAD
    return np.rint(rgb_VEC).astype(np.uint8)


def heat_map(routes_VE: np.ndarray, row_height: int = 24, width: int = 1024) -> np.ndarray:
    """The picture as uint8 [Y, X, 3].

    Args:
        routes_VE: routes an expert and visit (any number type).
        row_height: pixels a visit; the last one of them is a white line when there is room for it.
        width: pixels to fill at most, unless there are more experts than that: a cell is at least one pixel wide.
    """
    routes_VE = np.asarray(routes_VE, dtype=np.float64)
    mean_V1 = routes_VE.mean(axis=1, keepdims=True)
    relative_VE = np.divide(routes_VE, mean_V1, out=np.zeros_like(routes_VE), where=mean_V1 > 0)
    cell_width = max(1, width // routes_VE.shape[1])
    picture_YXC = colours(relative_VE).repeat(row_height, axis=0).repeat(cell_width, axis=1)
    if row_height > 2:
        picture_YXC[row_height - 1 :: row_height] = SEPARATOR
    return picture_YXC
