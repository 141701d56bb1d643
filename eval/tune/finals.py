"""The stages in closed loop: a race, its confirmation, the lineup and the ladder of what came of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vivace.eval.race.confirm import Confirmation, ConfirmRules, is_shown_worse
from vivace.eval.race.ladder import Ladder
from vivace.eval.race.race import Ending, Race, RaceRules
from vivace.eval.scale.workforce import Workforce
from vivace.eval.subject import loading
from vivace.eval.terminal import console
from vivace.eval.tune.candidate import Origin, Status, Trial
from vivace.eval.tune.choice import Rule
from vivace.eval.tune.contest import Arena, simple_plans
from vivace.eval.tune.counting import Counting
from vivace.eval.tune.expected import median_s
from vivace.eval.tune.lineup import RULES, Lineup, known, lineup
from vivace.eval.tune.pace import Deadline, EpisodeCost, Stakes, stakes
from vivace.eval.tune.space import describe
from vivace.eval.tune.store import Store
from vivace.eval.tune.timing import NO_LIMIT_S
from vivace.eval.tune.ways import Ways
from vivace.policies.load import LoadedPolicy

if TYPE_CHECKING:
    from vivace.eval.verbs.tune import TuneCommand

_BEST = 2
"""So many of the most successful and of the fastest may be rungs of a ladder."""


@dataclass(frozen=True)
class Finals:
    """Lets those that keep the budget meet in the world."""

    command: "TuneCommand"
    loaded: LoadedPolicy
    rule: Rule
    store: Store
    deadline: Deadline
    counting: Counting
    ways: Ways
    chosen: Callable[[str, Callable[[], Sequence[Trial]]], Sequence[Trial]]
    """Whom a stage takes: told its name, and how to choose."""
    seeds: range
    """Of the race."""
    fresh: range
    """Of its confirmation, following them."""

    def race(self) -> tuple[Race | None, Confirmation | None]:
        """Let those that keep the budget race, then the winner's ways to execute chunks; confirm who wins.

        Returns:
            The race, None if the episodes of none of them could be run; and who won, None if time was up
            before any race.
        """
        trials, deadline = self.store.trials, self.deadline
        with Workforce(self.command.scale, loading(self.command)) as workforce:
            arena = self._arena(workforce, lambda: deadline.left_s() <= 0)
            shares = self._stakes(arena)
            kept = self.rule.sure(trials.values())
            racing = self.chosen("raced", lambda: self.rule.entrants(kept, shares.n_others))
            if not racing:
                return None, None
            arena = replace(arena, is_over=lambda: deadline.left_s() <= shares.confirm_s + shares.ways_s)
            state = arena.race(racing, self.seeds, RaceRules())
            if state.ending is Ending.TIME and not any(state.outcomes.values()):
                deadline.cut("nobody raced, for time was up")
                return state, None
            self._tell(state)
            arena = replace(arena, is_over=lambda: deadline.left_s() <= shares.confirm_s)
            winner, *others = self._race_ways(arena, _stayed(state, trials), shares.confirm_s)
            has_limit = not self.command.tune.lineup
            arena = replace(arena, is_over=lambda: has_limit and deadline.left_s() <= shares.last_s)
            simple = simple_plans(trials.values(), state)
            found = arena.confirm(winner, simple, self.rule.keeps, self.fresh, ConfirmRules(), others)
        if found.n < len(self.fresh):
            deadline.cut(f"confirmed on {found.n} of {len(self.fresh)} fresh episodes, for time was up")
        return state, found

    def _race_ways(self, arena: Arena, stayed: list[Trial], confirm_s: float) -> list[Trial]:
        """Let the winner of a race meet its own techniques with chunks executed otherwise.

        Returns:
            Those that stayed in both races, the best of the second first.
        """
        winner, *others = stayed

        def left_s() -> float:
            return self.deadline.left_s() - confirm_s

        def choose() -> list[Trial]:
            ways = self.ways.timed(winner, self.ways.of(winner), left_s)
            return [one for one in self.rule.sure((winner, *ways)) if one.key != winner.key]

        racing = self.chosen(f"raced otherwise than {winner.key}", choose)
        if not racing:
            return stayed
        state = arena.race([winner, *racing], self.seeds, RaceRules())
        self._tell(state)
        has_met = any(state.outcomes.values())
        return [*_stayed(state, self.store.trials), *others] if has_met else stayed

    def _tell(self, state: Race) -> None:
        """Say who leads a race that is over."""
        winner = self.store.trials[state.leader]
        solved = state.outcomes[winner.key].values()
        told = f"{describe(winner.candidate)} leads: {sum(solved)} of {len(solved)}"
        alone = f"{describe(winner.candidate)} alone keeps the budget: no race"
        said = alone if len(state.keys) == 1 else f"race over ({state.ending}): {told}"
        console.print(said, highlight=False)
        if state.ending is Ending.TIME:
            self.deadline.cut(
                f"a race met {len(solved)} of {len(self.seeds)} episodes, for the rest of the time is for "
                "what comes after it"
            )

    def _stakes(self, arena: Arena) -> Stakes:
        """Who may race, and what the race leaves to the confirmation, by what an episode takes."""
        trials, tune = self.store.trials, self.command.tune
        kept = self.rule.sure(trials.values())
        if self.deadline.left_s() <= 0:
            return Stakes(0, 0.0, 0.0, 0.0)
        ordered, at_once, now = sorted(kept, key=median_s), RaceRules().seeds_at_once, self.deadline.now
        measured = self.store.settled("episode", lambda: arena.cost(ordered, self.seeds, at_once, now))
        cost = EpisodeCost(**measured) if measured else EpisodeCost(0.0, 0.0, median_s(ordered[0]))
        kept = [trial for trial in kept if trials[trial.key].is_alive]
        rivals = self.rule.racing(kept)
        others = self.rule.contenders(kept)[: tune.finalists]
        slowest = max((median_s(trial) for trial in kept), default=0.0)
        slow = [
            trial
            for trial in trials.values()
            if trial.candidate.origin in (Origin.TRAINED, Origin.EXACT)
            and trial.latencies_s
            and trial.status is not Status.FAILED
            and not self.rule.keeps(trial)
        ]
        n_ways = len(self.ways.of(kept[0])) if kept else 0
        shares = stakes(
            self.deadline.left_s(),
            [cost.of(median_s(trial)) for trial in rivals],
            [cost.of(median_s(trial)) for trial in others],
            [cost.of(slowest)] * n_ways,
            3 * [cost.of(slowest)],  # the winner, exact work or a former plan, the best of baselines
            [cost.of(median_s(trial)) for trial in slow],
            tune.n_episodes,
            0 if tune.lineup else tune.confirm,  # with a lineup nobody waits for the time that was given
            ConfirmRules().seeds_at_once,
        )
        if shares.n_others < len(others):
            self.deadline.cut(
                f"{shares.n_others} of {len(others)} finalists race, for an episode takes "
                f"{cost.of(slowest):.2g} s and {self.deadline.left_s():.0f} s are left"
            )
        return shares

    def lineup(self, plan: Trial) -> Lineup:
        """Let what needs no search and keeps the budget meet the fresh episodes that the plan has met."""
        trials = self.store.trials
        met = range(self.fresh.start, self.fresh.start + len(trials[plan.key].confirmed))
        others = [trial for trial in known(trials.values()) if self.rule.keeps(trial)]
        with Workforce(self.command.scale, loading(self.command)) as workforce:
            solved = trials[plan.key].confirmed
            arena = self._arena(workforce, lambda: False)
            arena.meet(others, met, lambda theirs: is_shown_worse(theirs, solved, RULES.confidence))
        return lineup(plan, known(trials[one.key] for one in others), trials, self.rule)

    def ladder(self, best: Trial) -> Ladder:
        """Find the ladder of the plan and of the best and the fastest that stayed in the race."""
        trials, n = self.store.trials, len(self.fresh)
        stayed = [
            alike
            for trial in list(trials.values())
            if trial.raced and not trial.reason
            for alike in self._executed_as(best, trial)
        ]
        most = sorted(stayed, key=lambda trial: -sum(trial.raced.values()))[:_BEST]
        fastest = sorted(stayed, key=median_s)[:_BEST]
        some = {trial.key: trial for trial in (best, *most, *fastest)}
        seeds = range(self.fresh.stop, self.fresh.stop + n)
        with Workforce(self.command.scale, loading(self.command)) as workforce:
            arena = self._arena(workforce, lambda: False)
            return arena.ladder(list(some.values()), seeds, range(seeds.stop, seeds.stop + n))

    def _executed_as(self, best: Trial, trial: Trial) -> list[Trial]:
        """A trial with its chunks executed as another's, if it can be and keeps the budget so."""
        execution = best.candidate.execution
        if trial.candidate.execution == execution:
            return [trial]
        if execution not in self.ways.of(trial):
            return []
        found = self.ways.timed(trial, [execution], lambda: NO_LIMIT_S)
        return [one for one in found if self.rule.keeps(one)]

    def _arena(self, workforce: Workforce, is_over: Callable[[], bool]) -> Arena:
        return Arena.of(
            self.command,
            self.loaded,
            made=lambda candidate: self.counting.made(candidate)[1],
            workforce=workforce,
            store=self.store,
            label=describe,
            is_over=is_over,
        )


def _stayed(state: Race, trials: Mapping[str, Trial]) -> list[Trial]:
    """Who was not dropped from a race, the most successful first."""
    return [trials[key] for key in sorted(state.alive, key=lambda key: -sum(state.outcomes[key].values()))]
