"""A run, line by line, written by a thread: the tick never waits for the disk."""

import json
import math
import os
import queue
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from vivace.deploy.loop.loop import TickRecord
from vivace.policies.errors import BadSetting

_BATCH = 256


class Sink(Protocol):
    """Where lines go."""

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Take some lines, in their order; runs in the log's thread."""

    def close(self) -> None:
        """There will be no more."""


class JsonLines:
    """A file with one JSON object a line; each batch is on the disk's side before the next is taken.

    A file that is full becomes `<name>.1`, the one before `<name>.2` and so on; the oldest go.

    Args:
        path: of the newest file; there must be none yet.
        most_bytes: of one file, about.
        files: kept, the newest among them; at least 1.

    Raises:
        FileExistsError: somebody else's file is there.
    """

    def __init__(self, path: Path, most_bytes: float = math.inf, files: int = 1) -> None:
        self._path, self._most_bytes, self._files = path, most_bytes, files
        self._file = path.open("x", encoding="utf-8")

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append lines."""
        self._file.write("".join(json.dumps(line) + "\n" for line in lines))
        self._file.flush()
        if self._file.tell() >= self._most_bytes:
            self._rotate()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rotate(self) -> None:
        self._file.close()
        parts = [self._path.with_name(f"{self._path.name}.{n}") for n in range(self._files - 1, 0, -1)]
        for older, newer in pairwise([*parts, self._path]):
            if newer.exists():
                os.replace(newer, older)
        self._file = self._path.open("w")


def log_parts(path: Path) -> list[Path]:
    """What there is of a log: its parts, oldest first, and the newest at `path` last."""
    older = [part for part in path.parent.glob(f"{path.name}.*") if part.suffix[1:].isdecimal()]
    return [*sorted(older, key=lambda part: -int(part.suffix[1:])), *([path] if path.is_file() else [])]


class RunLog:
    """Hands lines to sinks in a thread of its own.

    A line that finds the queue full is dropped and counted. A sink that fails is left out from then on, and
    `errors` says why; the run goes on.

    Args:
        sinks: where lines go.
        size: lines that may wait.
    """

    def __init__(self, sinks: Sequence[Sink], size: int = 8192) -> None:
        if size < 1:
            raise BadSetting(f"size={size}; a log must hold at least 1 line")
        self._sinks = list(sinks)
        self._waiting: queue.Queue[Mapping[str, Any] | None] = queue.Queue(size)
        self.dropped = 0
        """Lines that found the queue full."""
        self.errors: list[str] = []
        """Why a sink was left out."""
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="run log", daemon=True)
        self._thread.start()

    def write(self, line: Mapping[str, Any]) -> None:
        """Take a line, at once; it must not be changed afterwards."""
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def close(self, patience_s: float = 5.0) -> None:
        """Write what waits, then end; what is not written in time is given up, and `errors` says so.

        Args:
            patience_s: how long a disk that does not answer is waited for [s].
        """
        self._is_closing.set()
        with suppress(queue.Full):  # then there is enough to wake up for
            self._waiting.put_nowait(None)
        self._thread.join(patience_s)
        if self._thread.is_alive():
            self.dropped += self._waiting.qsize()
            self.errors.append(f"the log was not written within {patience_s:g} s")

    def _serve(self) -> None:
        while not (self._is_closing.is_set() and self._waiting.empty()):
            batch = [self._waiting.get()]
            while len(batch) < _BATCH and not self._waiting.empty():
                batch.append(self._waiting.get())
            lines = [line for line in batch if line is not None]
            for sink in list(self._sinks):
                self._try(sink, lambda sink=sink, lines=lines: sink.write(lines))
        for sink in list(self._sinks):
            self._try(sink, sink.close)

    def _try(self, sink: Sink, action: Any) -> None:
        try:
            action()
        except Exception as error:  # whatever a sink does, the run must not end of it
            self._sinks.remove(sink)
            self.errors.append(f"{type(sink).__name__}: {type(error).__name__}: {error}")


def tick_line(record: TickRecord, began_s: float) -> dict[str, Any]:
    """Return one tick as plain data.

    Args:
        record: the tick.
        began_s: when the run began [s].
    """
    return {
        "kind": "tick",
        "tick": record.tick,
        "time_s": _rounded(record.beat.time_s - began_s),
        "late_s": _rounded(record.beat.late_s),
        "work_s": _rounded(record.ended_s - record.beat.time_s),
        "skipped": record.beat.skipped,
        "source": record.source.value,
        "state": record.state.value,
        "chunk": record.chunk_id,
        "age_ticks": record.age_ticks,
        "asked": record.has_asked,
        "latency_s": None if record.latency_s is None else _rounded(record.latency_s),
        "missed": record.has_missed,
        "guarded": record.is_guarded,
        "remaining": record.remaining,
        "action": [_rounded(value) for value in record.action.tolist()],
    }


def event_line(what: str, time_s: float, began_s: float, **details: Any) -> dict[str, Any]:
    """Return something that happened beside the ticks as plain data."""
    return {"kind": "event", "event": what, "time_s": _rounded(time_s - began_s), **details}


def _rounded(value: float) -> float | None:
    """A number to the microsecond; JSON has no infinity."""
    return round(value, 6) if math.isfinite(value) else None
