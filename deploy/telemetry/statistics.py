"""What a run comes to, in fixed memory however long it lasts."""

from collections import Counter
from typing import Any

import numpy as np

from vivace.deploy.loop.loop import Source, TickRecord
from vivace.deploy.loop.watchdog import State
from vivace.deploy.telemetry.histogram import LatencyHistogram, is_supported

_DEEPEST = 1024
"""Queues that are deeper count as so deep."""


class LoopStatistics:
    """Adds up ticks.

    Args:
        control_hz: control rate [Hz].
    """

    def __init__(self, control_hz: float) -> None:
        self.control_hz = control_hz
        self.latency = LatencyHistogram()
        """From asking for a chunk to its being there."""
        self.jitter = LatencyHistogram()
        """From a tick's deadline to its beginning."""
        self.work = LatencyHistogram()
        """From a tick's beginning to the robot's having been told."""
        self.ticks = self.skipped = self.misses = self.guarded = self.asked = self.chunks = 0
        self.undecided = 0
        """Ticks that sent no finite action; there must be none."""
        self.sources: Counter[Source] = Counter()
        self.states: Counter[State] = Counter()
        self._depths = np.zeros(_DEEPEST + 1, np.int64)

    def add(self, record: TickRecord) -> None:
        """Count one tick."""
        self.ticks += 1
        self.skipped += record.beat.skipped
        self.misses += record.has_missed
        self.guarded += record.is_guarded
        self.asked += record.has_asked
        self.undecided += not bool(np.isfinite(record.action).all())
        self.sources[record.source] += 1
        self.states[record.state] += 1
        self._depths[min(record.remaining, _DEEPEST)] += 1
        self.jitter.add(record.beat.late_s)
        self.work.add(record.ended_s - record.beat.time_s)
        if record.latency_s is not None:
            self.chunks += 1
            self.latency.add(record.latency_s)

    @property
    def depth_p50(self) -> int:
        """Actions left for later ticks, median; 0 before the first tick."""
        return self._depth(0.5)

    @property
    def fresh_share(self) -> float:
        """Share of the control periods, skipped ones included, that executed a fresh action."""
        periods = self.ticks + self.skipped
        return self.sources[Source.CHUNK] / periods if periods else 0.0

    @property
    def stood_still_s(self) -> float:
        """How long the fallback acted [s]: no chunk was there, or the watchdog held the robot."""
        return self.sources[Source.FALLBACK] / self.control_hz

    def summary(self) -> dict[str, Any]:
        """All of it as plain data."""
        return {
            "ticks": self.ticks,
            "skipped_deadlines": self.skipped,
            "undecided_ticks": self.undecided,
            "deadline_misses": self.misses,
            "stood_still_s": self.stood_still_s,
            "requests": self.asked,
            "chunks": self.chunks,
            "guarded": self.guarded,
            "sources": {source.value: self.sources[source] for source in Source},
            "states": {state.value: self.states[state] for state in State},
            "fresh_share": self.fresh_share,
            "effective_hz": self.fresh_share * self.control_hz,
            "queue_depth": {
                "p50": self.depth_p50,
                "p1": self._depth(0.01) if is_supported(99, self.ticks) else None,
                "max": self._depth(1.0),
            },
            "latency": self.latency.summary(),
            "jitter": self.jitter.summary(),
            "work": self.work.summary(),
        }

    def _depth(self, share: float) -> int:
        if self.ticks == 0:
            return 0
        return int(np.searchsorted(np.cumsum(self._depths), max(1, np.ceil(share * self.ticks))))
