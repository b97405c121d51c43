"""Findings about a machine: each fault with what to do about it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from cluster.doctor.check import at_least
from cluster.doctor.connections import check_interfaces, check_service_port, connection_checks
from cluster.doctor.machine import check_disk, check_shared_memory, machine_checks
from cluster.doctor.software import check_packages, check_python, package_differences
from cluster.network import free_port


def test_this_machine_can_be_looked_at() -> None:
    for check in [*machine_checks(), *connection_checks()]:
        assert check.found and (check.mend or check.level == "ok"), check


@pytest.mark.parametrize(("amount", "level"), [(1, "fault"), (2, "warning"), (3, "ok")])
def test_limits(amount: float, level: str) -> None:
    assert at_least("memory", amount, 2, 3, "found", "mend").level == level


@pytest.mark.parametrize(("version", "level"), [((3, 10, 9), "fault"), ((3, 11, 0), "ok"), ((3, 13, 5), "ok"), ((3, 14, 0), "fault")])
def test_python_versions(version: tuple[int, int, int], level: str) -> None:
    assert check_python(version).level == level


def test_packages_against_a_lock(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    installed = importlib.metadata.version("pytest")
    lock.write_text(f'# head\npytest=={installed}\nno-such-package==1.0\nnot-here==2 ; python_version < "3"\n')
    assert package_differences(lock) == ["no-such-package is missing"]
    lock.write_text("pytest==0.1\n")
    check = check_packages(lock)
    assert check.level == "fault" and f"pytest {installed} instead of 0.1" in check.found and "requirements.lock" in check.mend


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    assert check_disk(tmp_path).level != "fault"
    check = check_disk(tmp_path / "not-there")
    assert check.level == "fault" and "MOOTRON_HOME" in check.mend


def test_no_shared_memory(tmp_path: Path) -> None:
    assert check_shared_memory(tmp_path / "shm").level == "warning"


def test_no_loopback() -> None:
    check = check_interfaces({"eth0": ["10.0.0.2"]})
    assert check.level == "fault" and "eth0 10.0.0.2" in check.found and check.mend


def test_free_port_is_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_service_port(free_port()).level == "ok"
