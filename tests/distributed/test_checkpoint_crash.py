"""A writer that dies at any system call, and a writer of a dead group that lives on: the next start finds whole checkpoints only."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hooked_storage import Gate, HookedStorage
from small_model import SmallModel
from test_checkpoint import ALONE, hand_made
from test_checkpoint_saver import values

from distributed import checkpoint
from distributed.checkpoint import Meta, Saver, checkpoint_path, commit, disk_file, list_checkpoints, local_storage
from distributed.checkpoint.fence import current_fence, raise_fence, sees_fence
from distributed.checkpoint.local_storage import LocalStorage
from distributed.errors import RunError

META = Meta(applied_steps=1, tokens=9)
WATCHED = ("open", "write", "fsync", "replace", "link", "listdir")


class DyingSystem:
    """The `os` module, until its `number`-th watched call: that kills the process, a write after half of its bytes."""

    def __init__(self, number: int) -> None:
        self._left = number

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        return self._counted(name, call) if name in WATCHED else call

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                if name == "write":
                    call(arguments[0], arguments[1][: len(arguments[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)

        return counted


def start_and_save(folder: Path, step: int, fill: float) -> None:
    """What rank 0 does from a start to the first commit and the deletions after it."""
    storage = LocalStorage(folder)
    fence = raise_fence(storage)
    saver = Saver(storage, ALONE, fence, after_commit=lambda: checkpoint.retain(storage, keep_last=1), report=lambda message: None)
    saver.save(step, hand_made(SmallModel(ALONE), fill), {}, META)
    saver.close()


def dies(folder: Path, number: int) -> bool:
    """Start and save in a process that ends at its `number`-th system call; False when it came to its end before."""
    child = os.fork()
    if child == 0:
        local_storage.os = disk_file.os = DyingSystem(number)  # type: ignore[attr-defined,assignment]
        try:
            start_and_save(folder, 20, 2.0)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that can be: a kill loses no page of the kernel's, so a disk would only be slower."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else tmp_path) as folder:
        yield Path(folder)


def test_killed_at_every_system_call(memory_folder: Path) -> None:
    start_and_save(memory_folder / "base", 10, 1.0)
    number, found_after = 0, set()
    died = True
    while died:
        number += 1
        folder = shutil.copytree(memory_folder / "base", memory_folder / str(number))
        died = dies(folder, number)
        said: list[str] = []
        found = checkpoint.newest(folder, report=said.append)
        assert found is not None and said == [], f"call {number}: a kill made a damaged checkpoint"
        assert (found.name, values(folder, int(found.name[5:]))) in (("step-00000010", [1.0]), ("step-00000020", [2.0]))
        found_after.add(found.name)
        fence = raise_fence(LocalStorage(folder))
        left = {path.name for path in folder.iterdir()}
        assert left <= {f"fence-{fence:08d}", "step-00000010", "step-00000020"}, f"call {number}: debris after the next start"
        assert left >= {f"fence-{fence:08d}", found.name}
    assert number > 20 and found_after == {"step-00000010", "step-00000020"}


def late_writer(folder: Path, gate: Gate) -> Saver:
    """A group whose writer stands at `gate` with checkpoint 20."""
    storage = LocalStorage(folder)
    saver = Saver(HookedStorage(storage, gate), ALONE, raise_fence(storage), report=lambda message: None)
    saver.save(20, hand_made(SmallModel(ALONE), 2.0), {}, META)
    assert gate.reached.wait(60)
    return saver


@pytest.mark.parametrize("held_at", [("write", "rank-"), ("write", "part-"), ("create", "manifest")])
def test_a_late_writer_of_a_dead_group_commits_nothing(tmp_path: Path, held_at: tuple[str, str]) -> None:
    start_and_save(tmp_path, 10, 1.0)
    gate = Gate(*held_at)
    late = late_writer(tmp_path, gate)
    start_and_save(tmp_path, 20, 3.0)
    gate.opened.set()
    with pytest.raises(RunError, match=r"start 3 of this run has taken over from start 2; this group of processes ends"):
        late.close()
    assert checkpoint.newest(tmp_path) is not None and values(tmp_path, 20) == [3.0]
    assert len(list(checkpoint_path(tmp_path, 20).iterdir())) == 2


@pytest.mark.parametrize("new_group", ["nothing", "has written", "has committed"])
def test_taken_over_between_the_last_check_and_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_group: str) -> None:
    """The narrowest place: the late writer has seen that nobody took over, and has only to take the manifest's name."""
    reached, opened = threading.Event(), threading.Event()

    def slow_check(storage: Any) -> int:
        number = current_fence(storage)
        reached.set()
        assert opened.wait(60)
        return number

    late = Saver(LocalStorage(tmp_path), ALONE, raise_fence(LocalStorage(tmp_path)), report=lambda message: None)
    monkeypatch.setattr(commit, "current_fence", slow_check)
    late.save(20, hand_made(SmallModel(ALONE), 2.0), {}, META)
    assert reached.wait(60)
    monkeypatch.setattr(commit, "current_fence", current_fence)
    storage = LocalStorage(tmp_path)
    fence = raise_fence(storage)
    gate = Gate("create", "manifest")
    new = Saver(HookedStorage(storage, gate), ALONE, fence)
    if new_group != "nothing":
        new.save(20, hand_made(SmallModel(ALONE), 3.0), {}, META)
        assert gate.reached.wait(60)
    if new_group == "has committed":
        gate.opened.set()
        new.close()
    opened.set()
    late.finish()
    assert [event["kind"] for event in late.events] == ["failed"]
    gate.opened.set()
    new.close()
    if new_group == "nothing":
        assert list(list_checkpoints(tmp_path)) == []
    else:
        assert checkpoint.newest(tmp_path) is not None and values(tmp_path, 20) == [3.0]


