"""The lock of a run between processes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from cluster.run_lock import RunLock, holder_elsewhere, is_held, lock_path, owner_of
from distributed.errors import RunError
from distributed.run_folder import RunFolder

HOLD = "import sys, pathlib; from cluster.run_lock import RunLock; from distributed.run_folder import RunFolder\n"
HOLD += "with RunLock(RunFolder(pathlib.Path(sys.argv[1]))): print('held', flush=True); sys.stdin.read()"


def test_the_second_is_refused_until_the_first_is_gone(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a")
    assert not is_held(run) and owner_of(run) == {}
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    assert is_held(run) and owner_of(run)["pid"] == other.pid
    with pytest.raises(RunError, match=rf"run 'a' is already at work \(process {other.pid} .*logs -f a.*--name"), RunLock(run):
        pass
    other.kill()
    other.communicate()
    assert not is_held(run)
    with RunLock(run):
        assert is_held(run)
    assert not is_held(run)


def test_a_lock_of_another_host_counts_as_held(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a")
    with RunLock(run):
        assert holder_elsewhere(run) is None
        taken = owner_of(run)
    lock_path(run).write_text(json.dumps({**taken, "host": "another"}))
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(taken["time"]))
    assert is_held(run) and holder_elsewhere(run) == f"another since {when}"
    with RunLock(run):
        assert holder_elsewhere(run) is None
    assert not is_held(run)


@pytest.mark.parametrize("text", ["", "[1, 2]", "7", '{"host": "x"}'])
def test_a_damaged_lock_has_no_owner(text: str, make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a")
    lock_path(run).write_text(text)
    assert owner_of(run) == {} and not is_held(run)


def test_a_child_that_got_the_descriptor_shares_the_lock(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a")
    with RunLock(run) as lock:
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=(lock.descriptor,))
    assert is_held(run)
    child.communicate()
    assert not is_held(run)
