"""Honest statistics of success, latency and speed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest, norm, t, ttest_rel

from vivace.deploy.telemetry.histogram import PERCENTILES, percentile
from vivace.policies.errors import BadSetting


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success rate, in [0, 1]; (0, 1) without episodes."""
    if n == 0:
        return 0.0, 1.0
    interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def mean_score(scores: Sequence[float], confidence: float = 0.95) -> dict[str, Any]:
    """Return "mean", "n" and Student's "interval" of one score per episode; no interval of fewer than two."""
    n, mean = len(scores), float(np.mean(scores))
    half = float(t.ppf(0.5 + confidence / 2, n - 1) * np.std(scores, ddof=1) / np.sqrt(n)) if n > 1 else None
    return {"mean": mean, "n": n, "interval": None if half is None else (mean - half, mean + half)}


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


@dataclass(frozen=True)
class PairedScores:
    """Scores of one run against another's on the same seeds."""

    n: int
    difference: float
    """Mean of the second less the first."""
    interval: tuple[float, float] | None
    """Student's confidence interval of that mean; None of fewer than two pairs."""
    p_value: float
    """Student's paired test, two-sided; 1 where no pair differs or there is one alone."""


def paired_scores(
    first: Mapping[Any, float], second: Mapping[Any, float], confidence: float = 0.95
) -> PairedScores:
    """Compare the scores of two runs on the seeds they share.

    Args:
        first: seed -> score of the baseline.
        second: seed -> score of the other run.
        confidence: of the interval.

    Raises:
        BadSetting: the runs share no seed.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        raise BadSetting("two runs share no seed; a paired comparison needs the same --seed for both")
    pairs = np.array([[first[seed], second[seed]] for seed in seeds])
    changes = pairs[:, 1] - pairs[:, 0]
    difference = float(changes.mean())
    if len(seeds) < 2:
        return PairedScores(len(seeds), difference, None, 1.0)
    if not np.ptp(changes):  # Student's statistic would be 0 / 0, or infinite
        return PairedScores(len(seeds), difference, (difference, difference), float(not difference))
    test = ttest_rel(pairs[:, 1], pairs[:, 0])
    low, high = test.confidence_interval(confidence)
    return PairedScores(len(seeds), difference, (float(low), float(high)), float(test.pvalue))


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p-value of the exact McNemar test; 1 if no pair differs."""
    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def percentiles(times_s: Sequence[float], n_measured: int | None = None) -> dict[str, Any]:
    """Percentiles "p50_s" … "p99.9_s", "mean_s", "jitter_s" (standard deviation) and "n" of latencies [s].

    A percentile is None where n measurements do not reach so far. Thousands of draws of five measurements
    are five measurements.

    Args:
        times_s: latencies [s].
        n_measured: how many measurements they were drawn from; as many as there are when None.

    Raises:
        BadSetting: there are none.
    """
    values = np.asarray(times_s, dtype=float)
    if not values.size:
        raise BadSetting("there are no latencies to summarise; run at least one episode or benchmark round")
    n = len(values) if n_measured is None else min(len(values), n_measured)
    found = {f"p{p:g}_s": percentile(times_s, p, n_measured) for p in PERCENTILES}
    return found | {"mean_s": float(values.mean()), "jitter_s": float(values.std()), "n": n}


def curve_area(latencies_s: Sequence[float], rates: Sequence[float]) -> float:
    """Area under a success-versus-latency curve as a mean success rate in [0, 1].

        area = 1 / (L_m - L_1) · ∫ S(L) dL

    by trapezoids between the measured latencies L_1 < … < L_m [s]: the success of a policy whose latency is
    equally likely to be anywhere in the range.

    Args:
        latencies_s: where success was measured [s], in any order, no value twice.
        rates: success rates there, in [0, 1].

    Raises:
        BadSetting: there is no point, a value twice, or not one rate each.
    """
    if not latencies_s or len(latencies_s) != len(rates) or len(set(latencies_s)) != len(latencies_s):
        raise BadSetting(
            f"a curve has {len(rates)} success rates at latencies_s {list(latencies_s)}; one rate "
            "each for one or more distinct values is needed"
        )
    order = np.argsort(latencies_s)
    across, up = np.asarray(latencies_s, float)[order], np.asarray(rates, float)[order]
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
