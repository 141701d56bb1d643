"""What a process prints reaches the terminal without the process ever waiting for it.

A terminal that is stopped (Ctrl-S), or a pipe that nobody reads, blocks whoever writes to it: a driver's
warning would then stop the robot's process. Here it is dropped instead.
"""

import os
import queue
import sys
import threading
import time
from contextlib import suppress

_STREAMS = (1, 2)
_KEPT = 1000
"""Pieces of output that may wait."""
_PIECE = 1 << 16


class OutputRelay:
    """Takes the place of this process's standard output and error, on the level of the operating system."""

    def __init__(self) -> None:
        self._waiting: list[queue.Queue[bytes]] = []
        for stream in _STREAMS:
            with suppress(OSError):  # a process without a terminal may have none
                self._take(stream)
        for file in (sys.stdout, sys.stderr):
            with suppress(AttributeError):
                file.reconfigure(line_buffering=True)  # type: ignore[union-attr]

    def flush(self, patience_s: float) -> None:
        """Return when all was passed on, or after so long [s]."""
        end_s = time.monotonic() + patience_s
        for file in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):
                file.flush()
        while any(waiting.unfinished_tasks for waiting in self._waiting) and time.monotonic() < end_s:
            time.sleep(0.005)

    def _take(self, stream: int) -> None:
        target = os.dup(stream)
        read, write = os.pipe()
        os.dup2(write, stream)
        os.close(write)
        waiting: queue.Queue[bytes] = queue.Queue(_KEPT)
        self._waiting.append(waiting)
        for run in (lambda: _collect(read, waiting), lambda: _pass_on(waiting, target)):
            threading.Thread(target=run, daemon=True).start()


def _collect(source: int, waiting: "queue.Queue[bytes]") -> None:
    while piece := os.read(source, _PIECE):
        with suppress(queue.Full):
            waiting.put_nowait(piece)


def _pass_on(waiting: "queue.Queue[bytes]", target: int) -> None:
    while True:
        piece = waiting.get()
        with suppress(OSError):  # a terminal that was closed
            while piece:
                piece = piece[os.write(target, piece) :]
        waiting.task_done()
