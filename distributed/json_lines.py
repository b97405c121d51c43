"""Files of JSON lines that a crash may cut in the middle of one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def append_line(path: Path, value: Any, on_disk: bool = False) -> None:
    """Add a line, on a line of its own even after one that was cut. `on_disk`: it is there when this returns."""
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(value).encode() + b"\n")
        if on_disk:
            file.flush()
            os.fsync(file.fileno())


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of all whole lines, oldest first; none when there is no such file."""
    try:
        return whole_lines(path.read_bytes().splitlines())
    except FileNotFoundError:
        return []


def whole_lines(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """Their objects; a line that was cut is passed over."""
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found
