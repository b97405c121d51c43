"""Pieces of measuring on one GPU, none longer than 8 minutes: what benchmarks/PENDING.md asks of such a machine, oldest first.

    ./launch.sh bench device [--list] [--piece 7 8] [--results FOLDER] [--table FILE]
    python -m benchmarks.on_device ...      the same on a bare machine: torch, triton and pydantic; pieces that need more are skipped

What a piece prints is shown, kept in the results folder and, with date, device and versions, appended to benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.results import machine

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "benchmarks" / "RESULTS.md"
RESULTS = ROOT / "docs" / "results" / "device"
TOO_LONG = 124
"""Exit code of a piece that was stopped, as of timeout(1)."""
GRACE_SECONDS = 20.0
TAIL = 40
"""Of an output without tables so many last lines go into the file of results."""


class Piece(NamedTuple):
    """A command of this project (`python -m` and the words), the minutes it may take and the modules it needs beyond torch's."""

    name: str
    words: str
    minutes: float
    needs: tuple[str, ...] = ()


PIECES = (
    Piece("quick-start", "cluster train", 8, ("ray", "deepspeed", "streaming")),
    Piece("experts", "cluster bench experts", 4, ("yaml", "numpy")),
    Piece("metrics", "cluster bench metrics", 4, ("yaml", "tensorboard")),
    Piece("checkpoint", "cluster bench checkpoint --ranks 1", 6, ("yaml", "numpy", "fsspec", "zstandard")),
    Piece("gpu-tests", "pytest -m gpu tests/kernels tests/distributed/test_repeatable.py", 6, ("pytest", "hypothesis")),
    Piece("kernels-soak", "cluster soak kernels --shapes 20", 8),
    Piece("kernels-244M", "cluster bench kernels --sizes 244M d416 --no-rivals", 4),
    Piece("forms", "cluster bench forms --launches", 4),
    Piece("step", "cluster bench step --sizes 44M 244M", 8),
    Piece("operations", "cluster bench kernels --operations --sizes 44M 244M", 5),
    Piece("step-profile", "cluster bench step --sizes 244M --rounds 3 --profile", 6),
    Piece("kernels-rivals", "cluster bench kernels --sizes 244M", 8),
    Piece("step-728M", "cluster bench step --sizes 728M --micro-batch 8 --rounds 5", 8),
    Piece("tune", "cluster bench kernels --tune --sizes 244M --seconds 65", 8),
    Piece("step-compiled", "cluster bench step --sizes 244M --compile", 8),
    Piece("kernels-paper", "cluster bench kernels --sizes 44M 126M 319M 728M 1040M --no-rivals", 8),
    Piece("kernels-widths", "cluster bench kernels --sizes d768 d1024 d2048 d4096 --no-rivals", 8),
    Piece("peer", "cluster bench peer", 3),
    Piece("rivals-widths", "cluster bench kernels --sizes d768 d1024 d2048 d4096", 8),
    Piece("compare-gpu", "cluster compare configs/compare/gpu --local --minutes 7", 8, ("streaming", "tokenizers", "xxhash")),
    Piece("million-experts", "cluster bench million_experts --width 1024 --tokens 16384 --precision bf16", 4, ("yaml", "numpy")),
)


def run(argv: list[str]) -> int:
    """Run the pieces asked for; 1 where one missed a bar, failed or was stopped, 2 without an accelerator."""
    parser = argparse.ArgumentParser(prog="bench device", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--list", action="store_true", help="say what the pieces are and run none")
    parser.add_argument("--piece", type=int, nargs="+", choices=range(1, len(PIECES) + 1), metavar="N", help="default: all, in order")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of whole outputs (default: docs/results/device)")
    parser.add_argument("--table", type=Path, default=TABLE, help="file that is added to (default: benchmarks/RESULTS.md)")
    args = parser.parse_args(argv)
    if args.list:
        for number, piece in enumerate(PIECES, 1):
            print(f"{number:>3}  {piece.name:<16}{piece.minutes:>3g} min  {piece.words}")
        return 0
    if not torch.cuda.is_available():
        print("no accelerator here: nothing was measured", file=sys.stderr)
        return 2
    worst = 0
    for number in args.piece or range(1, len(PIECES) + 1):
        worst = max(worst, int(run_piece(PIECES[number - 1], args.results, args.table) != 0))
    return worst


def run_piece(piece: Piece, results: Path, file: Path) -> int:
    """Run one piece and write down what it said; its exit code, 0 for one that is skipped."""
    absent = [name for name in piece.needs if importlib.util.find_spec(name) is None]
    if absent:
        print(f"{piece.name}: skipped, not installed: {', '.join(absent)}", flush=True)
        return 0
    results.mkdir(parents=True, exist_ok=True)
    print(f"{piece.name}: python -m {piece.words}", flush=True)
    code, lines = tee(piece, results / f"{piece.name}.txt")
    with file.open("a") as table:
        table.write(entry(piece, code, lines))
    return code


def tee(piece: Piece, log: Path) -> tuple[int, list[str]]:
    """The exit code and what was printed, also shown and kept in `log`; errors go to `log` alone, ahead of what they belong to."""
    words = [sys.executable, "-P", "-m", *shlex.split(piece.words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as kept:
        process = subprocess.Popen(
            words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=kept, text=True, bufsize=1, start_new_session=True
        )
        stopped = threading.Event()

        def stop() -> None:
            stopped.set()
            end(process)

        timer = threading.Timer(60 * piece.minutes, stop)
        timer.start()
        lines = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
                lines.append(line.rstrip("\n"))
            code = process.wait()
            code = TOO_LONG if stopped.is_set() else code
        finally:
            timer.cancel()
            end(process)
    with log.open("a") as kept:
        kept.write("\n".join([*lines, f"exit code {code}", ""]))
    return code, lines


def end(process: subprocess.Popen[str]) -> None:
    """Ask a piece that still runs to end what it started, a training run's own sessions included; then leave nothing of it."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def entry(piece: Piece, code: int, lines: list[str]) -> str:
    """What goes into the file of results: where and when, the command, how it ended, its tables or the end of what it printed."""
    ended = f"stopped after {piece.minutes:g} minutes" if code == TOO_LONG else f"exit code {code}"
    tables = any(line.startswith("| --- ") for line in lines)
    body = lines if tables else ["```text", *lines[-TAIL:], "```"]
    return "\n".join([f"## {piece.name}", "", f"{machine()}. `python -m {piece.words}`: {ended}.", "", *body, "", ""])


if __name__ == "__main__":
    raise SystemExit(run(sys.argv[1:]))
