"""Leave out work whose result nobody reads; no approximation.

What that is, a policy says of itself (`policies.unread.DeadWorkPolicy`): most flow VLAs run the whole last
language layer though the action expert reads its keys and values alone, pad prompts with tokens that are
masked, and look at cameras that are not there. Equal to the policy as trained up to rounding (1e-5).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from vivace.accel.registry import register
from vivace.accel.technique import CalibrationData, Need, Seam, Technique, with_dead_work
from vivace.accel.variant import Variant
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import Execution


@dataclass(frozen=True, kw_only=True)
class DeadWorkOptions:
    """Which of it."""

    parts: tuple[str, ...] = ()
    """Names of the parts to leave out; all that the policy names when empty."""


@register
@dataclass(frozen=True, kw_only=True)
class DeadWork(Technique):
    """The parts that are left out."""

    kind: ClassVar[str] = "dead_work"
    seam: ClassVar[Seam] = Seam.EXACT
    label: ClassVar[str] = "dead work left out"
    colour: ClassVar[str] = "#7d8794"
    needs: ClassVar[tuple[Need, ...]] = (Need.DEAD_WORK,)
    is_static: ClassVar[bool] = True
    is_default: ClassVar[bool] = True
    Options: ClassVar[type] = DeadWorkOptions

    parts: tuple[str, ...]

    @property
    def is_exact(self) -> bool:
        """It is."""
        return True

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Take the parts that are asked for; nothing is measured.

        Raises:
            BadSetting: the policy has no such part.
        """
        policy = with_dead_work(execution, cls.kind)
        asked = cls.read_options(options).parts
        unknown = [part for part in asked if part not in policy.dead_work]
        if unknown:
            raise BadSetting(
                f"dead_work parts={list(asked)} names {', '.join(unknown)}; what policy "
                f"{policy.spec.type!r} has is {', '.join(policy.dead_work)}"
            )
        return cls(parts=tuple(part for part in policy.dead_work if part in (asked or policy.dead_work)))

    def check(self, execution: Execution) -> None:
        """Raise if the policy does not name these parts as dead."""
        known = with_dead_work(execution, self.kind).dead_work
        unknown = [part for part in self.parts if part not in known]
        if unknown or not self.parts:
            raise PlanMismatch(
                f"dead_work leaves out {', '.join(self.parts) or 'nothing'}, of this policy "
                f"{', '.join(known)} is dead; recalibrate: vivace calibrate --policy.path=…"
            )

    def apply(self, execution: Execution) -> Execution:
        """Run the twin without them."""
        twin: Any = with_dead_work(execution, self.kind).without(self.parts)
        return replace(execution, policy=twin)

    @classmethod
    def variants(cls, staged: Any, options: DeadWorkOptions) -> Iterable[Variant]:
        """Itself."""
        return [Variant(cls.kind, cls.label, ((cls.kind, vars(options)),), cls.colour)]
