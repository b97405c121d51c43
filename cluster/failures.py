"""What ended a group, in words for a person and in facts for the supervisor."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from cluster.child import SERVER_GONE, Outcome
from cluster.exit_codes import USER_ERROR
from cluster.hang_watch import Hang
from cluster.rank_process import NodeFacts, rank_log
from distributed.run_folder import RunFolder

LOG_LINES = 12
STACK_LINES = 40
OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that someone else sent: the next start need not end the same way."""

PEER_GONE = (
    "CollectiveError",
    "Connection closed by peer",
    "Connection reset",
    "DistNetworkError",
    "DistStoreError",
    "did not come",
    SERVER_GONE,
)


@dataclass(frozen=True)
class Failure:
    """Why a group ended. `reason` is one line, `message` has the end of the log as well.

    `signature`: equal for failures that would come again; None for what came from outside. `time`: when it happened.
    """

    kind: str
    time: float
    reason: str
    message: str
    rank: int | None = None
    place: NodeFacts | None = None
    signature: str | None = None
    users_mistake: bool = False
    lost: bool = False


def failure_of_outcomes(run: RunFolder, places: list[NodeFacts], outcomes: list[Outcome]) -> Failure:
    """The failure behind the outcomes: the first rank to end badly, for the others fail because it is gone."""
    failed = [outcome for outcome in outcomes if outcome.result is None]
    first = min(failed, key=lambda outcome: (not is_cause(outcome), outcome.ended))
    place = places[first.rank]
    if first.code == USER_ERROR and first.error:
        return Failure("crashed", first.ended, first.error, first.error, first.rank, place, users_mistake=True)
    how = first.error or how_it_ended(first.code)
    message = f"rank {first.rank} on {first.host} failed: {how}\n{log_tail(run, first.rank, LOG_LINES)}"
    kind = "node lost" if first.lost else "killed" if _from_outside(first.code) else "crashed"
    signature = signature_of(how) if kind == "crashed" and is_cause(first) else None
    return Failure(kind, first.ended, how, message, first.rank, place, signature, lost=first.lost)


def failure_of_hang(run: RunFolder, places: list[NodeFacts], hang: Hang, now: float) -> Failure:
    """The failure that a hang amounts to, with the culprit's stack if it wrote one."""
    rank, place = hang.rank, None if hang.rank is None else places[hang.rank]
    who = "the group" if rank is None or place is None else f"rank {rank} on {place.host}"
    message = f"{who} {hang.kind}: {hang.reason}\n{log_tail(run, rank or 0, STACK_LINES)}"
    return Failure(hang.kind, now, hang.reason, message, rank, place)


def signature_of(error: str) -> str:
    """An error without its numbers, which differ from start to start (ports, ranks, addresses)."""
    return re.sub(r"0x[0-9a-f]+|\d+", "#", error.partition("\n")[0])[:200]


def how_it_ended(code: int | None) -> str:
    """An exit code in words."""
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = " (often the system's memory killer)" if name == "SIGKILL" else ""
        return f"killed by {name}{hint}"
    return f"exit code {code} without a result"


def log_tail(run: RunFolder, rank: int, count: int) -> str:
    """The end of a rank's log, indented, under its name."""
    log = rank_log(run, rank)
    return "\n".join([f"{log}:", *(f"  | {line}" for line in last_lines(log, count))])


def last_lines(path: Path, count: int) -> list[str]:
    """The end of a log; empty when there is none."""
    try:
        return path.read_text(errors="replace").splitlines()[-count:]
    except OSError:
        return []


def is_cause(outcome: Outcome) -> bool:
    """Whether it did not fail as ranks do whose peer is gone."""
    return not any(words in (outcome.error or "") for words in PEER_GONE)


def _from_outside(code: int | None) -> bool:
    return code is not None and code < 0 and -code in OUTSIDE
