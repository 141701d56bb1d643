"""What is kept of a run while it lasts: statistics, a log line a tick, figures in the terminal, memory.

The loop's thread adds numbers up and hands lines over; other threads write them.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from vivace.deploy.loop.loop import Source, TickRecord
from vivace.deploy.loop.watchdog import State, Transition
from vivace.deploy.telemetry.rerun_stream import RerunStream
from vivace.deploy.telemetry.run_log import JsonLines, RunLog, Sink, event_line, tick_line
from vivace.deploy.telemetry.statistics import LoopStatistics
from vivace.eval.live.screen import Screen
from vivace.eval.terminal import milliseconds

LOG = "run.jsonl"
_MEMORY_EVERY_S = 1.0
_STYLES = {State.RUN: "green", State.HOLD: "yellow", State.STOP: "red"}


class Recorder:
    """Takes ticks and events.

    Args:
        folder: where the log goes; there must be none yet.
        control_hz: control rate [Hz].
        rerun: "" for none, "viewer", or a file in the folder.
        live: show figures in the terminal, if there is one.
        file_mb: size at which a new file of the log begins [MB].
        files: of the log that are kept.
        screen: what is shown goes there; to standard error when None.

    Raises:
        FileExistsError: the folder has a log.
        OSError: it cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        control_hz: float,
        rerun: str = "",
        *,
        live: bool = True,
        file_mb: float = 32.0,
        files: int = 8,
        screen: Screen | None = None,
    ) -> None:
        target = rerun if rerun in ("", "viewer") else str(folder / rerun)
        sinks: list[Sink] = [RerunStream(target)] if rerun else []
        memory = Memory()
        sinks += [JsonLines(folder / LOG, 1e6 * file_mb, files), memory]
        self.folder = folder
        self.statistics = LoopStatistics(control_hz)
        self.log = RunLog(sinks)
        self.events: deque[dict[str, Any]] = deque(maxlen=1000)
        """The newest last; all are in the log."""
        self.film: deque[tuple[Source, State]] = deque(maxlen=100_000)
        """What the last commands were."""
        self.memory_mb = memory.resident_mb
        self.began_s = time.monotonic()
        self.duration_s = 0.0
        """Of the run, known once it is closed [s]."""
        self._state, self._why = State.RUN, ""
        self.screen = screen or Screen()
        if live:
            self.screen.draw(self._table)

    def tick(self, record: TickRecord) -> None:
        """Take one tick."""
        self.statistics.add(record)
        self.log.write(tick_line(record, self.began_s))
        self.film.append((record.source, record.state))
        self._state = record.state

    def rested(self, commands: int, *, is_at_rest: bool) -> None:
        """Take so many commands of a standstill, which are no ticks, and whether the robot took the last."""
        self.film.extend([(Source.FALLBACK, State.STOP)] * commands)
        self.event("standstill", commands=commands, is_at_rest=is_at_rest)

    def event(self, what: str, **details: Any) -> None:
        """Take something that happened beside the ticks."""
        line = event_line(what, time.monotonic(), self.began_s, **details)
        self.events.append(line)
        self.log.write(line)

    def changed(self, transition: Transition) -> None:
        """Take a transition of the watchdog, and say it."""
        self._why = transition.why
        self.event(
            "watchdog", before=transition.before.value, after=transition.after.value, why=transition.why
        )
        text = f"{transition.before} → {transition.after}: {transition.why or 'all is well again'}"
        if transition.after == State.STOP:
            text += "; Enter or SIGUSR1 releases the robot, Ctrl-C ends the run"
        self.screen.say(text, _STYLES[transition.after])

    def close(self) -> None:
        """Write what waits and leave the terminal; neither is waited for long."""
        self.duration_s = time.monotonic() - self.began_s
        self.log.close()
        self.screen.close()

    def _table(self) -> Table:
        found = self.statistics
        table = Table(title=f"{self._state} {self._why}".strip(), title_style=_STYLES[self._state])
        for column in ("[ms]", "p50", "p90", "p99", "p99.9", "max"):
            table.add_column(escape(column), justify="left" if column == "[ms]" else "right")
        rows = {"inference": found.latency, "tick late": found.jitter, "tick's work": found.work}
        for name, times in rows.items():
            cells = [*(times.supported(p) for p in (50, 90, 99, 99.9)), times.max_s]
            table.add_row(name, *(milliseconds(cell, 2) for cell in cells))
        shares = ", ".join(f"{found.sources[source]} {source}" for source in Source)
        table.caption = (
            f"{found.ticks} ticks: {shares};\nstood still {found.stood_still_s:.1f} s, {found.misses} "
            f"deadlines missed, {found.skipped} skipped, {found.guarded} guarded, queue {found.depth_p50}"
        )
        return table


class Memory:
    """A sink of `RunLog` that looks at this process's memory now and then."""

    def __init__(self) -> None:
        self.resident_mb: list[float] = []
        """At the beginning, the largest and the last [MB]."""
        self._next_s = 0.0

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Look, if the last time is long ago."""
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _MEMORY_EVERY_S
            self.close()

    def close(self) -> None:
        """Look once more."""
        now_mb = resident_mb()
        first_mb, largest_mb, _ = self.resident_mb or [now_mb] * 3
        self.resident_mb[:] = [first_mb, max(largest_mb, now_mb), now_mb]


def resident_mb() -> float:
    """Resident memory of this process [MB]; 0 where that cannot be said."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return float(np.round(pages * PAGESIZE / 1e6, 2))  # 4 KiB; 16 or 64 on some aarch64 systems
