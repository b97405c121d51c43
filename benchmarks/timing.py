"""Forms of the same work measured side by side: in every round each runs once, in changed order, so that a slow second hits all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

Form = Callable[[], object]

WARM_UP_ROUNDS = 2
COLD_BYTES = 1 << 30


def measure(forms: dict[str, Form], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every form in every round: of the device's queue, or on a CPU of the processor.

    On a device a gigabyte is written before each form: the second-level cache then holds nothing of the form before, and the host
    has queued the first kernels when the clock starts.
    """
    found: dict[str, list[float]] = {name: [] for name in forms}
    names = list(forms)
    cold = torch.empty(COLD_BYTES if device == "cuda" else 0, dtype=torch.uint8, device=device)
    for number in range(-WARM_UP_ROUNDS, rounds):
        first = number % len(names) if names else 0
        for name in names[first:] + names[:first]:
            seconds = _device_seconds(forms[name], cold) if device == "cuda" else _processor_seconds(forms[name])
            if number >= 0:
                found[name].append(seconds)
    return found


def ratio(above: list[float], below: list[float]) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def peak_bytes(form: Form, device: str) -> int | None:
    """What one call allocates at most beyond what was there; None on a CPU, where nobody counts."""
    if device != "cuda":
        return None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    form()
    return torch.cuda.max_memory_allocated() - before


def _processor_seconds(form: Form) -> float:
    started = time.process_time()
    form()
    return time.process_time() - started


def _device_seconds(form: Form, cold: torch.Tensor) -> float:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    cold.zero_()
    first.record()
    form()
    last.record()
    last.synchronize()
    return float(first.elapsed_time(last)) / 1e3
