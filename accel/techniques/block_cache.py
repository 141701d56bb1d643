"""Block-wise adaptive caching (BAC, arXiv 2506.13456): reuse a block's last computed output.

    out_b(k) = f_b(h)             if k in C_b
             = out_b(last c < k)  otherwise

C_b are chosen in `updates`; `rows` turns them into per-step programs.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from vivace.accel.record import record
from vivace.accel.registry import exact_work, register
from vivace.accel.rows import make_rows
from vivace.accel.settings import is_ascending
from vivace.accel.technique import CalibrationData, Need, Part, Seam, Technique, denoising
from vivace.accel.techniques.layer_skip import blocks_under
from vivace.accel.techniques.step_schedule import ask_steps, fewer, samplers_of, steps_under
from vivace.accel.updates import (
    Schedule,
    UpdateOptions,
    check_updates,
    choose_updates,
    known_updates,
)
from vivace.accel.variant import Choose, Request, Variant
from vivace.policies.errors import PlanMismatch, UnknownBlock
from vivace.policies.execution import Execution
from vivace.policies.plain_data import plain
from vivace.policies.staged import guided_steps

_PARTS = 3
"""Parts of the blocks whose numbers of updates are searched."""


@register
@dataclass(frozen=True, kw_only=True)
class BlockCache(Technique):
    """Update steps of every cached block."""

    kind: ClassVar[str] = "block_cache"
    seam: ClassVar[Seam] = Seam.BLOCKS
    label: ClassVar[str] = "block cache"
    colour: ClassVar[str] = "#0b8f7d"
    needs: ClassVar[tuple[Need, ...]] = (Need.DENOISER,)
    needs_left: ClassVar[tuple[Part, ...]] = (Part.BRANCHES,)
    is_static: ClassVar[bool] = True
    is_default: ClassVar[bool] = True
    Options: ClassVar[type] = UpdateOptions
    hidden: ClassVar[tuple[str, ...]] = ("updates",)
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "bac": {"updates": 4, "bubbling": 2},
        "consecutive": {"updates": 4, "bubbling": 1, "objective": "consecutive", "force_last": True},
        **{method: {"method": method, "updates": 5} for method in ("shared", "uniform", "deepcache")},
        "layered": {"method": "layered", "parts": (5, 2)},
    }

    n_steps: int
    """Steps of the sampler it was calibrated for."""
    updates: dict[str, tuple[int, ...]]
    """Block id -> steps at which it is computed, ascending, first is 0."""
    options: dict[str, Any] = field(default_factory=dict)
    """How the steps were chosen, for the record."""

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Choose update steps; options are the fields of `UpdateOptions`."""
        n_steps, blocks = len(denoising(execution, cls.kind).sampler), execution.policy.spec.blocks
        chosen = cls.read_options(options).settled(n_steps, len(blocks))
        updates = calibrate_updates(cls.kind, execution, data, chosen)
        return cls(n_steps=n_steps, updates=updates, options=plain(chosen))

    def check(self, execution: Execution) -> None:
        """Block ids and number of steps must be those of the execution."""
        check_schedule(self.kind, self.updates, self.n_steps, execution)

    def apply(self, execution: Execution) -> Execution:
        """Run the schedule."""
        rows = make_rows(execution.policy.spec.blocks, self.updates, self.n_steps)
        return replace(denoising(execution, self.kind), action=rows)

    @classmethod
    def variants(cls, staged: Any, options: UpdateOptions) -> Iterator[Variant]:
        """Yield BAC and its simpler schedules, BAC also without hoisting, compiled, and on fewer steps.

        Exact work is removed from every baseline too, so that none of it is credited to caching.
        """
        if Need.LANGUAGE.is_met(staged):
            yield from _in_a_vla(staged)
            return
        options = options.settled(len(staged.sampler), len(staged.blocks))
        simple = {"updates": options.updates}
        bac = {**vars(options), "method": "bac"}
        told, exact = f"S = {options.updates}", exact_work(staged)
        rows = [
            Variant("bac", f"BAC, {told}, hoisted", (*exact, (cls.kind, bac)), cls.colour),
            Variant(
                "uniform",
                f"uniform interval, {told}, hoisted",
                (*exact, (cls.kind, simple | {"method": "uniform"})),
                "#4c78c9",
                is_short=True,
                is_baseline=True,
            ),
            Variant(
                "shared",
                f"one shared schedule, {told}, hoisted",
                (*exact, (cls.kind, simple | {"method": "shared"})),
                "#7a5cc0",
            ),
            Variant("bac-alone", f"BAC, {told}, not hoisted", ((cls.kind, bac),), cls.colour),
        ]
        yield from (*rows, rows[0].compiled())
        sampler = samplers_of(staged)[0]
        for k in fewer(staged, sampler, (16, 32)):
            some = max(2, k // 3)
            yield Variant(
                f"{sampler}-{k}+bac",
                f"{sampler} {k} steps + BAC, S = {some}, hoisted",
                (ask_steps(sampler, k), *exact, (cls.kind, bac | {"updates": some})),
                "#14c3a8",
                is_short=k == 16,
            )

    @classmethod
    def beginnings(cls, options: Mapping[str, Any], n_steps: int) -> Collection[int]:
        """Where all blocks are computed: of those spread evenly that is known before calibration."""
        chosen = cls.read_options(options)
        return known_updates(n_steps, chosen.method, chosen.updates)

    @classmethod
    def search(cls, staged: Any, before: Sequence[Request], choose: Choose) -> dict[str, Any] | None:
        """Offer every schedule that leaves something out."""
        return search_updates(staged, before, choose)


def _in_a_vla(staged: Any) -> Iterator[Variant]:
    """EfficientVLA's cache (arXiv 2506.10100), renewed every 5 steps, and BAC in its place."""
    n, updates = len(staged.sampler), max(2, len(staged.sampler) // 5)
    kind, colour = BlockCache.kind, BlockCache.colour
    uniform = (kind, {"method": "uniform", "updates": updates})
    bac = (kind, {"updates": updates, "bubbling": 2})
    yield Variant(
        "cache", f"action cache, {updates} of {n} steps", (uniform,), colour, is_short=True, is_baseline=True
    )
    yield Variant("bac", f"BAC on the head, S = {updates}", (bac,), colour)


def search_updates(
    staged: Any, before: Sequence[Request], choose: Choose, fewest: int = 1
) -> dict[str, Any] | None:
    """Let a search choose update steps; None where too few steps leave nothing to choose.

    Layers computed at a step are chosen as in AutoDiffusion (arXiv 2309.10438): by how many updates each part
    of the blocks has. What is left out is reused there, not skipped.

    Args:
        staged: the policy.
        before: what was chosen on earlier seams.
        choose: chooses one option.
        fewest: updates that a block has at least.
    """
    n_steps, n_blocks = steps_under(staged, before), blocks_under(staged, before)
    if n_steps <= fewest:
        return None
    widest = range(fewest, len(staged.sampler) + 1)
    method = choose("method", ("bac", "shared", "uniform", "layered"))
    if method == "layered":
        some = range(fewest, n_steps + 1)
        parts = tuple(choose(f"parts.{i}", some, widest) for i in range(min(_PARTS, n_blocks)))
        if len(set(parts)) > 1:
            return {"method": method, "parts": parts}
        if parts[0] == n_steps:
            return None
        return {"method": "bac", "updates": parts[0], "bubbling": 0}
    updates = choose("updates", range(fewest, n_steps), widest)
    if updates == 1:  # by whichever method: the first step's
        return {"method": "uniform", "updates": 1}
    found = {"method": method, "updates": updates}
    if method == "bac":
        found["bubbling"] = choose("bubbling", range(n_blocks + 1), range(len(staged.blocks) + 1))
    return found


def calibrate_updates(
    kind: str, execution: Execution, data: CalibrationData, options: UpdateOptions
) -> Schedule:
    """Record an uncached run where the method needs one, and choose update steps."""
    execution = denoising(execution, kind)
    check_updates(options.updates or 1, len(execution.sampler))  # before a run is recorded
    blocks = execution.policy.spec.block_ids
    similarity, volatility = {}, {}
    if options.method in ("bac", "shared", "layered"):
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
