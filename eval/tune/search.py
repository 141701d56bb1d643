"""One search: counted, timed, then `finals`; every stage stores what it finds, and ends in time."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vivace.accel.apply import accelerate, exact_plan
from vivace.accel.judgement import check_apart
from vivace.accel.registry import techniques
from vivace.accel.technique import CalibrationData
from vivace.deploy.loop.settings import Mode
from vivace.eval.measure.action_error import sample_all
from vivace.eval.measure.latencies import chunk_latencies, warm_up
from vivace.eval.measure.threads import choose_threads
from vivace.eval.observations.gather import JUDGEMENT_SEED
from vivace.eval.observations.observe import observe, some
from vivace.eval.subject import session
from vivace.eval.terminal import console, milliseconds, progress
from vivace.eval.tune.candidate import Candidate, Origin, Status, Trial
from vivace.eval.tune.choice import Rule
from vivace.eval.tune.counting import Counting, count
from vivace.eval.tune.drift import DRIFT, drift, forgotten
from vivace.eval.tune.expected import median_s
from vivace.eval.tune.finals import Finals
from vivace.eval.tune.former import former
from vivace.eval.tune.front import spread
from vivace.eval.tune.pace import (
    COMPILING_IN_A_WORLD,
    COMPILING_ON_DATA_ALONE,
    IN_A_WORLD,
    ON_DATA_ALONE,
    Deadline,
    Shares,
    affordable,
    affordable_samples,
)
from vivace.eval.tune.space import Space, computed_as, describe
from vivace.eval.tune.store import Store
from vivace.eval.tune.study import Study
from vivace.eval.tune.timing import FEW, MANY, NO_LIMIT_S, Measure, Timing
from vivace.eval.tune.ways import Ways
from vivace.policies.execution import as_trained
from vivace.policies.load import LoadedPolicy
from vivace.policies.session import Session

if TYPE_CHECKING:
    from vivace.eval.verbs.tune import TuneCommand

_LIKE = 0.5
"""Share of the candidates that are bred from the best ones, once it is known which keep the budget."""
_PARENTS = 10
"""The best that others are bred from, as in AutoDiffusion (arXiv 2309.10438)."""
_STEPS = 0.5
"""Share of those that differ from a parent, one of the better ones, in one choice; in the others in any."""
_TRIES = 50
"""Times another one is bred where one came out that is known."""
_LATE = 4
"""So many of those whose first chunk takes a minute are tried over others, from near to fast ones."""


class Search:
    """The stages of one search."""

    def __init__(
        self,
        command: "TuneCommand",
        loaded: LoadedPolicy,
        space: Space,
        rule: Rule,
        store: Store,
        deadline: Deadline,
        measure: Measure = chunk_latencies,
        chunks_once: int = 1,
    ) -> None:
        """Look at observations, and let the policy as trained act on them.

        Args:
            command: what was asked for.
            loaded: the policy.
            space: what may be chosen.
            rule: who is.
            store: of the trials.
            deadline: the time there is.
            measure: times chunks.
            chunks_once: so many it takes to time a candidate once.
        """
        self._chunks_once = chunks_once
        self._command, self._loaded, self._space, self._rule = command, loaded, space, rule
        self._store, self._deadline, self._measure = store, deadline, measure
        self._seeds = range(command.seed, command.seed + command.tune.n_episodes)
        self._fresh = range(self._seeds.stop, self._seeds.stop + command.tune.confirm)
        fitted = observe(command, loaded)
        self._data = observe(command, loaded, seed=JUDGEMENT_SEED, samples=command.tune.samples)
        later = range(self._fresh.stop, self._fresh.stop + 2 * command.tune.confirm)  # a ladder's
        check_apart(fitted.seeds, self._data.seeds.union(self._seeds, self._fresh, later))
        deadline.share_from_now()
        if rule.budget.elsewhere is None:
            exact = accelerate(loaded.staged, exact_plan(loaded.staged, loaded.fingerprint))
            choose_threads({"exact": session(command, loaded, exact)}, command.tune.threads)
        fitted, self._data = self._affordable(fitted, self._data)
        self._cuts = len(deadline.cuts)
        self._warm: dict[str, Session] = {}
        self.counting = Counting(loaded, fitted, self._data, deadline.now)

    def _affordable(
        self, fitted: CalibrationData, judged: CalibrationData
    ) -> tuple[CalibrationData, CalibrationData]:
        """As many observations as the time allows, by how long a chunk takes; the same in every run."""
        found = self._store.settled("samples", lambda: self._samples(judged))
        n, asked = found["n"], len(judged.noise_keys)
        if n >= asked:
            return fitted, judged
        n_fitted = max(1, round(len(fitted.noise_keys) * n / asked))
        self._deadline.cut(
            f"actions are compared on {n} of {asked} observations, and plans calibrated on {n_fitted} of "
            f"{len(fitted.noise_keys)}, for a chunk as trained takes {milliseconds(found['chunk_s'])} ms"
        )
        return some(fitted, range(n_fitted)), some(judged, range(n))

    def _samples(self, judged: CalibrationData) -> dict[str, Any]:
        """Measure a chunk as trained, and say on how many observations actions can be compared."""
        began = self._deadline.now()
        sample_all(as_trained(self._loaded.staged), some(judged, range(1)))
        chunk_s = self._deadline.now() - began
        n = affordable_samples(len(judged.noise_keys), chunk_s, self._deadline.left_s(self._shares.counted))
        return {"n": n, "chunk_s": chunk_s}

    def _chosen(self, stage: str, choose: Callable[[], Sequence[Trial]]) -> Sequence[Trial]:
        """Whom a stage takes, the same after a stop; chosen anew where time had cut something short."""
        if len(self._deadline.cuts) > self._cuts:
            return choose()
        options = self._command.tune
        asked = [self._rule.budget.told, options.candidates, options.timed, options.finalists]
        return self._store.chosen(stage, asked, choose)

    @property
    def _shares(self) -> Shares:
        if any(techniques()[kind].starts_late for kind in self._space.same_work):
            return COMPILING_IN_A_WORLD if self._rule.is_world else COMPILING_ON_DATA_ALONE
        return IN_A_WORLD if self._rule.is_world else ON_DATA_ALONE

    def count(self) -> None:
        """Count work and compare actions, many candidates."""
        options = self._command.tune
        share = self._shares.counted
        starters = self._space.starters(self._command.accel.chosen())
        starters = (*former(self._loaded, self._space.exact, self._modes), *starters)
        most = min(options.candidates, max(round((1 - _LIKE) * options.candidates), len(starters)))
        with progress() as bars:
            bar = bars.add_task("counting work, comparing actions", total=most)

            def trial_of(candidate: Candidate) -> Trial:
                trial = self.counting.trial(candidate, self._store.trials.values())
                if trial.status is Status.FAILED and candidate.origin is not Origin.SEARCH:
                    told = f"left out: {describe(candidate)}: {trial.reason}"
                    console.print(told, style="yellow", highlight=False)
                bars.update(bar, completed=len(self._store.trials) + 1)
                return trial

            def is_late() -> bool:
                return self._deadline.left_s(share) <= 0

            def goes_on(known: int) -> bool:
                return known < most and not is_late()

            study = Study(self._space, self._command.seed)
            count(starters, study, self._store, trial_of, goes_on, is_late)
        if len(self._store.trials) < most and self._deadline.left_s(share) <= 0:
            self._tell_counted(share)

    def time(self) -> None:
        """Time the promising ones, interleaved; those near the budget, and the policy as trained, often."""
        self._forget_what_drifted()
        shares = self._shares
        options, rule, trials = self._command.tune, self._rule, self._store.trials
        timing, counted = self._timing, list(trials.values())
        limit_s = self._deadline.left_s(shares.some_timed) / (2 if rule.is_world else 3)
        first = self._chosen(
            "timed first",
            lambda: _late_last(
                affordable(lambda n: rule.first(counted, n), options.timed, self._about_s, limit_s)
            ),
        )
        timing.time(first, FEW, limit_s)
        untimed = [one for one in first if trials[one.key].is_alive and not trials[one.key].latencies_s]
        if untimed:
            self._deadline.cut(
                f"{len(untimed)} of {len(first)} promising candidates were not timed, for time was up"
            )
        pairs = self._chosen("timed together", lambda: self._together(options.timed // 4, shares.bred))
        timing.time(pairs, FEW, self._deadline.left_s(shares.bred) / 3)
        self._breed()
        some = options.timed // 2
        more = self._chosen(
            "timed then", lambda: [*self._relatives(shares.related), *rule.next(list(trials.values()), some)]
        )
        timing.time(_late_last(more), FEW, self._deadline.left_s(shares.some_timed))
        late = self._chosen("timed late", lambda: self._late(shares.timed))
        timing.time(late, FEW, self._deadline.left_s(shares.timed) / 2)
        self._tell_best()
        finalists = self._chosen("timed often", lambda: self._finalists(shares.timed))
        trained = [
            trial for trial in rule.rivals(trials.values()) if trial.candidate.origin is Origin.TRAINED
        ]
        timing.time(trained, MANY, self._deadline.left_s(shares.timed) / 4)
        while finalists and self._deadline.left_s(shares.timed) > 0:
            before = [trials[trial.key] for trial in finalists]
            timing.time(finalists, MANY, self._deadline.left_s(shares.timed))
            best = rule.keeping(trials.values())[:1]  # of few measurements it may only seem to keep it
            has_time = any(trials[trial.key] is not trial for trial in before)
            finalists = [trial for trial in best if has_time and len(trial.latencies_s) < MANY]
        self._tell_best()

    def _forget_what_drifted(self) -> None:
        """Time all anew where stored latencies are no longer this machine's, and have not decided yet."""
        trials = list(self._store.trials.values())
        decided = self._store.has_chosen("raced" if self._rule.is_world else "timed often")
        if decided or self._rule.budget.elsewhere is not None:
            return
        ratio = drift(trials, self._session, self._data, self._measure)
        if abs(ratio - 1) <= DRIFT:
            return
        console.print(
            f"chunks take {ratio:.2f} times as long as when they were timed: all are timed again, what "
            "was run under those latencies is run again",
            style="yellow",
            highlight=False,
        )
        for trial in trials:
            if trial.latencies_s:
                self._store.add(forgotten(trial))

    @property
    def _timing(self) -> Timing:
        """Times candidates, and knows about how long that takes of those that ran here before."""
        now = self._deadline.now
        return Timing(self._session, self._data, self._store, self._measure, self._about_s, now)

    @property
    def _modes(self) -> list[Mode]:
        """In which chunks may be executed, the loop's own first."""
        return [self._command.loop.known_mode, *([Mode.RTC] if self._space.may_continue else [])]

    @property
    def finals(self) -> Finals:
        """The stages in closed loop."""
        return Finals(
            self._command,
            self._loaded,
            self._rule,
            self._store,
            self._deadline,
            self.counting,
            Ways(self._space, self.counting, self._store, self._timing, self._command.loop),
            self._chosen,
            self._seeds,
            self._fresh,
        )

    def time_alone(self) -> None:
        """Time what needs no search, however long it takes: a lineup wants all of it."""
        trials = self._store.trials.values()
        alone = [trial for trial in trials if trial.is_alive and trial.candidate.is_alone]
        self._timing.time(alone, FEW, NO_LIMIT_S)

    def _breed(self) -> None:
        """Count candidates like the best that should keep the budget, or nearly."""
        trials, most = self._store.trials, self._most
        share = self._shares.bred
        with progress() as bars:
            bar = bars.add_task("counting others like the best", total=most)
            while len(trials) < most and self._deadline.left_s(share) > 0:
                best = self._rule.parents(list(trials.values()), _PARENTS)
                child = self._child([trial.candidate for trial in best])
                if child is None:
                    break
                self._counted(child)
                bars.update(bar, completed=len(trials))
        if len(trials) < most and self._deadline.left_s(share) <= 0:
            self._tell_counted(share)

    @property
    def _most(self) -> int:
        """Candidates to look at in all: those taken over from another search besides."""
        asked, known = self._command.tune.candidates, self._store.n_known
        return known + round(_LIKE * asked) if known else asked

    def _tell_counted(self, share: float) -> None:
        """Say that fewer candidates were looked at than were asked for."""
        self._deadline.cut(
            f"{len(self._store.trials)} of {self._most} candidates were counted, for the "
            f"{100 * share:.0f} % of the time that they have were over"
        )

    def _child(self, parents: Sequence[Candidate]) -> Candidate | None:
        """A candidate like one of some that is not known yet; None if none was found."""
        random = np.random.default_rng([self._command.seed, len(self._store.trials)])
        if parents and random.random() < _STEPS:
            near = list(self._space.neighbours(parents[int(random.integers(len(parents), size=3).min())]))
            new = [one for one in near if one.key not in self._store.trials]
            if new:
                return new[int(random.integers(len(new)))]
        executions = self._space.executions(self._command.loop.is_sync) if self._rule.is_world else ()
        for _ in range(_TRIES if parents else 0):
            child = self._space.bred(parents[int(random.integers(len(parents)))], random, executions)
            if child.key not in self._store.trials:
                return child
        return None

    def _about_s(self, trial: Trial) -> float:
        """About how long timing it once takes [s]; 0 where it has not run in this process."""
        if trial.latencies_s:
            return median_s(trial)
        return self._chunks_once * self.counting.chunk_s.get(trial.key, 0.0)

    def _finalists(self, share: float) -> list[Trial]:
        """Those to time as often as a p99 takes: so many that all of them can be timed a few times."""
        trials, most = list(self._store.trials.values()), self._command.tune.finalists
        limit_s = self._deadline.left_s(share) / FEW
        found = affordable(lambda n: self._rule.finalists(trials, n), most, self._about_s, limit_s)
        asked = self._rule.finalists(trials, most)
        if len(found) < len(asked):
            self._deadline.cut(f"{len(found)} of {len(asked)} finalists were timed again, for time was up")
        return found

    def _together(self, most: int, share: float) -> list[Trial]:
        """What computes the same much faster, with others that do; counted by a share of the time."""
        pairs = self._rule.together(list(self._store.trials.values()), most)
        return self._all_counted([computed_as(*pair) for pair in pairs], share)

    def _relatives(self, share: float) -> list[Trial]:
        """What should be best with what computes the same faster.

        Args:
            share: of the time, by which no more are counted.
        """
        pairs = self._rule.faster(list(self._store.trials.values()))
        soon = [pair for pair in pairs if not pair[1].candidate.starts_late]
        return self._all_counted(
            [computed_as(*pair) for pair in soon[: self._command.tune.timed // 2]], share
        )

    def _late(self, share: float) -> list[Trial]:
        """Some that were timed with what takes a minute to start: the former plan, then near to fast ones.

        Args:
            share: of the time, by which no more are counted.
        """
        pairs = self._rule.faster(list(self._store.trials.values()))
        late = [pair for pair in pairs if pair[1].candidate.starts_late and pair[0].latencies_s]
        former = [pair for pair in late if pair[0].candidate.origin is Origin.FORMER]
        chosen = [*former, *(pair for pair in spread(late, _LATE) if pair not in former)]
        return self._all_counted([computed_as(*pair) for pair in chosen], share)

    def _all_counted(self, found: Sequence[Candidate], share: float) -> list[Trial]:
        """Those that are known, and others as far as a share of the time reaches."""
        counted: list[Trial] = []
        for i, candidate in enumerate(found):
            known = self._store.trials.get(candidate.key)
            if known is None and self._deadline.left_s(share) <= 0:
                self._deadline.cut(
                    f"{i} of {len(found)} ways to compute the best faster were tried, for time was up"
                )
                break
            counted.append(known or self._counted(candidate))
        return [trial for trial in counted if trial.is_alive]

    def _counted(self, candidate: Candidate) -> Trial:
        return self._store.add(self.counting.trial(candidate, self._store.trials.values()))

    def _session(self, trial: Trial) -> Session:
        """A candidate as the loop calls it."""
        if trial.key in self._warm:
            return self._warm[trial.key]
        _, execution = self.counting.made(trial.candidate)
        warm_up(execution, self._data)  # compiling takes a minute, which is no chunk's
        loop = self._command.loop.executing(trial.candidate.execution)
        found = session(replace(self._command, loop=loop), self._loaded, execution)
        if trial.candidate.starts_late:
            self._warm[trial.key] = found
        return found

    def _tell_best(self) -> None:
        """Say which plan is the best by now."""
        kept = self._rule.sure(self._store.trials.values())
        if kept:
            best = kept[0]
            console.print(
                f"best so far: {describe(best.candidate)}: {1e3 * median_s(best):.1f} ms, actions "
                f"{best.action_error:.3f} from those as trained",
                highlight=False,
            )


def _late_last(trials: Sequence[Trial]) -> list[Trial]:
    """Trials in their order, but behind all others those that take a minute to start."""
    return sorted(trials, key=lambda trial: trial.candidate.starts_late)
