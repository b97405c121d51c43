"""The lock of a run between processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from cluster.run_lock import RunLock, is_held, owner_of
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


def test_a_child_that_got_the_descriptor_shares_the_lock(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a")
    with RunLock(run) as lock:
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, pass_fds=(lock.descriptor,))
    assert is_held(run)
    child.communicate()
    assert not is_held(run)
