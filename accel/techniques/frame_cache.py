"""See once for several chunks: what cameras and instruction gave is reused, the state is read anew.

Reading pictures takes most of a chunk where the denoiser is small, and from one chunk to the next they change
little. So every n-th chunk of an episode looks; those between denoise with the features that the last look
left, and with the state and the noise of their own moment. FlashRT runs a VLA so on an Orin, 127 and 39 ms in
turn. The first chunk of an episode looks, and so does one after a late, skipped or refused chunk.

It fits policies whose context comes apart into what is seen and what is felt (`SeeingPolicy`). Where the
state is read together with the pictures, in a prompt or a prefix, reusing the context would act on a state of
n - 1 chunks ago and say nothing of it: such a policy is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

from vivace.accel.registry import register
from vivace.accel.technique import Need, Seam, Technique, denoising
from vivace.accel.variant import Choices
from vivace.policies.carry import Carry
from vivace.policies.errors import BadSetting
from vivace.policies.execution import Denoising, Execution
from vivace.policies.staged import Batch, Context, SeeingPolicy

SEEN, LOOKED = "seen", "looked"
"""What is left: what the last look gave, and how many chunks were made of it."""
_MOST = 64


@dataclass(frozen=True, kw_only=True)
class FrameCacheOptions:
    """How often a policy looks."""

    every: int = 2
    """Chunks made of one look: 2 to 64."""

    def __post_init__(self) -> None:
        """Some chunks must do without a look."""
        if not 2 <= self.every <= _MOST:
            raise BadSetting(f"frame_cache every={self.every}; needed: 2..{_MOST}")


@register
@dataclass(frozen=True, kw_only=True)
class FrameCache(Technique):
    """How often a policy looks."""

    kind: ClassVar[str] = "frame_cache"
    seam: ClassVar[Seam] = Seam.CARRY
    label: ClassVar[str] = "cameras read every 2nd chunk"
    colour: ClassVar[str] = "#2c7fb8"
    needs: ClassVar[tuple[Need, ...]] = (Need.DENOISER, Need.SIGHT)
    is_static: ClassVar[bool] = True
    Options: ClassVar[type] = FrameCacheOptions

    every: int = 2
    """Chunks made of one look."""

    def __post_init__(self) -> None:
        """As of the options."""
        FrameCacheOptions(every=self.every)

    def apply(self, execution: Execution) -> Execution:
        """Look so often."""
        return replace(denoising(execution, self.kind), read=EveryNth(self.every), cycle=self.every)

    @property
    def remark(self) -> str:
        """What a row tells is the mean of chunks that look and that do not."""
        return f"every {self.every}, mean of {self.every} chunks"

    @classmethod
    def search_space(cls, staged: Any) -> Mapping[str, Choices]:
        """Offer a few."""
        return {"every": range(2, 5)}


@dataclass(frozen=True)
class EveryNth:
    """Reads cameras for every n-th chunk only."""

    every: int

    def __call__(self, execution: Denoising, batch: Batch, carry: Carry) -> tuple[Context, Carry]:
        """Make a context of the last look, or look anew."""
        policy = cast(SeeingPolicy, execution.policy)
        if carry and carry[LOOKED] < self.every:
            seen, looked = carry[SEEN], carry[LOOKED]
        else:
            seen, looked = policy.see(batch, execution.language, execution.select), 0
        return policy.perceive(batch, seen), {SEEN: seen, LOOKED: looked + 1}
