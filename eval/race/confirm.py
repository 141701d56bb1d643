"""Who won is confirmed on seeds that nobody has seen, beside what anybody could have done without a search.

The best of many is too good by chance. On fresh seeds the winner has to hold against each simple plan that
keeps to the budget, such as as trained, exact work removed, fewer steps: it holds if it is better, that is,
the paired interval of the difference lies above zero, or if it is faster and not worse, that is, the interval
lies above -margin. Where it does not, the most successful of the simple plans is the plan; that may be the
winner, if it is one of them, for then it claims nothing that took a search. Another winner that is no better
holds against a plan as fast as itself with a chance of at most (1 - confidence) / 2.

A winner whose episodes raise something loses its place to the next one of the race; a simple plan of which
that holds is told, and compared with nobody.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vivace.eval.measure.statistics import PairedDifference, paired_difference, wilson_interval
from vivace.eval.race.race import Play, log_evidence, play_missing
from vivace.policies.errors import BadSetting, NothingRuns


@dataclass(frozen=True, kw_only=True)
class ConfirmRules:
    """When a winner holds."""

    margin: float = 0.03
    """A plan that is faster may solve so much less; success rates."""
    confidence: float = 0.95
    """Of the intervals."""
    seeds_at_once: int = 10
    """Episodes of each plan between two looks at the clock."""

    def __post_init__(self) -> None:
        """Shares must be shares, and there must be episodes."""
        if not (0 < self.margin < 1 and 0 < self.confidence < 1) or self.seeds_at_once < 1:
            raise BadSetting(
                f"a confirmation with margin={self.margin:g}, confidence={self.confidence:g} and "
                f"{self.seeds_at_once} episodes at once; needed: shares above 0 and below 1, and at least 1 "
                "episode"
            )


@dataclass(frozen=True)
class Contender:
    """A plan that is confirmed."""

    key: str
    label: str
    latency_s: float
    """Of a chunk, as far as one can tell it from another's: the median [s]."""
    keeps_budget: bool = True
    """Whether it may be the plan at all."""
    is_simple: bool = False
    """Whether anybody could have had it without a search."""


@dataclass(frozen=True)
class Confirmation:
    """What came of it."""

    winner: Contender
    """Of the race."""
    simple: tuple[Contender, ...]
    """What it was compared with."""
    plan: Contender
    """The winner, or the simple plan that it did not hold against."""
    outcomes: Mapping[str, Mapping[int, bool]]
    """Key -> seed -> success; on the same seeds, of which slow ones may have met the first alone."""
    against: Mapping[str, PairedDifference]
    """Key of a simple plan -> the winner's success minus its own."""
    lost_to: Mapping[str, str]
    """Key of a simple plan that the winner did not hold against -> why not."""
    raised: Mapping[str, str] = field(default_factory=dict)
    """Key of one whose episodes could not be run -> what was raised; it may have won the race."""

    @property
    def n(self) -> int:
        """Episodes."""
        return len(self.outcomes[self.winner.key])

    @property
    def has_held(self) -> bool:
        """Whether the winner is the plan."""
        return self.plan == self.winner

    def successes(self, key: str) -> int:
        """Episodes that one solved."""
        return sum(self.outcomes[key].values())

    def difference(self, key: str, confidence: float = 0.95) -> PairedDifference:
        """The plan's success minus another's."""
        return paired_difference(self.outcomes[key], self.outcomes[self.plan.key], confidence)

    def rows(self) -> list[dict[str, object]]:
        """Plain data of each, the winner first: success, the plan's difference, why the winner lost to it."""
        found: list[dict[str, object]] = []
        for one in dict.fromkeys((self.winner, *self.simple)):
            if one.key in self.raised:
                continue
            pair = self.difference(one.key)
            found.append(
                {
                    "key": one.key,
                    "label": one.label,
                    "latency_s": one.latency_s,
                    "keeps_budget": one.keeps_budget,
                    "is_plan": one == self.plan,
                    "successes": self.successes(one.key),
                    "n": len(self.outcomes[one.key]),
                    "interval": wilson_interval(self.successes(one.key), len(self.outcomes[one.key])),
                    "difference": pair.difference,
                    "difference_interval": pair.interval,
                    "p_value": pair.p_value,
                    "lost_to": self.lost_to.get(one.key, ""),
                }
            )
        return found


