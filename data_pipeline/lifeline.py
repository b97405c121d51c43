"""Workers that end when the process they work for ends, however it ends.

torch's own watch looks at the parent, which for a worker of a fork server is the server; and the server waits for its workers.
After a SIGKILL of the trainer both would stay for ever (seen with torch 2.14).
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import Connection


class Lifeline:
    """A pipe whose writing end only the maker holds: the system closes it when the maker dies.

    Hand it to a worker as an argument of its start; the worker calls `hold`.
    """

    def __init__(self) -> None:
        self._reader, self._writer = multiprocessing.Pipe(duplex=False)

    def __getstate__(self) -> Connection:
        return self._reader

    def __setstate__(self, reader: Connection) -> None:
        self._reader = reader

    def hold(self) -> None:
        """End this process when the maker is gone."""
        threading.Thread(target=self._wait, daemon=True).start()

    def _wait(self) -> None:
        try:
            self._reader.recv_bytes()
        except (EOFError, OSError):
            os._exit(1)
