"""How long a chunk takes, as a pure function of (seed, number of the request, time)."""

import csv
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import draccus
import numpy as np

from vivace.policies.errors import BadSetting

_PER_RUN = "per_run"
_BURSTS = 1_000_003
"""Names the stream of random numbers of busy times."""
_NORMAL_P99 = 2.3263478740408408
"""99th percentile of the standard normal distribution."""


@dataclass(frozen=True, kw_only=True)
class LatencyModel(draccus.ChoiceRegistry, ABC):
    """Latency of the chunks of one plan; `--latency.type` picks the kind."""

    @abstractmethod
    def latency_s(self, seed: int, request: int, time_s: float = 0.0) -> float:
        """Return the latency [s] of the n-th request, from 0, of the episode with this seed.

        Args:
            seed: of the episode.
            request: its number, from 0.
            time_s: when it was asked for, from the episode's beginning [s].
        """

    @property
    def n_measurements(self) -> int | None:
        """How many measurements it draws from; None if it is a rule and draws from none."""
        return None

    @property
    def measured(self) -> "MeasuredLatency | None":
        """The model, if it rests on measurements of this machine."""
        return None

    @property
    def first(self) -> "LatencyModel":
        """The model of chunks that follow none; the same, unless it can tell them from others."""
        return self

    def for_run(
        self, name: str, measured_s: Sequence[float], first_s: Sequence[float] = ()
    ) -> "LatencyModel":
        """Return the model of one of several runs; the same for all, unless it can tell them apart.

        Args:
            name: of the run.
            measured_s: latencies [s] measured of it.
            first_s: those [s] of its chunks that follow none, where they take another time.
        """
        return self


@LatencyModel.register_subclass("none")
@dataclass(frozen=True, kw_only=True)
class NoLatency(LatencyModel):
    """The world waits: the usual frozen-world evaluation."""

    def latency_s(self, seed: int, request: int, time_s: float = 0.0) -> float:
        """Return zero."""
        return 0.0


@LatencyModel.register_subclass("constant")
@dataclass(frozen=True, kw_only=True)
class ConstantLatency(LatencyModel):
    """Every chunk takes the same time."""

    seconds: float = 0.1
    """Of every chunk [s]."""

    def __post_init__(self) -> None:
        """The time must be finite and not negative."""
        _check_times([self.seconds], "constant latency")

    def latency_s(self, seed: int, request: int, time_s: float = 0.0) -> float:
        """Return `seconds`."""
        return self.seconds


@LatencyModel.register_subclass("measured")
@dataclass(frozen=True, kw_only=True)
class MeasuredLatency(LatencyModel):
    """Drawn from latencies measured on this machine for this very plan."""

    samples_s: tuple[float, ...] = ()
    """Measured latencies [s]; the evaluation measures and fills them in."""
    first_s: tuple[float, ...] = ()
    """Those [s] of chunks that follow none: the first of an episode, and those after one that was late,
    skipped or refused. Filled in where a plan makes use of the chunk before; none: they take as long as
    others."""
    scale: float = 1.0
    """Factor for another device."""
    refresh: bool = False
    """Measure again although this machine's latencies of this plan are known."""

    def __post_init__(self) -> None:
        """Measured times must be finite and not negative."""
        _check_times((*self.samples_s, *self.first_s), "measured latency")
        _check_scale(self.scale)

    @property
    def n_measurements(self) -> int:
        """Measured latencies."""
        return len(self.samples_s)

    @property
    def measured(self) -> "MeasuredLatency":
        """This one."""
        return self

    @property
    def first(self) -> "MeasuredLatency":
        """Drawn from `first_s`, where there are such."""
        return replace(self, samples_s=self.first_s) if self.first_s else self

    def for_run(
        self, name: str, measured_s: Sequence[float], first_s: Sequence[float] = ()
    ) -> "MeasuredLatency":
        """Fill the run's own measurements in, unless samples were given."""
        if self.samples_s:
            return self
        return replace(self, samples_s=tuple(measured_s), first_s=tuple(first_s))

    def latency_s(self, seed: int, request: int, time_s: float = 0.0) -> float:
        """Return one of the measured latencies, each equally likely."""
        if not self.samples_s:
            raise BadSetting("measured latency has no samples; measure the plan first: vivace bench")
        pick = np.random.default_rng([seed, request]).integers(len(self.samples_s))
        return self.scale * self.samples_s[pick]


@LatencyModel.register_subclass("bursty")
@dataclass(frozen=True, kw_only=True)
class BurstyLatency(MeasuredLatency):
    """Measured latencies on a device that is shared: now and then, for a while, everything takes longer.

    Quiet and busy times follow each other, exponentially distributed, from a place of its own in every
    episode. They depend on the seed and the time alone, so that every plan meets the same ones.
    """

    quiet_s: float = 2.0
    """Mean length of quiet times [s]."""
    busy_s: float = 1.0
    """Mean length of busy times [s]."""
    factor: float = 3.0
    """How much longer a chunk takes that is asked for in a busy time."""

    def __post_init__(self) -> None:
        """Lengths must be positive, the factor at least 1."""
        super().__post_init__()
        if not (0 < self.quiet_s < math.inf and 0 < self.busy_s < math.inf and 1 <= self.factor < math.inf):
            raise BadSetting(
                f"bursty latency has quiet_s={self.quiet_s}, busy_s={self.busy_s}, factor={self.factor}; "
                "needed: seconds above 0, a factor of 1 or more"
            )

    def latency_s(self, seed: int, request: int, time_s: float = 0.0) -> float:
        """Return a measured latency, longer in a busy time."""
        found = super().latency_s(seed, request, time_s)
        return found * self.factor if self.is_busy(seed, time_s) else found

    def is_busy(self, seed: int, time_s: float) -> bool:
        """Whether a time of an episode is a busy one."""
        random = np.random.default_rng([seed, _BURSTS])
        busy = bool(random.random() < self.busy_s / (self.quiet_s + self.busy_s))
        end_s = 0.0
        while True:
            end_s += random.exponential(self.busy_s if busy else self.quiet_s)
            if time_s < end_s:
                return busy
            busy = not busy


