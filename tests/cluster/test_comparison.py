"""A comparison's terms: equal data and steps, matched sizes, what has begun stays; and the order in which runs are trained."""

from __future__ import annotations

import copy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.cli import main
from cluster.comparison.entries import Comparison, Entry, read_comparison, recipe_files
from cluster.comparison.matching import check_matched, cost_of
from cluster.comparison.schedule import StopRequest, train_all
from cluster.comparison.terms import check_begun, check_equal_terms
from cluster.errors import ClusterError
from cluster.recipes import CONFIGS
from cluster.run_lock import RunLock
from cluster.run_status import status_of
from distributed.errors import RunError
from distributed.persistence import storage_of
from distributed.recipe_file import load_recipe
from distributed.run_folder import RunFolder

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "distributed"))
from small_run import recipe_values

DENSE = {"attention": {"kind": "dense", "n_heads": 2, "d_head": 8}, "feed_forward": {"kind": "dense", "d_ff": 94}}


def write_recipe(home: Path, name: str, model: dict[str, Any] | None = None, **parts: dict[str, Any]) -> Path:
    """The small recipe under another name and with other fields, in `home/set/`."""
    values = copy.deepcopy(recipe_values(home)) | {"name": name, "expert_parallel": {"size": 1}, "table_parallel": {"size": 1}}
    values["model"] |= model or {}
    for part, fields in parts.items():
        values[part] |= fields
    path = home / "set" / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(values))
    return path


def two_recipes(home: Path, **parts: dict[str, Any]) -> list[str]:
    """A MoEUT and a dense peer of nearly its parameters, which differs in `parts`."""
    return [str(write_recipe(home, "moeut")), str(write_recipe(home, "dense", DENSE, **parts))]


def test_seeds_vary_weights_and_sample_order_but_not_what_is_held_out(home: Path) -> None:
    comparison = read_comparison([str(home / "set"), "train.lr=0.5"] if two_recipes(home) else [], n_seeds=2)
    assert comparison.name == "compare-set"
    assert [(entry.label, entry.seed) for entry in comparison.entries] == [("dense", 1), ("moeut", 1), ("dense", 2), ("moeut", 2)]
    last = comparison.entries[-1]
    assert last.run.path == home / "runs" / "compare-set" / "moeut-s2"
    assert (last.recipe.name, last.recipe.seed, last.recipe.data.resolved_order_seed, last.recipe.data.seed) == ("moeut-s2", 2, 2, 0)
    assert last.recipe.train.engine == "plain" and last.recipe.train.lr == 0.5


@pytest.mark.parametrize(("address", "expected"), [("memory://kept/", "memory://kept"), (None, None)])
def test_comparisons_do_not_share_checkpoints(address: str | None, expected: str | None, home: Path) -> None:
    words = [*two_recipes(home), f"checkpoint.address={address or 'null'}"]
    places = []
    for name in ("first", "second"):
        entry = read_comparison(words, 1, name).entries[0]
        assert entry.recipe.checkpoint.address == (expected and f"{expected}/{name}")
        places.append(storage_of(entry.recipe, entry.run).address)
    assert places[0] != places[1]


REFUSED = [
    ({"train": {"steps": 13}}, [], "recipe 'dense': train.steps is 13, but 12 in 'moeut'"),
    ({"train": {"global_batch": 6}}, [], "recipe 'dense': train.global_batch is 6, but 8 in 'moeut'"),
    ({"data": {"seq_len": 32}}, [], "recipe 'dense': data.seq_len is 32, but 16 in 'moeut'"),
    ({"data": {"folder": "corpora/other"}}, [], "recipe 'dense': data.folder is 'corpora/other'"),
    ({"validation": {"windows": 4}}, [], "recipe 'dense': validation.windows is 4, but 8 in 'moeut'"),
    ({"expert_parallel": {"size": 2}}, [], "recipe 'dense': expert_parallel.size is 2"),
    ({"table_parallel": {"size": 2}}, [], "recipe 'dense': table_parallel.size is 2"),
    ({}, ["seed=3"], "'seed=3': a comparison sets seed itself: its seeds are those of --seeds; leave it out"),
    ({}, ["data.order_seed=3"], "a comparison sets data.order_seed itself"),
    ({}, ["cluster.workers=2"], "a comparison sets cluster.workers itself: every run has one worker"),
    ({}, ["train.engine=deepspeed"], "a comparison sets train.engine itself: every run has the plain engine"),
    ({}, ["--name", "a/b"], "--name 'a/b' must be a plain name"),
    ({}, ["--tolerance", "0.0001"], "but the comparison is matched by params to 0.0%; make a recipe that is (./launch.sh match "),
    ({}, ["--matched", "macs"], "multiply-accumulates a token"),
    ({}, ["--seeds", "0"], "--seeds is 0"),
    ({}, ["--minutes", "0"], "--minutes is 0"),
    ({}, ["train.stepss=3"], "did you mean steps?"),
]


