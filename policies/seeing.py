"""The staged forms of policies that see: what comes apart of how they read their cameras."""

from collections.abc import Collection, Sequence
from typing import Any, Protocol, Self, runtime_checkable

from torch import Tensor
from typing_extensions import TypeIs

from vivace.policies.batch import Batch
from vivace.policies.block import Runner, compute
from vivace.policies.cameras import NO_LOOKS, Looks
from vivace.policies.language.prefix import PatchSelector, keep_all
from vivace.policies.spec import PolicySpec
from vivace.policies.staged import Context, DenoisingPolicy


@runtime_checkable
class SeeingPolicy(DenoisingPolicy, Protocol):
    """A policy whose context comes apart: what is seen, which is slow to read, and what is felt now.

    `encode` is `perceive` of what `see` reads, up to rounding. What is felt, such as the state, is all in
    `perceive`. Where what is seen looks at what is felt, as in a prompt that tells the state, `perceive`
    reads that prompt anew, and what was seen before knows what was felt then.
    """

    @property
    def sees(self) -> bool:
        """Whether it has cameras at all."""

    def see(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Any:
        """Read cameras and instruction; a tree of tensors (B, ...)."""

    def perceive(self, batch: Batch, seen: Any) -> Context:
        """Make the context of what was seen, now or before, and of what is felt now."""


@runtime_checkable
class PromptedPolicy(SeeingPolicy, Protocol):
    """A policy whose prompt tells what it feels, and is looked at by what it sees.

    `perceive` reads the prompt once more, which is wasted on a chunk that sees.
    """

    def read(
        self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all, looks: Looks = NO_LOOKS
    ) -> tuple[Context, Any]:
        """Return the context of now, and what is seen of it; arguments as of `see`."""


@runtime_checkable
class LackingPolicy(Protocol):
    """A policy, of either form, that acts without some of its cameras, as it does in lerobot.

    Their places in what is read are filled and masked, or left out, whatever lerobot's policy does. One
    camera at least is needed.
    """

    spec: PolicySpec

    def without_cameras(self, absent: Collection[str]) -> Self:
        """Return a twin that counts on no picture of these, by the policy's own names."""


@runtime_checkable
class LookingPolicy(Protocol):
    """A policy, of either form, that runs its vision tower once a camera.

    If it is a `SeeingPolicy` too, its `see` takes what was looked at before, `see(..., looks)`: it looks at
    the other cameras alone.
    """

    spec: PolicySpec

    @property
    def cameras(self) -> tuple[str, ...]:
        """Those that somebody has."""

    def look(self, batch: Batch, cameras: Collection[str]) -> Looks:
        """What the tower makes of the pictures of these cameras; one row an observation."""

    def with_cameras_together(self) -> Self:
        """Return a twin that looks at pictures of one size in one call; equal up to rounding."""


@runtime_checkable
class RenewingPolicy(SeeingPolicy, Protocol):
    """A policy that keeps what its language stage writes of patches, and can read some of them anew."""

    def pixels(self, batch: Batch) -> Sequence[Tensor]:
        """Pixels of each patch (B, n, p) of each camera there is, in the order they are read.

        Raises:
            UnsupportedPolicy: patches do not tile the picture in a square.
        """

    def renew(self, batch: Batch, seen: Any, patches: Tensor, run: Runner = compute) -> tuple[Context, Any]:
        """Read some patches anew, and the instruction, which look at the other patches as they were read.

        Args:
            batch: normalised observations.
            seen: what `see`, or this, made of as many patches before.
            patches: which (B, k), counted over all cameras; the number of patches, where a row has fewer.
            run: runs the blocks of the language stage.

        Returns:
            The context of now, and what is seen by now.
        """


def read(
    policy: SeeingPolicy,
    batch: Batch,
    run: Runner = compute,
    select: PatchSelector = keep_all,
    looks: Looks = NO_LOOKS,
) -> tuple[Context, Any]:
    """Return the context of now, and what is seen of it.

    Args:
        policy: that sees.
        batch: normalised observations.
        run: as of `see`.
        select: as of `see`.
        looks: as of `LookingPolicy`, which it must be if there are any.
    """
    if isinstance(policy, PromptedPolicy):
        return policy.read(batch, run, select, looks)
    sees: Any = policy
    seen = sees.see(batch, run, select, looks) if looks else sees.see(batch, run, select)
    return policy.perceive(batch, seen), seen


def has_sight(policy: object) -> TypeIs[SeeingPolicy]:
    """Whether what a policy sees can be read apart from what it feels."""
    return isinstance(policy, SeeingPolicy) and policy.sees


def looks_apart(policy: object) -> TypeIs[LookingPolicy]:
    """Whether a policy looks at several cameras, each in a call of its own."""
    return isinstance(policy, LookingPolicy) and len(policy.cameras) > 1


def may_lack(policy: object) -> TypeIs[LackingPolicy]:
    """Whether a policy acts without some of its cameras."""
    return isinstance(policy, LackingPolicy)


def renews(policy: object) -> TypeIs[RenewingPolicy]:
    """Whether a policy can read some of its patches anew."""
    return isinstance(policy, RenewingPolicy) and policy.sees
