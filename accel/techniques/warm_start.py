"""Begin a chunk with the one before instead of noise: RTI-DP, arXiv 2508.05396.

The chunk before, shifted by the actions that are past, its last action repeated at the end, is what the
robot is about to do anyway. It is noised to the level of a late step k and denoised from there,

    x_k = sqrt(abar_k) a + sqrt(1 - abar_k) eps,        of a flow: x_s = (1 - s) a + s eps,

so that a chunk takes the last steps of the sampler alone. Where nothing is to be followed (the first chunk
of an episode, and after a late, skipped or refused one) a chunk is sampled in full.

The start should hold enough noise to be led elsewhere by what is seen now: half of the steps of a short
sampler (`step_schedule`) begin at half of the noise, the last steps of a hundred at next to none.

Deviations: no scaling of discrete dimensions such as a gripper, which the paper's noise can flip by it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from vivace.accel.freeze import Freeze
from vivace.accel.registry import exact_work, register, techniques
from vivace.accel.rows import schedule_of
from vivace.accel.technique import Need, Part, Seam, Technique, denoising
from vivace.accel.techniques.guidance import Linear
from vivace.accel.techniques.step_schedule import ask_steps, fewer, sampler_under, samplers_of
from vivace.accel.variant import Choose, Request, Variant
from vivace.policies.carry import LATENT, PAST, Carry
from vivace.policies.errors import BadSetting, PlanMismatch, UnsupportedPolicy
from vivace.policies.execution import Denoising, Execution
from vivace.policies.plain_data import Between
from vivace.policies.sampling.sampler import Sampler

_ROWS = (1, 2, 4)
"""Steps of the rows of tables, the last ones of twice as many."""
_SHORT = (2,)
_MANY = 20
"""A sampler of so many steps is also begun near its end, as the paper does."""


@dataclass(frozen=True, kw_only=True)
class WarmStartOptions:
    """Where a chunk begins that follows another."""

    share: float = 0.5
    """Share of the sampler's steps that it takes, the last ones: above 0, up to 1."""

    def __post_init__(self) -> None:
        """The share must be one."""
        if not 0 < self.share <= 1:
            raise BadSetting(f"warm_start share={self.share}; needed: above 0, up to 1")


@register
@dataclass(frozen=True, kw_only=True)
class WarmStart(Technique):
    """How much of the sampler a chunk takes that follows another."""

    kind: ClassVar[str] = "warm_start"
    seam: ClassVar[Seam] = Seam.CARRY
    label: ClassVar[str] = "warm start from the previous chunk"
    colour: ClassVar[str] = "#8e5ea2"
    needs: ClassVar[tuple[Need, ...]] = (Need.DENOISER,)
    needs_left: ClassVar[tuple[Part, ...]] = (Part.CHUNK,)
    is_static: ClassVar[bool] = True
    Options: ClassVar[type] = WarmStartOptions

    share: float = 0.5
    """Of the sampler's steps, the last ones."""

    def __post_init__(self) -> None:
        """As of the options."""
        WarmStartOptions(share=self.share)

    def check(self, execution: Execution) -> None:
        """Raise unless the sampler can be begun late, and nothing there needs what earlier steps computed."""
        found = denoising(execution, self.kind)
        if found.policy.spec.is_cut:
            raise PlanMismatch(
                "warm_start begins with what is left of the chunk before, which dead_actions does not "
                "compute; leave one of them out"
            )
        first = first_step(found.sampler, self.share)
        schedule = schedule_of(found)
        is_free = schedule is None or schedule.can_begin(first)
        if isinstance(found.call, Linear | Freeze):
            is_free = is_free and found.call.can_begin(first)
        if not is_free:
            raise PlanMismatch(
                f"warm_start begins at step {first} of {len(found.sampler)}, behind which another technique "
                "of the plan uses what earlier steps computed; choose another --accel.warm_start.share, or "
                "leave one of them out"
            )

    def apply(self, execution: Execution) -> Execution:
        """Begin so."""
        found = denoising(execution, self.kind)
        return replace(found, begin=begin_warm, first=first_step(found.sampler, self.share))

    @property
    def remark(self) -> str:
        """What rows tell is of chunks that follow others."""
        return "steady state"

    @classmethod
    def variants(cls, staged: Any, options: Any) -> Iterator[Variant]:
        """Yield few steps, which stand beside as few of the same sampler; and the end of a long sampler."""
        sampler = samplers_of(staged)[0]
        others = () if Need.LANGUAGE.is_met(staged) else exact_work(staged)
        for k in fewer(staged, sampler, _ROWS):
            wanted = (ask_steps(sampler, 2 * k), (cls.kind, {"share": 0.5}), *others)
            label = f"{cls.label}, {sampler} {k} of {2 * k} steps"
            yield Variant(f"warm-{k}", label, wanted, cls.colour, is_short=k in _SHORT, is_baseline=True)
        n, share = len(staged.sampler), options.share
        if share == WarmStartOptions.share and n >= _MANY:
            share = 0.1
        label = f"{cls.label}, last {share:.0%} of its own {n} steps"
        yield Variant("warm-own", label, ((cls.kind, {"share": share}), *others), cls.colour)

    @classmethod
    def search(cls, staged: Any, before: Sequence[Request], choose: Choose) -> dict[str, Any] | None:
        """Offer any share of the steps there are, but for all of them, that may be the last ones."""
        sampler, known = sampler_under(staged, before), techniques()
        n_steps = len(sampler)
        free = set(sampler.beginnings).intersection(
            range(1, n_steps), *(known[kind].beginnings(options, n_steps) for kind, options in before)
        )
        if not free:
            return None
        wanted = n_steps * (1 - choose("share", Between(1 / len(staged.sampler), 1.0)))
        first = min(sorted(free), key=lambda step: abs(step - wanted))
        return {"share": (n_steps - first) / n_steps}


def first_step(sampler: Sampler, share: float) -> int:
    """Return the step at which the last share of a sampler's steps begins; an earlier one where none may.

    Raises:
        UnsupportedPolicy: the policy samples by itself, and is begun by nobody.
    """
    wanted = len(sampler) - max(1, round(share * len(sampler)))
    found = [index for index in sampler.beginnings if index <= wanted]
    if not found:
        raise UnsupportedPolicy(
            f"warm_start needs a sampler whose steps are known; {sampler.name!r} is the policy's own"
        )
    return found[-1]


def begin_warm(execution: Denoising, noise: Tensor, carry: Carry) -> Tensor:
    """The chunk before (B, *latent_shape), shifted, and noised as the step at which it begins expects."""
    previous = shifted(carry[LATENT], carry[PAST])
    if execution.first == len(execution.sampler):
        return previous
    table = execution.sampler.steps[execution.first].table
    if table is None:
        raise UnsupportedPolicy(
            f"sampler {execution.sampler.name!r} is the policy's own, and begun by nobody"
        )
    return table.alpha * previous + table.sigma * noise


def shifted(chunks: Tensor, past: Tensor) -> Tensor:
    """Chunks (B, H, A) from their actions on that come next, the last one repeated behind.

    Args:
        chunks: the chunks before.
        past: actions of each that are past (B,).
    """
    horizon = chunks.shape[1]
    places = torch.arange(horizon, device=chunks.device) + past[:, None]
    return chunks.take_along_dim(places.clamp(max=horizon - 1)[..., None], dim=1)
