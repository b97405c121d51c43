"""Python, packages against the lock, and a Ray that starts."""

from __future__ import annotations

import importlib.metadata
import sys
import time
from pathlib import Path

from cluster.doctor.check import Check
from cluster.errors import ClusterError
from cluster.recipes import CODE_ROOT

REMAKE = "remove .venv and run ./launch.sh doctor again: it is made anew from requirements.lock"


def software_checks() -> list[Check]:
    """All findings of this file; starts and ends a Ray."""
    return [check_python(sys.version_info[:3]), check_packages(CODE_ROOT / "requirements.lock"), check_ray()]


def check_python(version: tuple[int, int, int]) -> Check:
    """3.11 to 3.13."""
    shown = f"{'.'.join(map(str, version))} ({sys.executable})"
    if (3, 11) <= version[:2] <= (3, 13):
        return Check("python", "ok", shown)
    return Check("python", "fault", shown, "install Python 3.11, 3.12 or 3.13, then " + REMAKE)


def check_packages(lock: Path) -> Check:
    """Installed versions against the lock."""
    wrong = package_differences(lock)
    if not wrong:
        return Check("packages", "ok", "all as in requirements.lock")
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    return Check("packages", "fault", "; ".join(wrong[:5]) + more, REMAKE)


def package_differences(lock: Path) -> list[str]:
    """One line a package that is missing or has another version than the lock says."""
    from packaging.requirements import Requirement

    wrong = []
    for line in lock.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            found = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(found.partition("+")[0], prereleases=True):
            wrong.append(f"{wanted.name} {found} instead of {str(wanted.specifier).removeprefix('==')}")
    return wrong


def check_ray() -> Check:
    """Start a private Ray, call an actor, end it."""
    from cluster.ray_session import ray_session

    started = time.monotonic()
    try:
        with ray_session(cpus=1, gpus=0):
            import ray

            answer = ray.get(ray.remote(_answer).remote(), timeout=60)
    except (ClusterError, RuntimeError, OSError) as fault:
        return Check("Ray", "fault", f"does not start: {fault}", "look at the lines above: memory, shared memory, interfaces, ports, /tmp")
    return Check("Ray", "ok", f"{ray.__version__} starts, answers ({answer}) and ends in {time.monotonic() - started:.0f} s")


def _answer() -> str:
    return "ready"
