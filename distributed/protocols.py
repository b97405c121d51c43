"""Which held-out windows are scored: everything, or the two subsets that the MoEUT paper's numbers come from.

The paper's validation split has 1008 windows of 1024 tokens (C4, SlimPajama) and an incomplete last batch is dropped, so its
batch size changes the figure: Table 1 was scored in batches of 16 (all 1008 windows), the figures in batches of 64 (960), and
they differ by 0.4% of perplexity. Compare like with like (arXiv 2405.16039 and its training code, paper/moe_universal/run_tests.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from data_pipeline.windows import Windows
from distributed.errors import RunError


@dataclass(frozen=True)
class PaperProtocol:
    """The first `windows` whole windows, of which an incomplete last batch of `batch` is dropped."""

    windows: int
    batch: int


PROTOCOLS: dict[str, PaperProtocol | None] = {"tail": None, "paper_table": PaperProtocol(1008, 16), "paper_figure": PaperProtocol(1008, 64)}
"""`tail` scores every window, the shorter last one included."""


def check_protocol(protocol: str) -> None:
    """Refuse an unknown name.

    Raises:
        RunError: naming the known ones.
    """
    if protocol not in PROTOCOLS:
        raise RunError(f"protocol is '{protocol}'; choose one of {', '.join(PROTOCOLS)}")


def windows_counted(protocol: str, windows: Windows, source: str, max_windows: int | None = None) -> int:
    """How many of the first windows of `source` a protocol scores.

    Args:
        max_windows: in place of the protocol's number (the paper's peS2o split has 4111).

    Raises:
        RunError: fewer whole windows than one batch of the protocol.
    """
    rule = PROTOCOLS[protocol]
    if rule is None:
        return len(windows) if max_windows is None else min(max_windows, len(windows))
    ragged = len(windows) > 0 and len(windows.read_ragged([windows.ids[-1]])[0]) <= windows.seq_len
    whole = len(windows) - ragged
    counted = min(whole, max_windows or rule.windows) // rule.batch * rule.batch
    if counted == 0:
        raise RunError(f"source '{source}' has {whole} whole held-out windows, protocol {protocol} needs {rule.batch}; use protocol tail")
    return counted
