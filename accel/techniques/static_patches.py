"""Keep keys and values of patches that stand still from chunk to chunk (VLA-Cache, arXiv 2502.02175).

    patch i is static  <=>  mean |p_i - p_i'| <= threshold,    p' the pixels with which it was last read

Patches that changed, and the words, run through the language stage; static ones stand in each of its layers
with the keys and values that they had. No more than a share of the patches is kept, those that changed least,
and after some chunks all are read anew, as are those of the first chunk of an episode, and of one after a
late, skipped or refused chunk. If no patch is to be read and the words are the same, nothing is.

The vision tower runs on every picture: each of its patches looks at all others, so nothing there is static.
For the same reason a kept patch is an approximation wherever prefixes look both ways, as those of pi0, pi05
and smolvla do: it does not know what changed around it.

Deviations: pixels are compared by their difference, not by cosine, which is blind to light; with those the
patch was last read with, not with those of the chunk before, so what changes slowly is read anew too; and the
patches that words look at most are not singled out, nor has each layer a share of its own.

How much is saved depends on what moves. Work is counted, and time measured, of a picture that stands still,
which is the least: as much as if the share that is kept at most always were.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from lerobot.utils.constants import OBS_LANGUAGE_TOKENS
from torch import Tensor

from vivace.accel.registry import register
from vivace.accel.technique import Need, Part, Seam, Technique, denoising
from vivace.accel.techniques.frame_cache import reads_afresh
from vivace.accel.variant import Choices
from vivace.policies.carry import LOOKED, PIXELS, SEEN, WORDS, Carry
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import Denoising, Execution
from vivace.policies.language.prefix import keep_all
from vivace.policies.plain_data import Between
from vivace.policies.seeing import RenewingPolicy, read
from vivace.policies.staged import Batch, Context


@dataclass(frozen=True, kw_only=True)
class StaticPatchesOptions:
    """What stands still, and for how long."""

    threshold: float = 0.03
    """Mean change of a patch's pixels up to which it is static, 0 to 2; black is -1 and white 1."""
    most: float = 0.6
    """Largest share of the patches that is kept, 0 to 1; the paper's is 150 of 256."""
    every: int = 2
    """Chunks after which all are read anew: 2 to 64. What is kept grows old (accel/README.md)."""

    def __post_init__(self) -> None:
        """Numbers must be in range."""
        if not (0 <= self.threshold <= 2 and 0 < self.most <= 1 and 2 <= self.every <= 64):
            raise BadSetting(
                f"static_patches threshold={self.threshold}, most={self.most}, every={self.every}; needed: "
                "0 <= threshold <= 2, 0 < most <= 1, every 2..64"
            )


@register
@dataclass(frozen=True, kw_only=True)
class StaticPatches(StaticPatchesOptions, Technique):
    """The options, which say it all."""

    kind: ClassVar[str] = "static_patches"
    seam: ClassVar[Seam] = Seam.CARRY
    label: ClassVar[str] = "patches that stand still kept"
    colour: ClassVar[str] = "#3f8f8f"
    needs: ClassVar[tuple[Need, ...]] = (Need.DENOISER, Need.RENEWAL)
    takes: ClassVar[tuple[Part, ...]] = (Part.READING,)
    needs_left: ClassVar[tuple[Part, ...]] = (Part.READING, Part.PATCHES)
    is_static: ClassVar[bool] = False
    Options: ClassVar[type] = StaticPatchesOptions
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"": {}}

    def apply(self, execution: Execution) -> Execution:
        """Read what changed."""
        run = reads_afresh(denoising(execution, self.kind), self.kind)
        if run.select is not keep_all:
            raise PlanMismatch(
                "static_patches keeps patches where they stand, and a technique that drops some moves them; "
                "leave one of both out of the plan"
            )
        return replace(run, read=Changed(self.threshold, self.most, self.every), cycle=self.every)

    @property
    def remark(self) -> str:
        """What a row tells is of a picture that stands still."""
        return f"at most {self.most:.0%}, all anew every {self.every} chunks; of a still picture"

    @classmethod
    def search_space(cls, staged: Any) -> Mapping[str, Choices]:
        """Offer a few."""
        return {"threshold": Between(0.0, 0.2), "most": Between(0.1, 1.0), "every": range(2, 17)}


@dataclass(frozen=True)
class Changed:
    """Reads patches anew that changed; fields as of `StaticPatchesOptions`."""

    threshold: float
    most: float
    every: int

    def __call__(self, execution: Denoising, batch: Batch, carry: Carry) -> tuple[Context, Carry]:
        """Make a context of the patches that changed, and of the others as they were read."""
        policy: Any = execution.policy
        pixels, words = tuple(policy.pixels(batch)), batch[OBS_LANGUAGE_TOKENS]
        left = {PIXELS: pixels, WORDS: words, LOOKED: 1}
        if not carry or carry[LOOKED] >= self.every or not _alike(carry, pixels):
            return self._anew(execution, batch, left)
        left[LOOKED] = carry[LOOKED] + 1
        change = torch.cat(
            [(new - old).abs().mean(-1) for new, old in zip(pixels, carry[PIXELS], strict=True)], dim=1
        )
        n = change.shape[1]
        counts = (change > self.threshold).sum(1).clamp(min=n - math.floor(self.most * n))  # (B,)
        is_same = words.shape == carry[WORDS].shape and bool((words == carry[WORDS]).all())
        low, high = torch.stack([counts.min(), counts.max()]).tolist()
        if low == n:
            return self._anew(execution, batch, left)
        if high == 0 and is_same:
            return policy.perceive(batch, carry[SEEN]), {**left, SEEN: carry[SEEN], PIXELS: carry[PIXELS]}
        order = change.argsort(dim=1, descending=True)[:, :high]
        is_fresh = torch.arange(high, device=order.device) < counts[:, None]
        patches = torch.where(is_fresh, order, n)  # n: that of none
        context, left[SEEN] = policy.renew(batch, carry[SEEN], patches, execution.language)
        left[PIXELS] = _read(pixels, carry[PIXELS], patches)
        return context, left

    def _anew(self, execution: Denoising, batch: Batch, left: dict[str, Any]) -> tuple[Context, Carry]:
        """Read everything."""
        context, seen = read(cast(RenewingPolicy, execution.policy), batch, execution.language)
        return context, {**left, SEEN: seen, LOOKED: 1}


def _alike(carry: Carry, pixels: tuple[Tensor, ...]) -> bool:
    """Whether there are as many patches as before: no camera was lost, or came."""
    return [each.shape for each in carry[PIXELS]] == [each.shape for each in pixels]


def _read(new: tuple[Tensor, ...], old: tuple[Tensor, ...], patches: Tensor) -> tuple[Tensor, ...]:
    """Pixels of every patch as it was last read, now that these (B, k) were."""
    counts = [each.shape[1] for each in new]
    is_read = torch.zeros(len(patches), sum(counts) + 1, dtype=torch.bool, device=patches.device)
    parts = is_read.scatter(1, patches, True)[:, :-1].split(counts, dim=1)
    return tuple(torch.where(it[..., None], n, o) for it, n, o in zip(parts, new, old, strict=True))
