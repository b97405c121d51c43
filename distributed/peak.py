"""The arithmetic peak of a device: what model FLOP use is measured against.

GPUs: the maker's dense bf16 figure (no sparsity, base of the data sheet's tensor-core row). Everything else, and other
number types, is measured once a process by a short matrix product, the best of a few.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache

import torch

_TERA = 1e12

# Dense bf16 tensor-core peaks from the makers' data sheets; the first name found in the device's name counts.
_BF16_PEAKS = (
    ("GB200", 2500 * _TERA),
    ("B200", 2250 * _TERA),
    ("H200", 989 * _TERA),
    ("H100 NVL", 835 * _TERA),
    ("H100 PCIe", 756 * _TERA),
    ("H100", 989 * _TERA),
    ("A100", 312 * _TERA),
    ("A800", 312 * _TERA),
    ("L40S", 362 * _TERA),
    ("L4", 121 * _TERA),
    ("A10G", 70 * _TERA),
    ("A10", 125 * _TERA),
    ("RTX 4090", 165 * _TERA),
    ("MI300X", 1307 * _TERA),
)


@dataclass(frozen=True)
class Peak:
    """Floating-point operations a second (a multiply-accumulate is two) and where the figure comes from."""

    flops: float
    source: str


def published_peak(device_name: str) -> Peak | None:
    """The data sheet's dense bf16 figure, if the device is known."""
    for name, flops in _BF16_PEAKS:
        if name in device_name:
            return Peak(flops, f"data sheet, {name} dense bf16")
    return None


@lru_cache(maxsize=8)
def peak_flops(device: torch.device, dtype: torch.dtype) -> Peak:
    """The peak of one rank: its GPU, or the CPU threads it was given."""
    if device.type == "cuda" and dtype is torch.bfloat16:
        published = published_peak(torch.cuda.get_device_name(device))
        if published:
            return published
    return measured_peak(device, dtype)


def measured_peak(device: torch.device, dtype: torch.dtype, repeats: int = 4) -> Peak:
    """The best of a few square products; about a tenth of a second on a CPU core."""
    size = 8192 if device.type == "cuda" else 768
    left, right = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))
    best = min(_seconds(left, right) for _ in range(repeats))
    return Peak(2.0 * size**3 / best, f"measured, {size} x {size} {str(dtype).removeprefix('torch.')} product")


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    if left.is_cuda:
        torch.cuda.synchronize(left.device)
    started = time.perf_counter()
    torch.mm(left, right)
    if left.is_cuda:
        torch.cuda.synchronize(left.device)
    return max(time.perf_counter() - started, 1e-9)
