"""What staged forms of policies share, whatever their network."""

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, Self

import torch
import torch.nn.functional as F
from lerobot.utils.constants import OBS_IMAGES
from torch import Tensor

from vivace.policies.action_kinds import kinds_of_config
from vivace.policies.batch import Batch, assembled, told_besides
from vivace.policies.block import Block, HasBlocks, Runner, compute
from vivace.policies.errors import ObservationMismatch, UnsupportedPolicy
from vivace.policies.language.llama import Reads
from vivace.policies.language.prefix import PatchSelector, keep_all
from vivace.policies.placement import Placement
from vivace.policies.sampling.sampler import Sampler
from vivace.policies.spec import ActionKind, BlockInfo, PolicySpec
from vivace.policies.vla.siglip import StagedSiglip


class _OfLeRobot(HasBlocks):
    """What is taken apart of a policy of lerobot's, and so is somewhere, and computes in something."""

    policy: Any
    spec: PolicySpec
    stages: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    """vision, language, action -> paths in `policy` of the modules in which its layers are called."""

    absent: frozenset[str] = frozenset()
    """Cameras of the policy's that nobody has, besides its `empty_cameras`."""

    chunk_method = "predict_action_chunk"
    """As of `DropIn`, and so are the next two; here what holds for policies of one observation."""

    def with_weights(self, policy: Any) -> Self:
        """Return the staged form of a twin with other weights."""
        check_own_blocks(self, self.spec, "exchange its weights")
        form: Any = type(self)
        twin: Self = form(policy, self.spec.action_kinds)
        twin.spec, twin.placement = self.spec, self.placement  # whatever some of its layers compute in
        twin.absent = self.absent
        return twin

    @property
    def cameras(self) -> tuple[str, ...]:
        """Those that somebody has, by the policy's own names."""
        config = self.policy.config
        n = len(config.image_features) - getattr(config, "empty_cameras", 0)
        return tuple(key for key in tuple(config.image_features)[:n] if key not in self.absent)

    def window(self, given: Batch) -> Batch:
        """What `encode` takes: observations get a time axis (B, 1, ...)."""
        own = [key for key in self.policy.config.input_features if key in given]
        return assembled([given], own, len(given[own[0]]))

    def returned(self, actions: Tensor) -> Tensor:
        """The whole chunk."""
        return actions

    @cached_property
    def placement(self) -> Placement:
        """Where it computes, and in what: that of its weights when it was made."""
        return Placement.of(self.policy)


class DenoisingForm(_OfLeRobot):
    """What denoises."""

    def hoist(self, sampler: Sampler) -> Any:
        """Return a twin that computes once what depends on the timestep or the observation alone.

        Raises:
            UnsupportedPolicy: it cannot be hoisted, or its blocks were replaced before it was.
        """
        check_own_blocks(self, self.spec, "hoist")
        return self._hoisted(sampler)

    def _hoisted(self, sampler: Sampler) -> Any:
        """Make the hoisted form."""
        raise UnsupportedPolicy(f"policy {self.spec.type!r} has no hoisted form; leave it unhoisted")

    def finish(self, x: Tensor, context: Any) -> Tensor:
        """Cut the last x (B, *latent_shape) to actions (B, H, A); x itself where it is no larger."""
        shape = self.spec.horizon, self.spec.action_dim
        return x if x.shape[1:] == shape else x[:, : shape[0], : shape[1]]


class CausalForm(DenoisingForm):
    """What denoises actions that do not look at those behind them."""

    is_causal = True

    def with_horizon(self, horizon: int) -> Self:
        """Return a twin whose chunks are the first `horizon` actions; noise is drawn for all there were."""
        twin = copy.copy(self)
        whole, _ = self.spec.latent_shape
        twin.spec = replace(self.spec, horizon=horizon, latent_horizon=whole, is_cut=True)
        return twin

    def denoise(self, x: Tensor, condition: Any, run: Runner = compute) -> Tensor:
        """Predict noise or velocity (B, *latent_shape) at x of that shape; 0 of actions that are cut off."""
        n, whole = self.spec.horizon, x.shape[1]
        if n == whole:
            return self._denoise(x, condition, run)
        return F.pad(self._denoise(x[:, :n], condition, run), (0, 0, 0, whole - n))

    def _denoise(self, x: Tensor, condition: Any, run: Runner) -> Tensor:
        """Predict it at x (B, H, n) of the actions that a chunk has."""
        raise NotImplementedError


class CamerasForm(_OfLeRobot):
    """What runs its vision tower once a camera."""

    is_together = False
    """Whether pictures of one size go through it in one call instead."""

    def with_cameras_together(self) -> Self:
        """Return a twin that looks at pictures of one size in one call."""
        twin = copy.copy(self)
        twin.is_together = True
        return twin


class LackingForm(_OfLeRobot):
    """What acts without some of its cameras, as in lerobot: as of `LackingPolicy`."""

    def without_cameras(self, absent: Collection[str]) -> Self:
        """Return a twin that counts on no picture of these."""
        twin = copy.copy(self)
        twin.absent = self.absent | frozenset(absent)
        return twin


