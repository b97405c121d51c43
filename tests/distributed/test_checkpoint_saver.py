"""Saving beside training: what is written is what was there, one save at a time, and a failure costs one checkpoint."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hooked_storage import Gate, HookedStorage
from pool import Pool
from small_model import SmallModel
from small_run import recipe_values, write_corpus
from test_checkpoint import ALONE, hand_made, logical

from distributed import checkpoint
from distributed.checkpoint import Meta, Saver, checkpoint_path, list_checkpoints
from distributed.checkpoint import saver as saver_module
from distributed.checkpoint.local_storage import LocalStorage
from distributed.checkpoint.retention import reading
from distributed.checkpoint.storage import Checkpoint
from distributed.errors import RunError
from distributed.fragment import Fragment

META = Meta(applied_steps=1, tokens=9)


def state(fill: float) -> list[Fragment]:
    return hand_made(SmallModel(ALONE), fill)


def values(folder: Path, step: int) -> list[float]:
    """What the entries of a checkpoint are."""
    return sorted({float(entry) for tensor in logical(checkpoint_path(folder, step)).values() for entry in tensor.unique()})


def test_training_goes_on_while_the_state_of_the_save_is_written(tmp_path: Path) -> None:
    gate = Gate("write", "rank-")
    saver = Saver(HookedStorage(LocalStorage(tmp_path), gate), ALONE)
    fragments = state(1.0)
    saver.save(10, fragments, {}, META)
    assert gate.reached.wait(60)
    saver.settle()
    for fragment in fragments:
        for view in fragment.tensors.values():
            view.fill_(2.0)
    saver.poll()
    assert saver.newest is None and saver.events == [] and list_checkpoints(tmp_path) == {}
    gate.opened.set()
    saver.close()
    assert values(tmp_path, 10) == [1.0]
    assert saver.newest == 10 and [(event["kind"], event["step"]) for event in saver.events] == [("committed", 10)]


@pytest.mark.parametrize("engine", ["deepspeed", "plain"])
def test_a_run_settles_a_save_before_the_optimizer_changes_what_it_holds(pool: Pool, tmp_path: Path, engine: str) -> None:
    write_corpus(tmp_path)
    digests = []
    for asynchronous in (False, True):
        name = f"asynchronous-{asynchronous}"
        values = recipe_values(tmp_path, steps=4, engine=engine)
        values |= {"name": name, "expert_parallel": {"size": 1}, "checkpoint": {"every": 2, "asynchronous": asynchronous}}
        values["data"]["loader_workers"] = 0
        assert pool.run(1, "checkpoint_saver_work:train_while_a_save_is_held", home=str(tmp_path), values=values) == ["finished"]
        manifest = checkpoint.read_manifest(checkpoint_path(tmp_path / "runs" / name / "checkpoints", 2))
        digests.append([record.digest for record in manifest.files.values()])
    assert digests[0] == digests[1]


def test_a_save_waits_for_the_one_before_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver_module, "MENTION_SECONDS", 0.0)
    gate, said = Gate("write", "step-00000010/rank-"), []
    saver = Saver(HookedStorage(LocalStorage(tmp_path), gate), ALONE, report=said.append)
    saver.save(10, state(1.0), {}, META)
    finish = saver.finish

    def open_then_finish() -> None:
        gate.opened.set()
        finish()

    monkeypatch.setattr(saver, "finish", open_then_finish)
    saver.save(20, state(2.0), {}, META)
    saver.close()
    assert len(said) == 1 and "checkpoint of step 10 was still being written when step 20 was due: training waited" in said[0]
    assert [event["kind"] for event in saver.events] == ["committed", "waited", "committed"]
    assert values(tmp_path, 10) == [1.0] and values(tmp_path, 20) == [2.0], "the second snapshot did not touch the first"


class Forgetful(HookedStorage):
    """Takes the manifest's name, then fails or says that the name was taken, as a store whose answer was lost and that is asked again."""

    answer: bool | OSError = False

    def create(self, name: str, content: bytes, last_check: Any = lambda: None) -> bool:
        taken = super().create(name, content, last_check)
        if isinstance(self.answer, OSError):
            raise self.answer
        return taken and self.answer


@pytest.mark.parametrize("answer", [False, OSError(errno.EIO, "the disk did not answer")])
def test_a_commit_whose_answer_was_lost_is_one(tmp_path: Path, answer: bool | OSError) -> None:
    storage = Forgetful(LocalStorage(tmp_path))
    storage.answer = answer
    saver = Saver(storage, ALONE, fence=1)
    saver.save(10, state(1.0), {}, META)
    saver.close()
    assert saver.newest == 10 and values(tmp_path, 10) == [1.0] and checkpoint.newest(tmp_path) is not None


