"""The Ray cluster of one machine that `submit` starts when none is running: it stays, on loopback, until it is ended.

Other users of the machine reach loopback too, so it takes jobs only with the token in its folder, which this user alone
can read.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from cluster.errors import ClusterError
from cluster.network import LOOPBACK, free_port, port_is_free
from cluster.ray_session import LAPTOP_SWITCH
from cluster.sizing import WORKERS_WITHOUT_GPU
from data_pipeline.files import write_text

DASHBOARD_PORT = 8265  # Ray's own default
START_SECONDS = 180.0


def dashboard_address() -> str:
    """Where jobs are sent by default."""
    return f"http://{LOOPBACK}:{DASHBOARD_PORT}"


def answers(address: str) -> bool:
    """Whether a Ray dashboard that knows our token answers there."""
    asked = urllib.request.Request(f"{address}/api/version", headers={"Authorization": f"Bearer {_token()}"})
    try:
        with urllib.request.urlopen(asked, timeout=5) as reply:
            return b"ray_version" in reply.read()
    except (urllib.error.URLError, OSError, ValueError):
        return False


def use_token() -> None:
    """Let Ray's clients in this process, and what it starts, show the local cluster's token. Before ray is imported."""
    _token()
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(cluster_folder() / "token"))


def ensure_cluster() -> str:
    """The dashboard's address of the local cluster, which is started where none answers.

    Raises:
        ClusterError: its port is taken by something else, or it does not start.
    """
    use_token()
    if answers(dashboard_address()):
        return dashboard_address()
    if not port_is_free(DASHBOARD_PORT):
        raise ClusterError(
            f"port {DASHBOARD_PORT} on {LOOPBACK} is taken, not by a cluster of submit; end what listens there, or give --address"
        )
    folder = cluster_folder()
    command = [sys.executable, "-P", "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats"]
    command += ["--node-ip-address", LOOPBACK, "--port", str(free_port()), "--temp-dir", str(folder)]
    command += ["--dashboard-host", LOOPBACK, "--dashboard-port", str(DASHBOARD_PORT)]
    command += ["--num-cpus", str(max(os.cpu_count() or 1, WORKERS_WITHOUT_GPU))]
    environment = {**os.environ, LAPTOP_SWITCH: "0", "RAY_worker_niceness": "0"}  # see ray_session
    with (folder / "start.log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    (folder / "pid").write_text(str(head.pid))
    deadline = time.monotonic() + START_SECONDS
    while not answers(dashboard_address()):
        if head.poll() is not None or time.monotonic() > deadline:
            end = (folder / "start.log").read_text(errors="replace")[-600:]
            end_cluster()
            raise ClusterError(f"a local Ray cluster did not start; ./launch.sh doctor looks for the cause; its last words:\n{end}")
        time.sleep(0.5)
    return dashboard_address()


def end_cluster() -> bool:
    """End the cluster that `ensure_cluster` started; False when there is none."""
    try:
        process = int((cluster_folder() / "pid").read_text())
        if str(cluster_folder()) not in Path(f"/proc/{process}/cmdline").read_text():
            raise ProcessLookupError("its number is another process's now")
        os.killpg(process, signal.SIGTERM)
    except (OSError, ValueError):
        return False
    deadline = time.monotonic() + 15.0
    while _group_lives(process) and time.monotonic() < deadline:
        time.sleep(0.2)
    if _group_lives(process):
        os.killpg(process, signal.SIGKILL)
    shutil.rmtree(cluster_folder(), ignore_errors=True)
    return True


def cluster_folder() -> Path:
    """Sockets and logs of the local cluster of this user; short, because socket paths end at 107 bytes."""
    return Path(f"/tmp/mootron-cluster-{os.getuid()}")


def _token() -> str:
    """The local cluster's token, drawn when there is none."""
    folder = cluster_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ClusterError(f"{folder} belongs to another user; remove it")
    path = folder / "token"
    if not path.exists():
        write_text(path, secrets.token_hex(32), mode=0o600)
    return path.read_text()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
        return True
    except ProcessLookupError:
        return False
