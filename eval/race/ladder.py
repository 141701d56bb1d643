"""A ladder of plans that is at worst as good as the best of them alone.

A loop that takes the plan with most steps that is there in time need not do best: in one world 48 of 200
where the best of its plans alone solved 73. Being late now and then may cost less than always acting
coarsely. So a rung is not earned by its latency, but by success where it would be used:

    1. every plan runs alone in bursts of load; the most successful is the best single plan
    2. every plan runs alone at each load, quiet and busy; another plan takes the best one's place at a load
       if it is better there: the paired interval lies above zero
    3. the ladder made of these runs in bursts on fresh seeds beside the best single plan, as the loop would
       run it; it stays if it is better, that is, the paired interval lies above zero

Else the ladder is the best single plan. One that is no better than that stays with a chance of at most
(1 - confidence) / 2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from vivace.eval.measure.statistics import PairedDifference, paired_difference
from vivace.policies.errors import BadSetting, NothingRuns

Outcomes = Mapping[str, Mapping[int, bool]]
"""Key of a plan -> seed -> success."""


@dataclass(frozen=True)
class Step:
    """A rung."""

    key: str
    """Of its plan."""
    from_load: float | None = None
    """Load from which on it is taken, see `deploy.loop.budget.Rung`; None for the first."""


class Bursts(Protocol):
    """Runs episodes on a computer that is busy now and then; a plan of which that raises is left out."""

    def at_load(self, keys: Sequence[str], seeds: Sequence[int], load: float) -> Outcomes:
        """Each plan alone, every chunk taking `load` times as long as measured."""

    def bursting(self, keys: Sequence[str], seeds: Sequence[int]) -> Outcomes:
        """Each plan alone, in bursts of load."""

    def climbing(self, steps: Sequence[Step], seeds: Sequence[int]) -> Mapping[int, bool]:
        """The loop choosing among the plans of a ladder, in bursts of load; nothing if that raises."""


@dataclass(frozen=True)
class Ladder:
    """What was found."""

    steps: tuple[Step, ...]
    """Best first; the best single plan where no ladder held."""
    best: str
    """Key of the best single plan."""
    told: str
    """Why it is what it is, for a person."""
    pair: PairedDifference | None = None
    """The ladder's success in bursts minus the best single plan's, on fresh seeds; None if none was tried."""


def find_ladder(
    keys: Sequence[str],
    loads: Sequence[float],
    seeds: Sequence[int],
    fresh: Sequence[int],
    bursts: Bursts,
    confidence: float = 0.95,
) -> Ladder:
    """Find the ladder of some plans, or the best single one of them.

    Args:
        keys: of the plans; of equally successful ones an earlier one is preferred.
        loads: how many times as long chunks take in quiet times, 1, and in busier ones, ascending.
        seeds: of the episodes by which plans get their places.
        fresh: of those on which the ladder is confirmed.
        bursts: runs episodes.
        confidence: of the intervals.

    Raises:
        BadSetting: loads do not begin with 1 or do not ascend, or seeds are not fresh.
        NothingRuns: no plan's episodes can be run.
    """
    if list(loads) != sorted(set(loads)) or loads[0] != 1 or set(seeds) & set(fresh):
        raise BadSetting(
            f"a ladder for loads {[f'{load:g}' for load in loads]} on {len(seeds)} episodes, of which "
            f"{len(set(seeds) & set(fresh))} confirm it too; needed: 1 and larger loads, and fresh episodes"
        )
    alone = bursts.bursting(keys, seeds)
    loaded = [bursts.at_load([*alone], seeds, load) for load in loads]
    able = [key for key in alone if all(key in found for found in loaded)]
    if not able:
        raise NothingRuns(f"of none of the {len(keys)} plans of a ladder the episodes can be run")
    best = max(able, key=lambda key: sum(alone[key].values()))
    places = [_place(best, {key: found[key] for key in able}, confidence) for found in loaded]
    steps = _steps(places, loads)
    if len(steps) == 1 and places[0] == best:
        return Ladder((Step(best),), best, "one plan is the best at every load")
    single, climbed = bursts.bursting([best], fresh).get(best), bursts.climbing(steps, fresh)
    if not single or not climbed:
        return Ladder((Step(best),), best, "no ladder: its fresh episodes could not be run")
    pair = paired_difference(single, climbed, confidence)
    low, high = pair.interval
    told = (
        f"on {pair.n} fresh episodes in bursts of load {100 * pair.difference:+.0f} points "
        f"({100 * low:+.0f} … {100 * high:+.0f}) from the best plan alone"
    )
    if low > 0:
        return Ladder(steps, best, f"a ladder: {told}", pair)
    return Ladder((Step(best),), best, f"no ladder: {told}", pair)


def _place(best: str, outcomes: Outcomes, confidence: float) -> str:
    """The plan to run at a load: the best single one, unless another is better there."""
    better = {
        key: paired_difference(outcomes[best], found, confidence)
        for key, found in outcomes.items()
        if key != best
    }
    shown = {key: pair.difference for key, pair in better.items() if pair.interval[0] > 0}
    return max(shown, key=lambda key: shown[key], default=best)


def _steps(places: Sequence[str], loads: Sequence[float]) -> tuple[Step, ...]:
    """Rungs of the plans that have places; one is taken half-way (by ratio) between two loads.

    A plan that would come a second time, after another, ends the ladder before: the loop knows a plan once.
    """
    steps = [Step(places[0])]
    for i in range(1, len(places)):
        if places[i] == steps[-1].key:
            continue
        if places[i] in {step.key for step in steps}:
            break
        steps.append(Step(places[i], round((loads[i - 1] * loads[i]) ** 0.5, 3)))
    return tuple(steps)