@pytest.mark.parametrize(("parts", "words", "message"), REFUSED)
def test_what_is_not_equal_or_not_matched_is_refused_before_anything_begins(
    parts: dict[str, Any], words: list[str], message: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *two_recipes(home, **parts), *words, "--local"]) == 2
    assert message in capsys.readouterr().err
    assert not list((home / "runs").rglob("recipe.yaml"))


@pytest.mark.parametrize("measure", ["params", "macs"])
def test_the_command_that_a_refusal_names_matches_the_recipes(measure: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(write_recipe(home, "moeut", {"d_model": 64})), str(write_recipe(home, "dense", DENSE))]
    assert main(["compare", *words, "--seeds", "1", "--local", "--matched", measure]) == 2
    told = capsys.readouterr().err
    program, *command = shlex.split(told[told.index("(./launch.sh match") + 1 : told.index("), or allow it with --unmatched")])
    assert (program, command[0], command[-2:]) == ("./launch.sh", "match", ["--by", measure])
    matched = home / "set" / "matched.yaml"
    assert main([*command, "--out", str(matched)]) == 0
    smallest, recipe = load_recipe(Path(command[3])), load_recipe(matched)
    assert cost_of(recipe).measured(measure) == pytest.approx(cost_of(smallest).measured(measure), rel=0.02)


def test_how_a_loader_reads_is_free(home: Path) -> None:
    comparison = read_comparison(two_recipes(home, data={"loader_workers": 0, "prefetch": 1}), 1)
    check_equal_terms(comparison.recipes)


def test_two_recipes_of_one_name_are_refused(home: Path) -> None:
    path = str(write_recipe(home, "moeut"))
    with pytest.raises(ClusterError, match="two recipes are named 'moeut'"):
        read_comparison([path, path], 1)


def test_recipes_of_several_folders_need_a_name(home: Path) -> None:
    here, there = two_recipes(home)
    (home / "elsewhere").mkdir()
    moved = Path(there).rename(home / "elsewhere" / "dense.yaml")
    with pytest.raises(ClusterError, match=r"several folders \(.*elsewhere, .*set\); name the comparison with --name"):
        read_comparison([here, str(moved)], 1)
    assert read_comparison([here, str(moved)], 1, "both").name == "both"


def test_a_folder_that_was_meant_is_named(home: Path) -> None:
    with pytest.raises(ClusterError, match=r"did you mean the folder compare/small\?"):
        recipe_files(["small"])
    with pytest.raises(ClusterError, match=r"folder compare holds no recipe .*; choose one of compare/gpu, compare/groups"):
        recipe_files(["compare"])
    with pytest.raises(RunError, match="no such file"):
        recipe_files(["no-such-recipe"])


def test_a_comparison_at_work_says_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = two_recipes(home)
    with RunLock(RunFolder(read_comparison(words, 1).folder)):
        assert main(["compare", *words, "--seeds", "1", "--local"]) == 2
    assert "comparison 'compare-set' is already at work (process " in capsys.readouterr().err


