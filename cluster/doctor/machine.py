"""Cores, memory, disk, shared memory, open files, GPUs."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

from cluster.doctor.check import Check, at_least
from distributed.run_folder import project_root

GIB = 2**30


def machine_checks() -> list[Check]:
    """All findings of this file."""
    machine = [check_cores(), check_memory(), check_disk(project_root()), check_shared_memory(Path("/dev/shm"))]
    return [*machine, check_open_files(), check_gpus()]


def check_cores() -> Check:
    """Cores this process may use: the quickstart wants two."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return at_least("cores", cores, 1, 2, f"{cores}", "with one core use cluster.workers=1 expert_parallel.size=1")


def check_memory() -> Check:
    """Memory free now, the control group's limit included."""
    import psutil

    free = float(psutil.virtual_memory().available)
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        free = min(free, float(limit.read_text()) - used)
    found = f"{free / GIB:.1f} GiB free"
    return at_least("memory", free, 2 * GIB, 4 * GIB, found, "close programs, or use a smaller model or train.micro_batch=1")


def check_disk(folder: Path) -> Check:
    """Space and write access where runs and corpora go."""
    probe = folder / f".doctor-{os.getpid()}"
    try:
        probe.write_text("")
        probe.unlink()
    except OSError as fault:
        return Check("disk", "fault", f"{folder} cannot be written: {fault.strerror}", "set MOOTRON_HOME to a writable folder")
    free = shutil.disk_usage(folder).free
    mend = "free some, or set MOOTRON_HOME to a folder on a larger disk"
    return at_least("disk", free, GIB, 10 * GIB, f"{free / GIB:.0f} GiB free, {folder} is writable", mend)


def check_shared_memory(folder: Path) -> Check:
    """Room for Ray's object store and the data loader's tensors."""
    if not folder.is_dir():
        return Check("shared memory", "warning", f"{folder} does not exist", "Ray will use /tmp, which is slower")
    free = shutil.disk_usage(folder).free
    mend = "enlarge it: docker run --shm-size=2g, or mount -o remount,size=2g /dev/shm"
    return at_least("shared memory", free, 64 * 2**20, GIB // 2, f"{free / GIB:.2f} GiB free in {folder}", mend)


def check_open_files() -> Check:
    """Ray opens some hundred files and sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    amount = float("inf") if soft == resource.RLIM_INFINITY else soft
    return at_least("open files", amount, 256, 1024, f"limit {soft} (at most {hard})", "ulimit -n 4096")


def check_gpus() -> Check:
    """What torch can use against what the machine shows."""
    import torch

    count = torch.cuda.device_count()
    if count:
        names = sorted({torch.cuda.get_device_name(number) for number in range(count)})
        return Check("GPUs", "ok", f"{count} x {', '.join(names)}: one worker each")
    if Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists():
        mend = f"look at nvidia-smi or rocm-smi, and at CUDA_VISIBLE_DEVICES; this torch is built for CUDA {torch.version.cuda}"
        return Check("GPUs", "warning", "a driver is present but torch can use no GPU", mend)
    return Check("GPUs", "ok", "none: workers run on CPUs")
