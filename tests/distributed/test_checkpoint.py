"""Checkpoints: any layout into any other, bit for bit; damage is noticed; nothing superfluous is kept or written."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pool import Pool
from small_model import SmallModel
from torch import Tensor

from distributed import checkpoint
from distributed.checkpoint import Checkpoint, Manifest, Meta
from distributed.checkpoint.local_storage import LocalStorage
from distributed.checkpoint.reader import Reader
from distributed.errors import RunError
from distributed.fragment import Fragment
from distributed.topology import Topology
from model.sharding import Box

ALONE = Topology(0, 1, 0, 1, torch.device("cpu"), "gloo", None, None, None)
STATES = ("master", "exp_avg", "exp_avg_sq")


def logical(path: Path) -> dict[tuple[str, str], Tensor]:
    """Every global tensor of a checkpoint, by state and name."""
    reader = Reader(path)
    tensors: dict[tuple[str, str], Tensor] = {}
    for name, shape in reader.manifest.shapes().items():
        box = Box.whole(shape)
        views = {state: torch.full((torch.Size(shape).numel(),), torch.nan) for state in STATES}
        reader.fill(Fragment(name, box, 0, torch.Size(shape).numel(), views))
        tensors |= {(state, name): view for state, view in views.items()}
    return tensors


def written(folder: Path, step: int, width: int = 6, fill: float | None = None) -> Path:
    """A checkpoint of the small model written by one process, with random or constant tensors."""
    fragments = hand_made(SmallModel(ALONE, width=width), fill)
    buffers = {"running_mean": torch.arange(4.0)}
    meta = Meta(applied_steps=step, tokens=9, data={"epoch": 1}, metrics={"loss": 2.5, "worst": float("nan")})
    checkpoint.save(folder, step, fragments, buffers, meta, ALONE)
    return checkpoint.checkpoint_path(folder, step)


def hand_made(model: SmallModel, fill: float | None = None) -> list[Fragment]:
    boxes = model.boxes()
    fragments = []
    for name, parameter in model.named_parameters():
        views = {state: torch.randn(parameter.numel()) if fill is None else torch.full((parameter.numel(),), fill) for state in STATES}
        fragments.append(Fragment(name, boxes[name], 0, parameter.numel(), views))
    return fragments


@pytest.mark.parametrize(("world", "expert_parallel", "zero_stage"), [(1, 1, 1), (2, 2, 2)])
def test_resume_is_exact(pool: Pool, tmp_path: Path, world: int, expert_parallel: int, zero_stage: int) -> None:
    layout: dict[str, Any] = {
        "expert_parallel": expert_parallel,
        "zero_stage": zero_stage,
        "engine": "plain" if world == 1 else "deepspeed",
    }
    straight = pool.run(world, "checkpoint_work:resume_and_train", folder=None, first=0, last=5, **layout)
    pool.run(world, "checkpoint_work:train_and_save", folder=str(tmp_path), steps=3, **layout)
    resumed = pool.run(world, "checkpoint_work:resume_and_train", folder=str(tmp_path), first=3, last=5, **layout)
    for left, right in zip(straight, resumed, strict=True):
        for before, after in zip(left, right, strict=True):
            assert before["name"] == after["name"]
            assert all(torch.equal(before[state], after[state]) for state in STATES)


def test_files_hold_each_entry_once(tmp_path: Path) -> None:
    """12 bytes a parameter, also when fragments are views into something larger."""
    storage = torch.randn(3, 1_000_000)
    views = {state: storage[row, 1000:201_000] for row, state in enumerate(STATES)}
    checkpoint.save(tmp_path, 1, [Fragment("w", Box.whole((200_000,)), 0, 200_000, views)], {}, Meta(applied_steps=1, tokens=0), ALONE)
    size = sum(file.stat().st_size for file in checkpoint.checkpoint_path(tmp_path, 1).iterdir())
    assert size <= 1.02 * 12 * 200_000


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    model = SmallModel(ALONE)
    saved = hand_made(model)
    torch.manual_seed(5)
    path = checkpoint.save(tmp_path, 7, saved, {"running_mean": torch.arange(4.0)}, Meta(applied_steps=6, tokens=70), ALONE)
    drawn = torch.rand(3)
    fresh, buffers = hand_made(model, fill=0.0), {"running_mean": torch.zeros(4)}
    manifest = checkpoint.load(path, fresh, model.boxes(), buffers, ALONE)
    assert torch.equal(torch.rand(3), drawn)
    assert torch.equal(buffers["running_mean"], torch.arange(4.0))
    assert (manifest.step, manifest.meta.applied_steps, manifest.meta.tokens) == (7, 6, 70)
    for before, after in zip(saved, fresh, strict=True):
        assert all(torch.equal(before.tensors[state], after.tensors[state]) for state in STATES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_parameters_alone(tmp_path: Path, dtype: torch.dtype) -> None:
    model = SmallModel(ALONE)
    fragments = hand_made(model)
    saved = {fragment.name: fragment.tensors["master"] for fragment in fragments}
    path = checkpoint.save(tmp_path, 1, fragments, {}, Meta(applied_steps=1, tokens=0), ALONE)
    other = SmallModel(ALONE, seed=1).to(dtype)
    checkpoint.load_parameters(path, other)
    assert all(torch.equal(parameter.flatten(), saved[name].to(dtype)) for name, parameter in other.named_parameters())


def truncate(path: Path) -> None:
    file = next(path.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    file = next(path.glob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_a_file(path: Path) -> None:
    next(path.glob("*.safetensors")).unlink()


def edit_manifest(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"tokens": 9', '"tokens": 8'))


def cut_manifest(path: Path) -> None:
    file = path / "manifest.json"
    file.write_text(file.read_text()[:100])


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, lose_a_file, edit_manifest, cut_manifest])
def test_damaged_newest_is_set_aside(tmp_path: Path, damage: Any) -> None:
    older, newer = written(tmp_path, 10), written(tmp_path, 20)
    damage(newer)
    said: list[str] = []
    assert checkpoint.newest(tmp_path, report=said.append) == Checkpoint.at(older)
    assert "step-00000020 is damaged" in said[0]
    assert "step-00000020.damaged" in said[1]
    assert (tmp_path / "step-00000020.damaged").is_dir()
    assert checkpoint.newest(tmp_path, report=said.append) == Checkpoint.at(older)
    assert len(said) == 2
    with pytest.raises(RunError, match="no checkpoint of step 20"):
        checkpoint.chosen(tmp_path, 20)


def test_what_cannot_be_read_now_is_not_damaged(tmp_path: Path) -> None:
    written(tmp_path, 10)

    class Refusing(LocalStorage):
        def read(self, name: str, *part: Any) -> bytes:
            raise PermissionError(13, "Permission denied", name)

    with pytest.raises(OSError, match=r"step-00000010 cannot be read, and nothing was set aside: .*Permission denied"):
        checkpoint.newest(Refusing(tmp_path))
    assert list(checkpoint.list_checkpoints(tmp_path)) == [10]


def test_all_ranks_take_the_same_one(pool: Pool, tmp_path: Path) -> None:
    """The damage is in a file that only one rank reads."""
    folder = str(tmp_path)
    pool.run(2, "checkpoint_work:train_and_save", folder=folder, expert_parallel=1, steps=1)
    pool.run(2, "checkpoint_work:train_and_save", folder=folder, expert_parallel=1, steps=2)
    flip_a_bit_of = tmp_path / "step-00000002" / "rank-00001-of-00002.safetensors"
    content = bytearray(flip_a_bit_of.read_bytes())
    content[-1] ^= 1
    flip_a_bit_of.write_bytes(content)
    results = pool.run(2, "checkpoint_work:newest_of_damaged", folder=folder)
    assert [name for name, _ in results] == ["step-00000001"] * 2
    assert "set aside" in results[0][1][0] and "digest" in results[1][1][0]


def test_half_written_is_no_checkpoint(tmp_path: Path) -> None:
    older, newer = written(tmp_path, 10), written(tmp_path, 20)
    (newer / "manifest.json").unlink()
    assert checkpoint.newest(tmp_path) == Checkpoint.at(older)
    assert list(checkpoint.list_checkpoints(tmp_path)) == [10]
    (newer / "rank-00007-of-00008.safetensors").write_bytes(b"left by a larger world")
    again = written(tmp_path, 20)
    assert checkpoint.newest(tmp_path) == Checkpoint.at(again)
    assert sorted(file.name for file in again.iterdir()) == ["manifest.json", "rank-00000-of-00001.safetensors"]


def test_failed_write_is_one_message_on_all_ranks(pool: Pool, tmp_path: Path) -> None:
    messages = pool.run(2, "checkpoint_work:save_where_impossible", folder=str(tmp_path))
    assert all(message.startswith("RunError: checkpoint") and "cannot be written" in message for message in messages)
    assert checkpoint.newest(tmp_path) is None


def test_whole_checkpoint_is_not_written_again(tmp_path: Path) -> None:
    path = written(tmp_path, 10, fill=1.0)
    assert written(tmp_path, 10, fill=2.0) == path
    assert logical(path)["master", "mix.bias"].unique().tolist() == [1.0]


def test_retention(tmp_path: Path) -> None:
    whole = written(tmp_path, 1)
    for step in (2, 3, 4, 5, 6, 7, 8, 9):
        shutil.copytree(whole, checkpoint.checkpoint_path(tmp_path, step))
    (checkpoint.checkpoint_path(tmp_path, 2) / "manifest.json").unlink()  # half-written long ago
    (checkpoint.checkpoint_path(tmp_path, 9) / "manifest.json").unlink()  # perhaps being written now
    assert checkpoint.retain(tmp_path, keep_last=2, keep_every=4) == [1, 2, 3, 5, 6]
    assert list(checkpoint.list_checkpoints(tmp_path)) == [4, 7, 8]
    assert checkpoint.checkpoint_path(tmp_path, 9).is_dir()
    assert checkpoint.retain(tmp_path, keep_last=1) == [4, 7]


def test_other_model_names_the_first_difference(tmp_path: Path) -> None:
    path = written(tmp_path, 1)
    boxes = SmallModel(ALONE, width=6).boxes()
    with pytest.raises(RunError, match=r"'bank_EDD' has shape \[3, 6, 6\] there and \[4, 6, 6\] here; resume with the recipe"):
        checkpoint.load(path, [], SmallModel(ALONE, n_experts=4, width=6).boxes(), {}, ALONE)
    with pytest.raises(RunError, match="it has no 'extra'"):
        checkpoint.load(path, [], boxes | {"extra": Box.whole((1,))}, {}, ALONE)
    with pytest.raises(RunError, match=r"it has 'mix\.bias', which this model has not"):
        checkpoint.load(path, [], {name: box for name, box in boxes.items() if name != "mix.bias"}, {}, ALONE)
    with pytest.raises(RunError, match="buffer 'other' is not there"):
        checkpoint.load(path, [], boxes, {"running_mean": torch.zeros(4), "other": torch.zeros(1)}, ALONE)
    with pytest.raises(RunError, match="it has 'running_mean', which this model has not"):
        checkpoint.load(path, [], boxes, {}, ALONE)


def test_other_optimizer_is_refused(tmp_path: Path) -> None:
    model = SmallModel(ALONE)
    without_moments = [Fragment(f.name, f.box, f.start, f.stop, {"master": f.tensors["master"]}) for f in hand_made(model)]
    path = checkpoint.save(tmp_path, 1, without_moments, {}, Meta(applied_steps=1, tokens=0), ALONE)
    with pytest.raises(RunError, match=r"no 'exp_avg' of 'unread'.*train\.optimizer"):
        checkpoint.load(path, hand_made(model), model.boxes(), {}, ALONE)


def test_manifest_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    body = json.loads((written(tmp_path, 1) / "manifest.json").read_text())["manifest"]
    body["files"] = {"../secret.safetensors": next(iter(body["files"].values()))}
    with pytest.raises(ValueError, match="not a checkpoint file's name"):
        Manifest.model_validate(body)


def rewrite_manifest(path: Path, **changes: Any) -> None:
    body = json.loads((path / "manifest.json").read_text())["manifest"] | changes
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps({"manifest": body, "sha256": digest}))


def test_other_formats(tmp_path: Path) -> None:
    """The first format is read and verified; a later one is named, and not taken for damage."""
    path = written(tmp_path, 1)
    content = (path / "rank-00000-of-00001.safetensors").read_bytes()
    files = {"rank-00000-of-00001.safetensors": {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    rewrite_manifest(path, format=1, files=files)
    assert checkpoint.newest(tmp_path) == Checkpoint.at(path)
    rewrite_manifest(path, format=3)
    with pytest.raises(RunError, match="has format 3, this Mootron reads up to 2; use a later one"):
        checkpoint.newest(tmp_path)
    assert path.is_dir()
