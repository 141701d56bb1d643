"""The plan that was found beside every technique alone and every baseline, on the fresh episodes.

Most of them are far behind, and show it soon: one meets no more episodes once the evidence that the plan is
better, which may be looked at after every batch (`race.race`), is strong enough.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vivace.eval.measure.statistics import PairedDifference, paired_difference, wilson_interval
from vivace.eval.race.confirm import ConfirmRules, is_shown_worse
from vivace.eval.tune.candidate import Status, Trial
from vivace.eval.tune.choice import Rule
from vivace.eval.tune.space import describe
from vivace.eval.tune.timing import median_s

RULES = ConfirmRules()
MARGIN = RULES.margin
"""At least as good is what may be so much less successful, as far as the episodes tell."""


@dataclass(frozen=True)
class Met:
    """One that met the plan on the same episodes."""

    trial: Trial
    pair: PairedDifference
    """The plan's success minus its own."""
    keeps_budget: bool
    is_slower: bool
    """Whether it takes longer than the plan in the median."""

    is_worse: bool
    """Whether it was shown to be less successful before it had met all episodes."""

    @property
    def is_matched(self) -> bool:
        """Whether the plan is at least as good."""
        return self.is_worse or self.pair.interval[0] > -MARGIN

    @property
    def is_beaten(self) -> bool:
        """Whether the plan is better, or as good and faster."""
        return self.is_worse or self.pair.interval[0] > 0 or (self.is_matched and self.is_slower)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        outcomes = self.trial.confirmed
        solved, n = sum(outcomes.values()), len(outcomes)
        return {
            "key": self.trial.key,
            "label": describe(self.trial.candidate),
            "origin": self.trial.candidate.origin.value,
            "latency_s": median_s(self.trial),
            "keeps_budget": self.keeps_budget,
            "successes": solved,
            "n": n,
            "interval": wilson_interval(solved, n),
            "difference": self.pair.difference,
            "difference_interval": self.pair.interval,
            "is_matched": self.is_matched,
            "is_beaten": self.is_beaten,
        }


@dataclass(frozen=True)
class Lineup:
    """All that met the plan."""

    met: tuple[Met, ...]

    @property
    def told(self) -> str:
        """What a person can repeat."""
        some = [one for one in self.met if one.keeps_budget]
        matched, beaten = (sum(getattr(one, name) for one in some) for name in ("is_matched", "is_beaten"))
        worse = [describe(one.trial.candidate) for one in some if not one.is_matched]
        told = (
            f"of {len(some)} single techniques, baselines and earlier plans that keep the budget the plan "
            f"is at least as good as {matched} (not {100 * MARGIN:.0f} points worse, 95 %), and better, or "
            f"as good and faster, than {beaten}"
        )
        return f"{told}; not shown to be as good as {', '.join(worse)}" if worse else told

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {"told": self.told, "rows": [one.to_json() for one in self.met]}


def known(trials: Iterable[Trial]) -> list[Trial]:
    """Those that anybody could have named without a search and that were timed."""
    return [
        trial
        for trial in trials
        if trial.candidate.is_alone and trial.latencies_s and trial.status is not Status.FAILED
    ]


def lineup(plan: Trial, others: Iterable[Trial], trials: Mapping[str, Trial], rule: Rule) -> Lineup:
    """Compare a plan with others on the fresh episodes that all have met.

    Args:
        plan: that was found.
        others: that met the same episodes.
        trials: the newest of each key.
        rule: says who keeps the budget.
    """
    plan = trials[plan.key]
    met = []
    for key in dict.fromkeys(one.key for one in others if one.key != plan.key):
        trial = trials[key]
        pair = paired_difference(trial.confirmed, plan.confirmed, 0.95)
        keeps = rule.budget.is_kept(trial.candidate, trial.latencies_s)
        is_worse = is_shown_worse(trial.confirmed, plan.confirmed, RULES.confidence)
        met.append(Met(trial, pair, keeps, median_s(trial) > median_s(plan), is_worse))
    return Lineup(tuple(sorted(met, key=lambda one: median_s(one.trial))))
