"""See once for several chunks: what cameras and instruction gave is reused, the state is read anew.

Reading pictures takes most of a chunk where the denoiser is small, and from one chunk to the next they change
little. So every n-th chunk of an episode looks; those between denoise with the features that the last look
left, and with the state and the noise of their own moment. FlashRT runs a VLA so on an Orin, 127 and 39 ms in
turn. The first chunk of an episode looks, and so does one after a late, skipped or refused chunk.

Cameras may have rates of their own, such as a wrist's every chunk and a table's every third. A chunk that
looks at some of them saves the vision tower of the others alone: patches are mixed in the language stage,
which reads them all once more. One that looks at none saves both.

It fits policies whose context comes apart into what is seen and what is felt (`SeeingPolicy`). Where pictures
look at a prompt that tells the state (`pi05`), the prompt is read anew beside what was seen, so actions look
at the state of now, and at pictures as they were read beside the state of then. Where the state cannot be
told from the rest, reusing the context would act on a state of n - 1 chunks ago and say nothing of it: such a
policy is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import lcm
from typing import Annotated, Any, ClassVar, cast

from vivace.accel.registry import register
from vivace.accel.technique import Need, Part, Seam, Technique, denoising
from vivace.accel.variant import Choices
from vivace.policies.cameras import NO_LOOKS
from vivace.policies.carry import LOOKED, LOOKS, SEEN, Carry
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import Denoising, Execution, read_afresh
from vivace.policies.plain_data import Longest
from vivace.policies.seeing import LookingPolicy, read
from vivace.policies.staged import Batch, Context

_MOST = 64


@dataclass(frozen=True, kw_only=True)
class FrameCacheOptions:
    """How often a policy looks."""

    every: int = 2
    """Chunks made of one look: 2 to 64."""
    cameras: Mapping[str, int] = field(default_factory=dict)
    """Camera -> chunks made of one look at it, 1 to 64, where that is not `every`; names are those of the
    policy's observations, observation.images.…"""

    def __post_init__(self) -> None:
        """Some chunks must do without a look."""
        if not 2 <= self.every <= _MOST:
            raise BadSetting(f"frame_cache every={self.every}; needed: 2..{_MOST}")
        for camera, every in self.cameras.items():
            if not 1 <= every <= _MOST:
                raise BadSetting(f"frame_cache reads {camera} every {every}; needed: 1..{_MOST}")
        if lcm(self.every, *self.cameras.values()) > _MOST:
            told = ", ".join(map(str, (self.every, *self.cameras.values())))
            raise BadSetting(
                f"frame_cache looks every {told} chunks, which meet not within {_MOST}; choose such as do"
            )


@register
@dataclass(frozen=True, kw_only=True)
class FrameCache(Technique):
    """How often a policy looks."""

    kind: ClassVar[str] = "frame_cache"
    seam: ClassVar[Seam] = Seam.CARRY
    label: ClassVar[str] = "cameras read every 2nd chunk"
    colour: ClassVar[str] = "#2c7fb8"
    needs: ClassVar[tuple[Need, ...]] = (Need.DENOISER, Need.SIGHT)
    takes: ClassVar[tuple[Part, ...]] = (Part.READING,)
    needs_left: ClassVar[tuple[Part, ...]] = (Part.READING,)
    is_static: ClassVar[bool] = True
    Options: ClassVar[type] = FrameCacheOptions

    every: int = 2
    """Chunks made of one look."""
    cameras: Annotated[Mapping[str, int], Longest(16)] = field(default_factory=dict)
    """Camera -> chunks made of one look at it, where that is not `every`."""

    def __post_init__(self) -> None:
        """As of the options."""
        FrameCacheOptions(every=self.every, cameras=self.cameras)

    def check(self, execution: Execution) -> None:
        """Raise if the policy cannot see apart, or has no such cameras."""
        super().check(execution)
        if not self.cameras:
            return
        Need.CAMERAS.require(execution.policy, self.kind)
        known = cast(LookingPolicy, execution.policy).cameras
        unknown = [camera for camera in self.cameras if camera not in known]
        if unknown or max(self._rates(known).values()) == 1:
            told = f"{unknown[0]!r}, which is none" if unknown else "each at every chunk"
            raise PlanMismatch(
                f"frame_cache has rates of cameras, {told}; this policy has {', '.join(known)}, and one of "
                "them at least must be read more seldom than every chunk"
            )

    def apply(self, execution: Execution) -> Execution:
        """Look so often."""
        run = reads_afresh(denoising(execution, self.kind), self.kind)
        rates = self._rates(cast(LookingPolicy, run.policy).cameras) if self.cameras else {}
        read = EveryNth(self.every, rates)
        return replace(run, read=read, cycle=read.cycle)

    def _rates(self, cameras: tuple[str, ...]) -> dict[str, int]:
        """Camera -> chunks made of one look at it, of all there are."""
        return {camera: self.cameras.get(camera, self.every) for camera in cameras}

    @property
    def remark(self) -> str:
        """What a row tells is the mean of chunks that look and that do not."""
        told = [f"{camera.rpartition('.')[2]} every {n}" for camera, n in self.cameras.items()]
        n = lcm(self.every, *self.cameras.values())
        return ", ".join([f"every {self.every}", *told, f"mean of {n} chunks"])

    @classmethod
    def search_space(cls, staged: Any) -> Mapping[str, Choices]:
        """Offer a few."""
        return {"every": range(2, 5)}


@dataclass(frozen=True)
class EveryNth:
    """Reads cameras for every n-th chunk only."""

    every: int
    rates: Mapping[str, int] = field(default_factory=dict)
    """Of every camera, where they have rates of their own."""

    @property
    def cycle(self) -> int:
        """Chunks after which all cameras are read at once again."""
        return lcm(*self.rates.values()) if self.rates else self.every

    def __call__(self, execution: Denoising, batch: Batch, carry: Carry) -> tuple[Context, Carry]:
        """Make a context of the last look, or look anew, at all cameras or at those whose turn it is."""
        policy: Any = execution.policy
        n = carry[LOOKED] % self.cycle if carry else 0
        due = [camera for camera, rate in self.rates.items() if n % rate == 0 and camera in batch]
        if n and not due:
            kept = {name: carry[name] for name in (SEEN, LOOKS) if name in carry}
            return policy.perceive(batch, carry[SEEN]), {**kept, LOOKED: n + 1}
        looks = {**(carry[LOOKS] if n else {}), **policy.look(batch, due)} if due else NO_LOOKS
        context, seen = read(policy, batch, execution.language, execution.select, looks)
        return context, {SEEN: seen, LOOKED: n + 1, **({LOOKS: looks} if due else {})}


def reads_afresh(execution: Denoising, kind: str) -> Denoising:
    """Return an execution whose reading is as trained; raises `PlanMismatch` if another changed it."""
    if execution.read is not read_afresh:
        raise PlanMismatch(
            f"{kind} decides what is read of an observation, and so does another technique of the plan; "
            "leave one of them out"
        )
    return execution
