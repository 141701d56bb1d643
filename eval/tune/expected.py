"""How long a chunk should take that was not timed: by its counted work, and by what computes it faster.

    time(candidate) = (a + b work + c passes) x gain of each technique that computes the same faster

a, b and c, none below 0, are fitted to what was timed without such techniques, by relative error: work alone
says little of tokens, of which a pass that writes one takes about as long as a pass that writes a hundred.
The gain of a technique is what it took of the time that its work should take, in a candidate that has no
other; of some that were timed together it is what they took, for gains need not multiply: where a GPU waits
for the host, fewer bits are worth nothing until its kernels are launched at once. Of one that was never timed
nothing is expected.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from math import prod

import numpy as np
from scipy.optimize import nnls

from vivace.deploy.telemetry.histogram import percentile
from vivace.eval.tune.candidate import Trial
from vivace.policies.plain_data import plain

Expectation = Callable[[Trial], float | None]
"""Median time of a chunk [s], measured or expected; None where nothing is."""


def expectation(trials: Iterable[Trial]) -> Expectation:
    """Return what is to be expected after some were timed: others of counted work, whatever they are."""
    timed = [trial for trial in trials if trial.latencies_s and trial.flops]
    alike = [trial for trial in timed if trial.candidate.execution.mode is None]  # in the loop's own mode
    plainly = [trial for trial in alike if not trial.candidate.same_work]
    if len({trial.flops for trial in plainly}) < 2:
        return lambda trial: median_s(trial) if trial.latencies_s else None
    times_s = np.array([median_s(trial) for trial in plainly])
    terms = np.array([_terms(trial) for trial in plainly])
    largest = terms.max(axis=0)
    factors = nnls(terms / largest / times_s[:, None], np.ones(len(times_s)))[0] / largest

    def by_work(trial: Trial) -> float:
        return float(_terms(trial) @ factors)

    found = defaultdict[tuple[str, ...], list[float]](list)
    for trial in alike:
        if trial.candidate.same_work and by_work(trial) > 0:
            found[_names(trial)].append(median_s(trial) / by_work(trial))
    gains = {names: float(np.median(some)) for names, some in found.items()}

    def gain(names: tuple[str, ...]) -> float | None:
        if not names or names in gains:
            return gains.get(names, 1.0)
        singly = [gains.get((name,)) for name in names]
        return None if None in singly else prod(one for one in singly if one is not None)

    def expected(trial: Trial) -> float | None:
        if trial.latencies_s:
            return median_s(trial)
        times = gain(_names(trial))
        return by_work(trial) * times if trial.flops and times is not None else None

    return expected


def _terms(trial: Trial) -> np.ndarray:
    """What takes time: being called, work, passes."""
    return np.array([1.0, float(trial.flops or 0), float(trial.passes or 1)])


def median_s(trial: Trial) -> float:
    """Median latency of a chunk [s]."""
    return float(np.median(trial.latencies_s))


def tail_over_median(trials: Iterable[Trial]) -> float:
    """How much longer than its median one chunk of twenty takes here; 1 if too few were timed to know.

    A budget is about the slow ones: on a computer that does other things besides, a plan whose median is
    within it need not be. Of twenty chunks and not of a hundred, since a plan that keeps it does so by the
    95th percentile, whatever the 99th turns out to be.
    """
    timed = [trial.latencies_s for trial in trials if trial.latencies_s]
    ratios = [ratio for times_s in timed for ratio in (np.array(times_s) / np.median(times_s)).tolist()]
    return max(1.0, percentile(ratios, 95.0) or 1.0) if ratios else 1.0


def _names(trial: Trial) -> tuple[str, ...]:
    """What computes the same faster in a trial, as keys."""
    return tuple(sorted(json.dumps(plain(list(it)), sort_keys=True) for it in trial.candidate.same_work))
