"""Signals as flags: a run ends, or a stopped robot is released, between two ticks and never inside one."""

import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from vivace.policies.backports import Self

_FAULTS = {"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP"}
"""What the process did wrong itself: Python cannot go on after it."""
_HARMLESS = {"SIGCHLD", "SIGCLD", "SIGCONT", "SIGURG", "SIGWINCH", "SIGINFO", "SIGPIPE", "SIGXFSZ"}
"""They end nothing, the last two because Python makes errors of them."""
_UNSTOPPABLE = {"SIGKILL", "SIGSTOP"}
_USUAL = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGBREAK")
"""What people and systems end processes with."""
_OTHERWISE = {"SIGALRM", "SIGUSR1", "SIGTTIN", "SIGTTOU"}
"""Handled below, and not by ending."""


class TookTooLong(Exception):
    """Raised inside of a call to break it off; no `OSError`, which drivers take for one of their own."""


class Interrupts:
    """While entered, what would end or suspend this process asks the run to end instead.

    That is Ctrl-C, SIGQUIT, SIGTERM, Ctrl-Z, SIGHUP of a terminal that goes, and every other signal that
    can be caught: a robot must not be left to its last velocity by any of them. Before `hold_back` the first
    one raises `KeyboardInterrupt`, so that connecting and loading can be broken off; from then on, and at
    every further one, only a flag is set. SIGUSR1 and Enter release a stopped robot. A background process
    that touches its terminal is not suspended either.

    Signals that are ignored (nohup) or handled outside Python stay so. Nothing is handled outside the main
    thread, where Python cannot.

    Args:
        ignored: names of signals that do nothing meanwhile.
    """

    def __init__(self, ignored: tuple[str, ...] = ("SIGTTIN", "SIGTTOU")) -> None:
        self._ignored = {getattr(signal, name) for name in ignored if hasattr(signal, name)}
        self.wants_end = False
        self.name = ""
        """Of the signal that asked first."""
        self._is_held_back = self._is_limited = self._has_timer = False
        self._wants_release = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in _ending():
            self._handle(number, signal.SIG_IGN if number in self._ignored else self._end)
        for number in self._ignored - set(_ending()):
            self._handle(number, signal.SIG_IGN)
        self._handle(getattr(signal, "SIGUSR1", None), self._release)
        self._has_timer = hasattr(signal, "setitimer") and self._handle(signal.SIGALRM, self._break_off)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._has_timer = False

    def hold_back(self) -> None:
        """Only set flags from now on: the robot may move, and must be brought to rest first.

        Signals that people and systems end processes with are taken back from a driver that has taken them.

        Raises:
            KeyboardInterrupt: a signal came before.
        """
        self._is_held_back = True
        for name in _USUAL:
            number = getattr(signal, name, None)
            if number in self._before and number not in self._ignored:
                signal.signal(number, self._end)
        if self.wants_end:
            raise KeyboardInterrupt(self.name)

    @contextmanager
    def let_through(self) -> Iterator[None]:
        """Meanwhile a signal raises `KeyboardInterrupt` again: the robot is at rest.

        Raises:
            KeyboardInterrupt: one came before.
        """
        self._is_held_back = False
        try:
            if self.wants_end:
                raise KeyboardInterrupt(self.name)
            yield
        finally:
            self._is_held_back = True

    def within(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function; once signals are held back, break it off if it takes too long.

        What cannot be broken off: code that neither returns to Python nor lets a system call be interrupted;
        anything outside the main thread, and on systems without timers, such as Windows.

        Args:
            seconds: how long it may take [s]; 0: for ever.
            function: called once.
            arguments: of the function.

        Raises:
            TookTooLong: it was broken off; raised inside of the function, again and again until it gives up.
        """
        if not (self._is_held_back and self._has_timer and seconds):
            return function(*arguments)
        try:
            try:
                self._is_limited = True
                signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
                return function(*arguments)
            finally:
                self._is_limited = False
        finally:
            self._is_limited = False  # the timer may have struck just above
            signal.setitimer(signal.ITIMER_REAL, 0)

    def release_wanted(self) -> bool:
        """Whether somebody asked for the release of a stopped robot; says so once."""
        was_wanted, self._wants_release = self._wants_release, False
        return _enter_was_pressed() or was_wanted

    def _handle(self, number: int | None, handler: Any) -> bool:
        """Take over a signal, if this system has it and nobody has a claim to it."""
        if number is None or signal.getsignal(number) in (None, signal.SIG_IGN):
            return False
        self._before[number] = signal.signal(number, handler)
        return True

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self.wants_end:
            return
        self.wants_end, self.name = True, _name(number)
        if not self._is_held_back:
            raise KeyboardInterrupt(self.name)

    def _release(self, number: int, frame: FrameType | None) -> None:
        self._wants_release = True

    def _break_off(self, number: int, frame: FrameType | None) -> None:
        if self._is_limited:
            raise TookTooLong("it took too long and was broken off")


def outlive() -> None:
    """Ignore from now on what would end this process: it ends anyway, and its exit code should be its own."""
    for number in _ending():
        if signal.getsignal(number) is not None:
            signal.signal(number, signal.SIG_IGN)


def _ending() -> list[int]:
    """Signals that end or suspend a process and can be caught, on this system."""
    others = _FAULTS | _HARMLESS | _UNSTOPPABLE | _OTHERWISE
    spared = {getattr(signal, name) for name in others if hasattr(signal, name)}
    return sorted(int(number) for number in signal.valid_signals() if number not in spared)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals, most of which have none
        return f"signal {number}"


def _enter_was_pressed() -> bool:
    """Whether a line waits at the terminal; the end of the input, when it is closed, is none."""
    if sys.stdin is None or sys.stdin.closed or not sys.stdin.isatty():
        return False
    try:
        import msvcrt  # Windows, where select knows sockets only
    except ImportError:
        try:
            number = sys.stdin.fileno()
            return bool(select.select([number], [], [], 0)[0]) and b"\n" in os.read(number, 1024)
        except OSError:  # the terminal is gone, or somebody else's in whose background we are
            return False
    keys = iter(lambda: msvcrt.getwch() if msvcrt.kbhit() else "", "")  # type: ignore[attr-defined]
    return any(key in "\r\n" for key in list(keys))
