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

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from vivace.accel.technique import CalibrationData, Seam, read_options, with_denoiser
from vivace.policies.errors import BadSetting, CalibrationError, NonFiniteActions
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.samplers import OWN, SPACINGS, Sampler
from vivace.policies.staged import DenoisingPolicy, Execution, sample

AUTO = "auto"
"""Choose the spacing whose chunks are as near those of the checkpoint's own sampler as any."""
_PREFERRED = ("trailing", "linspace", "leading")
_MARGIN = 1.5
"""Chunks are as near as the nearest if their distance is not larger by more than this factor."""


@dataclass(frozen=True, kw_only=True)
class StepScheduleOptions:
    """Which sampler, how many steps, and where."""

    sampler: str = "ddim"
    n_steps: int = 16
    spacing: str = AUTO

    def __post_init__(self) -> None:
        """The spacing must be known."""
        _check_spacing(self.spacing, (AUTO, *SPACINGS))


_MOST = 1000
"""Steps; of flow matching nothing else bounds them."""


@dataclass(frozen=True, kw_only=True)
class StepSchedule:
    """Sampler, number of denoiser calls and their timesteps."""

    kind: ClassVar[str] = "step_schedule"
    seam: ClassVar[Seam] = Seam.STEPS
    is_static: ClassVar[bool] = True

    sampler: str = "ddim"
    """"ddpm", "ddim", "dpmsolver++"; "euler", "rk4" for flow matching."""
    n_steps: int = 16
    spacing: str = OWN
    """leading, trailing, linspace; own: the policy's own way, as of plans from before there was a choice."""
    errors: Mapping[str, float] = field(default_factory=dict)
    """Spacing -> root mean square distance of its chunks from those as trained, normalised, when chosen."""

    def __post_init__(self) -> None:
        """The spacing must be known, the number of steps possible; the policy's process is checked later."""
        _check_spacing(self.spacing, SPACINGS)
        if not 1 <= self.n_steps <= _MOST:
            raise BadSetting(f"step_schedule n_steps={self.n_steps}; choose 1..{_MOST}")

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: dict[str, Any]) -> Self:
        """Choose the spacing, if that is left open; options are the fields of `StepScheduleOptions`."""
        chosen = read_options(StepScheduleOptions, cls.kind, options)
        policy = with_denoiser(execution, cls.kind)
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
        with_denoiser(execution, self.kind).resample(self.sampler, self.n_steps, self.spacing)

    def apply(self, execution: Execution) -> Execution:
        """Run the other sampler."""
        sampler = execution.policy.resample(self.sampler, self.n_steps, self.spacing)
        return replace(execution, sampler=sampler)


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


def _errors(execution: Execution, samplers: Mapping[str, Sampler], data: CalibrationData) -> dict[str, float]:
    """Root mean square distance from the chunks as trained; spacings that give no finite ones left out."""
    as_trained = sample(execution, data.batch, EpisodeNoise(data.noise_keys))
    found = {}
    for spacing, sampler in samplers.items():
        with suppress(NonFiniteActions):
            chunks = sample(replace(execution, sampler=sampler), data.batch, EpisodeNoise(data.noise_keys))
            found[spacing] = round(float((chunks - as_trained).double().square().mean().sqrt()), 6)
    return found
