"""One search: counted, timed, raced, confirmed; every stage stores what it finds, and ends in time."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vivace.accel.compile import compile_execution
from vivace.accel.judgement import check_apart
from vivace.deploy.loop.settings import Mode
from vivace.eval.measure.latencies import chunk_latencies
from vivace.eval.measure.threads import choose_threads
from vivace.eval.observations.gather import JUDGEMENT_SEED
from vivace.eval.observations.observe import observe
from vivace.eval.race.confirm import Confirmation, ConfirmRules
from vivace.eval.race.ladder import Ladder
from vivace.eval.race.race import Race, RaceRules
from vivace.eval.scale.workforce import Workforce
from vivace.eval.subject import loading, session
from vivace.eval.terminal import console, progress
from vivace.eval.tune.candidate import Candidate, Origin, Status, Trial
from vivace.eval.tune.choice import Rule
from vivace.eval.tune.contest import Arena, entrants, simple_plans
from vivace.eval.tune.counting import Counting, count
from vivace.eval.tune.space import Space, describe
from vivace.eval.tune.store import Store
from vivace.eval.tune.study import Study
from vivace.eval.tune.timing import FEW, MANY, Measure, Timing, median_s
from vivace.policies.load import LoadedPolicy
from vivace.policies.session import Session

if TYPE_CHECKING:
    from vivace.eval.verbs.tune import TuneCommand

_COUNTED, _TIMED, _RACED = 0.35, 0.6, 0.85
"""Shares of the time by which the first three stages are over, where a world judges."""
_COUNTED_ALONE = 0.6
"""The same of the first, where none does."""
_BEST = 2
"""So many of the best are tried with what computes the same faster, and with other ways to execute chunks."""


@dataclass(frozen=True)
class Deadline:
    """The time there is."""

    limit_s: float
    began_s: float = field(default_factory=time.monotonic)

    def left_s(self, share: float = 1.0) -> float:
        """What is left of a share of it [s]."""
        return self.began_s + share * self.limit_s - time.monotonic()


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
    ) -> None:
        """Look at observations, and let the policy as trained act on them; `measure` times chunks."""
        self._command, self._loaded, self._space, self._rule = command, loaded, space, rule
        self._store, self._deadline, self._measure = store, deadline, measure
        self._seeds = range(command.seed, command.seed + command.tune.n_episodes)
        self._fresh = range(self._seeds.stop, self._seeds.stop + command.tune.confirm)
        fitted = observe(command, loaded)
        self._data = observe(command, loaded, seed=JUDGEMENT_SEED, samples=command.tune.samples)
        later = range(self._fresh.stop, self._fresh.stop + 2 * command.tune.confirm)  # a ladder's
        check_apart(fitted.seeds, self._data.seeds.union(self._seeds, self._fresh, later))
        self.counting = Counting(loaded, fitted, self._data)

    def count(self) -> None:
        """Count work and compare actions, many candidates."""
        options = self._command.tune
        share = _COUNTED if self._rule.is_world else _COUNTED_ALONE
        starters = self._space.starters(self._command.accel.chosen())
        starters = tuple(one for one in starters if options.compile or not one.is_compiled)
        with progress() as bars:
            bar = bars.add_task("counting work, comparing actions", total=options.candidates)

            def trial_of(candidate: Candidate) -> Trial:
                trial = self.counting.trial(candidate)
                if trial.reason and candidate.origin is not Origin.SEARCH:
                    told = f"left out: {describe(candidate)}: {trial.reason}"
                    console.print(told, style="yellow", highlight=False)
                bars.update(bar, completed=len(self._store.trials) + 1)
                return trial

            def goes_on(known: int) -> bool:
                return known < options.candidates and self._deadline.left_s(share) > 0

            count(starters, Study(self._space, self._command.seed), self._store, trial_of, goes_on)

    def time(self) -> None:
        """Time the promising ones, interleaved; those near the budget, and the policy as trained, often."""
        share = _TIMED if self._rule.is_world else 1.0
        options, rule, trials = self._command.tune, self._rule, self._store.trials
        if rule.budget.elsewhere is None:
            choose_threads({"exact": self._session(Candidate(self._space.exact))}, options.threads)
        timing = Timing(lambda trial: self._session(trial.candidate), self._data, self._store, self._measure)
        timing.time(rule.first(list(trials.values()), options.timed), FEW, self._deadline.left_s(share) / 4)
        more = [*rule.next(list(trials.values()), options.timed // 2), *self._relatives()]
        timing.time(more, FEW, self._deadline.left_s(share) / 4)
        self._tell_best()
        finalists = rule.finalists(list(trials.values()), options.finalists)
        trained = [
            trial for trial in rule.rivals(trials.values()) if trial.candidate.origin is Origin.TRAINED
        ]
        timing.time(trained, MANY, self._deadline.left_s(share) / 3)
        while finalists and self._deadline.left_s(share) > 0:
            timing.time(finalists, MANY, self._deadline.left_s(share))
            best = rule.keeping(trials.values())[:1]  # of few measurements it may only seem to keep it
            finalists = [trial for trial in best if len(trial.latencies_s) < MANY]
        self._tell_best()

    def race(self) -> tuple[Race, Confirmation | None]:
        """Let those that keep the budget race, and confirm who wins; None if time was up before any race."""
        rule, trials, deadline = self._rule, self._store.trials, self._deadline
        with Workforce(self._command.scale, loading(self._command)) as workforce:
            arena = self._arena(workforce, lambda: deadline.left_s(_RACED) <= 0)
            racing = entrants(trials.values(), rule.sure(trials.values()), self._command.tune.finalists)
            state = arena.race(racing, self._seeds, RaceRules())
            if not any(state.outcomes.values()):
                return state, None
            winner = trials[state.leader]
            met = len(state.outcomes[winner.key])
            told = f"{describe(winner.candidate)} leads: {sum(state.outcomes[winner.key].values())} of {met}"
            console.print(f"race over ({state.ending}): {told}", highlight=False)
            arena = replace(arena, is_over=lambda: deadline.left_s() <= 0)
            simple = simple_plans(trials.values(), state)
            return state, arena.confirm(winner, simple, self._keeps, self._fresh, ConfirmRules())

    def ladder(self, best: Trial) -> Ladder:
        """Find the ladder of the plan and of the best and the fastest that stayed in the race."""
        trials, n = self._store.trials, len(self._fresh)
        stayed = [
            trial
            for trial in trials.values()
            if trial.raced and not trial.reason and trial.candidate.execution == best.candidate.execution
        ]
        most = sorted(stayed, key=lambda trial: -sum(trial.raced.values()))[:_BEST]
        fastest = sorted(stayed, key=median_s)[:_BEST]
        some = {trial.key: trial for trial in (best, *most, *fastest)}
        seeds = range(self._fresh.stop, self._fresh.stop + n)
        with Workforce(self._command.scale, loading(self._command)) as workforce:
            arena = self._arena(workforce, lambda: False)
            return arena.ladder(list(some.values()), seeds, range(seeds.stop, seeds.stop + n))

    def _arena(self, workforce: Workforce, is_over: Callable[[], bool]) -> Arena:
        return Arena.of(
            self._command,
            self._loaded,
            made=lambda candidate: self.counting.made(candidate)[1],
            workforce=workforce,
            store=self._store,
            label=describe,
            is_over=is_over,
        )

    def _keeps(self, trial: Trial) -> bool:
        is_left_out = trial.stage is Status.TIMED  # for what it takes besides time
        return not is_left_out and self._rule.budget.is_kept(trial.candidate, trial.latencies_s)

    def _relatives(self) -> list[Trial]:
        """The best by now with what computes the same faster; in a world, with chunks executed otherwise."""
        is_sync = self._command.loop.mode == Mode.SYNC
        found: list[Candidate] = []
        for trial in self._rule.keeping(self._store.trials.values())[:_BEST]:
            found += self._space.faster(trial.candidate)
            if self._rule.is_world and not any(vars(trial.candidate.execution).values()):
                found += self._space.executed(trial.candidate, is_sync)
        counted = [self._store.trials.get(one.key) or self._counted(one) for one in found]
        return [trial for trial in counted if trial.is_alive]

    def _counted(self, candidate: Candidate) -> Trial:
        return self._store.add(self.counting.trial(candidate))

    def _session(self, candidate: Candidate) -> Session:
        """A candidate as the loop calls it."""
        _, execution = self.counting.made(candidate)
        if candidate.is_compiled:
            execution = compile_execution(execution)
        return session(self._command, self._loaded, execution)

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
