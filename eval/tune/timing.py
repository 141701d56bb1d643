"""The second stage: how long whole chunks of the promising candidates take here, timed interleaved."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from vivace.accel.technique import CalibrationData
from vivace.eval.measure.latencies import Measured, asked, chunk_latencies
from vivace.eval.measure.timing import Rounds
from vivace.eval.race.race import nobodys_fault
from vivace.eval.tune.candidate import Status, Trial
from vivace.eval.tune.store import Store
from vivace.policies.errors import named
from vivace.policies.session import Session

FEW, MANY = 5, 100
"""Rounds in which all are timed, and as many as a p99 takes."""
NO_LIMIT_S = 1e6
"""However long it takes [s]."""
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

    def time(self, trials: Sequence[Trial], rounds: int, limit_s: float) -> list[Trial]:
        """Time some candidates in the same rounds; one that raises fails, and the others go on.

        Whether it raises while it is made ready or in the middle of the rounds.

        Args:
            trials: to be timed.
            rounds: so many times each, in all.
            limit_s: time there is [s]: where it does not reach there are fewer rounds, but one at least, and
                the last trials are not timed.

        Returns:
            The newest trials of those that can be run.

        Raises:
            NothingRuns: none that was asked could be run, nor one that was timed before.
        """
        began = self._now()
        raised: dict[str, str] = {}
        ready = self._ready([one for one in trials if len(one.latencies_s) < rounds], limit_s, raised)
        todo = {trial.key: trial for trial, _, _ in ready}
        left_s = limit_s - (self._now() - began)
        affordable = max(1, int(left_s / max(sum(once_s for _, _, once_s in ready), 1e-9)))
        measured = Measured({}, {})
        if todo:
            more = {key: min(rounds - len(trial.latencies_s), affordable) for key, trial in todo.items()}
            asked_for = Rounds(repeats=min(more.values()), more=more, limit_s=np.inf, warmup=0, goes_on=True)
            sessions = {trial.key: session for trial, session, _ in ready}
            measured = self._measure(sessions, self._data, asked_for)
        raised |= measured.raised
        if raised and not measured.times_s:
            self._ask_a_witness(raised)
        self._store.fail(Status.TIMED, raised)
        for key, trial in todo.items():
            times_s = (*trial.latencies_s, *(round(time_s, 7) for time_s in measured.times_s.get(key, [])))
            if key in measured.left_out:
                self._store.add(trial.dropped(Status.TIMED, measured.left_out[key], latencies_s=times_s))
            elif key not in raised:
                self._store.add(trial.became(Status.TIMED, latencies_s=times_s))
        newest = (self._store.trials[trial.key] for trial in trials)
        return [trial for trial in newest if trial.is_alive and trial.latencies_s]

    def _ready(
        self, trials: Iterable[Trial], limit_s: float, raised: dict[str, str]
    ) -> list[tuple[Trial, Session, float]]:
        """Make trials ready as far as time allows; returns each with the time of its first chunk [s]."""
        began = self._now()
        found: list[tuple[Trial, Session, float]] = []
        for trial in trials:
            took_s, takes_s = self._now() - began, sum(once_s for _, _, once_s in found)
            is_late = (found or trial.latencies_s) and (
                took_s > limit_s * _FIRST or took_s + takes_s + self._about_s(trial) > limit_s
            )
            if is_late:
                continue
            try:
                session, known_s = self._session_of(trial), self._about_s(trial)
                found.append((trial, session, known_s if known_s > _SLOW_S else self._once(session)))
            except Exception as error:
                raised[trial.key] = named(error)
        return found

    def _ask_a_witness(self, raised: Mapping[str, str]) -> None:
        """See whether one can still be run that was timed; raises `NothingRuns` if it is not theirs."""
        others = [one for one in self._store.trials.values() if one.latencies_s and one.key not in raised]
        if not others and len(raised) == 1:  # nobody knows
            return
        told = dict(raised)
        for trial in others[:1]:
            try:
                self._once(self._session_of(trial))
                return
            except Exception as error:
                told[trial.key] = named(error)
        raise nobodys_fault("chunks can be timed", told, "vivace bench with the same --policy")

    def _once(self, session: Session) -> float:
        """Time of a first chunk [s], which is longer than later ones."""
        one = next(self._data.ones())
        began = self._now()
        session.predict(asked(one), list(one.noise_keys))
        return self._now() - began
