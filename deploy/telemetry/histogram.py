"""Times of a run of any length in fixed memory, with percentiles to one per cent."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from vivace.policies.backports import Self
from vivace.policies.errors import BadSetting

PERCENTILES = (50, 90, 95, 99, 99.9)


def is_supported(percent: float, n: int) -> bool:
    """Whether n measurements reach as far as a percentile above the median: 1 / (1 - p) of them are needed.

    The 99th percentile of five measurements is the largest of them and nothing more; a hundred have one
    beyond it. The median of however few is the middle of what was measured.
    """
    return n > 0 and (percent <= PERCENTILES[0] or n * (100 - percent) >= 100 - _ROUNDING)


_ROUNDING = 1e-6
"""100 - 99.9 is not 0.1 in floating point."""


def percentile(times_s: Sequence[float], percent: float, n_measured: int | None = None) -> float | None:
    """Return a percentile of times [s]; None where there are too few measurements for it.

    Args:
        times_s: at least one.
        percent: in [0, 100]; one below 50 needs as many as the one as far above.
        n_measured: how many measurements the times were drawn from; as many as there are when None.
    """
    n = len(times_s) if n_measured is None else min(len(times_s), n_measured)
    return float(np.percentile(times_s, percent)) if is_supported(max(percent, 100 - percent), n) else None


class LatencyHistogram:
    """Counts of durations in buckets that widen by the same factor, as an HDR histogram's do.

    Bucket i holds times in [lowest · g^i, lowest · g^(i+1)), g = (1 + e) / (1 - e); a percentile is reported
    as the value of its bucket that is wrong by at most the share e. Shorter times go into the first bucket,
    longer ones into the last; the largest and smallest are kept exactly.

    Args:
        lowest_s: shortest time that is told apart [s].
        highest_s: longest time that is [s].
        error: largest relative error e of a percentile, in (0, 1).
    """

    def __init__(self, lowest_s: float = 1e-6, highest_s: float = 1e3, error: float = 0.01) -> None:
        if not 0 < lowest_s < highest_s < math.inf or not 0 < error < 1:
            raise BadSetting(
                f"histogram from {lowest_s} s to {highest_s} s with error {error}; needed: "
                "0 < lowest < highest, and an error in (0, 1)"
            )
        self._lowest_s, self._error = lowest_s, error
        self._log_growth = math.log((1 + error) / (1 - error))
        n = math.ceil(math.log(highest_s / lowest_s) / self._log_growth)
        self._counts = np.zeros(n, np.int64)
        self.n = 0
        """Times so far."""
        self.total_s = 0.0
        self.min_s, self.max_s = math.inf, 0.0

    def add(self, time_s: float) -> None:
        """Count one time [s]; less than nothing is nothing.

        Raises:
            BadSetting: it is not finite.
        """
        if not math.isfinite(time_s):
            raise BadSetting(f"a time of {time_s} s cannot be counted; a finite one is needed")
        time_s = max(0.0, time_s)
        place = 0
        if time_s > self._lowest_s:
            place = min(int(math.log(time_s / self._lowest_s) / self._log_growth), len(self._counts) - 1)
        self._counts[place] += 1
        self.n += 1
        self.total_s += time_s
        self.min_s, self.max_s = min(self.min_s, time_s), max(self.max_s, time_s)

    def merge(self, other: Self) -> None:
        """Add the times of another histogram of the same buckets."""
        if (other._lowest_s, other._error, len(other._counts)) != (
            self._lowest_s,
            self._error,
            len(self._counts),
        ):
            raise BadSetting("histograms of different buckets cannot be merged; make both alike")
        self._counts += other._counts
        self.n += other.n
        self.total_s += other.total_s
        self.min_s, self.max_s = min(self.min_s, other.min_s), max(self.max_s, other.max_s)

    def percentile(self, percent: float) -> float:
        """Time [s] that this share of the times does not exceed, in [0, 100]; 0 if there are none."""
        if not 0 <= percent <= 100:
            raise BadSetting(f"percentile {percent} is outside 0..100")
        if self.n == 0:
            return 0.0
        rank = max(1, math.ceil(percent / 100 * self.n - 1e-9))
        place = int(np.searchsorted(np.cumsum(self._counts), rank))
        return float(np.clip(self._value(place), self.min_s, self.max_s))

    def supported(self, percent: float) -> float | None:
        """Return `percentile`; None where there are too few times for it."""
        return self.percentile(percent) if is_supported(percent, self.n) else None

    def buckets(self) -> list[tuple[float, float, int]]:
        """(from [s], to [s], count) of every bucket that is not empty."""
        places = np.flatnonzero(self._counts)
        return [(self._edge(i), self._edge(i + 1), int(self._counts[i])) for i in places.tolist()]

    def summary(self) -> dict[str, Any]:
        """Percentiles "p50_s" … "p99.9_s", "mean_s", "min_s", "max_s" and "n".

        A percentile that so few times do not support is None; the others are 0 without times.
        """
        found: dict[str, Any] = {f"p{p:g}_s": self.supported(p) for p in PERCENTILES}
        mean_s = self.total_s / self.n if self.n else 0.0
        return found | {
            "mean_s": mean_s,
            "min_s": self.min_s if self.n else 0.0,
            "max_s": self.max_s,
            "n": self.n,
        }

    def _edge(self, place: int) -> float:
        return self._lowest_s * math.exp(place * self._log_growth)

    def _value(self, place: int) -> float:
        """The value whose relative error is least for all times of a bucket."""
        low, high = self._edge(place), self._edge(place + 1)
        return 2 * low * high / (low + high)
