"""Exact hoisting: compute once what depends on the timestep alone or on the observation alone.

No approximation; equal to the plain loop up to rounding (1e-5). It is a technique of its own so that
every table can credit it apart from caching.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from vivace.accel.technique import CalibrationData, Seam, denoising, read_options
from vivace.policies.execution import Execution


@dataclass(frozen=True, kw_only=True)
class Hoist:
    """Nothing to choose."""

    kind: ClassVar[str] = "hoist"
    seam: ClassVar[Seam] = Seam.HOIST
    is_static: ClassVar[bool] = True

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: dict[str, Any]) -> Self:
        """Nothing is measured."""
        return read_options(cls, cls.kind, options)

    def check(self, execution: Execution) -> None:
        """Raise `UnsupportedPolicy` if the policy does not denoise; `apply` does if it cannot be hoisted."""
        denoising(execution, self.kind)

    def apply(self, execution: Execution) -> Execution:
        """Run the hoisted twin."""
        execution = denoising(execution, self.kind)
        return replace(execution, policy=execution.policy.hoist(execution.sampler))
