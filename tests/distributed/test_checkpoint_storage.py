"""The same checkpoints in a folder, in memory and in an object store that cannot rename; and addresses that nothing serves."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from hooked_storage import S3LikeFileSystem
from small_model import SmallModel
from test_checkpoint import ALONE, STATES, hand_made

from distributed import checkpoint
from distributed.checkpoint import Meta, Saver, Storage, open_storage
from distributed.checkpoint.folder import set_aside
from distributed.errors import RunError

META = Meta(applied_steps=1, tokens=9)


@pytest.fixture(params=["file", "memory", "s3like"])
def storage(request: Any, tmp_path: Path) -> Iterator[Storage]:
    fsspec.register_implementation("s3like", S3LikeFileSystem, clobber=True)
    address = {"file": f"file://{tmp_path}/runs", "memory": f"memory://{tmp_path}/runs", "s3like": "s3like://bucket/runs"}
    yield open_storage(address[request.param])
    S3LikeFileSystem.store.clear()
    S3LikeFileSystem.failing.clear()


def test_names_have_one_winner(storage: Storage) -> None:
    assert storage.names() == [] and storage.names("nothing") == []
    storage.write("folder/a", [b"12", memoryview(b"345")])
    assert storage.create("folder/b", b"first")
    assert not storage.create("folder/b", b"second")
    assert storage.names() == ["folder"] and storage.names("folder") == ["a", "b"]
    assert (storage.read("folder/a"), storage.read("folder/a", 1, 4), storage.size("folder/a")) == (b"12345", b"234", 5)
    assert storage.read("folder/b") == b"first"
    into = bytearray(3)
    storage.read_into("folder/a", 1, memoryview(into))
    assert into == b"234"
    with pytest.raises(OSError, match="ends at byte 5, before 6"):
        storage.read_into("folder/a", 3, memoryview(into))
    storage.write("folder/a", [b"6"])
    assert storage.read("folder/a") == b"6"
    storage.move("folder", "other")
    assert storage.names("other") == ["a", "b"] and not storage.exists("folder/a")
    storage.remove("other/a")
    storage.remove("other/a")
    assert storage.names("other") == ["b"] and storage.exists("other/b")
    storage.remove_folder("other")
    assert not storage.exists("other/b") and storage.names() == []


def test_a_refused_last_check_leaves_the_name_free(storage: Storage) -> None:
    storage.write("folder/a", [b""])

    def refuse() -> None:
        raise KeyError("no")

    with pytest.raises(KeyError):
        storage.create("folder/b", b"content", refuse)
    assert storage.names("folder") == ["a"]


def test_a_failing_write_leaves_nothing(storage: Storage) -> None:
    def breaking() -> Iterator[bytes]:
        yield b"half"
        raise OSError("the source broke")

    with pytest.raises(OSError, match="the source broke"):
        storage.write("folder/a", breaking())
    assert storage.names("folder") == []


def test_a_checkpoint_goes_and_comes(storage: Storage) -> None:
    """Saved, verified, loaded, kept within bounds, damaged and set aside."""
    model = SmallModel(ALONE)
    fence = checkpoint.raise_fence(storage)
    saver = Saver(storage, ALONE, fence, after_commit=lambda: checkpoint.retain(storage, keep_last=2))
    saved = [hand_made(model) for _ in range(3)]
    for step, fragments in enumerate(saved, start=1):
        saver.save(step, fragments, {"running_mean": torch.arange(4.0)}, META)
    saver.close()
    assert list(checkpoint.list_checkpoints(storage)) == [2, 3]
    found = checkpoint.newest(storage)
    assert found is not None and found.name == "step-00000003"
    fresh, buffers = hand_made(model, fill=0.0), {"running_mean": torch.zeros(4)}
    checkpoint.load(found, fresh, model.boxes(), buffers, ALONE)
    assert torch.equal(buffers["running_mean"], torch.arange(4.0))
    for before, after in zip(saved[2], fresh, strict=True):
        assert all(torch.equal(before.tensors[state], after.tensors[state]) for state in STATES)
    storage.write(found.file("rank-00000-of-00001-f1.safetensors"), [b"damage"])
    said: list[str] = []
    again = checkpoint.newest(storage, report=said.append)
    assert again is not None and again.name == "step-00000002"
    assert "6 bytes instead of" in said[0] and "step-00000003.damaged" in said[1]
    assert "step-00000003.damaged" in storage.names()


def test_set_aside_takes_a_free_name(storage: Storage) -> None:
    for _ in range(2):
        checkpoint.save(storage, 1, hand_made(SmallModel(ALONE)), {}, META, ALONE)
        set_aside(checkpoint.list_checkpoints(storage)[1], "damaged")
    assert storage.names() == ["step-00000001.damaged", "step-00000001.damaged-2"]


def test_an_upload_that_fails_costs_one_checkpoint() -> None:
    fsspec.register_implementation("s3like", S3LikeFileSystem, clobber=True)
    storage = open_storage("s3like://bucket/flaky")
    said: list[str] = []
    saver = Saver(storage, ALONE, checkpoint.raise_fence(storage), report=said.append)
    saver.save(1, hand_made(SmallModel(ALONE)), {}, META)
    saver.finish()
    S3LikeFileSystem.failing.add("step-00000002/manifest")
    saver.save(2, hand_made(SmallModel(ALONE)), {}, META)
    saver.finish()
    S3LikeFileSystem.failing.clear()
    saver.save(3, hand_made(SmallModel(ALONE)), {}, META)
    saver.close()
    assert list(checkpoint.list_checkpoints(storage)) == [1, 3]
    assert storage.names("step-00000002") == []
    assert said == [
        "checkpoint of step 2 was not saved: 503 Slow Down; training goes on, the checkpoints before are kept and the next save is "
        "tried as usual"
    ]


def test_addresses_that_nothing_serves() -> None:
    with pytest.raises(RunError, match=r"checkpoint.address is 'gs://bucket/x', which needs a package: pip install gcsfs"):
        open_storage("gs://bucket/x")
    with pytest.raises(RunError, match=r"checkpoint\.address is 'floppy://a'"):
        open_storage("floppy://a")
    with pytest.raises(RunError, match="which is no absolute path; write file:///data"):
        open_storage("file://relative")


def test_a_disk_that_is_full_for_real(tmp_path: Path) -> None:
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(tmp_path)], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"no small disk can be mounted here: {mount.stderr.strip()}")
    try:
        storage = open_storage(str(tmp_path))
        said: list[str] = []
        saver = Saver(storage, ALONE, checkpoint.raise_fence(storage), report=said.append)
        state = hand_made(SmallModel(ALONE, width=170))  # 1.7 MB
        for step in (1, 2):
            saver.save(step, state, {}, META)
        saver.finish()
        assert len(said) == 1 and "step 2 was not saved" in said[0] and "No space left on device" in said[0]
        assert list(checkpoint.list_checkpoints(storage)) == [1] and "step-00000002" not in storage.names()
        subprocess.run(["mount", "-o", "remount,size=30m", str(tmp_path)], check=True)
        saver.save(3, state, {}, META)
        saver.close()
        assert list(checkpoint.list_checkpoints(storage)) == [1, 3]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
