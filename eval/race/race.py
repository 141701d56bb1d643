"""A race: candidates meet the same episodes, and those shown to be worse than another are dropped early.

Candidates i and j are compared on the seeds both have met. D_s in {-1, 0, 1} is the success of j on seed s
minus that of i. Of the claim "j is better than i by no more than m", E[D_s] <= m, a bettor who stakes the
share b on every seed has after n of them

    W_n(b) = prod_s (1 + b (D_s - m)),    0 <= b < 1 / (1 + m),

which is a test supermartingale where the claim holds: W_0 = 1, and on average it does not grow. The mean of
W_n(b) over a grid of b, which needs no guess of how far apart two are, is one as well; for m = 0 it is the
mixture sequential probability ratio test on the discordant pairs. By Ville's inequality it ever exceeds c
with a chance of at most 1/c, so one may look after every batch and stop at will.

Many candidates: the mean of several e-processes is an e-process. Candidate i is dropped when the mean over
its K - 1 rivals of the evidence that they are better (m = 0) exceeds 2/error. Of the best candidate all those
claims hold, however the others depend on each other, so that it is ever dropped with a chance of at most
error/2. The race ends before its seeds are used up when the leader is shown to be within `margin` of each
that is left: the evidence against "j is better than the leader by margin or more" exceeds 2 (K - 1)/error for
each j. With a chance of at least 1 - error the best is therefore neither dropped nor left behind by a leader
that is worse by `margin` or more.

Deviations: the leader of the moment is never dropped, which can only make the error smaller; evidence between
one that was dropped and the rest stays as it was then, which keeps it a supermartingale.

Source: test martingales by betting, Waudby-Smith and Ramdas, JRSS B 86 (2024) 1-27, arXiv 2010.09686,
section 4; the mixture, Robbins, Ann. Math. Stat. 41 (1970) 1397-1409; the mean of e-values, Vovk and Wang,
Ann. Stat. 49 (2021) 1736-1754.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from vivace.policies.backports import StrEnum
from vivace.policies.errors import BadSetting, NothingRuns


@dataclass(frozen=True)
class Played:
    """What came of the episodes that were asked for."""

    outcomes: Mapping[tuple[str, int], bool]
    """(key, seed) -> success, of every one on every seed but those of whom something was raised."""
    raised: Mapping[str, str] = field(default_factory=dict)
    """Key of a candidate whose episodes could not be run -> what was raised."""


Play = Callable[[Sequence[str], Sequence[int]], Played]
"""Runs episodes of (keys of candidates, seeds)."""

_STAKES = np.linspace(0.05, 0.95, 10)
"""Shares that the bettors stake, of the most they may."""


class Ending(StrEnum):
    """Why a race ended."""

    ALONE = "all others were dropped"
    SETTLED = "none of those left can be better by the margin"
    SEEDS = "its episodes are used up"
    TIME = "time is up"


@dataclass(frozen=True, kw_only=True)
class RaceRules:
    """How sure a race has to be, and of what."""

    error: float = 0.05
    """Largest chance that the best is dropped, or that the race ends early behind one that is worse by
    `margin` or more."""
    margin: float = 0.03
    """Success rates closer than this count as equal when it comes to ending early."""
    seeds_at_once: int = 10
    """Episodes of each candidate between two looks."""

    def __post_init__(self) -> None:
        """Shares must be shares, and there must be episodes."""
        if not (0 < self.error < 1 and 0 < self.margin < 1):
            raise BadSetting(
                f"a race with error={self.error:g} and margin={self.margin:g}; each must be above 0, below 1"
            )
        if self.seeds_at_once < 1:
            raise BadSetting(f"a race of {self.seeds_at_once} episodes at once; at least 1 is needed")


@dataclass(frozen=True)
class Drop:
    """Why a candidate was dropped."""

    by: str
    """Key of the one that is most clearly better."""
    n: int
    """Episodes that both had met by then."""
    successes: int
    """Those it solved."""
    by_successes: int
    """Those the other solved."""

    def told(self, label: str) -> str:
        """The reason, for a person; `label` is what the better one is called."""
        return f"solved {self.successes} of {self.n} where {label} solved {self.by_successes}"


@dataclass
class Race:
    """A race so far."""

    keys: tuple[str, ...]
    """Its candidates; of those that are equally successful an earlier one is preferred."""
    outcomes: dict[str, dict[int, bool]] = field(default_factory=lambda: defaultdict(dict))
    """Key -> seed -> success."""
    dropped: dict[str, Drop] = field(default_factory=dict)
    """Key -> why, in the order in which they were dropped."""
    raised: dict[str, str] = field(default_factory=dict)
    """Key of a candidate whose episodes could not be run -> what was raised."""
    ending: Ending | None = None
    """Why it ended; None while it goes on."""

    @property
    def alive(self) -> tuple[str, ...]:
        """Those that were not dropped and raised nothing; they have all met the same episodes."""
        return tuple(key for key in self.keys if key not in self.dropped and key not in self.raised)

    @property
    def leader(self) -> str:
        """The most successful of those alive, the preferred one of equals."""
        return max(self.alive, key=lambda key: sum(self.outcomes[key].values()))

    def told(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Reason for every one that was dropped; `labels` are what candidates are called."""
        return {key: drop.told(labels[drop.by]) for key, drop in self.dropped.items()}


