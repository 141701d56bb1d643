"""The terminal while a robot moves: a thread of its own writes to it, so that nobody else ever waits for it.

A terminal may be stopped (Ctrl-S), closed, or a pipe that nobody reads. What is said then is dropped and
counted; the loop does not notice.
"""

import io
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO, cast

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

_SIZE = 1000
"""Lines that may wait."""
_EVERY_S = 0.5
"""Between two drawings of the figures [s]."""


class Screen:
    """Says lines, and draws figures below them if it is a terminal.

    Args:
        console: where to; standard error when None.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(file=unbuffered(sys.stderr))
        self._figures: Callable[[], RenderableType] | None = None
        self._waiting: queue.Queue[Text | None] = queue.Queue(_SIZE)
        self._is_closing = threading.Event()
        self.dropped = 0
        """Lines that were not said."""
        self._thread = threading.Thread(target=self._serve, name="screen", daemon=True)
        self._thread.start()

    def draw(self, figures: Callable[[], RenderableType]) -> None:
        """Draw from now on, below the lines, what `figures` returns."""
        if self._console.is_terminal:
            self._figures = figures

    def say(self, text: str, style: str = "") -> None:
        """Say a line, soon; returns at once."""
        try:
            self._waiting.put_nowait(Text(text, style))
        except queue.Full:
            self.dropped += 1

    @contextmanager
    def captured(self) -> Iterator[None]:
        """Meanwhile say what this process prints: a driver's `print` must not wait for it either."""
        with redirect_stdout(_Lines(self.say)), redirect_stderr(_Lines(self.say)):
            yield

    def close(self, patience_s: float = 1.0) -> None:
        """Say what waits and leave the terminal; one that does not take it is left as it is.

        Args:
            patience_s: how long to wait for it [s].
        """
        self._is_closing.set()
        with suppress(queue.Full):  # then there is enough to wake up for
            self._waiting.put_nowait(None)
        self._thread.join(patience_s)
        with suppress(queue.Empty):
            while True:
                self.dropped += self._waiting.get_nowait() is not None

    def _serve(self) -> None:
        try:
            self._say_all(lambda: None, until=lambda: self._figures is not None)
            if self._figures is None:
                return
            with Live(
                get_renderable=self._figures,
                console=self._console,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            ) as live:
                self._say_all(live.refresh)
        except Exception:  # the terminal is gone: there is nobody to tell
            self.dropped += 1

    def _say_all(self, draw: Callable[[], None], until: Callable[[], bool] = lambda: False) -> None:
        while not until() and not (self._is_closing.is_set() and self._waiting.empty()):
            try:
                text = self._waiting.get(timeout=_EVERY_S)
            except queue.Empty:
                text = None
            if text is not None:
                self._console.print(text, soft_wrap=True)
            draw()


def tell(line: str) -> None:
    """Say a line while there is nothing else to do; a terminal that does not take it is left."""
    screen = Screen()
    screen.say(line)
    screen.close()


class _Lines(io.TextIOBase):
    """Hands on whole lines."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say, self._rest = say, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._say(line)
        return len(text)


def unbuffered(stream: TextIO) -> TextIO:
    """Return what writes to the same file at once; the stream itself if it is no file."""
    try:
        return cast(TextIO, _Unbuffered(stream, stream.fileno()))
    except OSError:  # io.UnsupportedOperation is one
        return stream


class _Unbuffered:
    """Writes to a stream's file at once.

    A buffer has a lock: were a thread stuck in it when Python ends, Python would abort.
    """

    def __init__(self, stream: TextIO, number: int) -> None:
        self._stream, self._number = stream, number
        self.encoding = stream.encoding or "utf-8"

    def write(self, text: str) -> int:
        data = text.encode(self.encoding, "replace")
        while data:
            data = data[os.write(self._number, data) :]
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._number
