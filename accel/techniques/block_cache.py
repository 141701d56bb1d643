"""Block-wise adaptive caching (BAC, arXiv 2506.13456): reuse a block's last computed output.

    out_b(k) = f_b(h)             if k in C_b
             = out_b(last c < k)  otherwise

C_b are chosen in `updates`; `rows` turns them into per-step programs.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Self

from vivace.accel.record import record
from vivace.accel.rows import make_rows
from vivace.accel.technique import CalibrationData, Seam, denoising, is_ascending, read_options
from vivace.accel.updates import Schedule, UpdateOptions, choose_updates
from vivace.policies.errors import PlanMismatch, UnknownBlock, UnsupportedPolicy
from vivace.policies.execution import Execution
from vivace.policies.staged import guided_steps


@dataclass(frozen=True, kw_only=True)
class BlockCache:
    """Update steps of every cached block."""

    kind: ClassVar[str] = "block_cache"
    seam: ClassVar[Seam] = Seam.BLOCKS
    is_static: ClassVar[bool] = True

    n_steps: int
    """Steps of the sampler it was calibrated for."""
    updates: dict[str, tuple[int, ...]]
    """Block id -> steps at which it is computed, ascending, first is 0."""
    options: dict[str, Any] = field(default_factory=dict)
    """How the steps were chosen, for the record."""

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: dict[str, Any]) -> Self:
        """Choose update steps; options are the fields of `UpdateOptions`."""
        chosen = read_options(UpdateOptions, cls.kind, options)
        updates = calibrate_updates(execution, data, chosen)
        return cls(
            n_steps=len(denoising(execution, cls.kind).sampler), updates=updates, options=asdict(chosen)
        )

    def check(self, execution: Execution) -> None:
        """Block ids and number of steps must be those of the execution."""
        check_schedule(self.kind, self.updates, self.n_steps, execution)

    def apply(self, execution: Execution) -> Execution:
        """Run the schedule."""
        rows = make_rows(execution.policy.spec.blocks, self.updates, self.n_steps)
        return replace(denoising(execution, self.kind), action=rows)


def calibrate_updates(execution: Execution, data: CalibrationData, options: UpdateOptions) -> Schedule:
    """Record an uncached run where the method needs one, and choose update steps."""
    execution = denoising(execution, "a cache schedule")
    blocks = execution.policy.spec.block_ids
    if not blocks:
        raise UnsupportedPolicy(f"policy {execution.policy.spec.type!r} has no blocks to cache; it is opaque")
    similarity, volatility = {}, {}
    if options.method in ("bac", "shared"):
        recording = record(execution, data)
        similarity, volatility = recording.similarity, recording.volatility
    return choose_updates(blocks, similarity, volatility, len(execution.sampler), options)


def check_schedule(kind: str, updates: Schedule, n_steps: int, execution: Execution) -> None:
    """Raise if a schedule does not fit an execution.

    Raises:
        UnknownBlock: it names a block that the policy does not have.
        PlanMismatch: another number of steps, or update steps that are not ascending from 0.
    """
    execution = denoising(execution, kind)
    guided = guided_steps(execution.policy)
    if any(later and not earlier for earlier, later in zip(guided, guided[1:], strict=False)):
        raise PlanMismatch(
            f"{kind} cannot reuse what a step without the unconditional branch left for one with it; combine "
            "it with adaptive guidance, not with LinearAG"
        )
    known = execution.policy.spec.block_ids
    for name, steps in updates.items():
        if name not in known:
            has = f"{known[0]} … {known[-1]}" if known else "none"
            raise UnknownBlock(
                f"{kind} names block {name!r}, but policy {execution.policy.spec.type!r} has {has}; "
                "recalibrate it for this policy: vivace calibrate --policy.path=…"
            )
        if not steps or steps[0] != 0 or not is_ascending(steps) or steps[-1] >= n_steps:
            raise PlanMismatch(
                f"{kind} updates {name!r} at {list(steps)}; needed are ascending steps from 0 to at most "
                f"{n_steps - 1}; recalibrate: vivace calibrate --policy.path=…"
            )
    if n_steps != len(execution.sampler):
        raise PlanMismatch(
            f"{kind} was calibrated for {n_steps} steps, but {execution.sampler.name} runs "
            f"{len(execution.sampler)}; recalibrate it together with step_schedule"
        )
