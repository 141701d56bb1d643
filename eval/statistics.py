"""Honest statistics of success, latency and speed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm
from statsmodels.stats.proportion import proportion_confint

from vivace.policies.errors import BadSetting

PERCENTILES = (50, 90, 95, 99, 99.9)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success rate, in [0, 1]; (0, 1) without episodes."""
    if n == 0:
        return 0.0, 1.0
    low, high = proportion_confint(successes, n, alpha=1 - confidence, method="wilson")
    return float(low), float(high)


def spread_of(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Return {name: mean, name_spread: [10th, 90th percentile]} of one value per observation (B,)."""
    return {name: float(np.mean(values)), f"{name}_spread": np.percentile(values, [10, 90]).tolist()}


@dataclass(frozen=True)
class PairedDifference:
    """Success of one run against another on the same seeds."""

    n: int
    gained: int
    """Episodes that only the second run solved."""
    lost: int
    """Episodes that only the first run solved."""
    difference: float
    """Second minus first success rate."""
    interval: tuple[float, float]
    """Confidence interval of the difference, Agresti and Min's."""
    p_value: float
    """Exact McNemar test, two-sided."""


def paired_difference(
    first: Mapping[Any, bool], second: Mapping[Any, bool], confidence: float = 0.95
) -> PairedDifference:
    """Compare two runs on the seeds they share.

    With b gained and c lost of n pairs the interval is Wald's after half a pair was added to each of the four
    cells, which keeps its coverage for few or no discordant pairs:

        d ± z sqrt((b + c + 1) - (b - c)² / (n + 2)) / (n + 2),    d = (b - c) / (n + 2)

    Args:
        first: seed -> success of the baseline.
        second: seed -> success of the other run.
        confidence: of the interval.

    Raises:
        BadSetting: the runs share no seed.

    Source: Agresti and Min, Statistics in Medicine 24 (2005) 729-740.
    """
    seeds = first.keys() & second.keys()
    n = len(seeds)
    if n == 0:
        raise BadSetting("two runs share no seed; a paired comparison needs the same --seed for both")
    gained = sum(second[s] and not first[s] for s in seeds)
    lost = sum(first[s] and not second[s] for s in seeds)
    centre = (gained - lost) / (n + 2)
    spread = np.sqrt((gained + lost + 1) - (gained - lost) ** 2 / (n + 2)) / (n + 2)
    half = float(norm.ppf(0.5 + confidence / 2) * spread)
    interval = (max(-1.0, centre - half), min(1.0, centre + half))
    return PairedDifference(n, gained, lost, (gained - lost) / n, interval, mcnemar(gained, lost))


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of the exact McNemar test; 1 if no pair differs."""
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def percentiles(times_s: Sequence[float]) -> dict[str, float]:
    """Percentiles "p50_s" … "p99.9_s", "mean_s", "jitter_s" (standard deviation) and "n" of latencies [s].

    Raises:
        BadSetting: there are none.
    """
    values = np.asarray(times_s, dtype=float)
    if not values.size:
        raise BadSetting("there are no latencies to summarise; run at least one episode or benchmark round")
    found = {f"p{p:g}_s": float(np.percentile(values, p)) for p in PERCENTILES}
    return found | {"mean_s": float(values.mean()), "jitter_s": float(values.std()), "n": len(values)}


def curve_area(latencies_s: Sequence[float], rates: Sequence[float]) -> float:
    """Area under a success-versus-latency curve as a mean success rate in [0, 1].

        area = 1 / (L_m - L_1) · ∫ S(L) dL

    by trapezoids between the measured latencies L_1 < … < L_m [s]: the success of a policy whose latency is
    equally likely to be anywhere in the range.

    Args:
        latencies_s: where success was measured [s], in any order, no value twice.
        rates: success rates there, in [0, 1].
    """
    return _mean_height(latencies_s, rates, "latencies_s")


def frequency_averaged_score(control_hz: Sequence[float], rates: Sequence[float]) -> float:
    """Success averaged over control rates, in [0, 1].

        score = 1 / (f_m - f_1) · ∫ S(f) df

    by trapezoids between the measured rates f_1 < … < f_m [Hz]. At a fixed chunk latency a higher control
    rate makes the same latency more ticks, so a fast plan keeps its success to higher rates.

    Args:
        control_hz: where success was measured [Hz], in any order, no value twice.
        rates: success rates there, in [0, 1].
    """
    return _mean_height(control_hz, rates, "control_hz")


def _mean_height(x: Sequence[float], y: Sequence[float], name: str) -> float:
    if not x or len(x) != len(y) or len(set(x)) != len(x):
        raise BadSetting(
            f"a curve has {len(y)} success rates at {name} {list(x)}; one rate each for one or "
            "more distinct values is needed"
        )
    order = np.argsort(x)
    across, up = np.asarray(x, float)[order], np.asarray(y, float)[order]
    if len(across) == 1:
        return float(up[0])
    return float(np.trapezoid(up, across) / (across[-1] - across[0]))


@dataclass(frozen=True)
class Ratio:
    """How many times faster, from interleaved timings."""

    ratio: float
    """Median of the first over median of the second."""
    interval: tuple[float, float]
    """Bootstrap confidence interval of that ratio over rounds."""
    mad: float
    """Median absolute deviation of the ratios of single rounds."""


def ratio_of_medians(
    first_s: Sequence[float],
    second_s: Sequence[float],
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> Ratio:
    """Compare two runs timed in the same rounds.

    Whole rounds are resampled, so what slowed both in a round does not widen the interval.

    Args:
        first_s: times of the baseline [s], one a round.
        second_s: times of the other run [s], of the same rounds.
        confidence: of the interval.
        n_resamples: bootstrap resamples.
        seed: of the resampling.

    Raises:
        BadSetting: there are no rounds, or not as many of both.
    """
    if not len(first_s) or len(first_s) != len(second_s):
        raise BadSetting(
            f"timings have {len(first_s)} and {len(second_s)} rounds; the same number, at least 1, is needed"
        )
    first, second = np.asarray(first_s, float), np.asarray(second_s, float)
    picks = np.random.default_rng(seed).integers(len(first), size=(n_resamples, len(first)))
    resampled = np.median(first[picks], axis=1) / np.median(second[picks], axis=1)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    singles = first / second
    mad = float(np.median(np.abs(singles - np.median(singles))))
    return Ratio(float(np.median(first) / np.median(second)), (float(low), float(high)), mad)
