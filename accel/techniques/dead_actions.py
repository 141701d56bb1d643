"""Compute the actions of a chunk alone that somebody executes; no approximation.

Of a chunk of H actions a robot executes the first few and asks for the next chunk. Where each action looks
at itself and those before it alone (a causal mask, as of `smolvla` and `dp_transformer`), the last ones are
dead at every step and in every layer: nothing of the others changes when they are not there. So the denoiser
is given the first n actions. Noise is drawn for the whole chunk and cut, so that the random path stays.

What is executed is equal up to rounding (1e-5); what comes behind it is not there. So nothing may need it:
real-time chunking, a warm start and temporal ensembling are refused. In mode async a chunk that comes late is
bridged by the rest of the one before: keep `n_action_steps` and as many actions as a chunk takes ticks. By
default a chunk has what is executed of it in mode sync, and no more.

Where actions look at each other in both directions (pi0, pi05, groot, xvla, cogact), the last ones are dead
at the last step behind the last attention alone: of 10 steps of 18 layers that is less than a hundredth of
the denoiser. It is left in.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, cast

from vivace.accel.registry import beside_exact_work, register
from vivace.accel.technique import CalibrationData, Need, Part, Seam, Technique, denoising
from vivace.accel.variant import Variant
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import Execution
from vivace.policies.unread import CausalPolicy


@dataclass(frozen=True, kw_only=True)
class DeadActionsOptions:
    """How many actions a chunk has."""

    actions: int = 0
    """Actions of a chunk that are computed, from the newest observation's on; as many as the policy executes
    of it (its n_action_steps) when 0."""

    def __post_init__(self) -> None:
        """It is a number of actions."""
        if self.actions < 0:
            raise BadSetting(f"dead_actions actions={self.actions}; needed: 1 or more, or 0")


@register
@dataclass(frozen=True, kw_only=True)
class DeadActions(Technique):
    """How many actions a chunk has."""

    kind: ClassVar[str] = "dead_actions"
    seam: ClassVar[Seam] = Seam.EXACT
    label: ClassVar[str] = "actions that nobody executes left out"
    colour: ClassVar[str] = "#9a8f7d"
    needs: ClassVar[tuple[Need, ...]] = (Need.DENOISER, Need.TAIL)
    takes: ClassVar[tuple[Part, ...]] = (Part.CHUNK,)
    is_static: ClassVar[bool] = True
    Options: ClassVar[type] = DeadActionsOptions

    actions: int
    """Computed, from the newest observation's on."""

    @property
    def is_exact(self) -> bool:
        """What is executed is."""
        return True

    @property
    def remark(self) -> str:
        """How many are left."""
        return f"{self.actions} computed"

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Take the number asked for, or that of the actions executed; nothing is measured."""
        for need in cls.needs:
            need.require(execution.policy, cls.kind)
        return cls(actions=cls.read_options(options).actions or execution.policy.spec.n_action_steps)

    def check(self, execution: Execution) -> None:
        """Raise if the policy has no such tail, executes more, or needs the rest for something."""
        super().check(execution)
        spec = execution.policy.spec
        available = spec.horizon - spec.first_action
        if not spec.n_action_steps <= self.actions < available:
            raise PlanMismatch(
                f"dead_actions leaves the first {self.actions} actions of a chunk of {available}, of which "
                f"{spec.n_action_steps} are executed; needed: {spec.n_action_steps}..{available - 1}"
            )
        if spec.temporal_ensemble is not None:
            raise PlanMismatch(
                f"policy {spec.type!r} executes the mean of what all chunks say (temporal ensembling), so no "
                "action of a chunk is dead; leave dead_actions out of the plan"
            )

    def apply(self, execution: Execution) -> Execution:
        """Run a twin of shorter chunks."""
        found = denoising(execution, self.kind)
        policy = cast(CausalPolicy, found.policy)
        return replace(found, policy=policy.with_horizon(policy.spec.first_action + self.actions))

    @classmethod
    def variants(cls, staged: Any, options: DeadActionsOptions) -> Iterable[Variant]:
        """Itself with what else is removed exactly."""
        return [beside_exact_work(cls, staged, vars(options))]
