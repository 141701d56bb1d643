"""What a process prints reaches the terminal without the process ever waiting for it.

A terminal that is stopped (Ctrl-S), or a pipe that nobody reads, blocks whoever writes to it: a driver's
warning, or ROS's own log, would then stop the robot's process. Here it is dropped instead.
"""

import os
import queue
import sys
import threading
import time
from contextlib import suppress
from types import TracebackType

from vivace.policies.backports import Self

_STREAMS = (1, 2)
_KEPT = 1000
"""Pieces of output that may wait."""
_PIECE = 1 << 16
_PATIENCE_S = 0.5
"""How long what waits may take to be passed on at the end [s]."""


class OutputRelay:
    """While entered, takes the place of this process's standard output and error.

    It does so on the level of the operating system, because not all that prints is Python.
    """

    def __enter__(self) -> Self:
        self._taken: list[tuple[int, int]] = []
        """(stream, what it was)."""
        self._readers: list[threading.Thread] = []
        self._waiting: list[queue.Queue[bytes]] = []
        for stream in _STREAMS:
            with suppress(OSError):  # a process without a terminal may have none
                self._take(stream)
        for file in (sys.stdout, sys.stderr):
            with suppress(AttributeError):
                file.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the streams back and pass on what waits, but not for ever."""
        end_s = time.monotonic() + _PATIENCE_S
        for file in (sys.stdout, sys.stderr):
            with suppress(AttributeError, OSError, ValueError):
                file.flush()
        for stream, before in self._taken:
            os.dup2(before, stream)
        for reader in self._readers:  # whoever inherited the pipe may hold it open
            reader.join(max(0.0, end_s - time.monotonic()))
        while any(waiting.unfinished_tasks for waiting in self._waiting) and time.monotonic() < end_s:
            time.sleep(0.005)

    def _take(self, stream: int) -> None:
        target = os.dup(stream)
        read, write = os.pipe()
        os.dup2(write, stream)
        os.close(write)
        waiting: queue.Queue[bytes] = queue.Queue(_KEPT)
        reader = threading.Thread(target=_collect, args=(read, waiting), daemon=True)
        reader.start()
        threading.Thread(target=_pass_on, args=(waiting, target), daemon=True).start()
        self._taken.append((stream, target))
        self._readers.append(reader)
        self._waiting.append(waiting)


def _collect(source: int, waiting: "queue.Queue[bytes]") -> None:
    while piece := os.read(source, _PIECE):
        with suppress(queue.Full):
            waiting.put_nowait(piece)
    os.close(source)


def _pass_on(waiting: "queue.Queue[bytes]", target: int) -> None:
    while True:
        piece = waiting.get()
        with suppress(OSError):  # a terminal that was closed
            while piece:
                piece = piece[os.write(target, piece) :]
        waiting.task_done()
