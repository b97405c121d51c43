"""Where a device's time goes in one call, by kernel (torch.profiler)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import Form


class KernelTime(NamedTuple):
    """All launches of one kernel, or on a CPU all calls of one operator without what it calls."""

    name: str
    calls: int
    seconds: float


def kernel_times(form: Form, device: str) -> list[KernelTime]:
    """What one call of `form` ran, the longest first."""
    on_device = device == "cuda"
    with profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_device) as seen:
        form()
        if on_device:
            torch.cuda.synchronize()
    wanted = DeviceType.CUDA if on_device else DeviceType.CPU
    field = "self_device_time_total" if on_device else "self_cpu_time_total"
    # An annotation spans kernels that are counted themselves.
    events = [event for event in seen.key_averages() if event.device_type == wanted and not event.is_user_annotation]
    found = [KernelTime(event.key, event.count, getattr(event, field) / 1e6) for event in events]
    return sorted(found, key=lambda kernel: -kernel.seconds)