@LatencyModel.register_subclass("trace")
@dataclass(frozen=True, kw_only=True)
class TraceLatency(LatencyModel):
    """A recorded sequence, replayed in its order; every episode begins at a place of its own.

    The file is a JSON list of seconds, a JSON object that holds such a list under `column`, a CSV file whose
    header names `column`, or text with one number a line.
    """

    path: str = ""
    """File of the sequence: JSON, CSV, or text with one number a line."""
    column: str = "latency_s"
    """Name of the sequence in the file; "per_run": each run has a sequence of its own name."""
    scale: float = 1.0
    """Factor for another device."""
    samples_s: tuple[float, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        """Read the file, unless it depends on the run which sequence is meant."""
        _check_scale(self.scale)
        if self.column == _PER_RUN:
            return
        times = _read_trace(Path(self.path), self.column)
        _check_times(times, f"latency trace {self.path}")
        object.__setattr__(self, "samples_s", tuple(times))

    @property
    def n_measurements(self) -> int:
        """Recorded latencies."""
        return len(self.samples_s)

    def for_run(
        self, name: str, measured_s: Sequence[float], first_s: Sequence[float] = ()
    ) -> "TraceLatency":
        """Return the trace of one run."""
        return replace(self, column=name) if self.column == _PER_RUN else self

    def latency_s(self, seed: int, request: int, time_s: float = 0.0) -> float:
        """Return the latency that follows that of the request before in the record, which is a ring."""
        first = int(np.random.default_rng(seed).integers(len(self.samples_s)))
        return self.scale * self.samples_s[(first + request) % len(self.samples_s)]


@LatencyModel.register_subclass("profile")
@dataclass(frozen=True, kw_only=True)
class ProfileLatency(LatencyModel):
    """A log-normal distribution given by median and p99; scale it to stand for another device."""

    p50_s: float = 0.1
    """Median [s]."""
    p99_s: float = 0.12
    """99th percentile [s]."""
    scale: float = 1.0
    """Factor for another device."""

    def __post_init__(self) -> None:
        """Times must be positive and ordered."""
        _check_times([self.p50_s, self.p99_s], "latency profile")
        _check_scale(self.scale)
        if not 0 < self.p50_s <= self.p99_s:
            raise BadSetting(
                f"latency profile has p50 {self.p50_s} s and p99 {self.p99_s} s; needed: 0 < p50 <= p99"
            )

    def latency_s(self, seed: int, request: int, time_s: float = 0.0) -> float:
        """Return a draw of the distribution."""
        sigma = math.log(self.p99_s / self.p50_s) / _NORMAL_P99
        draw = float(np.random.default_rng([seed, request]).standard_normal())
        return self.scale * self.p50_s * math.exp(sigma * draw)


def _check_times(times: Sequence[float], what: str) -> None:
    for time_s in times:
        if not 0 <= time_s < math.inf:
            raise BadSetting(f"{what} holds {time_s}; finite seconds, 0 or more, are needed")


def _check_scale(scale: float) -> None:
    if not 0 < scale < math.inf:
        raise BadSetting(f"latency scale is {scale}; a finite factor above 0 is needed")


def _read_trace(path: Path, column: str) -> list[float]:
    if not path.is_file():
        raise BadSetting(f"no latency trace at {str(path)!r}; give a JSON, CSV or text file of seconds")
    try:
        values = _parse_trace(path.read_text(encoding="utf-8"), column)
        times = [float(value) for value in values]
    except KeyError as error:
        raise BadSetting(
            f"latency trace {path} has {error.args[0]}, not {column!r}; name a column"
        ) from error
    except (ValueError, TypeError, IndexError) as error:  # a short row is an IndexError
        raise BadSetting(f"latency trace {path} cannot be read ({error}); seconds are needed") from error
    if not times:
        raise BadSetting(f"latency trace {path} is empty; at least one number of seconds is needed")
    return times


def _parse_trace(text: str, column: str) -> list[Any]:
    """Return the sequence in a trace; raises `KeyError(names)` if none of its names is `column`."""
    if text.lstrip().startswith(("[", "{")):
        data = json.loads(text)
        names = sorted(data) if isinstance(data, dict) else [column]
        if column not in names:
            raise KeyError(names)
        return list(data[column] if isinstance(data, dict) else data)
    rows = [row for row in csv.reader(text.splitlines()) if row]
    if not rows or _is_number(rows[0][0]):
        return [row[0] for row in rows]
    names = [name.strip() for name in rows[0]]
    if column not in names:
        raise KeyError(names)
    return [row[names.index(column)] for row in rows[1:]]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
