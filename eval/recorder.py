"""What is kept of a run while it lasts: statistics, a log line a tick, figures in the terminal, memory."""

import time
from collections import deque
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

import numpy as np
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from vivace.deploy.loop import Source, TickRecord
from vivace.deploy.loop_statistics import LoopStatistics
from vivace.deploy.rerun_stream import RerunStream
from vivace.deploy.run_log import JsonLines, RunLog, Sink, event_line, tick_line
from vivace.deploy.watchdog import State, Transition
from vivace.eval.terminal import console, milliseconds

LOG = "run.jsonl"
_MEMORY_EVERY_S = 1.0
_SHOWN = (State.RUN, State.HOLD, State.STOP)
_STYLES = {State.RUN: "green", State.HOLD: "yellow", State.STOP: "red"}


class Recorder:
    """Takes ticks and events.

    Args:
        folder: where the log goes.
        control_hz: control rate [Hz].
        rerun: "" for none, "viewer", or a file in the folder.
        live: show figures in the terminal, if there is one.
    """

    def __init__(self, folder: Path, control_hz: float, rerun: str = "", *, live: bool = True) -> None:
        target = rerun if rerun in ("", "viewer") else str(folder / rerun)
        sinks: list[Sink] = [RerunStream(target)] if rerun else []
        sinks.append(JsonLines(folder / LOG))
        self.statistics = LoopStatistics(control_hz)
        self.log = RunLog(sinks)
        self.events: deque[dict[str, Any]] = deque(maxlen=1000)
        """The newest last; all are in the log."""
        self.film: deque[tuple[Source, State]] = deque(maxlen=100_000)
        """What the last ticks executed."""
        self.memory_mb: list[float] = []
        """Resident memory: at the beginning, the largest and the last."""
        self.began_s = time.monotonic()
        self._next_memory_s = 0.0
        self._state, self._why = State.RUN, ""
        self._live: Live | None = None
        if live and console.is_terminal:
            self._live = Live(get_renderable=self._table, console=console, refresh_per_second=2)
            self._live.start()

    def tick(self, record: TickRecord) -> None:
        """Take one tick."""
        self.statistics.add(record)
        self.log.write(tick_line(record, self.began_s))
        self.film.append((record.source, record.state))
        self._state = record.state
        if record.ended_s >= self._next_memory_s:
            self._next_memory_s = record.ended_s + _MEMORY_EVERY_S
            self._note_memory()

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
        console.print(text, style=_STYLES[transition.after], highlight=False)

    def close(self) -> None:
        """Write what waits and leave the terminal."""
        self._note_memory()
        if self._live is not None:
            self._live.stop()
        self.log.close()

    def _note_memory(self) -> None:
        now_mb = resident_mb()
        if not self.memory_mb:
            self.memory_mb = [now_mb] * 3
        self.memory_mb[1:] = [max(self.memory_mb[1], now_mb), now_mb]

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
            f"{found.ticks} ticks: {shares};\n{found.misses} deadlines missed, {found.skipped} skipped, "
            f"{found.guarded} guarded, queue {found.depth_p50}"
        )
        return table


def resident_mb() -> float:
    """Resident memory of this process [MB]; 0 where that cannot be said."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return float(np.round(pages * PAGESIZE / 1e6, 2))  # 4 KiB; 16 or 64 on some aarch64 systems
