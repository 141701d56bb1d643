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
from typing import Any, ClassVar, Self

from vivace.accel.record import chunks
from vivace.accel.registry import exact_work, register
from vivace.accel.technique import CalibrationData, Need, Seam, Technique, denoising
from vivace.accel.variant import Choices, Request, Variant
from vivace.policies.errors import BadSetting, CalibrationError, NonFiniteActions
from vivace.policies.execution import Denoising, Execution
from vivace.policies.sampling.clean_flow import CLEAN_FLOWS
from vivace.policies.sampling.sampler import Sampler
from vivace.policies.sampling.samplers import OWN, SPACINGS
from vivace.policies.staged import DenoisingPolicy

AUTO = "auto"
"""Choose the spacing whose chunks are as near those of the checkpoint's own sampler as any; of samplers the
simplest that the policy can be sampled with in fewer steps."""
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
    quadratic is not tried there."""

    def __post_init__(self) -> None:
        """The spacing must be known."""
        _check_spacing(self.spacing, (AUTO, *SPACINGS))


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
    """leading, trailing, linspace, quadratic; own: the policy's own way, as of plans without a choice."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """Spacing -> root mean square distance of its chunks from those as trained, normalised, when chosen."""

    def __post_init__(self) -> None:
        """The spacing must be known, the number of steps possible; the policy's process is checked later."""
        _check_spacing(self.spacing, SPACINGS)
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
            return cls(sampler=chosen.sampler, n_steps=chosen.n_steps, spacing=chosen.spacing)
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
        denoising(execution, self.kind).policy.resample(self.sampler, self.n_steps, self.spacing)

    def apply(self, execution: Execution) -> Execution:
        """Run the other sampler."""
        execution = denoising(execution, self.kind)
        sampler = execution.policy.resample(self.sampler, self.n_steps, self.spacing)
        return replace(execution, sampler=sampler)

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
    def search_space(cls, staged: Any) -> Mapping[str, Choices]:
        """Offer every sampler, with up to as many steps as the policy's own, where they may lie."""
        names = samplers_of(staged)
        spacings = {"spacing": (AUTO, *SPACINGS)} if names == _DIFFUSION else {}
        return {"sampler": names, "n_steps": range(1, len(staged.sampler) + 1), **spacings}


def samplers_of(staged: Any) -> tuple[str, ...]:
    """Return the samplers with which a policy can take fewer steps, the simplest first."""
    families = (FLOWS, CLEAN_FLOWS)  # both have an euler, with which no policy of clean actions begins
    return next((names for names in families if staged.sampler.name in names), _DIFFUSION)


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


def _check_spacing(spacing: str, known: tuple[str, ...]) -> None:
    if spacing not in (*known, OWN):
        raise BadSetting(f"step_schedule spacing={spacing!r}; choose {', '.join(known)} or {OWN}")


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
