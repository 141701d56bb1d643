"""Another sampler, or fewer steps of it: the baseline every cache has to beat, and a technique itself.

Fewer steps can be spread over the timesteps of training in several ways, and none suits every policy.
"trailing" begins where the noise of training ends (arXiv 2305.08891); "leading" takes noise alone for a
sample half-way. But a policy that does not clip its clean actions divides its error at the last timestep by a
signal of almost nothing. So spacings are tried in the order of `_PREFERRED`, and the first is taken whose
chunks are about as near those of the checkpoint's own sampler, from the same noise, as the nearest.

"About", since a sampler that draws noise at every step makes this distance uncertain by more than what the
spacings differ in: at two DDIM steps over 8 observations zoo/push has .514 leading and .547 trailing, and
solves 6 and 25 of 50 episodes of push-disturbed. Without clipping the difference is another one: zoo/halfway
has .209 leading and .759 trailing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, cast

from vivace.accel.record import chunks
from vivace.accel.registry import exact_work, register
from vivace.accel.technique import CalibrationData, Need, Seam, Technique, denoising
from vivace.accel.variant import Choose, Request, Variant
from vivace.policies.errors import BadSetting, CalibrationError, NonFiniteActions
from vivace.policies.execution import Denoising, Execution
from vivace.policies.plain_data import Between
from vivace.policies.sampling.clean_flow import CLEAN_FLOWS
from vivace.policies.sampling.sampler import Sampler
from vivace.policies.sampling.samplers import OWN, SPACINGS
from vivace.policies.sampling.spacing import Spacing, check_parts
from vivace.policies.staged import DenoisingPolicy

AUTO = "auto"
"""Choose the spacing whose chunks are as near those of the checkpoint's own sampler as any; of samplers the
simplest that the policy can be sampled with in fewer steps."""
UNEVEN = "uneven"
"""Steps are as wide as `widths` says."""
FLOWS = ("euler", "rk4")
"""Samplers of flow matching, the simplest first."""
_DIFFUSION = ("ddim", "dpmsolver++")
_CALLS = {"rk4": 4}
"""Sampler -> calls of the denoiser a step, where it is not one."""
_ROWS = (2, 4, 8, 16, 32)
_SHORT = {"ddim": (2, 4, 5, 16), "dpmsolver++": (4, 16), "euler": (2, 4), "rk4": (2,), "renoise": (2, 4)}
"""Steps of the rows of tables, and of those in short ones."""
_COLOURS = {
    **dict.fromkeys(("ddim", "euler", "renoise"), "#d9822b"),
    **dict.fromkeys(("dpmsolver++", "rk4"), "#c0392b"),
}
_PREFERRED = ("trailing", "linspace", "leading")
_MARGIN = 1.5
"""Chunks are as near as the nearest if their distance is not larger by more than this factor."""


@dataclass(frozen=True, kw_only=True)
class StepScheduleOptions:
    """Which sampler, how many steps, and where."""

    sampler: str = AUTO
    """ddpm, ddim, dpmsolver++; euler, rk4 for flow matching; renoise, euler where clean actions of a flow are
    predicted; auto: the first but for ddpm."""
    n_steps: int = 16
    """Steps of the sampler."""
    spacing: str = AUTO
    """Where fewer steps lie: leading, trailing, linspace, quadratic (the denser the less noise there is), own
    (the policy's way), or auto: where they suit the policy, by its chunks on the calibration observations;
    quadratic is not tried there; uneven: as of `widths`."""
    widths: tuple[float, ...] = ()
    """How wide steps are, relative to each other, in equal parts of the schedule from noise to actions; as
    many numbers as steps choose the time of every step. With spacing uneven alone."""

    def __post_init__(self) -> None:
        """The spacing must be known, and there must be widths where they are asked for."""
        _check_spacing(self.spacing, self.widths, (AUTO, *SPACINGS))


_PARTS, _WIDTHS = 4, Between(0.1, 1.0)
"""Parts of a schedule whose widths are searched: up to five steps may lie anywhere, more of them are bent."""
_MOST = 1000
"""Steps; of flow matching nothing else bounds them."""


@register
@dataclass(frozen=True, kw_only=True)
class StepSchedule(Technique):
    """Sampler, number of denoiser calls and their timesteps."""

    kind: ClassVar[str] = "step_schedule"
    seam: ClassVar[Seam] = Seam.STEPS
    label: ClassVar[str] = "fewer steps"
    colour: ClassVar[str] = _COLOURS["ddim"]
    needs: ClassVar[tuple[Need, ...]] = (Need.DENOISER,)
    is_static: ClassVar[bool] = True
    Options: ClassVar[type] = StepScheduleOptions
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"five steps": {"n_steps": 5}}

    sampler: str = "ddim"
    """"ddpm", "ddim", "dpmsolver++"; "euler", "rk4" for flow matching; "renoise" for its clean actions."""
    n_steps: int = 16
    spacing: str = OWN
    """leading, trailing, linspace, quadratic, uneven; own: the policy's own way, as of plans without a
    choice."""
    widths: tuple[float, ...] = ()
    """Of uneven steps, in equal parts of the schedule, relative to each other."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """Spacing -> root mean square distance of its chunks from those as trained, normalised, when chosen."""

    def __post_init__(self) -> None:
        """The spacing must be known, the number of steps possible; the policy's process is checked later."""
        _check_spacing(self.spacing, self.widths, SPACINGS)
        if not 1 <= self.n_steps <= _MOST:
            raise BadSetting(f"step_schedule n_steps={self.n_steps}; choose 1..{_MOST}")

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Choose the spacing, if that is left open; options are the fields of `StepScheduleOptions`."""
        chosen = cls.read_options(options)
        execution = denoising(execution, cls.kind)
        policy = execution.policy
        if chosen.sampler == AUTO:
            chosen = replace(chosen, sampler=samplers_of(policy)[0])
        if chosen.spacing != AUTO:
            return cls(**vars(chosen))
        samplers = _spaced(policy, chosen.sampler, chosen.n_steps)
        if len(samplers) == 1:
            return cls(sampler=chosen.sampler, n_steps=chosen.n_steps, spacing=next(iter(samplers)))
        errors = _errors(execution, samplers, data)
        if not errors:
            raise CalibrationError(
                f"step_schedule: actions of {chosen.n_steps} steps of {chosen.sampler} are not finite at any "
                "spacing; choose another number of steps or another sampler"
            )
        near = _MARGIN * min(errors.values())
        spacing = next(name for name, error in errors.items() if error <= near)
        return cls(sampler=chosen.sampler, n_steps=chosen.n_steps, spacing=spacing, errors=errors)

    def check(self, execution: Execution) -> None:
        """Raise `BadSetting` if the policy's process has no such sampler."""
        self._sampler(execution)

    def apply(self, execution: Execution) -> Execution:
        """Run the other sampler."""
        return replace(denoising(execution, self.kind), sampler=self._sampler(execution))

    def _sampler(self, execution: Execution) -> Sampler:
        policy = denoising(execution, self.kind).policy
        return policy.resample(self.sampler, self.n_steps, self.widths or self.spacing)

    @property
    def remark(self) -> str:
        """Say how the steps are spaced."""
        return f"{self.spacing} spacing"

    @classmethod
    def variants(cls, staged: Any, options: Any) -> Iterator[Variant]:
        """Yield fewer and fewer steps; of a vision-language-action policy two rows, as bare as its others."""
        if Need.LANGUAGE.is_met(staged):
            yield from _rows(staged, samplers_of(staged)[0], (2, 5), (), "")
            return
        for sampler in samplers_of(staged):
            yield from _rows(staged, sampler, _ROWS, exact_work(staged), ", hoisted")

    @classmethod
    def search(cls, staged: Any, before: Sequence[Request], choose: Choose) -> dict[str, Any] | None:
        """Offer every sampler, with up to as many calls as the policy's own, and where its steps may lie.

        A set of times is chosen as AutoDiffusion does (arXiv 2309.10438), among named ones and free ones;
        here a free one is the widths of steps in parts of the schedule, so that what is learnt of one number
        of steps holds for another. Of times that several names mean the first name is taken.
        """
        most = len(staged.sampler)
        names = tuple(name for name in samplers_of(staged) if _CALLS.get(name, 1) <= most)
        if not names:
            return None
        named = (*SPACINGS, OWN) if samplers_of(staged) == _DIFFUSION else (OWN,)
        sampler = choose("sampler", names)
        n_steps = choose("n_steps", range(1, most // _CALLS.get(sampler, 1) + 1), range(1, most + 1))
        spacing = choose("spacing", (*named, UNEVEN))
        found = {"sampler": sampler, "n_steps": n_steps, "spacing": spacing}
        if spacing == UNEVEN:
            found["widths"] = tuple(choose(f"widths.{i}", _WIDTHS) for i in range(_PARTS))
        times = _times(staged, sampler, n_steps, found.get("widths") or spacing)
        if times is None:  # the sampler cannot lie so many steps so
            found = {"sampler": sampler, "n_steps": n_steps, "spacing": OWN}
            times = _times(staged, sampler, n_steps, OWN)
        if times is None:
            return None
        if times == _times(staged, staged.sampler.name, most, OWN) and sampler == staged.sampler.name:
            return None
        same = next((name for name in named if times == _times(staged, sampler, n_steps, name)), None)
        return found if same is None else {"sampler": sampler, "n_steps": n_steps, "spacing": same}


def samplers_of(staged: Any) -> tuple[str, ...]:
    """Return the samplers with which a policy can take fewer steps, the simplest first."""
    families = (FLOWS, CLEAN_FLOWS)  # both have an euler, with which no policy of clean actions begins
    return next((names for names in families if staged.sampler.name in names), _DIFFUSION)


def steps_under(staged: Any, requests: Sequence[Request]) -> int:
    """Return how often the denoiser is called under techniques of earlier seams."""
    options = dict(requests).get(StepSchedule.kind)
    if options is None:
        return len(staged.sampler)
    chosen = StepSchedule.read_options(options)
    return chosen.n_steps * int(_CALLS.get(chosen.sampler, 1))


def sampler_under(staged: Any, requests: Sequence[Request]) -> Sampler:
    """Return the sampler under techniques of earlier seams, its steps where the policy puts them."""
    options = dict(requests).get(StepSchedule.kind)
    if options is None:
        return cast(Sampler, staged.sampler)
    chosen = StepSchedule.read_options(options)
    name = samplers_of(staged)[0] if chosen.sampler == AUTO else chosen.sampler
    return cast(Sampler, staged.resample(name, chosen.n_steps))


def _times(policy: DenoisingPolicy, sampler: str, n_steps: int, spacing: Spacing) -> list[float] | None:
    """Times at which the denoiser is called; None where the policy has no such sampler."""
    with suppress(BadSetting):
        found = policy.resample(sampler, n_steps, spacing)
        return [step.table.t for step in found.steps if step.table]
    return None


def fewer(staged: Any, sampler: str, steps: Sequence[int]) -> list[int]:
    """Return those numbers of steps that call the denoiser less often than the policy's own sampler does."""
    return [k for k in steps if k * _CALLS.get(sampler, 1) < len(staged.sampler)]


def ask_steps(sampler: str, n_steps: int) -> Request:
    """Ask for a number of steps."""
    return StepSchedule.kind, {"sampler": sampler, "n_steps": n_steps}


def _rows(
    staged: Any, sampler: str, numbers: Sequence[int], others: tuple[Request, ...], told: str
) -> Iterator[Variant]:
    for k in fewer(staged, sampler, numbers):
        yield Variant(
            f"{sampler}-{k}",
            f"{sampler} {k} steps{told}",
            (ask_steps(sampler, k), *others),
            _COLOURS[sampler],
            is_short=k in _SHORT[sampler],
            is_baseline=True,
        )


def _check_spacing(spacing: str, widths: tuple[float, ...], known: tuple[str, ...]) -> None:
    if spacing not in (*known, UNEVEN, OWN):
        raise BadSetting(f"step_schedule spacing={spacing!r}; choose {', '.join((*known, UNEVEN))} or {OWN}")
    if bool(widths) != (spacing == UNEVEN):
        raise BadSetting(
            f"step_schedule spacing={spacing} and widths={list(widths)}; widths go with spacing uneven, "
            "which needs them"
        )
    if widths:
        check_parts(widths)


def _spaced(policy: DenoisingPolicy, name: str, n_steps: int) -> dict[str, Sampler]:
    """Return spacing -> sampler; without those a policy does not have, and of equal ones the first."""
    found: dict[tuple[float, ...], tuple[str, Sampler]] = {}
    for spacing in (*_PREFERRED, OWN):
        try:
            sampler = policy.resample(name, n_steps, spacing)
        except BadSetting:
            if spacing == OWN and not found:
                raise
            continue
        found.setdefault(tuple(step.table.t for step in sampler.steps if step.table), (spacing, sampler))
    return dict(found.values())


def _errors(execution: Denoising, samplers: Mapping[str, Sampler], data: CalibrationData) -> dict[str, float]:
    """Root mean square distance from the chunks as trained; spacings that give no finite ones left out."""
    as_trained = chunks(execution, data)
    found = {}
    for spacing, sampler in samplers.items():
        with suppress(NonFiniteActions):
            fewer_steps = chunks(replace(execution, sampler=sampler), data)
            found[spacing] = round(float((fewer_steps - as_trained).double().square().mean().sqrt()), 6)
    return found
