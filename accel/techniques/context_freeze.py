"""Freeze the context of a joint denoiser: at most steps only the action tokens run.

    at full steps f      all tokens run; K_c, V_c of the context are kept in every layer
    at the others        a <- a + attention(Q_a, [K_a; K_c(f)], [V_a; V_c(f)]),  f the last full step

A joint denoiser, as xvla's, runs the context through the same layers as the actions, at every step, and its
context is mostly larger than its chunk. A step of H action tokens beside C of the context costs about
H / (H + C) of a full one. It is exact where the context does not look at the actions, and an approximation
where it does: then the context of a frozen step is that of an earlier, noisier chunk.

Full steps are spread evenly, or chosen as block-wise adaptive caching chooses a block's (`updates`), by the
cosine similarity of the context's keys and values between steps, mean over layers and observations.
Kin: token-wise caching (ToCa, arXiv 2410.05317), where tokens are chosen one by one; here the kind decides.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from vivace.accel.freeze import Freeze
from vivace.accel.memory import remembered
from vivace.accel.registry import register
from vivace.accel.settings import is_ascending
from vivace.accel.technique import CalibrationData, Need, Seam, Technique, denoising
from vivace.accel.techniques.step_schedule import steps_under
from vivace.accel.updates import Objective, check_updates, known_updates, optimal_updates, uniform_updates
from vivace.accel.variant import Choose, Request, Variant
from vivace.policies.block import EMPTY, Cache
from vivace.policies.dtype import wide
from vivace.policies.errors import BadSetting, CalibrationError, PlanMismatch
from vivace.policies.execution import Denoising, Execution, call_denoiser, sample
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.sampler import Step
from vivace.policies.staged import Context

Spread = Literal["similarity", "uniform"]  # named: draccus finds no text behind quotes


@dataclass(frozen=True, kw_only=True)
class ContextFreezeOptions:
    """At which steps the context runs."""

    full_steps: int | None = None
    """Steps at which it does, the first among them, 1..number of steps; a fifth when not given."""
    method: Spread = "uniform"
    """uniform: spread evenly; similarity: where the context's keys and values change most."""
    objective: Objective = "anchor"
    """Of similarity: each step is compared with what it reuses (anchor), or the step before (consecutive)."""

    def __post_init__(self) -> None:
        """Choices must be known; ranges that depend on the policy are checked at calibration."""
        for name, known in (("method", ("similarity", "uniform")), ("objective", ("anchor", "consecutive"))):
            if getattr(self, name) not in known:
                raise BadSetting(
                    f"context_freeze {name}={getattr(self, name)!r} is not one of {', '.join(known)}"
                )


