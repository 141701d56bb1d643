"""The second stage: how long whole chunks of the promising candidates take here, timed interleaved."""

import time
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from vivace.accel.technique import CalibrationData
from vivace.eval.measure.latencies import Measured, asked, chunk_latencies
from vivace.eval.measure.timing import Rounds
from vivace.eval.tune.candidate import Status, Trial
from vivace.eval.tune.store import Store
from vivace.policies.errors import in_one_line
from vivace.policies.session import Session

FEW, MANY = 5, 100
"""Rounds in which all are timed, and as many as a p99 takes."""
_FIRST = 0.4
"""Share of its time after which no more candidates are made ready: those that are must be timed, too."""
_SLOW_S = 1.0
"""A chunk that takes so long [s] is not the slower for being the first."""


Measure = Callable[[Mapping[str, Session], CalibrationData, Rounds], Measured]
"""Times chunks of several sessions in the same rounds; what `chunk_latencies` does by the clock."""


class Timing:
    """Times candidates on this device; what is known of one is not measured again."""

    def __init__(
        self,
        session_of: Callable[[Trial], Session],
        data: CalibrationData,
        store: Store,
        measure: Measure = chunk_latencies,
        about_s: Callable[[Trial], float] = lambda trial: 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            session_of: makes a candidate ready to run, as the loop calls it.
            data: observations, one a round.
            store: of the trials.
            measure: times chunks.
            about_s: about how long a chunk takes [s], where it has run before; else 0.
            now: clock [s].
        """
        self._about_s, self._now = about_s, now
        self._session_of, self._data, self._store = session_of, data, store
        self._measure = measure

    def time(self, trials: Iterable[Trial], rounds: int, limit_s: float) -> list[Trial]:
        """Time some candidates in the same rounds; one that raises fails, and the others go on.

        Args:
            trials: to be timed.
            rounds: so many times each, in all.
            limit_s: time there is [s]: where it does not reach there are fewer rounds, but one at least, and
                the last trials are not timed.

        Returns:
            The newest trials of those that can be run.
        """
        began = self._now()
        sessions: dict[str, Session] = {}
        once_s: dict[str, float] = {}
        todo: dict[str, Trial] = {}
        for trial in trials:
            took_s, takes_s = self._now() - began, sum(once_s.values())
            is_late = (once_s or trial.latencies_s) and (
                took_s > limit_s * _FIRST or took_s + takes_s + self._about_s(trial) > limit_s
            )
            if len(trial.latencies_s) >= rounds or is_late:
                continue
            try:
                sessions[trial.key] = self._session_of(trial)
                known_s = self._about_s(trial)
                once_s[trial.key] = known_s if known_s > _SLOW_S else self._once(sessions[trial.key])
                todo[trial.key] = trial
            except Exception as error:
                told = f"{type(error).__name__}: {in_one_line(error)}"
                self._store.add(trial.failed(Status.TIMED, told))
        left_s = limit_s - (self._now() - began)
        affordable = max(1, int(left_s / max(sum(once_s.values()), 1e-9)))
        if todo:
            more = {key: min(rounds - len(trial.latencies_s), affordable) for key, trial in todo.items()}
            asked_for = Rounds(repeats=min(more.values()), more=more, limit_s=np.inf, warmup=0)
            measured = self._measure(sessions, self._data, asked_for)
            for key, trial in todo.items():
                found_s = measured.times_s.get(key, [])
                times_s = (*trial.latencies_s, *(round(time_s, 7) for time_s in found_s))
                if key in measured.left_out:
                    reason = measured.left_out[key]
                    self._store.add(trial.dropped(Status.TIMED, reason, latencies_s=times_s))
                else:
                    self._store.add(trial.became(Status.TIMED, latencies_s=times_s))
        newest = (self._store.trials[trial.key] for trial in trials)
        return [trial for trial in newest if trial.is_alive and trial.latencies_s]

    def _once(self, session: Session) -> float:
        """Time of a first chunk [s], which is longer than later ones."""
        one = next(self._data.ones())
        began = self._now()
        session.predict(asked(one), list(one.noise_keys))
        return self._now() - began
