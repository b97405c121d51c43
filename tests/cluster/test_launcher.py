"""A run started by the launcher under a private Ray, and a signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from launching import PATIENCE_SECONDS, at_work, start_launcher, wait_for

from cluster.run_status import status_of
from distributed.run_folder import RunFolder


@pytest.mark.ray
def test_a_signal_to_the_whole_terminal_stops_in_good_order(make_run: Callable[..., RunFolder]) -> None:
    """SIGINT reaches the launcher's process group, as Ctrl-C does: Ray and the ranks must not hear it."""
    run = make_run("a")
    launcher = start_launcher(run)
    wait_for(lambda: at_work(run))
    os.killpg(launcher.pid, signal.SIGINT)
    output, _ = launcher.communicate(timeout=PATIENCE_SECONDS)
    assert launcher.returncode == 75, output
    assert "stopping after this step" in output and "./launch.sh resume a" in output
    assert status_of(run).state == "stopped" and not run.stop_path.exists()