def test_a_run_that_began_with_another_recipe_is_refused(home: Path) -> None:
    words = two_recipes(home)
    before, now = read_comparison(words, 1).entries[0], read_comparison([*words, "train.lr=0.5"], 1).entries[0]
    check_begun(before)
    before.run.create(before.recipe)
    check_begun(before)
    with pytest.raises(ClusterError, match=r"compare-set/moeut-s1 began with train.lr 0.01, now it is 0.5; choose another --name"):
        check_begun(now)


@pytest.mark.parametrize("folder", ["small", "groups", "norms", "gpu"])
def test_shipped_comparisons_are_equal_and_matched(folder: str) -> None:
    comparison = read_comparison([str(CONFIGS / "compare" / folder)], 1)
    recipes = comparison.recipes
    check_equal_terms(recipes)
    check_matched({label: cost_of(recipe) for label, recipe in recipes.items()}, comparison.paths, "params", 0.02)
    assert len({recipe.model.depth.n_visits for recipe in recipes.values()}) == 1


class FakeRunner:
    """Two runs at once; each ends at the second look, in the state that its name is given."""

    at_once = 2

    def __init__(self, states: dict[str, str]) -> None:
        self.states, self.started, self.most = states, list[str](), 0
        self._at_work: list[RunFolder] = []
        self._looks = 0

    def start(self, run: RunFolder) -> None:
        self.started.append(run.name)
        self._at_work.append(run)
        self.most = max(self.most, len(self._at_work))

    def ended(self) -> dict[Path, int]:
        self._looks += 1
        if self._looks % 2:
            return {}
        codes = {}
        for run in self._at_work:
            state = "stopped" if run.stop_path.exists() else self.states.get(run.name, "finished")
            if state != "killed":
                run.write_state(state, step=12)
            codes[run.path] = 0 if state in ("finished", "stopped") else 1
        self._at_work = []
        return codes


class FakeStop(StopRequest):
    """Asked once `seen` runs were shown at work."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    @property
    def asked(self) -> bool:
        return self.left <= 0

    def show(self, at_work: list[Entry]) -> None:
        self.left -= len(at_work)


@pytest.fixture
def comparison(home: Path, monkeypatch: pytest.MonkeyPatch) -> Comparison:
    monkeypatch.setattr("cluster.comparison.schedule.LOOK_SECONDS", 0.0)
    return read_comparison(two_recipes(home), 2)


def states(entries: list[Entry]) -> dict[str, str]:
    return {entry.run.name: entry.run.read_state()["state"] for entry in entries}


def test_a_failed_run_does_not_end_the_others_and_is_tried_again(comparison: Comparison) -> None:
    runner, never = FakeRunner({"dense-s1": "killed"}), FakeStop(100)
    train_all(comparison.entries, runner, never, never.show)
    assert runner.started == ["moeut-s1", "dense-s1", "moeut-s2", "dense-s2"] and runner.most == 2
    assert states(comparison.entries) == {"moeut-s1": "finished", "dense-s1": "failed", "moeut-s2": "finished", "dense-s2": "finished"}
    assert "ended with code 1" in (status_of(comparison.entries[1].run).reason or "")
    again = FakeRunner({})
    train_all(comparison.entries, again, never, never.show)
    assert again.started == ["dense-s1"]
    assert set(states(comparison.entries).values()) == {"finished"}


def test_a_stop_begins_nothing_more_and_the_next_call_goes_on(comparison: Comparison) -> None:
    first, stop = FakeRunner({}), FakeStop(after=5)
    train_all(comparison.entries, first, stop, stop.show)
    assert states(comparison.entries) == {"moeut-s1": "finished", "dense-s1": "finished", "moeut-s2": "stopped", "dense-s2": "stopped"}
    assert not any(entry.run.stop_path.exists() for entry in comparison.entries), "a request that was heard is gone"
    second, never = FakeRunner({}), FakeStop(100)
    train_all(comparison.entries, second, never, never.show)
    assert second.started == ["moeut-s2", "dense-s2"]


def test_the_clock_asks_for_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("cluster.comparison.schedule.time.monotonic", lambda: now[0])
    stop, never = StopRequest(60.0), StopRequest()
    now[0] = 159.9
    assert not stop.asked
    now[0] = 160.0
    assert stop.asked and not never.asked
