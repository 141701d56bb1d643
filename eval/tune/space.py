"""What a policy can be run under: the union of what the techniques offer that fit it.

Nothing here names a technique. One joins by being registered: its `search_space` says which options are worth
trying, its `variants` which rows stand in tables, its seam what it goes together with, and whether it saves
work at no error says whether every candidate has it.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from optuna import Trial as Asked
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from vivace.accel.registry import exact_work, fits, techniques
from vivace.accel.technique import Seam, Technique
from vivace.accel.variant import Choices, Request, Variant
from vivace.eval.measure.variants import PLAIN, unfit, variants_of
from vivace.eval.tune.candidate import Candidate, Execution, Origin
from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.plain_data import Between

NONE = "none"
_MANY = 16
"""A range whose end is so many times its beginning is tried evenly in its logarithm: 4 steps differ from 8
as 40 from 80."""


@dataclass(frozen=True)
class Space:
    """What may be chosen."""

    staged: Any
    exact: tuple[Request, ...]
    """What removes work at no error: in every candidate but the policy as trained."""
    offers: Mapping[str, Mapping[str, Choices]]
    """Kind of a technique that saves work -> option -> what is worth trying."""
    same_work: tuple[str, ...]
    """Kinds of techniques that compute the same faster: counted work does not know them, a clock does."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """All kinds there are to choose from."""
        return (*self.offers, *self.same_work)

    @property
    def choices(self) -> dict[str, Choices]:
        """Name of a choice -> what it may be; those of options matter where their technique is chosen."""
        found: dict[str, Choices] = {}
        for seam, kinds in self._seams().items():
            if seam.holds_many:
                found |= dict.fromkeys(kinds, (False, True))
            else:
                found[_name(seam)] = (NONE, *kinds)
        for kind, options in self.offers.items():
            found |= {f"{kind}.{option}": choices for option, choices in options.items()}
        return found

    def suggest(self, asked: Asked) -> Candidate:
        """Let a trial of Optuna choose."""
        known = self.choices
        chosen: list[str] = []
        for seam, kinds in self._seams().items():
            if seam.holds_many:
                chosen += [kind for kind in kinds if _ask(asked, kind, known[kind])]
            else:
                chosen += [kind for kind in [_ask(asked, _name(seam), known[_name(seam)])] if kind != NONE]
        requests = [
            (kind, {option: _ask(asked, f"{kind}.{option}", known[f"{kind}.{option}"]) for option in options})
            for kind, options in self.offers.items()
            if kind in chosen
        ]
        return Candidate((*requests, *self.exact))

    def choices_of(self, candidate: Candidate) -> dict[str, Any]:
        """Say a candidate in the names of this space, as far as it is in it: name of a choice -> value."""
        requests = dict(candidate.requests)
        found: dict[str, Any] = {}
        for seam, kinds in self._seams().items():
            if seam.holds_many:
                found |= {kind: kind in requests for kind in kinds}
            else:
                found[_name(seam)] = next((kind for kind in kinds if kind in requests), NONE)
        for kind, options in self.offers.items():
            if kind in requests:
                asked = vars(techniques()[kind].Options()) | dict(requests[kind])
                found |= {f"{kind}.{option}": asked[option] for option in options if option in asked}
        known = self.choices
        return {name: value for name, value in found.items() if _is_in(value, known[name])}

    def starters(self, options: Mapping[str, Any] | None = None) -> tuple[Candidate, ...]:
        """What is looked at before anything is searched: as trained, exact work, rows of tables, defaults.

        Args:
            options: kind of a technique -> its `Options`, where they are not the usual ones.
        """
        chosen = options or {}
        rows = sorted(variants_of(self.staged, options), key=lambda row: not row.is_baseline)
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

    def faster(self, candidate: Candidate) -> Iterator[Candidate]:
        """Yield a candidate with each row of a technique added that computes the same work faster.

        The policy as trained stays what it is.
        """
        for kind in self.same_work if candidate.origin is not Origin.TRAINED else ():
            technique = techniques()[kind]
            for row in technique.variants(self.staged, technique.Options()):
                added = [request for request in row.wanted if request[0] == kind]
                if added and not row.is_compiled and kind not in candidate.kinds:
                    label = f"{candidate.label}, {row.label}"
                    requests = (*candidate.requests, *added)
                    yield replace(candidate, requests=requests, label=label, origin=Origin.SEARCH)

    def executed(self, candidate: Candidate, is_sync: bool) -> Iterator[Candidate]:
        """Yield a candidate with other numbers of actions executed of a chunk, and asked for at other times.

        Args:
            candidate: what is executed.
            is_sync: the loop acts, then thinks: then there is no time to choose to ask at.
        """
        spec = self.staged.spec
        own, most = spec.n_action_steps, spec.horizon - spec.first_action
        numbers = {max(1, own // 2), min(most, 2 * own), most} - {own}
        for n in sorted(numbers):
            yield _with(candidate, Execution(n_action_steps=n), f"{n} actions executed")
        if not is_sync and own > 1:
            yield _with(candidate, Execution(request_at=own), "asked for as early as can be")

    def _of(self, row: Variant) -> Candidate:
        """A row of a table, exact work removed too."""
        kinds = {kind for kind, _ in row.wanted}
        exact = [request for request in self.exact if row.wanted and request[0] not in kinds]
        origin = Origin.BASELINE if row.is_baseline else Origin.DEFAULT
        execution = Execution(n_action_steps=row.n_action_steps)
        return Candidate((*row.wanted, *exact), execution, row.is_compiled, origin, row.label)

    def _is_plan(self, row: Variant) -> bool:
        """Whether a plan file can say it, of techniques that may be chosen."""
        always = {kind for kind, _ in self.exact}
        return not row.is_compiled and {kind for kind, _ in row.wanted} <= {*self.kinds, *always}

    def _seams(self) -> dict[Seam, list[str]]:
        """Seam -> kinds that work on it."""
        found: dict[Seam, list[str]] = {}
        for kind in self.offers:
            found.setdefault(techniques()[kind].seam, []).append(kind)
        return found


def space_of(staged: Any, only: Collection[str] | None = None) -> Space:
    """Return what there is to choose for a policy.

    Args:
        staged: the policy.
        only: kinds of techniques to choose from; all that fit when None.

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
    found: dict[str, type[Technique]] = {
        kind: technique
        for kind, technique in known.items()
        if (only is None or kind in only) and fits(technique, staged)
    }
    if not found:
        raise UnsupportedPolicy(
            f"no technique {'of --tune.techniques ' if only else ''}fits policy {staged.spec.type!r}: "
            + "; ".join(f"{kinds} {why}" for kinds, why in unfit(staged).items() if _names(kinds, only))
        )
    chosen = {kind: technique for kind, technique in found.items() if kind not in always}
    return Space(
        staged,
        exact,
        {kind: _worth(one.search_space(staged)) for kind, one in chosen.items() if one.saves_flops},
        tuple(kind for kind, one in chosen.items() if not one.saves_flops),
    )


