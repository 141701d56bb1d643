"""Whether latencies that were stored in another run, or another search, are still those of this machine."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace

import numpy as np

from vivace.accel.technique import CalibrationData
from vivace.eval.measure.timing import Rounds
from vivace.eval.tune.candidate import Status, Trial
from vivace.eval.tune.expected import median_s
from vivace.eval.tune.timing import FEW, Measure
from vivace.policies.session import Session

DRIFT = 0.1
"""Chunks may take so much longer or shorter than then; five rounds of an even machine differ by less."""
_ASKED = 3
"""Candidates that are asked, the quickest ones."""


def drift(
    trials: Iterable[Trial],
    session_of: Callable[[Trial], Session],
    data: CalibrationData,
    measure: Measure,
) -> float:
    """Time some candidates again; returns how long their chunks take now over then.

    By all rounds of now, the quickest if it is slower, the slowest if it is faster: a burst of other work is
    no other machine. 1 where none was timed, or some are slower and some faster.

    Args:
        trials: of a search.
        session_of: makes a candidate ready to run.
        data: observations, one a round.
        measure: times chunks.
    """
    timed = [one for one in trials if one.is_alive and one.latencies_s and not one.candidate.starts_late]
    asked = {one.key: one for one in sorted(timed, key=median_s)[:_ASKED]}
    sessions = {}
    for key, trial in asked.items():
        with suppress(Exception):  # whoever times it tells why it cannot be made ready
            sessions[key] = session_of(trial)
    if not sessions:
        return 1.0
    rounds = Rounds(repeats=FEW, more=dict.fromkeys(sessions, FEW), limit_s=np.inf, goes_on=True)
    now = measure(sessions, data, rounds).times_s
    ratios = np.array(
        [np.array([min(times), max(times)]) / median_s(asked[key]) for key, times in now.items()]
    )
    quickest, slowest = np.median(ratios, axis=0) if len(ratios) else (1.0, 1.0)
    return float(max(quickest, 1.0) if slowest >= 1 else slowest)


def forgotten(trial: Trial) -> Trial:
    """A trial without its latencies, and the episodes that it met under them; its work and error hold."""
    was_dropped_before = trial.status is Status.FAILED or trial.stage is Status.COUNTED
    if was_dropped_before:
        return trial
    return replace(
        trial, status=Status.COUNTED, stage=None, reason="", latencies_s=(), raced={}, confirmed={}
    )
