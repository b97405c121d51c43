"""TensorBoard's event files of a run, written by rank 0.

After a restart the events past the resumed step are purged: the new file starts with a mark that makes TensorBoard drop
them, so a curve never runs twice over the same steps. Tags are `group/name`; TensorBoard shows a group as a section.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import numpy as np

_PREFIX = "events.out.tfevents."
_LONGEST_WAIT_SECONDS = 5.0


class Board:
    """Thin form of torch's SummaryWriter that speaks of figures, pictures and events.

    Args:
        folder: where the event files lie.
        purge_from: drop what earlier files say of this step and later ones; None for a new run.
    """

    def __init__(self, folder: Path, purge_from: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        _wait_for_a_later_name(folder)
        self._writer = SummaryWriter(str(folder), purge_step=purge_from, flush_secs=10)

    def scalars(self, step: int, figures: dict[str, float]) -> None:
        """One point on each curve."""
        for tag, value in figures.items():
            self._writer.add_scalar(tag, value, step)

    def picture(self, step: int, tag: str, picture_YXC: np.ndarray) -> None:
        """An image, uint8 [Y, X, 3]."""
        self._writer.add_image(tag, picture_YXC, step, dataformats="HWC")

    def histogram(self, step: int, tag: str, values: np.ndarray) -> None:
        """The distribution of some values."""
        self._writer.add_histogram(tag, values, step)

    def text(self, step: int, tag: str, words: str) -> None:
        """Something that happened, in words."""
        self._writer.add_text(tag, words, step)

    def flush(self) -> None:
        """Hand everything to the file system, so that a viewer sees it."""
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _wait_for_a_later_name(folder: Path) -> None:
    """TensorBoard reads event files by name: second of birth, host, process, and a number of which 10 sorts before 9. A quick restart
    could sort before what it purges.
    """
    deadline = time.monotonic() + _LONGEST_WAIT_SECONDS
    newest = max((path.name.rpartition(".")[0] for path in folder.glob(f"{_PREFIX}*")), default="")
    while newest >= f"{_PREFIX}{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}" and time.monotonic() < deadline:
        time.sleep(0.05)
