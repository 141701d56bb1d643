"""What a policy can be run under: the union of what the techniques offer that fit it.

Nothing here names a technique. One joins by being registered: its `search` chooses options that are worth
trying, its `variants` which rows stand in tables, its seam what it goes together with, and whether it saves
work at no error says whether every candidate has it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np
from optuna import Trial as Asked
from optuna.distributions import BaseDistribution, IntDistribution

from vivace.accel.registry import exact_work, fits, techniques
from vivace.accel.technique import Part, Seam, Technique
from vivace.accel.variant import Choices, Choose, Request, Variant
from vivace.eval.measure.variants import PLAIN, unfit, variants_of
from vivace.eval.tune.candidate import Candidate, Origin, Trial
from vivace.eval.tune.choosing import MUTATED, NONE, Replay, ask, mutated, others, stepped
from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.execution import executing
from vivace.policies.spec import ChunkExecution, Mode


@dataclass(frozen=True)
class Space:
    """What may be chosen."""

    staged: Any
    exact: tuple[Request, ...]
    """What removes work at no error: in every candidate but the policy as trained."""
    offers: tuple[str, ...]
    """Kinds of techniques that save work, in the order of their seams."""
    same_work: tuple[str, ...]
    """Kinds of techniques that compute the same faster: counted work does not know them, a clock does."""
    left_out: tuple[str, ...] = ()
    """Kinds of techniques that nobody asked for whose first chunk takes a minute or more."""
    unjudged: tuple[str, ...] = ()
    """Kinds of techniques whose chunks make use of those before, where there is no world to judge them."""
    may_continue: bool = False
    """Chunks may also be made to continue the ones before (mode rtc)."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """All kinds there are to choose from."""
        return (*self.offers, *self.same_work)

    def suggest(self, asked: Asked) -> Candidate:
        """Let a trial of Optuna choose."""
        return Candidate((*self._chosen(partial(ask, asked)), *self.exact))

    def bred(
        self,
        candidate: Candidate,
        random: np.random.Generator,
        executions: Sequence[ChunkExecution] = (),
    ) -> Candidate:
        """Return a candidate like another: most choices are its own, some are made anew, near them.

        What computes the same faster stays.

        Args:
            candidate: its parent.
            random: draws.
            executions: ways to execute chunks that may be chosen anew; none: the parent's stays.
        """
        own = {name: value for name, (value, _) in self.choices_of(candidate).items()}
        chosen = self._chosen(partial(mutated, own, random))
        child = Candidate((*chosen, *self.exact, *candidate.same_work))
        execution = candidate.execution
        if executions and random.random() < MUTATED:
            execution = executions[int(random.integers(len(executions)))]
        is_own = execution == ChunkExecution() or not self._executes(child, execution)
        return child if is_own else self.executed(child, execution)

    def neighbours(self, candidate: Candidate) -> Iterator[Candidate]:
        """Yield candidates of which one choice is another one than of this, or two numbers are traded.

        A number is the next or the one after; a trade is one more of this for one or two less of that. What
        is asked for by a choice that changed alone is as usual.
        """
        choices = self.choices_of(candidate)
        own = {name: value for name, (value, _) in choices.items()}
        near = {name: others(value, among) for name, (value, among) in choices.items()}
        numbers = [name for name, (_, among) in choices.items() if isinstance(among, IntDistribution)]
        steps = [{name: other} for name, some in near.items() for other in some]
        for more, less in permutations(numbers, 2):
            steps += [
                {more: own[more] + 1, less: own[less] - n}
                for n in (1, 2)
                if own[more] + 1 in near[more] and own[less] - n in near[less]
            ]
        for step in steps:
            chosen = self._chosen(partial(stepped, own | step))
            requests = (*chosen, *self.exact, *candidate.same_work)
            found = Candidate(requests, execution=candidate.execution)
            if found.key != candidate.key:
                yield found

    def choices_of(self, candidate: Candidate) -> dict[str, tuple[Any, BaseDistribution]]:
        """Say a candidate as this space would choose it: name of a choice -> value, and of what it is one.

        Choices that it makes otherwise than this space does are left out.
        """
        replay = Replay(dict(candidate.requests))
        self._chosen(replay)
        return replay.found

    def _chosen(self, choose: Choose) -> list[Request]:
        """Choose techniques seam by seam, and the options of each."""
        found: list[Request] = []
        for seam, kinds in self._seams().items():
            if seam.holds_many:
                chosen = [kind for kind in kinds if choose(kind, (False, True))]
            else:
                chosen = [kind for kind in [choose(_name(seam), (NONE, *kinds))] if kind != NONE]
            for kind in chosen:
                if not self._goes_with(kind, found):
                    continue
                of = partial(_of, choose, kind)
                options = techniques()[kind].search(self.staged, tuple(found), of)
                found += [] if options is None else [(kind, options)]
        return found

    def starters(self, options: Mapping[str, Any] | None = None) -> tuple[Candidate, ...]:
        """What is looked at before anything is searched: as trained, exact work, rows of tables, defaults.

        Args:
            options: kind of a technique -> its `Options`, where they are not the usual ones.
        """
        chosen = options or {}
        rows = sorted(
            (row for row in variants_of(self.staged, options) if self._is_judged(row)),
            key=lambda row: (not row.is_baseline, not row.is_short),  # if time is short, something of each
        )
        found = [Candidate(origin=Origin.TRAINED, label=PLAIN.label)]
        if self.exact:
            found.append(Candidate(self.exact, origin=Origin.EXACT, label="exact work removed"))
        found += [self._of(row) for row in rows if row.is_baseline or self._is_plan(row)]
        for kind in self.kinds:
            technique = techniques()[kind]
            request = (kind, vars(chosen.get(kind) or technique.Options()))
            found.append(
                Candidate((request, *self.exact), origin=Origin.DEFAULT, label=f"{technique.label}, as it is")
            )
        first = {one.key: one for one in reversed(found)}
        return tuple(one for one in found if first[one.key] is one)

    def ways(self, candidate: Candidate, is_sync: bool) -> Iterator[ChunkExecution]:
        """Yield other ways to execute a candidate's chunks: the policy's own, `executions`, some in rtc."""
        found = [ChunkExecution(), *self.executions(is_sync)]
        if self.may_continue and not is_sync:
            found += [replace(one, mode=Mode.RTC) for one in found if one.n_action_steps is None]
        for execution in found:
            if execution != candidate.execution and self._executes(candidate, execution):
                yield execution

    def executed(self, candidate: Candidate, execution: ChunkExecution) -> Candidate:
        """Return a candidate whose chunks are executed in another way, which its label says if it has one.

        Chunks that continue the ones before are whole: what leaves some of their actions out is left out.
        """
        requests, told = candidate.requests, f"{execution}" or "chunks executed as trained"
        if execution.mode == Mode.RTC:
            known = techniques()
            requests = tuple(one for one in requests if Part.CHUNK not in known[one[0]].taken(one[1]))
            told += ", chunks whole" if requests != candidate.requests else ""
        label = f"{candidate.label}, {told}" if candidate.label else ""
        return replace(candidate, requests=requests, execution=execution, origin=Origin.SEARCH, label=label)

    def executions(self, is_sync: bool) -> list[ChunkExecution]:
        """Other ways to execute chunks than the policy's own: fewer or more actions, or asked for early.

        Args:
            is_sync: the loop acts, then thinks: then there is no time to choose to ask at.
        """
        spec = self.staged.spec
        own, most = spec.n_action_steps, spec.horizon - spec.first_action
        fewest = 1 if is_sync else 2  # of one action none is left by the time that the next chunk is there
        numbers = {n for n in (1, max(1, own // 2), min(most, 2 * own), most) if n >= fewest} - {own}
        early = [ChunkExecution(request_at=own)] if not is_sync and own > 1 else []
        return [*(ChunkExecution(n_action_steps=n) for n in sorted(numbers)), *early]

    def _executes(self, candidate: Candidate, execution: ChunkExecution) -> bool:
        """Whether its techniques fit a policy that executes chunks so."""
        twin = executing(self.staged, execution.n_action_steps)
        return all(fits(techniques()[kind], twin) for kind in candidate.kinds)

    def _goes_with(self, kind: str, before: Sequence[Request]) -> bool:
        """Whether a technique may be in a plan with what was chosen on earlier seams, and exact work."""
        known = techniques()
        taken = {part for other, options in (*before, *self.exact) for part in known[other].taken(options)}
        return not taken.intersection(known[kind].needs_left)

    def _of(self, row: Variant) -> Candidate:
        """A row of a table, exact work removed too."""
        kinds = {kind for kind, _ in row.wanted}
        exact = [request for request in self.exact if row.wanted and request[0] not in kinds]
        origin = Origin.BASELINE if row.is_baseline else Origin.DEFAULT
        execution = ChunkExecution(n_action_steps=row.n_action_steps)
        return Candidate((*row.wanted, *exact), execution, origin, row.label)

    def _is_judged(self, row: Variant) -> bool:
        """Whether it is to be looked at, and there is something that can judge it."""
        return {kind for kind, _ in row.wanted}.isdisjoint((*self.unjudged, *self.left_out))

    def _is_plan(self, row: Variant) -> bool:
        """Whether it is of techniques that may be chosen."""
        always = {kind for kind, _ in self.exact}
        return {kind for kind, _ in row.wanted} <= {*self.kinds, *always}

    def _seams(self) -> dict[Seam, list[str]]:
        """Seam -> kinds that work on it."""
        found: dict[Seam, list[str]] = {}
        for kind in self.offers:
            found.setdefault(techniques()[kind].seam, []).append(kind)
        return found


def space_of(
    staged: Any,
    only: Collection[str] | None = None,
    is_world: bool = True,
    compiles: bool = False,
    may_continue: bool = False,
) -> Space:
    """Return what there is to choose for a policy.

    Args:
        staged: the policy.
        only: kinds of techniques to choose from; all that fit when None.
        is_world: whether a world judges; without one nobody knows of chunks that make use of those before.
        compiles: whether what `starts_late` is worth its time; else it is there where `only` names it.
        may_continue: whether chunks may also be made to continue the ones before.

    Raises:
        UnsupportedPolicy: no technique fits it, or none of those.
        BadSetting: one of those is not known, or there are none.
    """
    known = techniques()
    unknown = [kind for kind in only or () if kind not in known]
    if unknown:
        raise BadSetting(f"tune.techniques names {unknown[0]!r}; known techniques: {', '.join(known)}")
    if only is not None and not only:
        raise BadSetting(
            "tune.techniques is empty: there is nothing to choose from; name some, or leave it out"
        )
    exact = exact_work(staged)
    always = {kind for kind, _ in exact}
    late = () if compiles else tuple(kind for kind, one in known.items() if one.starts_late)
    left_out = tuple(kind for kind in late if kind not in (only or ()))
    found: dict[str, type[Technique]] = {
        kind: technique
        for kind, technique in known.items()
        if (only is None or kind in only) and kind not in left_out and fits(technique, staged)
    }
    if not found:
        raise UnsupportedPolicy(
            f"no technique {'of --tune.techniques ' if only else ''}fits policy {staged.spec.type!r}: "
            + "; ".join(f"{kinds} {why}" for kinds, why in unfit(staged).items() if _names(kinds, only))
        )
    unjudged = () if is_world else tuple(kind for kind, one in known.items() if one.seam is Seam.CARRY)
    chosen = {kind: one for kind, one in found.items() if kind not in always and kind not in unjudged}
    return Space(
        staged,
        exact,
        tuple(kind for kind, one in chosen.items() if one.saves_flops),
        tuple(kind for kind, one in chosen.items() if not one.saves_flops),
        left_out,
        unjudged,
        may_continue,
    )


def computed_as(one: Trial, row: Trial) -> Candidate:
    """A candidate with what computes the same faster in another one."""
    added = ", ".join(techniques()[kind].label for kind, _ in row.candidate.same_work)
    told = added if row.candidate.starts_late else describe(row.candidate)
    return one.candidate.computed_as(row.candidate, f"{describe(one.candidate)}, {told}")


def describe(candidate: Candidate) -> str:
    """What a candidate is, in words; and how its chunks are executed, where it is not the policy's way."""
    if candidate.label:
        return candidate.label
    known, parts = techniques(), []
    for kind, options in sorted(candidate.requests, key=lambda request: known[request[0]].seam):
        told = ", ".join(f"{name} {_short(value)}" for name, value in options.items())
        parts.append(f"{known[kind].label}{f' ({told})' if told else ''}")
    executed = [f"{candidate.execution}"] if candidate.execution.chosen else []
    return ", ".join([*(parts or [PLAIN.label]), *executed])


def _names(kinds: str, only: Collection[str] | None) -> bool:
    return only is None or any(kind in only for kind in kinds.split(", "))


def _short(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "-".join(_short(one) for one in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _name(seam: Seam) -> str:
    return seam.name.lower()


def _of(choose: Choose, kind: str, option: str, choices: Choices, widest: range | None = None) -> Any:
    """Choose an option of a technique."""
    return choose(f"{kind}.{option}", choices, widest)
