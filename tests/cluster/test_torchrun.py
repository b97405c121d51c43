"""`train --prepare-only`: a run made ready for another launcher, and the line that starts it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import torchrun
from cluster.cli import main
from cluster.recipes import CODE_ROOT
from cluster.run_lock import is_held
from distributed.run_folder import RunFolder


@pytest.fixture
def prepared(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Data folders whose corpus was asked for; none is made."""
    asked: list[str] = []
    monkeypatch.setattr(torchrun, "ensure_corpus", lambda recipe, console: asked.append(recipe.data.folder))
    return asked


def test_the_folder_is_made_and_the_line_starts_its_ranks(prepared: list[str], home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--prepare-only", "--name", "a", "train.lr=1e-3"]) == 0
    run = RunFolder.existing("a")
    assert run.recipe().train.lr == 1e-3 and prepared == [run.recipe().data.folder]
    assert not (run.path / "state.json").exists() and not is_held(run)
    enter, _, line = capsys.readouterr().out.splitlines()[-1].partition(" && ")
    words = shlex.split(line)
    assert shlex.split(enter) == ["cd", str(CODE_ROOT)] and words[1] == f"MOOTRON_HOME={home}"
    assert words[3:] == ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "distributed.trainer", "a"]


def test_on_several_nodes_the_ranks_meet_at_the_first(prepared: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["cluster.nodes=4", "cluster.workers=32", "train.global_batch=32", "expert_parallel.size=8"]
    assert main(["train", "--prepare-only", *words]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert "--nproc-per-node 8 --nnodes 4 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m distributed.trainer quickstart" in line


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["cluster.workers=3"], "expert_parallel.size is 2, which does not divide 3 workers"),
        (["cluster.nodes=4", "cluster.workers=6"], "cluster.workers is 6, which cluster.nodes=4 cannot share equally"),
        (["--from", "old"], "leave --from out"),
    ],
)
def test_a_mistake_makes_no_folder(
    words: list[str], told: str, prepared: list[str], make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("old", "stopped", checkpoints=(5,))
    assert main(["train", "--prepare-only", "--name", "new", *words]) == 2
    assert told in capsys.readouterr().err and not prepared and not RunFolder.named("new").path.exists()


def test_a_run_with_checkpoints_is_not_touched(
    prepared: list[str], make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("old", "stopped", checkpoints=(5,))
    assert main(["train", "--prepare-only", "--name", "old"]) == 2
    assert "has checkpoints already" in capsys.readouterr().err and (run.checkpoints / "step-00000005").is_dir()
