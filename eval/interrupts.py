"""Signals as flags: a run ends, or a stopped robot is released, between two ticks and never inside one."""

import select
import signal
import sys
import threading
from types import FrameType, TracebackType

from vivace.policies.backports import Self


class Interrupts:
    """While entered, Ctrl-C and SIGTERM ask the run to end; SIGUSR1 and Enter release a stopped robot.

    A second Ctrl-C is one: it raises `KeyboardInterrupt`.
    """

    def __init__(self) -> None:
        self.wants_end = False
        self._wants_release = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere signals cannot be handled
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._end)
            self._before[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._release)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def release_wanted(self) -> bool:
        """Whether somebody asked for the release of a stopped robot; says so once."""
        if sys.stdin is not None and sys.stdin.isatty() and select.select([sys.stdin], [], [], 0)[0]:
            sys.stdin.readline()
            return True
        was_wanted, self._wants_release = self._wants_release, False
        return was_wanted

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self.wants_end and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wants_end = True

    def _release(self, number: int, frame: FrameType | None) -> None:
        self._wants_release = True
