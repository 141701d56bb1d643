"""How the time of a search is shared: every stage leaves those after it what they need, and says what it cut.

A stage ends by a share of the limit. The race and the confirmation share what is left by what episodes cost,
measured on a first batch: an episode takes the world its time, and a policy the longer the slower its chunks
are. What is confirmed comes first, for a winner that nobody confirmed is none; then the race of its ways to
execute chunks; then as many may race as can meet enough episodes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from vivace.eval.terminal import console

_ENOUGH = 30
"""Episodes that everyone in a race should be able to meet: fewer tell nobody apart."""
_CONFIRMED = 0.5
"""A confirmation takes at most such a share of the time that is left to it and the race."""
_WAYS = 0.3
"""A race of ways to execute chunks takes at most such a share of what is left then."""
_SLOW = 0.25
"""What is too slow to be the plan is confirmed for such a share at most, but on `_ENOUGH` episodes."""
_CANDIDATES = 16
"""So many candidates at least should be looked at, each at the cost of a chunk as trained an observation."""


@dataclass(frozen=True)
class Shares:
    """Shares of the time by which stages are over, in their order."""

    counted: float
    """Work is counted, actions are compared."""
    bred: float
    """Others are bred from the best."""
    related: float
    """The best are tried with what computes the same faster."""
    some_timed: float
    """The promising are timed a few times."""
    timed: float
    """The finalists are timed often."""


IN_A_WORLD = Shares(counted=0.3, bred=0.36, related=0.42, some_timed=0.42, timed=0.5)
"""Half of the time is left to races."""
ON_DATA_ALONE = Shares(counted=0.4, bred=0.67, related=0.83, some_timed=0.9, timed=1.0)
COMPILING_IN_A_WORLD = Shares(counted=0.24, bred=0.3, related=0.34, some_timed=0.36, timed=0.6)
"""Where some take a minute to start, a quarter is theirs and the finalists'."""
COMPILING_ON_DATA_ALONE = Shares(counted=0.3, bred=0.45, related=0.55, some_timed=0.6, timed=1.0)


def _say(told: str) -> None:
    console.print(told, style="yellow", highlight=False)


@dataclass
class Deadline:
    """The time there is, and what had to be cut for want of it."""

    limit_s: float
    now: Callable[[], float] = time.monotonic
    tell: Callable[[str], None] = _say
    began_s: float = field(init=False)
    cuts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """It begins now."""
        self.began_s = self._from_s = self.now()

    def share_from_now(self) -> None:
        """Share what is left: what was needed to begin, such as observations, is nobody's share."""
        self._from_s = self.now()

    def left_s(self, share: float = 1.0) -> float:
        """What is left of a share of it [s]."""
        end_s = self.began_s + self.limit_s
        return self._from_s + share * (end_s - self._from_s) - self.now()

    def cut(self, told: str) -> None:
        """Say what was cut short, and why."""
        self.cuts.append(told)
        self.tell(f"cut short: {told}")


def affordable_samples(asked: int, chunk_s: float, left_s: float) -> int:
    """Return on how many observations actions are compared: fewer where chunks are slow, one at least.

    Args:
        asked: how many are wanted.
        chunk_s: what a chunk as trained takes [s].
        left_s: time in which candidates are looked at [s].
    """
    return max(1, min(asked, int(left_s / (_CANDIDATES * max(chunk_s, 1e-9)))))


def affordable[One](
    choose: Callable[[int], list[One]], most: int, cost_s: Callable[[One], float], left_s: float
) -> list[One]:
    """Return as many of those that might be timed as time allows, chosen anew for each number of places.

    Args:
        choose: the best for so many places, some of which may be there whatever the number.
        most: places there are.
        cost_s: what one takes [s].
        left_s: time there is [s].

    Returns:
        Those for one place at least.
    """
    for places in range(most, 1, -1):
        found = choose(places)
        if sum(map(cost_s, found)) <= left_s:
            return found
    return choose(1)


@dataclass(frozen=True)
class EpisodeCost:
    """What an episode takes."""

    world_s: float
    """The world, and the loop around the policy [s]."""
    policy_s: float
    """The policy [s], whose chunks take `latency_s` alone."""
    latency_s: float

    def of(self, latency_s: float) -> float:
        """What an episode of another plan takes [s], by how long its chunks take."""
        return self.world_s + self.policy_s * latency_s / self.latency_s

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return dict(vars(self))


@dataclass(frozen=True)
class Stakes:
    """Who races, and how long."""

    n_others: int
    """So many race beside what has to be beaten."""
    ways_s: float
    """What the race leaves to one of the winner's ways to execute chunks [s]."""
    confirm_s: float
    """What both leave to the confirmation [s]."""
    last_s: float
    """What a batch of the confirmation takes [s]: it does not begin one later than so long before the end."""


def stakes(
    left_s: float,
    rivals_s: Sequence[float],
    others_s: Sequence[float],
    ways_s: Sequence[float],
    confirmed_s: Sequence[float],
    slow_s: Sequence[float],
    n_episodes: int,
    n_confirm: int,
    at_once: int,
) -> Stakes:
    """Share the time that is left between a race and the confirmation of who wins it.

    Args:
        left_s: time there is [s].
        rivals_s: what an episode takes of each that has to be beaten [s]; all of them race.
        others_s: the same of the others, the preferred first.
        ways_s: the same of the winner with its chunks executed otherwise, at most.
        confirmed_s: the same of those that are confirmed and may be the plan.
        slow_s: the same of those that are confirmed and are too slow to be it.
        n_episodes: of a race, at most.
        n_confirm: fresh ones.
        at_once: episodes of each between two looks at the clock.
    """
    once_s = sum(slow_s)
    slow_all_s = min(n_confirm * once_s, max(min(n_confirm, _ENOUGH) * once_s, _SLOW * left_s))
    confirm_s = min(n_confirm * sum(confirmed_s) + slow_all_s, _CONFIRMED * left_s)
    enough = min(n_episodes, _ENOUGH)
    executed_s = min(enough * sum(ways_s), _WAYS * (left_s - confirm_s))
    free_s = left_s - confirm_s - executed_s - enough * sum(rivals_s)
    n_others = 0
    for cost_s in others_s:
        free_s -= enough * cost_s
        if free_s < 0 and n_others:
            break
        n_others += 1
    last_s = min(at_once, n_confirm) * (sum(confirmed_s) + once_s)
    return Stakes(n_others, executed_s, confirm_s, last_s)