def test_a_late_commit_deletes_nothing_of_the_next_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the name just before the take-over; its deletions would come after."""
    start_and_save(tmp_path, 10, 1.0)
    storage = LocalStorage(tmp_path)
    create = LocalStorage.create

    def taken_over_after(self: LocalStorage, name: str, *arguments: Any) -> bool:
        taken = create(self, name, *arguments)
        if name.endswith("manifest.json"):
            monkeypatch.setattr(LocalStorage, "create", create)
            raise_fence(storage)
        return taken

    monkeypatch.setattr(LocalStorage, "create", taken_over_after)
    start_and_save(tmp_path, 20, 2.0)
    assert list(list_checkpoints(tmp_path)) == [10, 20], "keep_last is 1, but the next group may go on from 10"


def test_what_a_dead_group_commits_late_is_not_taken_for_done(tmp_path: Path) -> None:
    """In an object store a manifest may arrive after the next group cleared the files that it names."""
    start_and_save(tmp_path, 10, 1.0)
    shutil.copytree(tmp_path / "step-00000010", tmp_path / "held")
    said: list[str] = []
    storage = LocalStorage(tmp_path)
    new = Saver(storage, ALONE, raise_fence(storage), report=said.append)
    new.newest = 10
    shutil.copytree(tmp_path / "held", tmp_path / "step-00000020")
    new.save(20, hand_made(SmallModel(ALONE), 3.0), {}, META)
    new.close()
    assert values(tmp_path, 20) == [3.0] and (tmp_path / "step-00000020.late").is_dir()
    assert "committed late by a group that was replaced" in said[0]


def test_numbers_rise_and_leave_one_name(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "checkpoints")
    assert [raise_fence(storage) for _ in range(3)] == [1, 2, 3]
    assert storage.names() == ["fence-00000003"] and current_fence(storage) == 3
    assert sees_fence(storage, 3) and not sees_fence(LocalStorage(tmp_path / "elsewhere"), 3, seconds=0.0)