def test_a_full_disk_costs_one_checkpoint(tmp_path: Path) -> None:
    storage, said = HookedStorage(LocalStorage(tmp_path)), []
    saver = Saver(storage, ALONE, report=said.append, after_commit=lambda: checkpoint.retain(tmp_path, keep_last=1))
    saver.save(10, state(1.0), {}, META)
    saver.finish()
    storage.full_for = lambda name: "step-00000020/rank" in name
    saver.save(20, state(2.0), {}, META)
    saver.finish()
    saver.poll()
    expected = f"checkpoint of step 20 was not saved: [Errno {errno.ENOSPC}] No space left on device; training goes on"
    assert len(said) == 1 and said[0].startswith(expected)
    assert list(list_checkpoints(tmp_path)) == [10] and values(tmp_path, 10) == [1.0], "the one before stays"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"], "nothing half-written stays"
    saver.save(30, state(3.0), {}, META)
    saver.close()
    assert list(list_checkpoints(tmp_path)) == [30]
    assert [(event["kind"], event["step"]) for event in saver.events] == [("committed", 10), ("failed", 20), ("committed", 30)]


def test_the_end_does_not_hide_that_the_last_save_failed(tmp_path: Path) -> None:
    storage = HookedStorage(LocalStorage(tmp_path))
    saver = Saver(storage, ALONE, report=lambda message: None)
    storage.full_for = lambda name: True
    saver.save(10, state(1.0), {}, META)
    with pytest.raises(RunError, match=r"cannot be written: \[Errno 28\] No space left on device; make room"):
        saver.close()


def test_the_user_is_told_between_saves(tmp_path: Path) -> None:
    """Not at the next save, which may be an hour away."""
    storage, said = HookedStorage(LocalStorage(tmp_path)), []
    saver = Saver(storage, ALONE, report=said.append)
    storage.full_for = lambda name: True
    saver.save(10, state(1.0), {}, META)
    assert saver._writing is not None and saver._writing.written.wait(60)
    saver.poll()
    saver.poll()
    assert len(said) == 1 and "step 10 was not saved" in said[0]


def test_synchronous_writes_the_same_bytes_and_is_done_on_return(tmp_path: Path) -> None:
    digests = []
    for asynchronous in (True, False):
        torch.manual_seed(3)
        saver = Saver(LocalStorage(tmp_path / str(asynchronous)), ALONE, asynchronous=asynchronous)
        saver.save(1, hand_made(SmallModel(ALONE)), {"mean": torch.arange(3.0)}, META)
        if asynchronous:
            saver.close()
        digests.append(checkpoint.read_manifest(checkpoint_path(tmp_path / str(asynchronous), 1)).files)
    assert digests[0] == digests[1]


def test_the_host_copy_is_reused(tmp_path: Path) -> None:
    saver = Saver(LocalStorage(tmp_path), ALONE, asynchronous=False)
    places = []
    for step in (1, 2, 3):
        saver.save(step, state(float(step)), {}, META)
        places.append(saver._buffer._block.data_ptr())
    assert len(set(places)) == 1
    assert [values(tmp_path, step) for step in (1, 2, 3)] == [[1.0], [2.0], [3.0]]


def test_what_is_being_read_is_kept(tmp_path: Path) -> None:
    saver = Saver(LocalStorage(tmp_path), ALONE, asynchronous=False)
    for step in (1, 2, 3):
        saver.save(step, state(float(step)), {}, META)
    with reading(Checkpoint.at(checkpoint_path(tmp_path, 1))):
        assert checkpoint.retain(tmp_path, keep_last=1) == [2]
        assert values(tmp_path, 1) == [1.0]
    assert checkpoint.retain(tmp_path, keep_last=1) == [1]


def test_no_collective_leaves_the_training_thread(pool: Pool, tmp_path: Path) -> None:
    results = pool.run(2, "checkpoint_saver_work:collectives_of_saves", folder=str(tmp_path))
    assert results[0]["order"] == results[1]["order"] and len(results[0]["order"]) > 0
    assert all(result["threads"] == [threading.main_thread().name] for result in results)
    assert [result["newest"] for result in results] == [2, 2]


@pytest.mark.parametrize("mark_too", [False, True])
def test_one_rank_of_two_has_no_room(pool: Pool, tmp_path: Path, mark_too: bool) -> None:
    """Also when it has no room for the mark that would say so."""
    results: list[Any] = pool.run(2, "checkpoint_saver_work:rank_1_without_room", folder=str(tmp_path), mark_too=mark_too)
    first, second = results
    assert [(event["kind"], event["step"]) for event in first["events"] if event["kind"] != "waited"] == [
        ("committed", 1),
        ("failed", 2),
        ("committed", 3),
    ]
    assert any("step 2 was not saved" in message and ("rank 1" in message or mark_too) for message in first["said"])
    assert any("No space left" in message for message in second["said"])
    assert first["newest"] == second["newest"] == 3
    assert first["steps"] == [1, 3] and first["names"] == ["step-00000001", "step-00000003"]
    assert [result["raised"] for result in results] == [True, True], "the last save failed, on all ranks"