@register
@dataclass(frozen=True, kw_only=True)
class ContextFreeze(Technique):
    """Steps at which the context runs."""

    kind: ClassVar[str] = "context_freeze"
    seam: ClassVar[Seam] = Seam.BLOCKS
    label: ClassVar[str] = "context frozen"
    colour: ClassVar[str] = "#3f7fbf"
    needs: ClassVar[tuple[Need, ...]] = (Need.DENOISER, Need.JOINT)
    is_static: ClassVar[bool] = True
    Options: ClassVar[type] = ContextFreezeOptions
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "uniform": {"full_steps": 2},
        "similarity": {"full_steps": 3, "method": "similarity"},
    }

    n_steps: int
    """Steps of the sampler it was calibrated for."""
    full: tuple[int, ...]
    """Steps at which the context runs, ascending, first is 0."""
    options: dict[str, Any] = field(default_factory=dict)
    """How they were chosen, for the record."""

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Choose the full steps; options are the fields of `ContextFreezeOptions`."""
        for need in cls.needs:
            need.require(execution.policy, cls.kind)
        execution, chosen = denoising(execution, cls.kind), cls.read_options(options)
        n_steps = len(execution.sampler)
        count = max(1, n_steps // 5) if chosen.full_steps is None else chosen.full_steps
        check_updates(count, n_steps)
        if chosen.method == "uniform":
            full = uniform_updates(n_steps, count)
        else:
            full = optimal_updates(context_similarity(execution, data), count, chosen.objective)
        return cls(n_steps=n_steps, full=full, options=asdict(replace(chosen, full_steps=count)))

    def check(self, execution: Execution) -> None:
        """Raise `PlanMismatch` unless its steps are those of the execution."""
        super().check(execution)
        execution, full = denoising(execution, self.kind), self.full
        if not full or full[0] != 0 or not is_ascending(full) or full[-1] >= self.n_steps:
            raise PlanMismatch(
                f"{self.kind} runs the context at steps {list(full)}; needed are ascending steps from 0 to "
                f"at most {self.n_steps - 1}; recalibrate: vivace calibrate --policy.path=…"
            )
        if self.n_steps != len(execution.sampler):
            raise PlanMismatch(
                f"{self.kind} was calibrated for {self.n_steps} steps, but {execution.sampler.name} runs "
                f"{len(execution.sampler)}; recalibrate it together with step_schedule"
            )
        if execution.call is not call_denoiser:
            raise PlanMismatch(
                f"{self.kind} calls the denoiser in its own way, and another technique of the plan does so "
                "too; keep one"
            )

    def apply(self, execution: Execution) -> Execution:
        """Run the context at the full steps only."""
        freeze = Freeze(tuple(step in self.full for step in range(self.n_steps)))
        return replace(denoising(execution, self.kind), call=freeze)

    @classmethod
    def variants(cls, staged: Any, options: ContextFreezeOptions) -> Iterator[Variant]:
        """Yield a context that runs once, and as often as is asked for, evenly and by similarity."""
        n = len(staged.sampler)
        count = max(2, n // 5) if options.full_steps is None else options.full_steps
        once = {"full_steps": 1}
        label = f"context frozen after the first of {n} steps"
        yield Variant("frozen", label, ((cls.kind, once),), cls.colour, is_short=True)
        for method, told in (("uniform", "evenly"), ("similarity", "by its similarity")):
            chosen = {"full_steps": count, "method": method}
            label = f"context run at {count} of {n} steps, {told}"
            yield Variant(f"frozen-{method}", label, ((cls.kind, chosen),), cls.colour)

    @classmethod
    def beginnings(cls, options: Mapping[str, Any], n_steps: int) -> Collection[int]:
        """Where the context runs: of steps spread evenly that is known before calibration."""
        chosen = cls.read_options(options)
        return known_updates(n_steps, chosen.method, chosen.full_steps)

    @classmethod
    def search(cls, staged: Any, before: Sequence[Request], choose: Choose) -> dict[str, Any] | None:
        """Offer the context at fewer steps than there are."""
        n_steps = steps_under(staged, before)
        if n_steps < 2:
            return None
        full_steps = choose("full_steps", range(1, n_steps), range(1, len(staged.sampler) + 1))
        if full_steps == 1:  # the first, by either method
            return {"full_steps": 1, "method": "uniform"}
        return {"full_steps": full_steps, "method": choose("method", ("uniform", "similarity"))}


@remembered
def context_similarity(execution: Denoising, data: CalibrationData) -> np.ndarray:
    """Cosine similarity of the context's keys and values between steps, every step running it, (S, S).

    Mean over layers and observations, which are run one by one: what all steps keep is large.

    Raises:
        CalibrationError: what is kept is not finite.
    """
    found: list[tuple[Tensor, ...]] = []

    def keep(
        execution: Denoising, step: Step, x: Tensor, context: Context, cache: Cache
    ) -> tuple[Tensor, Cache]:
        policy: Any = execution.policy
        out, kept = policy.denoise_keeping(x, policy.condition(step, context))
        found.append(kept)
        return out, EMPTY

    total = np.zeros((len(execution.sampler),) * 2)
    for one in data.ones():
        found.clear()
        sample(replace(execution, call=keep), one.batch, EpisodeNoise(one.noise_keys))
        for layer in zip(*found, strict=True):
            features = wide(torch.stack([kept.flatten() for kept in layer]))  # (S, F)
            if not features.isfinite().all():
                raise CalibrationError(
                    "the context's keys and values are NaN or infinite on the calibration observations; "
                    "check the checkpoint"
                )
            unit = torch.nn.functional.normalize(features, dim=-1)
            total += (unit @ unit.mT).clamp(-1, 1).double().cpu().numpy() / len(found[0])
    return total / len(data.noise_keys)