def race(
    keys: Sequence[str],
    seeds: Sequence[int],
    play: Play,
    rules: RaceRules,
    known: Mapping[str, Mapping[int, bool]] | None = None,
    on_batch: Callable[[Race], None] = lambda race: None,
    is_over: Callable[[], bool] = lambda: False,
) -> Race:
    """Race candidates until one is left, none can be better by the margin, or seeds or time are used up.

    Args:
        keys: of the candidates; of equally successful ones an earlier one is preferred, so the faster first.
        seeds: of the episodes, in their order; every candidate meets them from the first until it is dropped.
        play: runs episodes.
        rules: how sure to be.
        known: key -> seed -> success of an interrupted race; those are not run again, and the same are
            dropped again.
        on_batch: called after every look, e.g. to store what is known.
        is_over: whether time is up; asked before every batch.

    Raises:
        BadSetting: there are no candidates or seeds, or one is there twice.
        NothingRuns: all that were left raised something; `on_batch` was told before.
    """
    for what, found in (("candidates", keys), ("episodes", seeds)):
        if not found or len(set(found)) < len(found):
            raise BadSetting(f"a race of the {what} {list(found)}; at least one is needed, and none twice")
    found_so_far = Race(tuple(keys))
    if len(keys) == 1:
        found_so_far.ending = Ending.ALONE
    for first in range(0, len(seeds), rules.seeds_at_once):
        if found_so_far.ending:
            break
        if is_over():
            found_so_far.ending = Ending.TIME
            break
        batch = seeds[first : first + rules.seeds_at_once]
        asked = found_so_far.alive
        found_so_far.raised |= play_missing(asked, batch, play, known or {}, found_so_far.outcomes)
        if found_so_far.alive:
            _look(found_so_far, rules)
        on_batch(found_so_far)
        if not found_so_far.alive:
            raise NothingRuns(
                f"all {len(asked)} that were left in the race failed ({found_so_far.raised[asked[0]]}); run "
                "the same command again: it races without them"
            )
    found_so_far.ending = found_so_far.ending or Ending.SEEDS
    return found_so_far


def play_missing(
    keys: Sequence[str],
    seeds: Sequence[int],
    play: Play,
    known: Mapping[str, Mapping[int, bool]],
    outcomes: dict[str, dict[int, bool]],
) -> dict[str, str]:
    """Add the outcomes of candidates on some seeds; what is known is not played again.

    Args:
        keys: of the candidates.
        seeds: of the episodes.
        play: runs episodes; those that miss the same are run together.
        known: key -> seed -> success of an interrupted run.
        outcomes: key -> seed -> success; is added to.

    Returns:
        Key of a candidate whose episodes could not be run -> what was raised.
    """
    raised: dict[str, str] = {}
    together: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for key in keys:
        have = known.get(key, {})
        outcomes[key] |= {seed: have[seed] for seed in seeds if seed in have}
        together[tuple(seed for seed in seeds if seed not in have)].append(key)
    for missing, some in together.items():
        if missing:
            played = play(some, missing)
            raised |= played.raised
            for (key, seed), success in played.outcomes.items():
                outcomes[key][seed] = bool(success)
    return raised


