"""A worker of a fork server does not outlive a killed maker."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

MAKER = """
import multiprocessing, os, time
from data_pipeline.lifeline import Lifeline

def work(lifeline, started):
    lifeline.hold()
    started.set()
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    started = context.Event()
    lifeline = Lifeline()  # kept: a start forgets its arguments, and with the last reference the line is cut
    context.Process(target=work, args=(lifeline, started), daemon=True).start()
    started.wait()
    os.kill(os.getpid(), 9)
"""


def test_workers_end_with_their_maker(tmp_path: Path) -> None:
    (tmp_path / "maker.py").write_text(MAKER)
    root = Path(__file__).resolve().parents[2]
    # The worker and the server hold the pipe of standard output: this returns when all of them are gone.
    done = subprocess.run([sys.executable, "maker.py"], cwd=tmp_path, env={"PYTHONPATH": str(root)}, stdout=subprocess.PIPE, timeout=60)
    assert done.returncode == -signal.SIGKILL
