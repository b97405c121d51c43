"""Event files, read back with TensorBoard's own reader."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from distributed.heat_map import heat_map
from distributed.tensorboard import Board

EventAccumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in read(folder).Scalars(tag)]


def test_events_past_the_resumed_step_are_purged(tmp_path: Path) -> None:
    before = Board(tmp_path)
    for step in (10, 20, 30):
        before.scalars(step, {"loss/train": float(step)})
    before.close()
    after = Board(tmp_path, purge_from=21)
    after.scalars(30, {"loss/train": 300.0})
    after.close()
    assert points(tmp_path, "loss/train") == [(10, 10.0), (20, 20.0), (30, 300.0)]


def test_a_file_of_a_quick_restart_is_read_after_the_one_it_purges(tmp_path: Path) -> None:
    """As if a process with a later name had written in this very second."""
    before = Board(tmp_path)
    before.scalars(30, {"loss/train": 30.0})
    before.close()
    (path,) = tmp_path.iterdir()
    stamp = path.name.split(".")[3]
    path.rename(tmp_path / f"events.out.tfevents.{stamp}.zzzz.1.0")
    after = Board(tmp_path, purge_from=21)
    after.scalars(40, {"loss/train": 40.0})
    after.close()
    assert points(tmp_path, "loss/train") == [(40, 40.0)]


def test_a_heat_map_comes_back_pixel_by_pixel(tmp_path: Path) -> None:
    picture = heat_map(np.array([[0, 1, 2, 5], [1, 1, 1, 1]]), width=64)
    board = Board(tmp_path)
    board.picture(7, "expert_load/layer_0", picture)
    board.histogram(7, "spread", np.array([0.0, 1.0, 2.0]))
    board.text(7, "run/start", "Started with 2 ranks")
    board.close()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "tensors": 0}).Reload()
    (image,) = events.Images("expert_load/layer_0")
    assert image.step == 7
    assert (np.asarray(Image.open(io.BytesIO(image.encoded_image_string))) == picture).all()
    (words,) = events.Tensors("run/start/text_summary")
    assert words.tensor_proto.string_val[0].decode() == "Started with 2 ranks"
    (spread,) = events.Histograms("spread")
    assert spread.histogram_value.num == 3
