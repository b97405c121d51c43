"""What benches that measure devices write beside their tables (`cluster.markdown`): numbers, and a line that says where and when."""

from __future__ import annotations

import importlib.util
import os
import time

import torch


def machine() -> str:
    """Date, device and versions."""
    cores = len(os.sched_getaffinity(0))
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {cores} cores, {torch.get_num_threads()} threads used"
    return ", ".join([time.strftime("%Y-%m-%d", time.gmtime()), device, f"torch {torch.__version__}", _triton()])


def figure(value: float | None, form: str) -> str:
    """A number in that form; a dash where there is none."""
    return "-" if value is None else format(value, form)


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "no triton"
    import triton

    return f"triton {triton.__version__}"