def nobodys_fault(what: str, raised: Mapping[str, str], check: str) -> NothingRuns:
    """The error of a world, a machine or a policy that fails, whatever the candidate.

    Args:
        what: can be done with none of them.
        raised: key of each that was asked -> what was raised.
        check: command that shows whether it can be done as trained.
    """
    return NothingRuns(
        f"{what} of none of {len(raised)} candidates, and so no technique is at fault: "
        f"{next(iter(raised.values()))}; see that the policy runs as trained: {check}"
    )


def _look(race: Race, rules: RaceRules) -> None:
    """Drop those shown to be worse than another, and see whether the rest is settled."""
    pairs = _Pairs(race)
    n_rivals = len(race.keys) - 1
    better = pairs.evidence(0.0)
    np.fill_diagonal(better, -np.inf)
    against = np.logaddexp.reduce(better, axis=1) - np.log(n_rivals)
    leader = race.leader
    for i, key in enumerate(race.keys):
        if key not in race.alive or key == leader or against[i] < np.log(2 / rules.error):
            continue
        by = int(better[i].argmax())
        n = int(pairs.both[i, by])
        race.dropped[key] = Drop(
            race.keys[by], n, int(pairs.solved[i, by]), int(pairs.solved[i, by] + pairs.net[i, by])
        )
    if len(race.alive) == 1:
        race.ending = Ending.ALONE
        return
    first = race.keys.index(race.leader)
    within = pairs.evidence(-rules.margin)[:, first]  # against "better than the leader by margin or more"
    left = [i for i, key in enumerate(race.keys) if i != first and key in race.alive]
    if (within[left] >= np.log(2 * n_rivals / rules.error)).all():
        race.ending = Ending.SETTLED


class _Pairs:
    """Counts of every pair (i, j) on the seeds both have met, each (K, K)."""

    def __init__(self, race: Race) -> None:
        seeds = max((race.outcomes[key] for key in race.keys), key=len)
        met = np.array([[seed in race.outcomes[key] for seed in seeds] for key in race.keys], float)
        won = np.array([[race.outcomes[key].get(seed, False) for seed in seeds] for key in race.keys], float)
        lost = met - won
        self.both = met @ met.T
        """Seeds that both have met."""
        self.solved = won @ met.T
        """Those that i solved."""
        self.gained, self.lost = lost @ won.T, won @ lost.T
        """Those that only j solved; that only i solved."""

    @property
    def net(self) -> np.ndarray:
        """Successes of j minus those of i."""
        return self.gained - self.lost

    def evidence(self, margin: float) -> np.ndarray:
        """Log of the evidence against "j is better than i by no more than margin"."""
        return log_evidence(self.gained, self.lost, self.both - self.gained - self.lost, margin)


def log_evidence(gained: np.ndarray, lost: np.ndarray, same: np.ndarray, margin: float) -> np.ndarray:
    """Log of the test martingale against "the second is better than the first by no more than `margin`".

    Args:
        gained: pairs that only the second solved.
        lost: pairs that only the first solved.
        same: pairs that both solved, or neither.
        margin: difference of success rates, in (-1, 1).

    Returns:
        Log of its value, of the same shape; where the claim holds, the chance that it ever exceeds log c is
        at most 1/c.
    """
    stakes = _STAKES / (1 + margin)
    wealth = (
        gained[..., None] * np.log1p(stakes * (1 - margin))
        + lost[..., None] * np.log1p(-stakes * (1 + margin))
        + same[..., None] * np.log1p(-stakes * margin)
    )
    found: np.ndarray = np.logaddexp.reduce(wealth, axis=-1) - np.log(len(_STAKES))
    return found
