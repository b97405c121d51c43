"""Devices, and the least time that counted work can take on them: the words of `bench roofline`. No device is asked."""

from __future__ import annotations

from typing import NamedTuple

BF16, FP32, INT64 = 2, 4, 8


class Device(NamedTuple):
    """bf16 FLOP/s on tensor cores without sparsity, float32 FLOP/s without them, bytes/s of memory and of the second-level cache."""

    flops: float
    float32_flops: float
    bandwidth: float
    cache: float


# 5,120 bytes a clock are read from A100's second-level cache (its white paper). Hopper's is not published: taken as wide, at its clock.
CACHE_BYTES_A_CLOCK = 5120
DEVICES = {
    "A100-80": Device(312e12, 19.5e12, 2.039e12, CACHE_BYTES_A_CLOCK * 1.41e9),  # NVIDIA A100 data sheet, SXM
    "H100": Device(989.4e12, 67e12, 3.35e12, CACHE_BYTES_A_CLOCK * 1.755e9),  # NVIDIA H100 data sheet, SXM, half of the sparse figure
    "H200": Device(989.4e12, 67e12, 4.8e12, CACHE_BYTES_A_CLOCK * 1.755e9),
}


NAMES = {"NVIDIA A100-SXM4-80GB": "A100-80", "NVIDIA H100 80GB HBM3": "H100", "NVIDIA H200": "H200"}
"""What the driver calls the devices above; others of the same generation have other memory or clocks."""


class Work(NamedTuple):
    """What a kernel does at least."""

    flops: float
    bytes: float
    cached: float = 0.0
    """Bytes between programs and the second-level cache, where they are counted."""
    float32_flops: float = 0.0

    def seconds(self, device: Device) -> float:
        """The floor: arithmetic, memory and cache perfectly overlapped."""
        arithmetic = self.flops / device.flops + self.float32_flops / device.float32_flops
        return max(arithmetic, self.bytes / device.bandwidth, self.cached / device.cache)
