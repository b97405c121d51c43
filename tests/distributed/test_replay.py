"""Choices written by one layout and read by another; what is missing is refused by name.

Choices are [B*T, K] or [B*T, H, K], as the model's records hold them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from distributed.errors import RunError
from distributed.recipe import Recipe
from distributed.recipe_file import load_recipe
from distributed.replay import ChoiceReader, ChoiceWriter, NoReplay, open_replay
from distributed.run_folder import RunFolder
from distributed.topology import Topology

T, VISITS = 3, 2
CPU = torch.device("cpu")
ALONE = Topology(0, 1, 0, 1, CPU, "gloo", None, None, None)


def choices_of(sample: int, visit: int, n_experts: int) -> dict[str, Tensor]:
    """What a sample chooses on a visit: a function of both, so that any layout can be checked."""
    generator = torch.Generator().manual_seed(sample * 10 + visit)
    return {
        "feed_forward": torch.randint(n_experts, (T, 4), generator=generator),
        "attention.value": torch.randint(5, (T, 2, 2), generator=generator),
    }


def records_of(ids: list[int], n_experts: int = 300) -> list[dict[str, Any]]:
    """The records of a micro-batch, with the exchange's part that is not a choice."""
    records: list[dict[str, Any]] = []
    for visit in range(VISITS):
        samples = [choices_of(sample, visit, n_experts) for sample in ids]
        choices = {name: torch.cat([sample[name] for sample in samples]) for name in ("feed_forward", "attention.value")}
        records.append({**choices, "feed_forward.exchange": {"plan": None}})
    return records


def write(folder: Path, step: int, layout: list[list[list[int]]], n_experts: int = 300) -> None:
    """`layout`: ranks of micro-batches of sample ids."""
    for rank, micro_batches in enumerate(layout):
        writer = ChoiceWriter(folder, rank, len(layout))
        for ids in micro_batches:
            writer.keep(step, ids, records_of(ids, n_experts) if ids else [])


def assert_gives(reader: ChoiceReader, step: int, ids: list[int], n_experts: int = 300) -> None:
    found = reader.records(step, ids, [True] * VISITS)
    assert found is not None
    for visit, expected in enumerate(records_of(ids, n_experts)):
        assert set(found[visit]) == {"feed_forward", "attention.value"}
        for name, choice in found[visit].items():
            assert choice.dtype == torch.int64
            assert torch.equal(choice, expected[name])


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(range(8)), cuts=st.lists(st.integers(0, 8), min_size=3, max_size=3))
def test_any_layout_reads_what_another_wrote(tmp_path_factory: pytest.TempPathFactory, order: list[int], cuts: list[int]) -> None:
    folder = tmp_path_factory.mktemp("choices")
    first, second, third = sorted(cuts)
    write(folder, 3, [[order[:first], order[first:second]], [order[second:third], order[third:]]])
    reader = ChoiceReader(folder, CPU)
    for ids in ([0, 1, 2, 3], [7, 4], [5, 6]):
        assert_gives(reader, 3, ids)


@pytest.mark.parametrize(("n_experts", "dtype"), [(256, torch.uint8), (3000, torch.int16), (70_000, torch.int32)])
def test_choices_take_the_smallest_type(tmp_path: Path, n_experts: int, dtype: torch.dtype) -> None:
    writer = ChoiceWriter(tmp_path, 0, 1)
    records = records_of([1], n_experts)
    records[0]["feed_forward"][0, 0] = n_experts - 1
    writer.keep(0, [1], records)
    (path,) = tmp_path.glob("step-*/*.safetensors")
    assert load_file(path)["visit-0000/feed_forward"].dtype == dtype
    found = ChoiceReader(tmp_path, CPU).records(0, [1], [True] * VISITS)
    assert found is not None
    assert int(found[0]["feed_forward"][0, 0]) == n_experts - 1


def test_empty_micro_batch_gets_choices_of_no_tokens(tmp_path: Path) -> None:
    write(tmp_path, 0, [[[1, 2]], [[]]])
    found = ChoiceReader(tmp_path, CPU).records(0, [], [True] * VISITS)
    assert found is not None
    assert found[0]["feed_forward"].shape == (0, 4)
    assert found[0]["attention.value"].shape == (0, 2, 2)