def confirm(
    winner: Contender,
    simple: Sequence[Contender],
    seeds: Sequence[int],
    play: Play,
    rules: ConfirmRules,
    known: Mapping[str, Mapping[int, bool]] | None = None,
    is_over: Callable[[], bool] = lambda: False,
    others: Sequence[Contender] = (),
) -> Confirmation:
    """Run the winner of a race and the simple plans on fresh seeds, and say which of them is the plan.

    Args:
        winner: of the race; it may be one of the simple plans.
        simple: plans that need no search.
        seeds: that neither the race nor the plans' calibration has seen.
        play: runs episodes.
        rules: when a winner holds.
        known: key -> seed -> success of an interrupted confirmation; those are not run again.
        is_over: whether time is up; asked after every batch. What was run by then decides: those that may be
            the plan come first, what takes too long to be it meets as many of their episodes as time allows,
            and no more once the winner is shown to be better.
        others: that stayed in the race, the best first: each stands in for a winner that raises.

    Raises:
        BadSetting: there are no seeds, or the winner does not keep to the budget.
        NothingRuns: of all something was raised.
    """
    if not seeds or not winner.keeps_budget:
        raise BadSetting(
            f"{winner.label} is to be confirmed on {len(seeds)} episodes and "
            f"{'keeps' if winner.keeps_budget else 'does not keep'} to its budget; needed: at least 1, and "
            "that it does"
        )
    outcomes: dict[str, dict[int, bool]] = defaultdict(dict)
    raised: dict[str, str] = {}
    for one in dict.fromkeys((winner, *others)):
        some = [each for each in dict.fromkeys((one, *simple)) if each.key not in raised]
        raised |= _meet(some, seeds, play, rules, known or {}, outcomes, is_over)
        if one.key not in raised:
            return _compared(one, simple, outcomes, raised, rules)
    raise NothingRuns(
        f"none of those that stayed in the race could run fresh episodes; {winner.label}: "
        f"{raised[winner.key]}"
    )


def _meet(
    some: Sequence[Contender],
    seeds: Sequence[int],
    play: Play,
    rules: ConfirmRules,
    known: Mapping[str, Mapping[int, bool]],
    outcomes: dict[str, dict[int, bool]],
    is_over: Callable[[], bool],
) -> dict[str, str]:
    """Run fresh episodes of the winner, the first, and the simple plans, those that may be the plan first.

    Returns:
        Key of one whose episodes could not be run -> what was raised; the winner's ends them.
    """
    met, raised = seeds, dict[str, str]()
    known = {one.key: {**known.get(one.key, {}), **outcomes[one.key]} for one in some}
    winner = some[0].key
    for keeps_budget in (True, False):
        keys = [one.key for one in some if one.keeps_budget == keeps_budget]
        for first in range(0, len(met), rules.seeds_at_once) if keys else ():
            if first and is_over():
                met = met[:first]
                break
            asked = [
                key
                for key in keys
                if key not in raised
                and (keeps_budget or not is_shown_worse(outcomes[key], outcomes[winner], rules.confidence))
            ]
            raised |= play_missing(asked, met[first : first + rules.seeds_at_once], play, known, outcomes)
            if winner in raised:
                return raised
    return raised


def _compared(
    winner: Contender,
    simple: Sequence[Contender],
    outcomes: Mapping[str, Mapping[int, bool]],
    raised: Mapping[str, str],
    rules: ConfirmRules,
) -> Confirmation:
    """See whether the winner holds against each simple plan whose episodes could be run."""
    others = [one for one in simple if one.key != winner.key and one.key not in raised]
    against = {
        one.key: paired_difference(outcomes[one.key], outcomes[winner.key], rules.confidence)
        for one in others
    }
    lost_to = {
        one.key: _told(one, winner, against[one.key])
        for one in others
        if one.keeps_budget and not holds(winner, one, against[one.key], rules)
    }
    is_simple = winner.is_simple or any(one.key == winner.key for one in simple)
    own = [winner] if is_simple else []  # which claims nothing that took a search
    best = max(
        (one for one in (*own, *others) if one.key in lost_to or one in own),
        key=lambda one: (sum(outcomes[one.key].values()), -one.latency_s),
        default=winner,
    )
    if best.key == winner.key:
        best, lost_to = winner, {}
    return Confirmation(winner, tuple(simple), best, dict(outcomes), against, lost_to, raised)


def holds(winner: Contender, simple: Contender, pair: PairedDifference, rules: ConfirmRules) -> bool:
    """Whether a winner holds against a simple plan.

    Args:
        winner: who claims to be better.
        simple: what anybody could have done.
        pair: the winner's success minus the other's, on fresh seeds.
        rules: when it does.
    """
    low, _ = pair.interval
    return low > 0 or (winner.latency_s < simple.latency_s and low > -rules.margin)


def is_shown_worse(theirs: Mapping[int, bool], plans: Mapping[int, bool], confidence: float) -> bool:
    """Whether episodes show that a plan is more successful than another, whenever one looks.

    It is said of one that is no worse with a chance of at most (1 - confidence) / 2.

    Args:
        theirs: seed -> success of the other.
        plans: the same of the plan, of as many seeds at least.
        confidence: of a two-sided statement.
    """
    both = theirs.keys() & plans.keys()
    gained = sum(plans[seed] and not theirs[seed] for seed in both)
    lost = sum(theirs[seed] and not plans[seed] for seed in both)
    counts = np.array([gained, lost, len(both) - gained - lost], float)
    evidence = log_evidence(counts[0], counts[1], counts[2], 0.0)
    return float(evidence) >= math.log(2 / (1 - confidence))


def _told(simple: Contender, winner: Contender, pair: PairedDifference) -> str:
    """Why the winner did not hold."""
    low, high = pair.interval
    speed = "faster" if winner.latency_s < simple.latency_s else "not faster"
    return (
        f"{winner.label} is {speed} and on {pair.n} fresh episodes {100 * pair.difference:+.0f} points "
        f"({100 * low:+.0f} … {100 * high:+.0f}) from {simple.label}"
    )