class VisionForm(_OfLeRobot):
    """What reads observations by a reader, which runs a vision tower that comes apart."""

    _reader: Any

    @property
    def n_patches(self) -> tuple[int, ...]:
        """Patches of each camera that somebody has."""
        found: tuple[int, ...] = self._reader.patches_of(self.cameras)
        return found

    @property
    def vision(self) -> StagedSiglip:
        """The vision tower, run once a camera."""
        tower: StagedSiglip = self._reader.vision
        return tower

    def with_vision(self, vision: StagedSiglip) -> Self:
        """Return a twin with another form of its vision tower."""
        twin = copy.copy(self)
        twin._reader = copy.copy(self._reader)
        twin._reader.vision = vision
        return twin


class LanguageForm(_OfLeRobot):
    """What has a language stage: its layers, its weights, its blocks."""

    language: Any
    """A `LanguageStage`: a `StagedLlama`, a `StagedQwen3VL`, …"""
    blocks: tuple[Block, ...] = ()
    last_read: Reads
    """What is read of the language stage's last layer: all that `without("last_layer")` computes of it."""
    left_out: frozenset[str] = frozenset()
    """Parts of its work that nobody reads and that are not done."""

    def without(self, parts: tuple[str, ...]) -> Self:
        """Return a twin that leaves out these parts of `dead_work`."""
        twin = copy.copy(self)
        twin.left_out = self.left_out | frozenset(parts)
        if "last_layer" in parts:
            twin.language = self.language.reading(self.last_read)
        return twin

    def with_blocks(self, fn: Callable[[Block], Block]) -> Self:
        """Return a twin that runs `fn(block)` in the place of every block, the language stage's too."""
        twin = super().with_blocks(fn)
        twin.language = self.language.with_blocks(fn)
        return twin

    def with_layers(self, kept: tuple[int, ...]) -> Self:
        """Return a twin that runs these language layers only, ascending indices of the layers there are."""
        twin = copy.copy(self)
        twin.language = self.language.with_layers(kept)
        return twin

    def with_branches(self, kept: tuple[int, ...]) -> Self:
        """Return a twin without the other language layers: keys and values of theirs nobody reads here."""
        return self.with_layers(kept)


class SeeingForm(DenoisingForm):
    """What denoises, and reads its cameras apart from what it feels, without patches to choose from."""

    see: Callable[..., Any]
    """As of `SeeingPolicy`, and so is the next."""
    perceive: Callable[..., Any]

    @property
    def sees(self) -> bool:
        """Whether it has cameras."""
        return bool(self.policy.config.image_features)

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Any:
        """Read an observation: what is seen, and with it what is felt."""
        return self.perceive(batch, self.see(batch))


def check_own_blocks(form: HasBlocks, spec: PolicySpec, wanted: str) -> None:
    """Refuse what makes a policy's own blocks anew: those that stand for them would be lost in silence."""
    if form.is_replaced:
        raise UnsupportedPolicy(
            f"policy {spec.type!r} runs others in the place of its blocks, and would run its own again; "
            f"{wanted} before they are replaced"
        )


def stacked(batch: Batch, cameras: Sequence[str]) -> Tensor:
    """Pictures of all cameras (B, To, cameras, 3, H, W), as lerobot's diffusion policies read them.

    Raises:
        ObservationMismatch: they are of several sizes.
    """
    check_one_size({key: batch[key].shape[-2:] for key in cameras})
    return torch.stack([batch[key] for key in cameras], dim=-4)


def check_one_size(sizes: Mapping[str, Sequence[int]], cause: Exception | None = None) -> None:
    """Raise `ObservationMismatch` if the cameras' pictures are of several sizes.

    Args:
        sizes: camera -> height and width.
        cause: what came of it already.
    """
    if len({tuple(size) for size in sizes.values()}) > 1:
        told = ", ".join(f"{key} {' x '.join(map(str, size))}" for key, size in sizes.items())
        raise ObservationMismatch(
            f"the cameras' pictures are {told}; this policy takes pictures of one size; resize them alike"
        ) from cause


def told_of(blocks: Sequence[Block]) -> tuple[BlockInfo, ...]:
    """What a spec says of blocks."""
    return tuple(BlockInfo(block.id, block.additive) for block in blocks)


def unstacked(given: Batch, config: Any) -> Batch:
    """Undo `stacked`: what those policies have queued, each camera's (B, To, 3, H, W) under its own name."""
    cameras = list(config.image_features)
    pictures = given[OBS_IMAGES].unbind(-4) if cameras else ()
    seen = {key: given[key] for key in config.input_features if key in given}
    return seen | dict(zip(cameras, pictures, strict=True)) | told_besides(given, {*seen, OBS_IMAGES})


def policy_spec(
    config: Any,
    blocks: Sequence[Block],
    action_kinds: tuple[ActionKind, ...] = (),
    latent_dim: int | None = None,
) -> PolicySpec:
    """Read a policy's spec from its lerobot config; what its actions mean as of `kinds_of_config`."""
    action_dim = config.action_feature.shape[0]
    return PolicySpec(
        type=config.type,
        action_dim=action_dim,
        horizon=len(config.action_delta_indices),
        n_obs_steps=config.n_obs_steps,
        n_action_steps=config.n_action_steps,
        observation_shapes={key: tuple(f.shape) for key, f in config.input_features.items()},
        action_kinds=kinds_of_config(config, action_kinds, action_dim),
        blocks=told_of(blocks),
        control_hz=getattr(config, "control_hz", None),
        latent_dim=latent_dim,
    )
