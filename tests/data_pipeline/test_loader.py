"""The loader gives the steps asked for, with and without workers, and leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from data_pipeline.config import DataConfig
from data_pipeline.errors import DataError
from data_pipeline.loader import StepLoader
from data_pipeline.order import SampleOrder
from data_pipeline.windows import Windows


@pytest.mark.parametrize("workers", [0, 2])
def test_steps_are_what_the_order_says_from_any_start(two_sources: tuple[DataConfig, Path], workers: int) -> None:
    windows = Windows(two_sources[1], "train")
    order = SampleOrder(windows.counts, None, 5, seed=0)

    def micro_batches(step: int) -> list[list[int]]:
        ids = order.ids(step)
        return [ids[:2], ids[2:5], []]

    epoch = order.steps_per_epoch
    for start in (0, epoch - 3):
        with StepLoader(windows, micro_batches, start, epoch + 4, workers, prefetch=2) as loader:
            seen = list(loader)
        assert [step for step, _ in seen] == list(range(start, epoch + 4)) and len(loader) == len(seen)
        for step, batches in seen:
            assert [batch.tokens_BT.shape for batch in batches] == [(2, 33), (3, 33), (0, 33)]
            assert [batch.ids for batch in batches] == micro_batches(step)
            assert torch.equal(torch.cat([batch.tokens_BT for batch in batches]), torch.from_numpy(windows.read(order.ids(step))))


def test_closing_early_ends_the_workers(two_sources: tuple[DataConfig, Path]) -> None:
    windows = Windows(two_sources[1], "train")
    loader = StepLoader(windows, lambda step: [[step]], 0, 50, workers=2)
    iterator = iter(loader)
    next(iterator)
    workers = [worker.pid for worker in loader._iterator._workers]  # type: ignore[union-attr]
    assert all(Path(f"/proc/{worker}").exists() for worker in workers) or not Path("/proc").exists()
    loader.close()
    loader.close()
    for worker in workers:
        with pytest.raises(OSError):
            os.kill(worker, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_shard_reaches_the_trainer_as_a_data_error(two_sources: tuple[DataConfig, Path], tmp_path: Path, workers: int) -> None:
    import shutil

    shutil.copytree(two_sources[1], tmp_path / "set")
    shard = tmp_path / "set" / "big" / "train" / "shard.00000.mds"
    shard.write_bytes(bytes(shard.stat().st_size))
    windows = Windows(tmp_path / "set", "train")
    with StepLoader(windows, lambda step: [[step]], 0, 5, workers) as loader, pytest.raises(DataError, match=r"shard.00000.mds is damaged"):
        list(loader)


def test_damaged_windows_are_left_out_and_named_when_that_is_allowed(two_sources: tuple[DataConfig, Path], tmp_path: Path) -> None:
    import shutil

    shutil.copytree(two_sources[1], tmp_path / "set")
    shard = tmp_path / "set" / "big" / "train" / "shard.00000.mds"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # in the shard's last window
    shard.write_bytes(bytes(data))
    windows = Windows(tmp_path / "set", "train")
    with StepLoader(windows, lambda step: [[2 * step, 2 * step + 1]], 0, len(windows) // 2, workers=0, skip_damaged=True) as loader:
        batches = [batch for _, micro_batches in loader for batch in micro_batches]
    (damaged,) = [batch for batch in batches if batch.damaged]
    ((sample, fault),) = damaged.damaged.items()
    assert "shard.00000.mds is damaged" in fault and "other tokens than were written" in fault
    assert len(damaged.ids) == len(damaged.tokens_BT) == 1 and sample not in damaged.ids
    assert sum(len(batch.ids) for batch in batches) == len(windows) // 2 * 2 - 1
