"""launch.sh: from any folder, through a link, with a fresh, a missing and a stale environment.

Environments here are made of stand-in interpreters that record how they were called; nothing is installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCK = "alpha==1\ntorch==2\n"

# A python that answers -V, makes an environment that holds itself, and logs every other call.
STAND_IN = """#!/usr/bin/env bash
case "$*" in
  -V) echo "Python 3.12.1" ;;
  "-c import ensurepip"*) exit 0 ;;
  "-m venv --clear "*) mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
  "-m pip "*) echo "$*" >>"$CALLS"; exit "${PIP_EXIT:-0}" ;;
  *) echo "$PWD | $PYTHONPATH | $*" ;;
esac
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of launch.sh with a small lock, and stand-in interpreters first on PATH."""
    folder = tmp_path / "a project"
    (folder / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "launch.sh", folder)
    (folder / "requirements.lock").write_text(LOCK)
    stand_in = folder / "tools" / "python3"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    return folder


def call(script: Path, *words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    tools = script.resolve().parent / "tools"
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MOOTRON_PYTHON")}
    own = {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "CALLS": str(tools / "calls")}
    return subprocess.run(
        [str(script), *words], cwd=cwd, env={**inherited, **own, **environment}, capture_output=True, text=True, timeout=60
    )


def test_sets_up_once_then_hands_over(project: Path, tmp_path: Path) -> None:
    first = call(project / "launch.sh", "status", "a b", cwd=tmp_path)
    assert first.stdout == f"{tmp_path} | {project} | -P -m cluster status a b\n", first.stderr
    calls = (project / "tools" / "calls").read_text().splitlines()
    assert len(calls) == 2 and all("--no-deps" in line and "-r " in line for line in calls)
    assert (project / ".venv" / "large.txt").read_text() == "torch==2\n"
    assert (project / ".venv" / "rest.txt").read_text() == "alpha==1\n"
    again = call(project / "launch.sh", "status", cwd=tmp_path)
    assert again.stderr == "" and len((project / "tools" / "calls").read_text().splitlines()) == 2


def test_a_changed_lock_is_stale(project: Path, tmp_path: Path) -> None:
    call(project / "launch.sh", cwd=tmp_path)
    (project / "requirements.lock").write_text(LOCK + "beta==1\n")
    call(project / "launch.sh", cwd=tmp_path)
    assert len((project / "tools" / "calls").read_text().splitlines()) == 4


def test_a_failed_set_up_says_so_and_is_tried_again(project: Path, tmp_path: Path) -> None:
    failed = call(project / "launch.sh", "train", cwd=tmp_path, PIP_EXIT="1")
    assert failed.returncode == 1 and "could not be installed" in failed.stderr and failed.stdout == ""
    assert call(project / "launch.sh", "train", cwd=tmp_path).stdout.endswith("-m cluster train\n")


def test_twice_at_once_installs_once(project: Path, tmp_path: Path) -> None:
    command = f"'{project}/launch.sh' one & '{project}/launch.sh' two & wait"
    environment = {**os.environ, "PATH": f"{project / 'tools'}{os.pathsep}{os.environ['PATH']}", "CALLS": str(project / "tools" / "calls")}
    environment.pop("MOOTRON_PYTHON", None)
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert sorted(line.split()[-1] for line in done.stdout.splitlines()) == ["one", "two"], done.stderr
    assert len((project / "tools" / "calls").read_text().splitlines()) == 2


def test_through_a_link_from_another_folder(project: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "far").symlink_to(Path("..") / "a project" / "launch.sh")
    (links / "near").symlink_to("far")
    done = call(links / "near", cwd=links)
    assert done.stdout == f"{links} | {project} | -P -m cluster\n", done.stderr


def test_no_python(project: Path, tmp_path: Path) -> None:
    tools = project / "tools"
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")
    for name in ("bash", "dirname", "readlink", "cat", "cmp", "flock"):
        found = shutil.which(name)
        if found:
            (tools / name).symlink_to(found)
    done = call(project / "launch.sh", "train", cwd=tmp_path, PATH=str(tools))
    assert done.returncode == 2 and "needs Python 3.11, 3.12 or 3.13" in done.stderr


def test_the_real_command_line_from_another_folder(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "__init__.py").write_text("raise SystemExit('the wrong cluster')")
    done = call(ROOT / "launch.sh", "trian", cwd=tmp_path, MOOTRON_PYTHON=sys.executable)
    assert done.returncode == 2 and done.stderr == "mootron: unknown command 'trian'; did you mean 'train'?\n"


def test_lock_is_pinned_and_names_no_place() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if line and not line.startswith("#")]
    assert len(lines) > 100
    for line in lines:
        assert "==" in line and "/" not in line and not line.startswith("-"), line
