"""Check this machine and say what to do about each fault. Exit code 1 if there is a fault."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(args: argparse.Namespace) -> int:
    """Look and tell."""
    from rich.console import Console
    from rich.markup import escape

    from cluster.doctor.connections import connection_checks
    from cluster.doctor.machine import machine_checks
    from cluster.doctor.software import software_checks

    console = Console()
    colours = {"ok": "green", "warning": "yellow", "fault": "red"}
    levels = []
    for look in (machine_checks, connection_checks, software_checks):
        for check in look():
            levels.append(check.level)
            words = f"[{colours[check.level]}]{check.level:<8}[/] {check.name:<14} {escape(check.found)}"
            console.print(words, highlight=False, soft_wrap=True)
            if check.mend and check.level != "ok":
                console.print(f"{'':<8} {'':<14} -> {check.mend}", highlight=False, markup=False, soft_wrap=True)
    faults, warnings = levels.count("fault"), levels.count("warning")
    console.print(f"{faults} faults, {warnings} warnings", highlight=False)
    return 1 if faults else 0
