"""Run the vision tower on the pictures of several cameras in one call where that is faster here; exact.

lerobot's VLAs and ACT call their tower once a camera. Pictures of one size may be rows of one batch instead:
the same numbers up to rounding (1e-5), since no picture looks at another. A GPU that one picture does not
fill gains by it; a CPU rarely does.

Calibration times both ways on the first observation, and keeps the faster one. What was measured is in the
plan: on another device it is as right, and may be slower. A bundle is made without it. X-VLA and GR00T make
one call as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self, cast

from vivace.accel.in_turn import least_ms
from vivace.accel.registry import register
from vivace.accel.technique import CalibrationData, Need, Seam, Technique
from vivace.policies.batch import Batch
from vivace.policies.execution import Execution
from vivace.policies.seeing import LookingPolicy

_REPEATS = 3
_GAIN = 0.95
"""One call that takes more than this share of the time of several is no gain."""


@dataclass(frozen=True, kw_only=True)
class CamerasTogetherOptions:
    """Whether it must be worth it."""

    measure: bool = True
    """Make one call only if that is measured to be faster on this device; else always."""


@register
@dataclass(frozen=True, kw_only=True)
class CamerasTogether(Technique):
    """Whether one call is made, and what was measured."""

    kind: ClassVar[str] = "cameras_together"
    seam: ClassVar[Seam] = Seam.EXACT
    label: ClassVar[str] = "cameras in one call"
    colour: ClassVar[str] = "#7d6b9e"
    needs: ClassVar[tuple[Need, ...]] = (Need.CAMERAS,)
    is_static: ClassVar[bool] = True
    is_for_torch: ClassVar[bool] = True
    saves_flops: ClassVar[bool] = False
    Options: ClassVar[type] = CamerasTogetherOptions
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {}, "always": {"measure": False}}
    hidden: ClassVar[tuple[str, ...]] = ("measured_ms",)

    together: bool
    """Whether one call is made."""
    device: str
    """Where they were timed."""
    measured_ms: tuple[float, ...] = ()
    """Time of a call for each camera, and of one for all [ms]; nothing if it was not measured."""

    @property
    def is_exact(self) -> bool:
        """It is."""
        return True

    @property
    def remark(self) -> str:
        """What was found."""
        return "" if self.together else "no faster here, left as it was"

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Time both ways; keep what is faster."""
        Need.CAMERAS.require(execution.policy, cls.kind)
        device = str(execution.policy.placement.device)
        if not cls.read_options(options).measure:
            return cls(together=True, device=device)
        apart, at_once = _timed(cast(LookingPolicy, execution.policy), data.one)
        return cls(together=at_once < _GAIN * apart, device=device, measured_ms=(apart, at_once))

    def apply(self, execution: Execution) -> Execution:
        """Make one call if that is the faster way."""
        if not self.together:
            return execution
        twin: Any = cast(LookingPolicy, execution.policy).with_cameras_together()
        return replace(execution, policy=twin)


def _timed(policy: LookingPolicy, one: Batch) -> tuple[float, float]:
    """Least time [ms] of looking camera by camera, and at once."""
    cameras = [camera for camera in policy.cameras if camera in one]
    twin = policy.with_cameras_together()
    ways = (partial(each.look, one, cameras) for each in (policy, twin))
    apart, at_once = least_ms(one[cameras[0]].device, _REPEATS, *ways)
    return apart, at_once
