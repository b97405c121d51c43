"""What runs in a worker process of the test pool: take a call, make the rank's environment, run it, answer.

A worker lives through many calls with different worlds, so everything that a call leaves behind is cleared: the
process group (and DeepSpeed's groups), environment variables, random seed, default type and determinism.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

TESTS = Path(__file__).resolve().parent


def extend_path() -> None:
    """Make the project's packages and the modules of every folder below tests/ importable."""
    folders = {file.parent for file in TESTS.rglob("*.py")}
    for folder in [TESTS.parent, *sorted(folders)]:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))


def serve(calls: Connection, log_path: str) -> None:
    """Answer calls until the pool closes the pipe. Output goes to `log_path`, stack traces (SIGUSR1) too."""
    log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
    extend_path()
    torch.set_num_threads(1)
    clean_environment = dict(os.environ)
    calls.send_bytes(b"ready")
    while True:
        try:
            target, environment, arguments = pickle.loads(calls.recv_bytes())
        except EOFError:
            # Not a return: gloo's threads were seen to abort a process that left by the ordinary way.
            os._exit(0)
        os.environ.update(environment)
        calls.send_bytes(_answer(target, arguments))
        os.environ.clear()
        os.environ.update(clean_environment)


def _answer(target: str, arguments: dict[str, Any]) -> bytes:
    """The pickled pair (succeeded, result or traceback)."""
    from distributed.topology import close_topology

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32)
    torch.set_deterministic_debug_mode("default")
    try:
        result = _find(target)(**arguments)
        answer = pickle.dumps((True, result))
        close_topology()
        return answer
    except BaseException:
        trace = traceback.format_exc()
        close_topology(failed=True)
        return pickle.dumps((False, trace))


def _find(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
