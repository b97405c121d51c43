"""What model FLOP use is measured against."""

from __future__ import annotations

import pytest
import torch

from distributed.peak import peak_flops, published_peak


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GB200", 2500),
        ("AMD Instinct MI300X", 1307),
    ],
)
def test_the_data_sheet_of_the_right_device_is_taken(name: str, teraflops: float) -> None:
    peak = published_peak(name)
    assert peak is not None
    assert peak.flops == teraflops * 1e12


def test_unknown_devices_are_measured() -> None:
    assert published_peak("NVIDIA GeForce GTX 680") is None


def test_a_cpu_is_measured_once() -> None:
    peak = peak_flops(torch.device("cpu"), torch.float32)
    assert peak.flops > 1e6
    assert "measured" in peak.source
    assert "float32" in peak.source
    assert peak_flops(torch.device("cpu"), torch.float32) is peak
