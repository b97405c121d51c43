"""StepClock: parts add up to the wall time, nested spans are exclusive."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from distributed.clock import PARTS, HostTimeline, StepClock, StreamTimeline
from kernels import spans


class HandClock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def wait(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def hand() -> HandClock:
    return HandClock()


@pytest.fixture
def clock(hand: HandClock) -> Iterator[StepClock]:
    made = StepClock(torch.device("cpu"), HostTimeline(hand))
    yield made
    made.close()


def read(clock: StepClock) -> dict[str, float]:
    """Parts that got time."""
    return {name: seconds for name, seconds in clock.read().items() if seconds}


def test_nested_spans_are_taken_out_of_the_part_around_them(clock: StepClock, hand: HandClock) -> None:
    with clock.part("forward"):
        hand.wait(1)
        with spans.span("attention"):
            hand.wait(2)
            with spans.span("experts"):
                hand.wait(4)
            hand.wait(8)
        hand.wait(16)
    with clock.part("backward"):
        hand.wait(32)
        with spans.span("experts"):
            hand.wait(64)
    assert read(clock) == {"forward": 17, "attention": 10, "experts": 68, "backward": 32}


def test_parts_add_up_to_the_time_between_reads(clock: StepClock, hand: HandClock) -> None:
    for part, seconds in (("data", 3), ("forward", 5), ("optimizer", 7)):
        hand.wait(0.5)
        with clock.part(part):
            hand.wait(seconds)
    hand.wait(2)
    seconds = clock.read()
    assert sum(seconds.values()) == 18.5
    assert seconds["other"] == 3.5
    assert tuple(seconds) == PARTS


def test_reading_inside_a_part_shares_it_between_two_reads(clock: StepClock, hand: HandClock) -> None:
    with clock.part("logging"):
        hand.wait(1)
        assert read(clock) == {"logging": 1}
        hand.wait(2)
    hand.wait(4)
    assert read(clock) == {"logging": 2, "other": 4}


def test_spans_of_a_validation_stay_with_it(clock: StepClock, hand: HandClock) -> None:
    with clock.part("validation"), spans.span("experts"):
        hand.wait(3)
    assert read(clock) == {"validation": 3}


def test_unknown_spans_stay_with_the_part_around_them(clock: StepClock, hand: HandClock) -> None:
    with clock.part("forward"), spans.span("experts"), spans.span("sorting"):
        hand.wait(3)
    assert read(clock) == {"experts": 3}


def test_time_is_charged_when_the_inside_raises(clock: StepClock, hand: HandClock) -> None:
    with pytest.raises(KeyError), clock.part("forward"), spans.span("experts"):
        hand.wait(3)
        raise KeyError
    hand.wait(1)
    assert read(clock) == {"experts": 3, "other": 1}


def test_unknown_parts_are_refused(clock: StepClock) -> None:
    with pytest.raises(ValueError, match="'lunch' is not a part of a step"), clock.part("lunch"):
        pass


def test_a_span_left_out_of_order_is_an_error(clock: StepClock) -> None:
    clock.enter("experts")
    with pytest.raises(RuntimeError, match="'attention' closed while the open spans are \\['experts'\\]"):
        clock.leave("attention")


def test_a_closed_clock_hears_no_spans(clock: StepClock, hand: HandClock) -> None:
    clock.close()
    with clock.part("forward"), spans.span("experts"):
        hand.wait(3)
    assert read(clock) == {"forward": 3}


def test_real_spans_of_the_kernels_are_heard() -> None:
    from kernels.expert_mlp import expert_mlp

    clock = StepClock(torch.device("cpu"))
    x_SD = torch.randn(6, 4, requires_grad=True)
    up_EDF, down_EFD = torch.randn(3, 4, 5, requires_grad=True), torch.randn(3, 5, 4, requires_grad=True)
    routes = torch.arange(6), torch.arange(6) % 3, torch.rand(6, requires_grad=True)
    with clock.part("forward"):
        y_SD = expert_mlp(x_SD, *routes, up_EDF, down_EFD)
    forward = clock.read()
    with clock.part("backward"):
        y_SD.sum().backward()
    backward = clock.read()
    clock.close()
    assert forward["experts"] > 0
    assert backward["experts"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="times of a CUDA stream need a GPU")
def test_a_stream_is_charged_with_what_the_device_did() -> None:
    timeline = StreamTimeline()
    torch.cuda._sleep(50_000_000)
    timeline.mark("forward")
    timeline.mark("other")
    seconds = timeline.take()
    assert seconds["forward"] > 10 * seconds["other"] > 0
