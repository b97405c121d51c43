"""The heat map, pixel by pixel."""

from __future__ import annotations

import numpy as np

from distributed.heat_map import DEAD, HIGHEST, LOWEST, SEPARATOR, colours, heat_map

LOW, EVEN, HIGH = (24, 16, 72), (44, 145, 120), (250, 235, 60)


def test_colours_of_the_scale() -> None:
    relative = np.array([[0.0, 1e-9, LOWEST, 1.0, HIGHEST, 1000.0]])
    assert [tuple(pixel) for pixel in colours(relative)[0]] == [DEAD, LOW, LOW, EVEN, HIGH, HIGH]


def test_halfway_between_two_anchors_is_their_mean() -> None:
    # sqrt(2) is half an octave above even; an octave is one anchor
    assert tuple(colours(np.array([[2**0.5]]))[0, 0]) == (87, 172, 105)


def test_brightness_grows_with_load() -> None:
    relative = np.geomspace(LOWEST, HIGHEST, 65)[None]
    luma = colours(relative)[0] @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(luma) > 0).all()


def test_cells_fill_their_place() -> None:
    routes_VE = np.array([[5, 5, 5, 5], [0, 0, 20, 0]])
    picture = heat_map(routes_VE, row_height=4, width=12)
    assert picture.shape == (8, 12, 3)
    assert picture.dtype == np.uint8
    assert (picture[:3] == EVEN).all()
    assert (picture[3] == SEPARATOR).all()
    assert (picture[4:7, 6:9] == HIGH).all()
    assert (picture[4:7, :6] == DEAD).all()
    assert (picture[4:7, 9:] == DEAD).all()


def test_a_cell_is_at_least_a_pixel() -> None:
    assert heat_map(np.ones((1, 50)), row_height=1, width=10).shape == (1, 50, 3)


def test_a_visit_without_routes_is_dead() -> None:
    assert (heat_map(np.zeros((1, 3)), row_height=2, width=3) == DEAD).all()