def describe(candidate: Candidate) -> str:
    """What a candidate is, in words."""
    if candidate.label:
        return candidate.label
    known, parts = techniques(), []
    for kind, options in sorted(candidate.requests, key=lambda request: known[request[0]].seam):
        told = ", ".join(f"{name} {_short(value)}" for name, value in options.items())
        parts.append(f"{known[kind].label}{f' ({told})' if told else ''}")
    return ", ".join(parts) or PLAIN.label


def _names(kinds: str, only: Collection[str] | None) -> bool:
    return only is None or any(kind in only for kind in kinds.split(", "))


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _worth(options: Mapping[str, Choices]) -> dict[str, Choices]:
    """Options of which there is something to choose."""
    return {
        name: choices for name, choices in options.items() if isinstance(choices, Between) or len(choices)
    }


def _name(seam: Seam) -> str:
    return seam.name.lower()


def _keyed(candidate: Candidate) -> dict[str, Candidate]:
    return {candidate.key: candidate}


def _with(candidate: Candidate, execution: Execution, told: str) -> Candidate:
    label = f"{describe(candidate)}, {told}"
    return replace(candidate, execution=execution, origin=Origin.SEARCH, label=label)


def distribution(choices: Choices) -> BaseDistribution:
    """What Optuna calls it."""
    if isinstance(choices, Between):
        return FloatDistribution(choices.low, choices.high)
    if isinstance(choices, range):
        return IntDistribution(choices[0], choices[-1], log=_is_wide(choices))
    return CategoricalDistribution(choices)


def _ask(asked: Asked, name: str, choices: Choices) -> Any:
    """Let a trial of Optuna choose one."""
    if isinstance(choices, Between):
        return asked.suggest_float(name, choices.low, choices.high)
    if isinstance(choices, range):
        return asked.suggest_int(name, choices[0], choices[-1], log=_is_wide(choices))
    return asked.suggest_categorical(name, choices)


def _is_in(value: Any, choices: Choices) -> bool:
    """Whether it is one of them."""
    if isinstance(choices, Between):
        return isinstance(value, int | float) and choices.low <= value <= choices.high
    return value in choices


def _is_wide(choices: range) -> bool:
    return choices[0] >= 1 and choices[-1] >= _MANY * choices[0]