def test_step_run_again_in_another_layout_replaces_the_first(tmp_path: Path) -> None:
    write(tmp_path, 0, [[[1]], [[2]], [[3], [4]]], n_experts=9)
    write(tmp_path, 0, [[[4, 3]], [[2, 1]]], n_experts=300)
    assert_gives(ChoiceReader(tmp_path, CPU), 0, [1, 2, 3, 4], n_experts=300)
    assert len(list(tmp_path.glob("step-*/*"))) == 2


def test_missing_choices_are_named(tmp_path: Path) -> None:
    write(tmp_path, 5, [[[1, 2]]])
    reader = ChoiceReader(tmp_path, CPU)
    with pytest.raises(RunError, match="step 6 was not recorded"):
        reader.records(6, [1], [True] * VISITS)
    with pytest.raises(RunError, match="step 5 has no choices for sample 9"):
        reader.records(5, [1, 9], [True] * VISITS)
    for visits in (1, 3):
        with pytest.raises(RunError, match=f"recorded with 2 visits, the model makes {visits}"):
            reader.records(5, [1], [True] * visits)


def test_visits_that_are_not_made_have_empty_records(tmp_path: Path) -> None:
    made = [True, False, True]
    writer = ChoiceWriter(tmp_path, 0, 1)
    first, last = records_of([1])
    writer.keep(0, [1], [first, {}, last])
    reader = ChoiceReader(tmp_path, CPU)
    found = reader.records(0, [1], made)
    assert found is not None and [bool(record) for record in found] == made
    assert torch.equal(found[2]["feed_forward"], last["feed_forward"])
    with pytest.raises(RunError, match="recorded with 2 visits, the model makes 3"):
        reader.records(0, [1], [True] * 3)


def test_damaged_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 0, [[[1]]])
    (path,) = tmp_path.glob("step-*/*.safetensors")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(RunError, match="damaged"):
        ChoiceReader(tmp_path, CPU).records(0, [1], [True] * VISITS)


def test_half_written_file_is_not_read(tmp_path: Path) -> None:
    write(tmp_path, 0, [[[1]]])
    (tmp_path / "step-00000000" / "00000-of-00001.0001.part").write_bytes(b"half")
    assert_gives(ChoiceReader(tmp_path, CPU), 0, [1])


def open_in(home: Path, recorded: list[str], replaying: list[str], record: bool = True) -> Any:
    """`open_replay` of a run that wants the choices of another; both are quickstarts with overrides."""
    run = RunFolder.named("recorded")
    run.create(quickstart("name=recorded", "router.replay=record", *recorded))
    if record:
        write(run.choices, 0, [[[1]]])
    other = RunFolder.named("replaying")
    recipe = quickstart("name=replaying", "router.replay=use", "router.choices=recorded", *replaying)
    other.create(recipe)
    return open_replay(recipe, other, ALONE)


def quickstart(*overrides: str) -> Recipe:
    return load_recipe(Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml", list(overrides))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOOTRON_HOME", str(tmp_path))
    return tmp_path


def test_replays_a_run_with_another_layout(home: Path) -> None:
    replay = open_in(home, ["expert_parallel.size=2"], ["expert_parallel.size=1", "train.micro_batch=1"])
    assert_gives(replay, 0, [1])


def test_choices_of_another_model_are_refused(home: Path) -> None:
    with pytest.raises(RunError, match=r"another model\.feed_forward"):
        open_in(home, ["model.feed_forward.n_experts=40"], [])
    with pytest.raises(RunError, match=r"another model\.depth"):
        open_in(home, [], ["model.depth.repeats=2"])


def test_run_without_choices_is_refused(home: Path) -> None:
    with pytest.raises(RunError, match="recorded no choices; run it with"):
        open_in(home, [], [], record=False)


def test_off_leaves_choices_to_the_routers(home: Path) -> None:
    replay = open_replay(quickstart(), RunFolder.named("any"), ALONE)
    assert isinstance(replay, NoReplay)
    assert replay.records(0, [1], [True] * VISITS) is None
    replay.keep(0, [1], records_of([1]))
    assert list(home.iterdir()) == []


def test_record_writes_into_the_run(home: Path) -> None:
    run = RunFolder.named("recorded")
    replay = open_replay(quickstart("router.replay=record"), run, ALONE)
    assert replay.records(4, [1, 2], [True] * VISITS) is None
    replay.keep(4, [1, 2], records_of([1, 2]))
    assert_gives(ChoiceReader(run.choices, CPU), 4, [2, 1])
