"""What a run was trained on: kept with the run, because a comparison may go on elsewhere than it began."""

from __future__ import annotations

import os
import platform
import time
import tomllib
from pathlib import Path
from typing import Any

from cluster.recipes import CODE_ROOT


def describe_machine(at_once: int) -> dict[str, Any]:
    """Processor, device and versions of this process. `at_once`: runs that share the machine."""
    import torch

    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "threads": torch.get_num_threads(),
        "runs_at_once": at_once,
        "mootron": tomllib.loads((CODE_ROOT / "pyproject.toml").read_text())["project"]["version"],
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def processor() -> str:
    """The processor's own name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine_words(machine: dict[str, Any]) -> str:
    """One line of it."""
    device = "" if machine["device"] == "CPU" else f"{machine['device']}, "
    share = f"{machine['runs_at_once']} run{'s' if machine['runs_at_once'] > 1 else ''} at once, {machine['threads']} thread each"
    # Without Mootron's own: noted by an older version, of a run that goes on with this one.
    versions = ", ".join(f"{name} {machine[name.lower()]}" for name in ("Mootron", "Python", "torch") if name.lower() in machine)
    return f"{device}{machine['processor']}, {machine['cores']} cores, {share}; {versions}; {machine['date']}"
