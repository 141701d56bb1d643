"""Which trials are timed, which of those are timed well, and which one is the plan."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product

from vivace.eval.tune.budget import Budget, tail
from vivace.eval.tune.candidate import Origin, Status, Trial
from vivace.eval.tune.expected import expectation, median_s, tail_over_median
from vivace.eval.tune.front import promising, spread

_NEAR = 1.2
"""What takes longer than so many budgets in one chunk of twenty is not timed again."""

_SURE = 95.0
"""Percentile by which one is known well enough to keep a budget."""
_NEARLY = 2.0
"""Others are bred from what is expected to take so many budgets at most."""
_BASELINES = 4
"""So many baselines race."""
_FEW = 4
"""One of so many places is for those that follow chunks before, of which nobody knows before they race."""
_FAR = 0.8
"""What computes the same faster by so much is worth trying together with the others."""
_LOT = 8
"""Besides so many one is drawn by lot: what is near need not succeed, nor what succeeds be near."""


@dataclass(frozen=True)
class Rule:
    """What a search may choose."""

    budget: Budget
    is_world: bool
    """Whether success will be judged; else what only a world can judge is not chosen."""

    def candidates(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those that may be the plan: not failed, and there is a judge."""
        return [
            trial
            for trial in trials
            if trial.is_alive and trial.action_error is not None and (self.is_world or not trial.follows)
        ]

    def rivals(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those that have to be beaten, and are timed however they look, where anything can judge them."""
        return [
            trial
            for trial in trials
            if trial.is_alive and trial.candidate.origin.is_rival and (self.is_world or not trial.follows)
        ]

    def first(self, trials: Sequence[Trial], most: int) -> list[Trial]:
        """Those to time first: rivals, the front of counted work and action error, some of each other kind.

        Those are what computes the same faster, alone, what follows chunks before, and what is drawn by lot.
        """
        rivals, some = self.rivals(trials), self.candidates(trials)
        front = promising(
            [one for one in _compared(some) if not one.candidate.same_work], most, _work, _passes
        )
        faster = self.faster_alone(trials)[: most // 2]
        picked = _once(rivals, faster, front, _following(some, most // _FEW, _work))
        return [*picked, *_drawn((one for one in _compared(some) if one not in picked), most // _LOT)]

    def faster_alone(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those that compute the same faster and do nothing else but remove exact work."""
        some = self.candidates(trials)
        exact = {kind for one in some if one.candidate.origin is Origin.EXACT for kind in one.candidate.kinds}
        return [
            one
            for one in some
            if one.candidate.same_work
            and {*one.candidate.kinds} - exact == {kind for kind, _ in one.candidate.same_work}
        ]

    def _timed_alone(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those of `faster_alone` whose gain is known."""
        return [row for row in self.faster_alone(trials) if row.latencies_s]

    def together(self, trials: Sequence[Trial], most: int) -> list[tuple[Trial, Trial]]:
        """Pairs of what is by far the fastest to compute the same, alone, and of others that it goes with.

        What they gain together is not known from what each gains; the fastest of the others first.
        """
        rows = sorted(self._timed_alone(trials), key=median_s)
        soon = [row for row in rows if not row.candidate.starts_late and len(row.candidate.same_work) == 1]
        plain = [one for one in trials if one.candidate.origin in (Origin.TRAINED, Origin.EXACT)]
        plain_s = [median_s(one) for one in plain if one.latencies_s]
        if not soon or not plain_s or median_s(soon[0]) > _FAR * min(plain_s):
            return []
        kinds = {kind for kind, _ in soon[0].candidate.same_work}
        others = [row for row in soon if kinds.isdisjoint(kind for kind, _ in row.candidate.same_work)]
        return [(soon[0], row) for row in others[:most]]

    def faster(self, trials: Sequence[Trial]) -> list[tuple[Trial, Trial]]:
        """Pairs of one and of what computes the same faster that together should keep the budget.

        The nearest first, as if their errors added up. The policy as trained stays what it is.
        """
        some = self.candidates(trials)
        expected, slack, known = expectation(some), tail_over_median(some), {trial.key for trial in trials}
        rows = self._timed_alone(trials)
        plain = [one for one in some if one.candidate.requests]
        unlike = {(one.flops, _error(one)): one for one in reversed(plain) if not one.candidate.same_work}
        found: list[tuple[float, float, Trial, Trial]] = []
        for one, row in product(unlike.values(), rows):
            both = _both(one, row)
            own_s, both_s = expected(one), expected(both)
            if both.key in known or own_s is None or both_s is None:
                continue
            if both_s <= own_s and slack * both_s <= self.budget.of(both.candidate):
                found.append((_error(one) + _error(row), both_s, one, row))
        return [(one, row) for _, _, one, row in sorted(found, key=lambda pair: pair[:2])]

    def next(self, trials: Sequence[Trial], most: int) -> list[Trial]:
        """Those not timed that should keep the budget, the nearest actions first."""
        return [trial for trial in self.fitting(trials) if not trial.latencies_s][:most]

    def fitting(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those that keep the budget, or should by their counted work, the nearest actions first."""
        return self._within(trials, (), 1.0)[0]

    def parents(self, trials: Sequence[Trial], most: int) -> list[Trial]:
        """Those that others are bred from: half fit the budget, half need a little less to; all differ.

        Where what fits is far off, a relative of what nearly fits is the better plan: some from what is
        just too slow to what acts as trained. What would fit if it were computed faster, at no error, fits.
        """
        unlike = {(one.flops, _error(one)): one for one in reversed(trials) if one.flops}
        timed = self._timed_alone(trials)
        rows = [row for row in timed if not row.candidate.starts_late and not _error(row)]
        fit, near = self._within([*unlike.values()], rows, 1.0, _NEARLY)
        front = promising(_compared(near), most // 2, _work)
        return _once(fit[: most - len(front)], front, fit)[:most]

    def _within(self, trials: Sequence[Trial], rows: Sequence[Trial], *budgets: float) -> list[list[Trial]]:
        """Those expected to take so many budgets at most but no fewer of these; the nearest actions first.

        Args:
            trials: some.
            rows: what may compute them faster.
            budgets: in order.
        """
        some = self.candidates(trials)
        known = {trial.key: trial for trial in (*some, *rows)}
        expected, slack = expectation(known.values()), tail_over_median(known.values())
        found: list[list[Trial]] = [[] for _ in budgets]
        for trial in sorted(some, key=_error):
            ways = [trial, *(_both(trial, row) for row in rows if not trial.candidate.same_work)]
            takes_s = min((it for it in map(expected, ways) if it is not None), default=math.inf)
            budget_s = self.budget.of(trial.candidate)
            fits = [i for i, n in enumerate(budgets) if slack * takes_s <= n * budget_s]
            if fits:
                found[fits[0]].append(trial)
        return found

    def finalists(self, trials: Sequence[Trial], most: int) -> list[Trial]:
        """Those to time as often as a p99 takes: rivals near the budget, nearest actions, some that follow.

        Where a world judges, some are drawn by lot. Where nothing is near it the fastest ones, so that it can
        be said what they take.
        """
        timed = [trial for trial in self.candidates(trials) if trial.latencies_s]
        slack = tail_over_median(timed)
        near = [one for one in timed if slack * median_s(one) <= _NEAR * self.budget.of(one.candidate)]
        if not near:
            return sorted(timed, key=median_s)[:2]
        rivals = [trial for trial in near if trial.candidate.origin.is_rival]
        following, compared = _following(near, most // _FEW, median_s), _compared(near)
        mixed = _mixed(compared)[: most - len(following)]
        left = (one for one in compared if one not in mixed)
        drawn = _drawn(left, most // _LOT if self.is_world else 0)
        return _once(mixed, following, drawn, rivals)

    def contenders(self, kept: Sequence[Trial]) -> list[Trial]:
        """Those that keep the budget and are no rivals, in the order in which they may race.

        The nearest actions and the front of latency and action error in turn: in a world that moves on the
        nearest, which take as long as the budget allows, need not solve most.
        """
        others = [trial for trial in kept if not trial.candidate.origin.is_rival]
        return _once(_mixed(_compared(others)), others)

    def entrants(self, kept: Sequence[Trial], most: int) -> list[Trial]:
        """Who races of those that keep the budget: whoever raced before, rivals, so many of the others."""
        before = [trial for trial in kept if trial.raced]
        return _once(before, self.racing(kept), self.contenders(kept)[:most])

    def racing(self, kept: Sequence[Trial]) -> list[Trial]:
        """Of those that keep the budget, the rivals that race: of baselines, which are alike, a few.

        They are spread over latency and action error; the best of them is confirmed beside the winner.
        """
        rivals = self.rivals(kept)
        baselines = [trial for trial in rivals if trial.candidate.origin is Origin.BASELINE]
        following = _following(baselines, 1, median_s)
        few = promising(_compared(baselines), _BASELINES - len(following), median_s)
        return [trial for trial in rivals if trial in (*few, *following) or trial not in baselines]

    def keeps(self, trial: Trial) -> bool:
        """Whether one that was timed keeps the budget, and is not left out for what it takes besides."""
        is_left_out = trial.stage is Status.TIMED
        return not is_left_out and self.budget.is_kept(trial.candidate, trial.latencies_s)

    def keeping(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those whose measured latencies keep the budget, the nearest actions first, of equals the faster."""
        kept = [
            trial
            for trial in self.candidates(trials)
            if self.budget.is_kept(trial.candidate, trial.latencies_s)
        ]
        return sorted(kept, key=lambda trial: (_error(trial), median_s(trial)))

    def sure(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those of `keeping` that are known to by as high a percentile as is known of any of them.

        The 95th is high enough: who has a few measurements fewer than a hundred is no less of a choice.
        """
        kept = self.keeping(trials)
        known = [min(tail(trial.latencies_s)[0], _SURE) for trial in kept]
        return [trial for trial, percent in zip(kept, known, strict=True) if percent == max(known)]

    def fastest(self, trials: Iterable[Trial]) -> Trial | None:
        """The one of the shortest tail, of those that the loop leaves any time; None if none was timed."""
        timed = [trial for trial in self.candidates(trials) if trial.latencies_s]
        left = [trial for trial in timed if self.budget.of(trial.candidate)]
        return min(left or timed, key=lambda trial: tail(trial.latencies_s)[1], default=None)


def _both(one: Trial, row: Trial) -> Trial:
    """One that nobody timed yet: computed as another one is."""
    return replace(one, latencies_s=(), candidate=one.candidate.computed_as(row.candidate))


def _error(trial: Trial) -> float:
    """Action error, rounding left out: what is exact is as near as what is as trained.

    One that follows chunks before it is behind all others: its error is that of chunks that follow none.
    """
    return math.inf if trial.follows else round(trial.action_error or 0.0, 4)


def _mixed(compared: Sequence[Trial]) -> list[Trial]:
    """Trials of known error: the nearest, the fastest of the front, the next nearest, and so on."""
    front = promising(compared, len(compared), median_s)
    best = sorted(compared, key=_error)
    return _once([trial for pair in zip(best, front, strict=True) for trial in pair])


def _compared(trials: Iterable[Trial]) -> list[Trial]:
    """Those whose action error says something."""
    return [trial for trial in trials if not trial.follows]


def _following(trials: Iterable[Trial], most: int, cost: Callable[[Trial], float]) -> list[Trial]:
    """Some of those that a world alone can judge, from the cheapest to the dearest."""
    some = sorted((trial for trial in trials if trial.follows), key=cost)
    return [some[i] for i in spread(range(len(some)), most)] if most else []


def _drawn(trials: Iterable[Trial], most: int) -> list[Trial]:
    """Some drawn by lot, the same ones in every stage: a key is as good as a random number."""
    return sorted((trial for trial in trials if trial.candidate.is_drawn), key=lambda one: one.key)[:most]


def _once(*trials: Iterable[Trial]) -> list[Trial]:
    """All of them, none twice."""
    return list({trial.key: trial for some in trials for trial in some}.values())


def _work(trial: Trial) -> float:
    return float(trial.flops or 0)


def _passes(trial: Trial) -> float:
    return float(trial.passes or 0)
