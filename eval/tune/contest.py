"""The last two stages: those that keep the budget race in closed loop, and who wins is confirmed."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vivace.eval.options import CommonOptions
from vivace.eval.race.confirm import Confirmation, ConfirmRules, Contender, confirm
from vivace.eval.race.ladder import Ladder, find_ladder
from vivace.eval.race.play import BurstyLoop, ClosedLoop, closed_loop_job
from vivace.eval.race.race import Race, RaceRules, play_missing, race
from vivace.eval.scale.hire import warn
from vivace.eval.scale.job import Job
from vivace.eval.scale.workforce import Workforce
from vivace.eval.simulation.latency_model import BurstyLatency, MeasuredLatency
from vivace.eval.subject import env_maker
from vivace.eval.terminal import progress
from vivace.eval.tune.candidate import Candidate, Origin, Status, Trial
from vivace.eval.tune.expected import median_s
from vivace.eval.tune.pace import EpisodeCost
from vivace.eval.tune.store import EPISODES, Store
from vivace.policies.errors import named
from vivace.policies.execution import Execution
from vivace.policies.load import LoadedPolicy


@dataclass(frozen=True)
class Arena:
    """Where candidates meet: a world, a policy, who runs the episodes, and where they are kept."""

    command: CommonOptions
    loaded: LoadedPolicy
    made: Callable[[Candidate], Execution]
    """Brings the policy under a candidate's plan."""
    workforce: Workforce
    store: Store
    label: Callable[[Candidate], str]
    """What a candidate is called."""
    make_env: Callable[[], Any]
    """Makes a world; the same for all, so that they share them."""
    is_over: Callable[[], bool] = lambda: False
    """Whether time is up."""

    @classmethod
    def of(cls, command: CommonOptions, loaded: LoadedPolicy, **rest: Any) -> "Arena":
        """The arena in a command's world."""
        return cls(command, loaded, make_env=env_maker(command, loaded.staged.spec), **rest)

    def cost(
        self, trials: Sequence[Trial], seeds: range, seeds_at_once: int, now: Callable[[], float]
    ) -> dict[str, float]:
        """Measure what an episode takes, on the first batch of a race, which does not run it again.

        Args:
            trials: that were timed; the first whose episodes can be run is measured.
            seeds: of the race.
            seeds_at_once: as of the race.
            now: clock [s].

        Returns:
            As `EpisodeCost` names it; empty where the batch had been run before.

        Raises:
            NothingRuns: nobody's episodes can be run.
        """
        watch, raised = self.workforce.stopwatch, dict[str, str]()
        play = self._play({trial.key: trial for trial in trials}, seeds, seeds_at_once)
        for trial in trials:
            began, inference_s, total_s = now(), watch.inference_s, watch.total_s
            played = play([trial.key], seeds[:seeds_at_once])
            raised |= played.raised
            if not played.raised:
                break
        self.store.fail(Status.RACED, raised)
        if watch.total_s == total_s:
            return {}
        took_s = (now() - began) / len(seeds[:seeds_at_once])
        share = (watch.inference_s - inference_s) / (watch.total_s - total_s)
        cost = EpisodeCost((1 - share) * took_s, share * took_s, median_s(trial))
        return cost.to_json()

    def race(self, trials: Sequence[Trial], seeds: range, rules: RaceRules) -> Race:
        """Race trials that were timed; each is stored after every look, raced, dropped or failed.

        Args:
            trials: those that keep the budget.
            seeds: of the episodes.
            rules: how sure to be.
        """
        entrants = {trial.key: trial for trial in sorted(trials, key=_by_speed)}
        play = self._play(entrants, seeds, rules.seeds_at_once)
        labels = {key: self.label(trial.candidate) for key, trial in entrants.items()}

        def on_batch(state: Race) -> None:
            reasons = state.told(labels)
            new = {key: why for key, why in state.raised.items() if self.store.trials[key].is_alive}
            self.store.fail(Status.RACED, new, raced=state.outcomes)
            for key in state.keys:
                trial, raced = entrants[key], dict(state.outcomes[key])
                if key in state.raised:
                    continue
                if len(raced) <= len(self.store.trials[key].raced) and key not in reasons:
                    continue
                if key not in reasons:
                    self.store.add(trial.became(Status.RACED, stage=None, reason="", raced=raced))
                elif self.store.trials[key].reason != reasons[key]:
                    self.store.add(trial.dropped(Status.RACED, reasons[key], raced=raced))

        known = {key: trial.raced for key, trial in entrants.items()}
        return race(list(entrants), seeds, play, rules, known, on_batch, self.is_over)

    def confirm(
        self,
        winner: Trial,
        simple: Sequence[Trial],
        keeps_budget: Callable[[Trial], bool],
        seeds: range,
        rules: ConfirmRules,
        others: Sequence[Trial] = (),
    ) -> Confirmation:
        """Confirm the winner of a race beside simple plans, on seeds that the race has not seen.

        Args:
            winner: of the race.
            simple: as trained, exact work removed, the best baseline: timed.
            keeps_budget: whether one may be the plan.
            seeds: of the episodes.
            rules: when the winner holds.
            others: that stayed in the race, the best first; one stands in for a winner that fails.
        """
        stayed = {trial.key for trial in (winner, *others)}
        trials = {trial.key: trial for trial in (winner, *others, *simple)}
        contenders = {
            key: Contender(
                key,
                self.label(trial.candidate),
                median_s(trial),
                key in stayed or keeps_budget(trial),
                trial.candidate.origin.is_rival,
            )
            for key, trial in trials.items()
        }
        found = confirm(
            contenders[winner.key],
            [contenders[trial.key] for trial in simple],
            seeds,
            self._play(trials, seeds, rules.seeds_at_once),
            rules,
            {key: trial.confirmed for key, trial in trials.items()},
            self.is_over,
            [contenders[trial.key] for trial in others],
        )
        self.store.fail(Status.CONFIRMED, found.raised, confirmed=found.outcomes)
        for key, outcomes in found.outcomes.items():
            if key not in found.raised:
                trial = self.store.trials[key]
                self.store.add(trial.became(Status.CONFIRMED, confirmed=dict(outcomes)))
        return found

    def meet(
        self,
        trials: Sequence[Trial],
        seeds: range,
        is_settled: Callable[[Mapping[int, bool]], bool] = lambda outcomes: False,
        seeds_at_once: int = 10,
    ) -> None:
        """Let trials that were timed meet the episodes of a confirmation; what one has met it keeps.

        Args:
            trials: stored again, with their outcomes.
            seeds: of the episodes.
            is_settled: told what one has solved so far, after every batch; whether it need meet no more.
            seeds_at_once: so many are stepped together.
        """
        some = {trial.key: trial for trial in trials}
        play = self._play(some, seeds, seeds_at_once)
        outcomes: dict[str, dict[int, bool]] = defaultdict(dict)
        raised: dict[str, str] = {}
        with progress() as bars:
            bar = bars.add_task("meeting what needs no search", total=len(seeds))
            for first in range(0, len(seeds), seeds_at_once):
                known = {key: trial.confirmed for key, trial in some.items()}
                left = [key for key in some if key not in raised]
                asked = [key for key in left if not is_settled({**known[key], **outcomes[key]})]
                raised |= play_missing(asked, seeds[first : first + seeds_at_once], play, known, outcomes)
                bars.update(bar, completed=first + seeds_at_once)
        self.store.fail(Status.CONFIRMED, raised, confirmed=outcomes)
        for key, solved in outcomes.items():
            if key not in raised:
                trial = self.store.trials[key]
                self.store.add(replace(trial, confirmed={**trial.confirmed, **solved}))

    def ladder(self, trials: Sequence[Trial], seeds: range, fresh: range, seeds_at_once: int = 25) -> Ladder:
        """Find the ladder of some plans for a computer that is busy now and then, or the best single one.

        Args:
            trials: plans that execute chunks alike, the preferred first.
            seeds: of the episodes by which plans get their places.
            fresh: of those on which the ladder is confirmed, following them.
            seeds_at_once: so many are stepped together.
        """
        bursts = BurstyLatency()
        some = {trial.key: trial for trial in trials}
        jobs, raised = self._jobs(some, range(seeds.start, fresh.stop), seeds_at_once)
        for key, reason in raised.items():
            warn(f"left out of the ladder: {self.label(some[key].candidate)}: {reason}")
        loop = BurstyLoop(jobs, self.workforce, self._folder, bursts)
        return find_ladder(list(jobs), (1.0, bursts.factor), seeds, fresh, loop)

    def _play(self, trials: Mapping[str, Trial], seeds: range, seeds_at_once: int) -> ClosedLoop:
        jobs, raised = self._jobs(trials, seeds, seeds_at_once)
        return ClosedLoop(jobs, self.workforce, self._folder, raised)

    def _jobs(
        self, trials: Mapping[str, Trial], seeds: range, seeds_at_once: int
    ) -> tuple[dict[str, Job], dict[str, str]]:
        """What trials may be asked to run, each under its own execution and latencies; what others raised."""
        jobs: dict[str, Job] = {}
        raised: dict[str, str] = {}
        for key, trial in trials.items():
            try:
                jobs[key] = closed_loop_job(
                    self.command,
                    self.loaded,
                    key,
                    self.label(trial.candidate),
                    self.made(trial.candidate),
                    self.command.loop.executing(trial.candidate.execution),
                    MeasuredLatency(samples_s=trial.latencies_s),
                    self.make_env,
                    seeds,
                    seeds_at_once,
                )
            except Exception as error:
                raised[key] = named(error)
        return jobs, raised

    @property
    def _folder(self) -> Path:
        """Of the files of episodes."""
        return self.store.folder / EPISODES


def simple_plans(trials: Iterable[Trial], state: Race) -> list[Trial]:
    """What needs no search: as trained, exact work removed, a former plan, the best baseline that raced."""
    found = [trial for trial in trials if trial.latencies_s and trial.status is not Status.FAILED]
    simple = [trial for trial in found if trial.candidate.origin in (Origin.TRAINED, Origin.EXACT)]
    raced = [
        trial
        for trial in sorted(found, key=_by_speed)
        if trial.candidate.origin is Origin.BASELINE and trial.key in state.keys
    ]
    best = max(raced, key=lambda trial: _rate(state.outcomes[trial.key]), default=None)
    former = [trial for trial in found if trial.candidate.origin is Origin.FORMER]
    return [*simple, *former, *([] if best is None else [best])]


def _rate(outcomes: Mapping[int, bool]) -> float:
    """Share of episodes that were solved; 0 of none."""
    return sum(outcomes.values()) / len(outcomes) if outcomes else 0.0


def _by_speed(trial: Trial) -> tuple[float, str]:
    """The faster first."""
    return median_s(trial), trial.key
