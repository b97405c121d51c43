"""A Ray to work with: a private one on loopback that ends with the block, or a connection to a running cluster.

Trap: Ray replaces 127.0.0.1 by the host's outer address and then listens on every interface. The switch that Ray gives
to laptops (RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0) keeps a private Ray, all its processes included, on loopback. Ray also wants a token
and would write one into the home folder, readable by all; a private Ray gets its own, in its environment alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cluster.errors import ClusterError
from cluster.network import LOOPBACK

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TQDM": "0",
    "RAY_worker_niceness": "0",  # 15 by default: the ranks would give way to everything else on the machine
}
LAPTOP_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
START_ATTEMPTS = 3
OBJECT_STORE_BYTES = 256 * 2**20  # control messages and text batches only; tensors never pass through Ray


@contextlib.contextmanager
def ray_session(address: str | None = None, cpus: int | None = None, gpus: int | None = None) -> Iterator[None]:
    """Initialise Ray for the block.

    Args:
        address: of a running cluster ("auto" or host:port); None starts a private Ray with `cpus` and `gpus`
            (default: what the machine has).

    Raises:
        ClusterError: Ray did not start or does not answer.
    """
    os.environ.update(_QUIET)
    with _private(cpus, gpus) if address is None else _connected(address):
        yield


@contextlib.contextmanager
def _private(cpus: int | None, gpus: int | None) -> Iterator[None]:
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    _sweep_sessions()
    folder = session_folder()
    with _loopback_only():
        try:
            _start(folder, cpus or os.cpu_count() or 1, gpus)
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _loopback_only() -> Iterator[None]:
    """Ray's laptop switch: for the processes it starts, and for this one, which read it when it first imported Ray."""
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    os.environ[LAPTOP_SWITCH] = "0"
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        os.environ.pop(LAPTOP_SWITCH, None)
        ray_constants.ENABLE_RAY_CLUSTER = before


def _start(folder: Path, cpus: int, gpus: int | None) -> None:
    import ray

    for attempt in range(START_ATTEMPTS):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                num_gpus=gpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
                _node_ip_address=LOOPBACK,
                _temp_dir=str(folder),
            )
            return
        except Exception as fault:  # Ray raises a plain Exception when a busy machine does not start it in 30 s
            _end_leftovers(folder)
            if attempt + 1 == START_ATTEMPTS:
                raise ClusterError(f"a local Ray did not start: {_first_line(fault)}; ./launch.sh doctor looks for the cause") from fault


def _end_leftovers(folder: Path) -> None:
    """Kill what a start that failed half-way left running below this process, which Ray no longer knows of."""
    import psutil
    import ray

    ray.shutdown()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any(str(folder) in word for word in child.cmdline()):
                child.kill()
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    import ray

    if address.startswith("ray://"):
        raise ClusterError(f"cluster address '{address}': give host:port of the cluster itself, not of the Ray client")
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, TimeoutError, RuntimeError) as fault:
        raise ClusterError(f"no Ray cluster answers at '{address}' ({_first_line(fault)}); start one with `ray start --head`") from fault
    try:
        yield
    finally:
        ray.shutdown()


def session_folder() -> Path:
    """Where the private Ray of this process keeps sockets and logs; short, because socket paths end at 107 bytes."""
    base = Path("/tmp") if os.access("/tmp", os.W_OK) else Path(tempfile.gettempdir())
    return base / f"mootron-{os.getuid()}-{os.getpid()}"


def _sweep_sessions() -> None:
    """Remove what killed processes of this user left."""
    for folder in session_folder().parent.glob(f"mootron-{os.getuid()}-*"):
        process = folder.name.rpartition("-")[2]
        if process.isdigit() and not Path(f"/proc/{process}").exists() and Path("/proc/self").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _first_line(fault: BaseException) -> str:
    return (str(fault).strip().splitlines() or [type(fault).__name__])[0]
