"""Several hosts on one machine: network namespaces joined by a bridge, each with its own address and its own Ray node.

They share the file system and the process table, as nodes of a cluster share the run's folder; the network is truly apart.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAD_PORT = 6379
DASHBOARD_PORT = 8265


class Hosts:
    """`count` hosts, 10.91.0.1 and on, with interfaces link0, link1, ...; `close` removes everything.

    Raises:
        OSError: namespaces cannot be made here; nothing is left behind.
    """

    def __init__(self, count: int, home: Path) -> None:
        self.prefix = f"moo{os.getpid()}"
        self.folder = Path(tempfile.mkdtemp(prefix="moo-", dir="/tmp"))  # short, because socket paths end at 107 bytes
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},  # a job runs the code it was sent with
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "MOOTRON_HOME": str(home),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_worker_niceness": "0",
            # How soon a node that does not answer is given up; Ray's own defaults take most of a minute.
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }
        try:
            self._wire(count)
        except OSError:
            self.close()
            raise

    def address(self, host: int) -> str:
        """IPv4 address of a host."""
        return f"10.91.0.{host + 1}"

    @property
    def dashboard(self) -> str:
        """Where jobs are sent."""
        return f"http://{self.address(0)}:{DASHBOARD_PORT}"

    def start_ray(self, host: int) -> None:
        """Start the host's Ray node: the head on host 0."""
        words = ["start", "--block", "--disable-usage-stats", "--num-cpus", "1", "--node-ip-address", self.address(host)]
        words += ["--object-store-memory", str(100 * 2**20)]
        if host == 0:
            words += ["--head", "--port", str(HEAD_PORT), "--temp-dir", str(self.folder)]
            words += ["--dashboard-host", self.address(0), "--dashboard-port", str(DASHBOARD_PORT)]
        else:
            words += ["--address", f"{self.address(0)}:{HEAD_PORT}"]
        with (self.folder / f"ray-{host}.log").open("ab") as log:
            self.nodes[host] = subprocess.Popen(
                self._inside(host, [sys.executable, "-P", "-m", "ray.scripts.scripts", *words]),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def has_ray(self, host: int) -> bool:
        """Whether the host's node is up. One that gave up, as Ray does after 30 s on a busy machine, is started again.

        Nodes are started one after the other: they share a folder and, side by side, would choose the same socket.
        """
        if self.nodes[host].poll() is not None:
            self.start_ray(host)
        return "Ray runtime started" in (self.folder / f"ray-{host}.log").read_text(errors="replace")

    def answers(self, host: int, port: int) -> bool:
        """Whether something listens at the host's address."""
        probe = f"import socket; socket.create_connection(('{self.address(host)}', {port}), 2)"
        return subprocess.run(self._inside(host, [sys.executable, "-S", "-c", probe]), capture_output=True).returncode == 0

    def call(self, host: int, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the project's command line on a host."""
        command = self._inside(host, [sys.executable, "-P", "-m", "cluster", *words])
        environment = {**self.environment, "PYTHONPATH": str(ROOT)}
        return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=240)

    def cut(self, host: int) -> None:
        """Pull the host's cable."""
        _ip("-n", f"{self.prefix}sw", "link", "set", f"port{host}", "down")

    def join(self, host: int) -> None:
        """Put the cable back, and start the host's Ray node again."""
        self._end_node(host)
        _ip("-n", f"{self.prefix}sw", "link", "set", f"port{host}", "up")
        self.start_ray(host)

    def close(self) -> None:
        """End all processes inside, remove the namespaces."""
        for host in list(self.nodes):
            self._end_node(host)
        for name in self._namespaces():
            with contextlib.suppress(OSError):
                for process in _ip("netns", "pids", name).split():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(process), signal.SIGKILL)
                _ip("netns", "del", name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _wire(self, count: int) -> None:
        switch = f"{self.prefix}sw"
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge0", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge0", "up")
        for host in range(count):
            name = f"{self.prefix}h{host}"
            _ip("netns", "add", name)
            _ip("-n", switch, "link", "add", f"port{host}", "type", "veth", "peer", "name", f"link{host}", "netns", name)
            _ip("-n", switch, "link", "set", f"port{host}", "master", "bridge0", "up")
            _ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", f"link{host}")
            _ip("-n", name, "link", "set", f"link{host}", "up")
            _ip("-n", name, "link", "set", "lo", "up")

    def _namespaces(self) -> list[str]:
        return [line.split()[0] for line in _ip("netns", "list").splitlines() if line.startswith(self.prefix)]

    def _inside(self, host: int, command: list[str]) -> list[str]:
        return ["ip", "netns", "exec", f"{self.prefix}h{host}", *command]

    def _end_node(self, host: int) -> None:
        """End a host's processes, its ranks too, as a reboot does."""
        node = self.nodes.pop(host, None)
        for process in _ip("netns", "pids", f"{self.prefix}h{host}").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)
        if node is not None:
            node.wait()


def _ip(*words: str) -> str:
    """Run iproute2; its complaint as an OSError."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout
