"""Another sampler, or fewer steps of it: the baseline every cache has to beat, and a technique itself."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from vivace.accel.technique import CalibrationData, Seam, read_options, with_denoiser
from vivace.policies.errors import BadSetting
from vivace.policies.staged import Execution

_MOST = 1000
"""Steps; of flow matching nothing else bounds them."""


@dataclass(frozen=True, kw_only=True)
class StepSchedule:
    """Sampler and number of denoiser calls."""

    kind: ClassVar[str] = "step_schedule"
    seam: ClassVar[Seam] = Seam.STEPS
    is_static: ClassVar[bool] = True

    sampler: str = "ddim"
    """"ddpm", "ddim", "dpmsolver++"; "euler", "rk4" for flow matching."""
    n_steps: int = 16

    def __post_init__(self) -> None:
        """The number of steps must be possible; what the process allows is checked with the policy."""
        if not 1 <= self.n_steps <= _MOST:
            raise BadSetting(f"step_schedule n_steps={self.n_steps}; choose 1..{_MOST}")

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: dict[str, Any]) -> Self:
        """Nothing is measured; options are the fields."""
        return read_options(cls, cls.kind, options)

    def check(self, execution: Execution) -> None:
        """Raise `BadSetting` if the policy's process has no such sampler."""
        with_denoiser(execution, self.kind).resample(self.sampler, self.n_steps)

    def apply(self, execution: Execution) -> Execution:
        """Run the other sampler."""
        return replace(execution, sampler=execution.policy.resample(self.sampler, self.n_steps))
