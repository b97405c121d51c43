"""Spans: silent by default, balanced for a recorder. CPU only."""

from __future__ import annotations

import pytest

from kernels.spans import install, span, uninstall


class Recorder:
    def __init__(self) -> None:
        self.heard: list[str] = []

    def enter(self, name: str) -> None:
        self.heard.append(f"+{name}")

    def leave(self, name: str) -> None:
        self.heard.append(f"-{name}")


@pytest.fixture
def recorder():
    recorder = Recorder()
    install(recorder)
    yield recorder
    uninstall()


def test_spans_nest_and_are_left_on_errors(recorder):
    with pytest.raises(ValueError), span("attention"), span("experts"):
        raise ValueError
    assert recorder.heard == ["+attention", "+experts", "-experts", "-attention"]


def test_recorder_never_hears_half_a_span(recorder):
    with span("experts"):
        uninstall()
    with span("attention"):
        install(recorder)
    assert recorder.heard == ["+experts", "-experts"]
