"""Exact hoisting: compute once what depends on the timestep alone or on the observation alone.

No approximation; equal to the plain loop up to rounding (1e-5). It is a technique of its own so that
every table can credit it apart from caching.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from vivace.accel.registry import register
from vivace.accel.technique import Need, Seam, Technique, denoising
from vivace.accel.variant import Variant
from vivace.policies.execution import Execution


@register
@dataclass(frozen=True, kw_only=True)
class Hoist(Technique):
    """Nothing to choose."""

    kind: ClassVar[str] = "hoist"
    seam: ClassVar[Seam] = Seam.EXACT
    label: ClassVar[str] = "exact hoisting alone"
    colour: ClassVar[str] = "#5a6472"
    needs: ClassVar[tuple[Need, ...]] = (Need.DENOISER,)
    is_static: ClassVar[bool] = True
    is_default: ClassVar[bool] = True

    @property
    def is_exact(self) -> bool:
        """It is."""
        return True

    def check(self, execution: Execution) -> None:
        """Raise `UnsupportedPolicy` if the policy does not denoise; `apply` does if it cannot be hoisted."""
        denoising(execution, self.kind)

    def apply(self, execution: Execution) -> Execution:
        """Run the hoisted twin."""
        execution = denoising(execution, self.kind)
        return replace(execution, policy=execution.policy.hoist(execution.sampler))

    @classmethod
    def variants(cls, staged: Any, options: Any) -> Iterable[Variant]:
        """Itself; compiled too, where it stands beside a compiled plain loop that it may equal."""
        alone = Variant(cls.kind, cls.label, ((cls.kind, {}),), cls.colour, is_short=True)
        return [alone] if Need.LANGUAGE.is_met(staged) else [alone, alone.compiled()]
