"""How long a chunk should take that was not timed: by its counted work, and by what computes it faster.

    time(candidate) = (a + b work + c passes) x gain of each technique that computes the same faster

a, b and c, none below 0, are fitted to what was timed without such techniques, by relative error: work alone
says little of tokens, of which a pass that writes one takes about as long as a pass that writes a hundred.
The gain of a technique is what it took of the time that its work should take, in a candidate that has no
other. Of one that was never timed nothing is expected.
"""

import json
from collections.abc import Callable, Iterable
from math import prod

import numpy as np
from scipy.optimize import nnls

from vivace.accel.variant import Request
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

    gains = {
        _name(trial.candidate.same_work[0]): median_s(trial) / by_work(trial)
        for trial in alike
        if len(trial.candidate.same_work) == 1 and by_work(trial) > 0
    }

    def expected(trial: Trial) -> float | None:
        if trial.latencies_s:
            return median_s(trial)
        names = [_name(request) for request in trial.candidate.same_work]
        if not trial.flops or not gains.keys() >= {*names}:
            return None
        return by_work(trial) * prod(gains[name] for name in names)

    return expected


def _terms(trial: Trial) -> np.ndarray:
    """What takes time: being called, work, passes."""
    return np.array([1.0, float(trial.flops or 0), float(trial.passes or 1)])


def median_s(trial: Trial) -> float:
    """Median latency of a chunk [s]."""
    return float(np.median(trial.latencies_s))


def _name(request: Request) -> str:
    """What a technique is asked for, as a key."""
    return json.dumps(plain(list(request)), sort_keys=True)
