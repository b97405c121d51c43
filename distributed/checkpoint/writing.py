"""One save on its way: a thread of its own writes this rank's file, and on rank 0 commits."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from distributed.checkpoint.commit import SupersededError, commit, discard, refuse_after_take_over
from distributed.checkpoint.part import Job, explain, write_part

LOW_PRIORITY = 19
"""Nice value of the writer: where training wants all cores, it gets them."""


class Writing:
    """Started at once. `written` is set when this rank's part is done or has failed, `done` when nothing more happens.

    Args:
        after_commit: what to do then, in the writer (retention).
        yield_cores: let training go first.
    """

    def __init__(self, job: Job, after_commit: Callable[[], object], yield_cores: bool) -> None:
        self.job, self.started = job, time.monotonic()
        self.written, self.done, self._cancelled = threading.Event(), threading.Event(), threading.Event()
        self.part_fault: str | None = None
        self.fault: str | None = None
        """Why there is no checkpoint; known on rank 0, elsewhere only of this rank's part."""
        self.superseded = False
        self.retention_fault: str | None = None
        self.bytes, self.seconds = 0, 0.0
        self.told = False
        self._after_commit, self._yield_cores = after_commit, yield_cores
        # A daemon: a process that fails must not wait for a slow disk, and a half-written checkpoint is none.
        threading.Thread(target=self._run, name=f"checkpoint-{job.step}", daemon=True).start()

    def cancel(self) -> None:
        """Stop waiting for the marks of other ranks: one of them could not leave any."""
        self._cancelled.set()

    def _run(self) -> None:
        if self._yield_cores and sys.platform == "linux":
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOW_PRIORITY)  # of this thread only
        try:
            self.fault = write_part(self.job)
            self.part_fault = self.fault
            self.written.set()
            if self.job.rank == 0:
                self._commit()
        finally:
            self.seconds = time.monotonic() - self.started
            self.written.set()
            self.done.set()

    def _commit(self) -> None:
        try:
            self.bytes = commit(self.job, self._cancelled)
            self.fault = None
        except Exception as fault:  # whatever the storage raises, training goes on
            self.superseded = isinstance(fault, SupersededError)
            self.fault = self.fault or explain(fault)
            discard(self.job)
            return
        try:
            refuse_after_take_over(self.job)  # a late commit must not delete what the next group goes on from
            self._after_commit()
        except Exception as fault:
            self.retention_fault = explain(fault)
