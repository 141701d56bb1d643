"""Standard output and error that never block who writes: a terminal can be stopped (Ctrl-S), or gone."""

import os
import threading
from contextlib import suppress
from types import TracebackType

from vivace.policies.backports import Self

_STREAMS = (1, 2)
_BLOCK = 1 << 16
_PATIENCE_S = 0.5


class Pump:
    """While it is entered, what is written goes into pipes, and a thread carries it to the terminal.

    ROS writes its log from the thread that ticks, in C, so the file descriptors themselves are replaced. What
    a full pipe does not take is lost.
    """

    def __enter__(self) -> Self:
        """Put pipes in the way."""
        self._saved, self._threads = [], []
        for stream in _STREAMS:
            saved = os.dup(stream)
            end, begin = os.pipe()
            os.set_blocking(begin, False)
            os.dup2(begin, stream)
            os.close(begin)
            thread = threading.Thread(target=_carry, args=(end, saved), daemon=True)
            thread.start()
            self._saved.append((stream, saved))
            self._threads.append(thread)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Carry what is left, but not for ever."""
        for stream, saved in self._saved:
            os.dup2(saved, stream)
        for thread in self._threads:
            thread.join(_PATIENCE_S)


def say(line: str) -> None:
    """Write a line to standard error, if somebody takes it."""
    with suppress(OSError):
        os.write(2, f"vivace-ros: {' '.join(line.split())}\n".encode(errors="replace"))


def _carry(end: int, to: int) -> None:
    while block := os.read(end, _BLOCK):
        with suppress(OSError):  # a terminal that is gone takes nothing, but the pipe must be emptied
            while block:
                block = block[os.write(to, block) :]
    os.close(end)
