"""The command line: help, suggestions, and a user's mistakes (exit code 2, one message, no traceback)."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.cli import COMMANDS, command_module, main
from distributed.recipe import Recipe, RouterConfig
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


@pytest.mark.parametrize(
    ("words", "usage", "default"),
    [
        (["soak"], "usage: ./launch.sh soak [-h] [--faults", "(default: 200)"),
        (["soak", "kernels"], "usage: ./launch.sh soak kernels [-h] [--shapes", "(default: 200)"),
        (["bench", "faults"], "usage: ./launch.sh bench faults [-h] [--faults", "(default: 8)"),
    ],
    ids=["soak", "soak kernels", "bench faults"],
)
def test_help_of_a_long_count_is_its_own(words: list[str], usage: str, default: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    told = capsys.readouterr().out
    assert told.startswith(usage) and default in told
    assert ("soak kernels --help" in told) == (words == ["soak"])


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
    (["train", "--name", "../x"], "--name '../x' must be letters, digits, _ . - and begin with a letter or digit"),
    (["submit", "--name", "a b"], "--name 'a b' must be letters, digits, _ . -"),
    (["train", "train.precision=fp64"], "2 workers need train.engine=deepspeed, but fp64 needs the plain engine; set cluster.workers=1"),
    (["train", "train.engine=plain"], "2 workers need train.engine=deepspeed, but the plain engine serves one"),
    (["train", "router.replay=use", "router.choices=nope"], "router.choices is 'nope': there is no run 'nope'"),
    (
        ["compare", "compare/small/moeut", "--local", "router.replay=use", "router.choices=nope"],
        "router.choices is 'nope': there is no run",
    ),
    (["sizes", "docs/pictures/tensorboard.png"], "tensorboard.png is not a text file; give a YAML file"),
    (["dry-run", "train.lrr=1"], "train.lrr: unknown field; did you mean lr?"),
    (["train", "data=@nowhere.yaml"], "override 'data=@nowhere.yaml': there is no file 'nowhere.yaml'"),
    (["train", "cluster.workers=4", "cluster.nodes=3"], "cluster.nodes=3"),
    (["train", "cluster.address=ray://host:1"], "ray://host:1"),
    (["train", "--from", "nope@3"], "there is no run 'nope'"),
    (["resume", "nope"], "there is no run 'nope'"),
    (["stop", "nope"], "there is no run 'nope'"),
    (["logs", "nope"], "there is no run 'nope'"),
    (["status", "nope"], "there is no run 'nope'"),
    (["eval", "nope"], "there is no run 'nope'"),
    (["generate", "nope"], "there is no run 'nope'"),
    (["generate", "nope", "--max-new", "0"], "--max-new is 0; it must be 1 or more"),
    (["generate", "nope", "--top-k", "-2"], "--top-k is -2; it must be 0 or more"),
    (["generate", "nope", "--temperature", "-1"], "--temperature is -1; it must be 0 or more"),
    (["generate", "nope", "--temperature", "nan"], "--temperature is nan; it must be 0 or more"),
    (["generate", "nope", "--repeats", "0"], "--repeats is 0; it must be 1 or more"),
    (["tensorboard", "--port", "99999"], "--port is 99999; it must be from 1 to 65535"),
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
    for command in ("train", "tensorboard"):
        assert main([command]) == 2
        assert f"folder {home / 'runs'}" in (error := capsys.readouterr().err) and "cannot be written" in error


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


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("train.step=400", "train.step: unknown field; did you mean steps?"),
        ("train.precision=fp64", "resume cannot change train.precision"),
        ("cluster.workers=3", "expert_parallel.size is 2, which does not divide 3 workers"),
    ],
)
def test_mistakes_of_a_resume(change: str, told: str, make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    make_run("a", "stopped", checkpoints=(3,), step=3)
    assert main(["resume", "a", change]) == 2
    error = capsys.readouterr().err
    assert told in error and ("cannot change" in error) == ("cannot change" in told)


def test_resume_looks_for_the_run_whose_choices_it_takes(
    make_run: Callable[..., RunFolder], recipe: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("a", "stopped", checkpoints=(3,), step=3)
    run.create(recipe.model_copy(update={"name": "a", "router": RouterConfig(replay="use", choices="gone")}))
    assert main(["resume", "a"]) == 2
    assert "router.choices is 'gone': there is no run 'gone'" in capsys.readouterr().err


def test_a_cut_recipe_of_a_run(make_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("a", "stopped", checkpoints=(3,), step=3)
    run.recipe_path.write_text(run.recipe_path.read_text()[:100] + "\n  [cut")
    for command in ("eval", "resume"):
        assert main([command, "a"]) == 2
        assert f"recipe {run.recipe_path} is not YAML" in capsys.readouterr().err


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
