"""A ladder that is written is at worst as good as the best of its plans alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from vivace.eval.race.ladder import Ladder, Step, find_ladder
from vivace.policies.errors import BadSetting, NothingRuns

LOADS = (1.0, 3.0)
Rates = Mapping[str, tuple[float, float]]
"""Plan -> success rate when the computer is quiet all the time, and when it is busy."""


class Simulated:
    """A share of every episode is busy, and an episode is as good as the plans that ran in its parts."""

    def __init__(
        self, rates: Rates, seed: int, busy: float = 0.4, blunder: float = 0.0, broken: str = ""
    ) -> None:
        self.broken = broken
        self.rates, self.busy, self.blunder = rates, busy, blunder
        random = np.random.default_rng(seed)
        self.draws = np.where(random.random(1500) < 0.5, random.random(1500), random.random((8, 1500)))

    def rate(self, quiet_key: str, busy_key: str) -> float:
        """Of an episode in which those two plans act."""
        quiet, busy = self.rates[quiet_key][0], self.rates[busy_key][1]
        return (1 - self.busy) * quiet + self.busy * busy

    def true(self, ladder: Ladder) -> float:
        """Success rate of what was written, in bursts."""
        lost = self.blunder if len(ladder.steps) > 1 else 0.0
        return self.rate(ladder.steps[0].key, ladder.steps[-1].key) - lost

    def solved(self, row: int, seeds: Sequence[int], rate: float) -> dict[int, bool]:
        """In a half of the episodes one draw decides for all, so that pairs agree."""
        return {seed: bool(self.draws[row, seed] < rate) for seed in seeds}

    def at_load(self, keys: Sequence[str], seeds: Sequence[int], load: float) -> dict[str, dict[int, bool]]:
        place = LOADS.index(load)
        rates = {key: self.rates[key][place] for key in keys if load == 1 or key != self.broken}
        return {key: self.solved(i, seeds, rate) for i, (key, rate) in enumerate(rates.items())}

    def bursting(self, keys: Sequence[str], seeds: Sequence[int]) -> dict[str, dict[int, bool]]:
        return {key: self.solved(i, seeds, self.rate(key, key)) for i, key in enumerate(keys)}

    def climbing(self, steps: Sequence[Step], seeds: Sequence[int]) -> dict[int, bool]:
        return (
            self.solved(7, seeds, self.rate(steps[0].key, steps[-1].key) - self.blunder)
            if self.broken != "ladder"
            else {}
        )


def found(rates: Rates, seed: int = 0, **more: Any) -> tuple[Simulated, Ladder]:
    world = Simulated(rates, seed, **more)
    return world, find_ladder(list(rates), LOADS, range(100, 300), range(1000, 1400), world)


def test_plans_that_are_better_at_their_own_loads_make_a_ladder() -> None:
    _, ladder = found({"fine": (0.9, 0.1), "coarse": (0.5, 0.5)})
    assert ladder.steps == (Step("fine"), Step("coarse", 1.732))
    assert ladder.told.startswith("a ladder: on 400 fresh episodes in bursts of load +")
    assert ladder.pair is not None
    assert ladder.pair.interval[0] > 0


def test_where_the_plan_of_most_steps_is_not_the_best_one_the_best_one_runs_alone() -> None:
    """Solved alone: 48, 73 and 39 of 200; a loop that took the most steps in time solved 48."""
    _, ladder = found({"ddim-8": (0.30, 0.15), "ddim-4": (0.40, 0.32), "ddim-2": (0.22, 0.18)})
    assert ladder.steps == (Step("ddim-4"),)
    assert ladder.told == "one plan is the best at every load"


def test_a_loop_that_chooses_badly_is_found_out_on_fresh_episodes() -> None:
    """The plans deserve a ladder, but choosing among them costs more than it gives."""
    _, ladder = found({"fine": (0.9, 0.1), "coarse": (0.5, 0.5)}, blunder=0.3)
    assert ladder.steps == (Step(ladder.best),)
    assert ladder.told.startswith("no ladder: on 400 fresh episodes")


def test_what_is_written_is_at_worst_as_good_as_the_best_single_plan() -> None:
    """Over 300 worlds and loops drawn at random; a ladder is written in some of them."""
    random, worse, n_ladders = np.random.default_rng(3), 0, 0
    for seed in range(300):
        drawn = random.uniform(0.1, 0.9, (3, 2)).tolist()
        rates = {key: (quiet, busy) for key, (quiet, busy) in zip("abc", drawn, strict=True)}
        world, ladder = found(rates, seed, blunder=float(random.uniform(0, 0.2)))
        single = max(world.rate(key, key) for key in rates)
        chosen = world.rate(ladder.best, ladder.best)
        worse += world.true(ladder) < chosen
        n_ladders += len(ladder.steps) > 1
        assert chosen > single - 0.2
    assert n_ladders > 30
    assert worse <= 300 * 0.025 + 3 * np.sqrt(300 * 0.025)


def test_a_plan_that_raises_is_in_no_ladder() -> None:
    """Here under load alone; and a ladder of plans that raises is none."""
    rates = {"fine": (0.9, 0.1), "coarse": (0.5, 0.5)}
    _, ladder = found(rates, broken="coarse")
    assert ladder.steps == (Step("fine"),)
    _, ladder = found(rates, broken="ladder")
    assert ladder.steps == (Step(ladder.best),)
    assert ladder.told == "no ladder: its fresh episodes could not be run"
    with pytest.raises(NothingRuns, match="of none of the 1 plans"):
        found({"fine": (0.9, 0.1)}, broken="fine")


@pytest.mark.parametrize(
    ("loads", "fresh"), [((3.0, 1.0), range(9, 12)), ((2.0,), range(9, 12)), (LOADS, range(3, 12))], ids=str
)
def test_loads_ascend_from_one_and_seeds_are_fresh(loads: tuple[float, ...], fresh: range) -> None:
    with pytest.raises(BadSetting, match="needed: 1 and larger loads, and fresh episodes"):
        find_ladder(["a"], loads, range(5), fresh, Simulated({"a": (0.5, 0.5)}, 0))
