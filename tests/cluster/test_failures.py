"""What the supervisor makes of the ranks' ends."""

from __future__ import annotations

from collections.abc import Callable

from test_group_environment import place

from cluster.child import Outcome
from cluster.failures import Failure, failure_of_hang, failure_of_outcomes, signature_of
from cluster.hang_watch import Hang
from distributed.run_folder import RunFolder

PLACES = [place("a", "10.0.0.9"), place("b", "10.0.0.10")]


def failure(run: RunFolder, *outcomes: Outcome) -> Failure:
    return failure_of_outcomes(run, PLACES, list(outcomes))


def test_the_first_to_die_is_named_with_the_end_of_its_log(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a", "running", step=9)
    (run.logs / "rank-00001.log").write_text("\n".join(f"line {number}" for number in range(40)))
    found = failure(run, Outcome(0, "left", 20.0, 1, None, "RuntimeError: Connection closed by peer"), Outcome(1, "right", 10.0, -9))
    assert (found.kind, found.rank, found.signature, found.place) == ("killed", 1, None, PLACES[1])
    assert found.message.startswith("rank 1 on right failed: killed by SIGKILL")
    assert found.message.endswith("  | line 39") and "line 3\n" not in found.message


def test_a_rank_whose_peer_is_gone_is_not_the_cause_though_it_was_seen_first(make_run: Callable[..., RunFolder]) -> None:
    gone = Outcome(0, "left", 9.0, 1, None, "CollectiveError: rank 0: collective 7 'dispatch' failed")
    assert failure(make_run("a"), gone, Outcome(1, "right", 9.1, 1, None, "ValueError: 3")).rank == 1
    assert failure(make_run("a"), gone).signature is None, "it would not come again by itself"


def test_a_users_mistake_is_its_message_alone(make_run: Callable[..., RunFolder]) -> None:
    found = failure(make_run("a"), Outcome(0, "host", 1.0, 2, None, "train.lr is wrong; mend it"))
    assert found.users_mistake and found.message == "train.lr is wrong; mend it"


def test_a_rank_without_a_result(make_run: Callable[..., RunFolder]) -> None:
    found = failure(make_run("a"), Outcome(0, "host", 1.0, 3))
    assert found.kind == "crashed" and "exit code 3 without a result" in found.message


def test_a_lost_host(make_run: Callable[..., RunFolder]) -> None:
    found = failure(make_run("a"), Outcome(1, "right", 1.0, error="its Ray actor died", lost=True))
    assert (found.kind, found.lost, found.signature) == ("node lost", True, None)


def test_a_hang_brings_the_culprits_stack(make_run: Callable[..., RunFolder]) -> None:
    run = make_run("a")
    (run.logs / "rank-00001.log").write_text('Thread 0x1 (most recent call first):\n  File "exchange.py", line 9 in dispatch\n')
    found = failure_of_hang(run, PLACES, Hang("hung", 1, 7, "no rank moved"), 5.0)
    assert found.message.startswith("rank 1 on host-b hung: no rank moved") and "line 9 in dispatch" in found.message


def test_an_error_is_known_again_without_its_numbers() -> None:
    assert signature_of("ValueError: rank 3 at 0x7f12") == signature_of("ValueError: rank 1 at 0xab")
    assert signature_of("ValueError: lr") != signature_of("ValueError: loss")
