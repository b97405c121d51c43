"""The command line: help, suggestions, and a user's mistakes (exit code 2, one message, no traceback)."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.cli import COMMANDS, command_module, main
from distributed.run_folder import RunFolder


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_overview_has_a_line_for_every_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, text in COMMANDS.items():
        assert any(line.split()[:1] == [name] and line.endswith(text) for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_module(name: str) -> None:
    module = command_module(name)
    assert callable(module.run) and (module.__doc__ or "").strip()
    assert getattr(module, "PASS_THROUGH", False) or callable(module.add_arguments)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "test"])
def test_help_of_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([name, "--help"])
    except SystemExit as done:
        code = int(done.code or 0)
    assert code == 0


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "ray", "pydantic", "rich", "numpy", "yaml"}
    script = f"import sys; from cluster.cli import main; main([]); print(sorted({heavy} & set(sys.modules)))"
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


MISTAKES = [
    (["trian"], "unknown command 'trian'; did you mean 'train'?"),
    (["zzz"], "commands: prepare, train,"),
    (["train", "--nmae", "x"], "unknown option --nmae; did you mean --name?"),
    (["status", "--frobnicate"], "unknown option --frobnicate"),
    (["resume"], "RUN"),
    (["tensorboard", "--port", "many"], "--port"),
    (["train", "quikstart"], "did you mean 'quickstart'?"),
    (["train", "quickstart", "second"], "two recipes given, 'quickstart' and 'second'"),
    (["train", "train.lrr=1"], "train.lrr: unknown field; did you mean lr?"),
    (["train", "train.steps=many"], "train.steps"),
    (["train", "expert_parallel.size=3"], "expert_parallel.size is 3, which does not divide 2 workers; choose one of [1, 2]"),
    (["train", "train.global_batch=15"], "choose 14 or 16"),
    (["train", "model.feed_forward.top_k=9999"], "top_k is 9999 but there are"),
    (["train", "--name", "../x"], "name"),
    (["dry-run", "train.lrr=1"], "train.lrr: unknown field; did you mean lr?"),
    (["train", "data=@nowhere.yaml"], "recipe nowhere.yaml: No such file"),
    (["train", "cluster.workers=4", "cluster.nodes=3"], "cluster.nodes=3"),
    (["train", "cluster.address=ray://host:1"], "ray://host:1"),
    (["train", "--from", "nope@3"], "there is no run 'nope'"),
    (["resume", "nope"], "there is no run 'nope'"),
    (["stop", "nope"], "there is no run 'nope'"),
    (["logs", "nope"], "there is no run 'nope'"),
    (["status", "nope"], "there is no run 'nope'"),
    (["eval", "nope"], "there is no run 'nope'"),
    (["generate", "nope"], "there is no run 'nope'"),
    (["generate", "nope", "--temperature", "-1"], "--temperature must be 0 or more"),
    (["generate", "nope", "--repeats", "0"], "--repeats must be 1 or more"),
    (["eval", "nope", "--repeats", "0"], "--repeats is 0, of which '0' is no whole number of 1 or more"),
    (["eval", "nope", "--repeats", "1,x"], "--repeats is 1,x, of which 'x' is no whole number"),
    (["submit", "--nodes", "0"], "--nodes is 0"),
    (["bench", "nosuch"], "unknown benchmark 'nosuch'"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "")
def test_a_mistake_gets_one_message(words: list[str], message: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("mootron: ") and message in error
    assert "Traceback" not in error
    assert not list(home.rglob("recipe.yaml")), "a refused command leaves no run"


def test_options_may_stand_between_the_words(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "quickstart", "--name", "a", "train.steps=0"]) == 2
    assert "train.steps" in capsys.readouterr().err


def test_folder_that_cannot_be_written(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "runs").write_text("a file where the folder should be")
    assert main(["train"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_tensorboard_port_taken(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["tensorboard", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"port {port} on 127.0.0.1 is taken" in error and "is free: --port " in error


def test_resume_refuses_what_would_be_another_model(make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    make_run("a", "stopped", checkpoints=(3,), step=3)
    assert main(["resume", "a", "model.d_model=512"]) == 2
    error = capsys.readouterr().err
    assert "resume cannot change model.d_model" in error and "train.steps" in error


def test_resume_of_a_finished_run_says_how_to_go_on(make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    make_run("a", "finished", checkpoints=(200,), step=200)
    assert main(["resume", "a"]) == 2
    assert "resume a train.steps=400" in capsys.readouterr().err


def test_resume_without_a_checkpoint(make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    make_run("a", "failed")
    assert main(["resume", "a"]) == 2
    assert "no checkpoint" in capsys.readouterr().err


def test_stop_of_a_run_that_is_not_at_work(make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("a", "running", step=5)
    assert main(["stop", "a"]) == 2
    assert "not at work (state: lost)" in capsys.readouterr().err
    assert not run.stop_path.exists()


def test_generate_takes_the_checkpoint_that_is_asked_for(
    make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def text(run: RunFolder, prompt: str, *sampling: object, step: int | None, repeats: int | None) -> str:
        return f"{run.name} {prompt}{step} {repeats}"

    make_run("a", "finished")
    monkeypatch.setattr("distributed.generate.generate_text", text)
    assert main(["generate", "a", "--prompt", "at ", "--step", "30"]) == 0
    assert capsys.readouterr().out == "a at 30 None\n"


def test_logs(make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("a", "stopped")
    assert main(["logs", "a"]) == 2
    assert "rank-00000.log" in capsys.readouterr().err
    (run.logs / "rank-00000.log").write_text("one\ntwo\nthree\n")
    assert main(["logs", "a", "-n", "2", "-f"]) == 0
    assert capsys.readouterr().out == "two\nthree\n"
