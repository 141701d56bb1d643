"""lerobot's `act` in stages: `vision.i` per camera -> `encoder.i.{attn,mlp}` -> `action.i.{self,cross,mlp}`.

ACT makes its chunk in one pass: the decoder is asked with zeros, and nothing is denoised. It is a
`DenoisingPolicy` all the same, whose sampler has one step that takes the decoder's output as it is: so it is
loaded, batched, timed, compiled and counted as all others are, by one execution, and what works on denoising
steps refuses it by name, since its step is no table of a known process. The noise of a chunk is not read.

`StagedACT` runs lerobot's own modules and is bit-equal to `ACTPolicy.predict_action_chunk`. Temporal
ensembling, which `select_action` adds, is the control loop's (`spec.temporal_ensemble`).

Left out on request, equal to 1e-5:
- `constants`: what depends on weights and sizes alone is computed once: the first decoder layer's
  self-attention, which sees zeros; the latent's token, which is a bias; positions; and the normalisation that
  the ResNet holds frozen, folded into its convolutions.
- `attention_weights`: lerobot's attention returns its weights, averaged over heads; nobody reads them.
"""

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, Self

import torch
from lerobot.policies.act.modeling_act import ACTDecoderLayer, ACTEncoderLayer, ACTPolicy
from lerobot.utils.constants import OBS_ENV_STATE, OBS_STATE
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_weights
from torchvision.ops.misc import FrozenBatchNorm2d

from vivace.policies.batch import Batch, rows_of
from vivace.policies.block import Block, Runner, compute, through
from vivace.policies.cameras import Looks, look_at
from vivace.policies.dtype import cast
from vivace.policies.errors import ObservationMismatch, UnsupportedPolicy
from vivace.policies.forms import CamerasForm, DenoisingForm, check_own_blocks, policy_spec
from vivace.policies.language.prefix import PatchSelector, keep_all
from vivace.policies.sampling.sampler import Sampler, Step
from vivace.policies.sampling.samplers import OWN, Spacing
from vivace.policies.spec import ActionKind

CONSTANTS, ATTENTION_WEIGHTS = "constants", "attention_weights"
Branch = Callable[..., Tensor]


class Context(NamedTuple):
    """What the decoder attends to."""

    memory: Tensor
    """Output of the encoder (S, B, D)."""
    positions: Tensor
    """Of its tokens (S, 1, D)."""


@dataclass(frozen=True)
class _Constants:
    """What depends on weights and sizes alone."""

    latent: Tensor
    """The latent's token (1, D)."""
    positions: Tensor
    """Of all tokens of the encoder (S, 1, D)."""


class StagedACT(CamerasForm, DenoisingForm):
    """lerobot's Action Chunking Transformer, over its own modules."""

    _needs_weights = True
    """Whether attention is to return its weights too, as lerobot asks it."""
    _constants: _Constants | None = None

    def __init__(self, policy: ACTPolicy, action_kinds: tuple[ActionKind, ...] = ()):
        self.policy = policy.eval()
        self.network = policy.model
        self.sampler = Sampler("one pass", (Step(0, torch.tensor(0), _take),)).on(self.placement.device)
        self._take_apart(getattr(self.network, "backbone", None))
        self.spec = policy_spec(policy.config, self.blocks, action_kinds)
        self.stages = {"action": ("model.encoder", "model.decoder", "model.action_head")}
        if policy.config.image_features:
            self.stages["vision"] = ("model.backbone", "model.encoder_img_feat_input_proj")

    def _take_apart(self, backbone: Any) -> None:
        """Make the blocks of cameras, encoder and decoder."""
        net, is_pre = self.network, self.policy.config.pre_norm

        def see(picture: Tensor) -> Tensor:
            return net.encoder_img_feat_input_proj(backbone(picture)["feature_map"])

        cameras = range(len(self.policy.config.image_features))
        self.vision = tuple(Block(f"vision.{i}.resnet", see, additive=False) for i in cameras)
        self.encoder = tuple(
            block
            for i, layer in enumerate(net.encoder.layers)
            for block in self._encoder_layer(i, layer, is_pre)
        )
        self.blocks = tuple(
            block
            for i, layer in enumerate(net.decoder.layers)
            for block in self._decoder_layer(i, layer, is_pre)
        )

    def _encoder_layer(self, i: int, layer: ACTEncoderLayer, is_pre: bool) -> tuple[Block, ...]:
        def attend(h: Tensor, positions: Tensor) -> Tensor:
            q = h + positions
            return self._attended(layer.self_attn, q, q, h)

        return (
            _residual(f"encoder.{i}.attn", layer.norm1, attend, is_pre),
            _residual(f"encoder.{i}.mlp", layer.norm2, _mlp(layer), is_pre),
        )

    def _decoder_layer(self, i: int, layer: ACTDecoderLayer, is_pre: bool) -> tuple[Block, ...]:
        positions = self.network.decoder_pos_embed.weight.unsqueeze(1)

        def attend(h: Tensor) -> Tensor:
            q = h + positions
            return self._attended(layer.self_attn, q, q, h)

        def look(h: Tensor, memory: Tensor, keys: Tensor) -> Tensor:
            return self._attended(layer.multihead_attn, h + positions, keys, memory)

        return (
            _residual(f"action.{i}.self", layer.norm1, attend, is_pre),
            _residual(f"action.{i}.cross", layer.norm2, look, is_pre),
            _residual(f"action.{i}.mlp", layer.norm3, _mlp(layer), is_pre),
        )

    def _attended(self, attention: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, value=v, need_weights=self._needs_weights)[0]

    def with_blocks(self, fn: Callable[[Block], Block]) -> Self:
        """Return a twin that runs `fn(block)` in the place of every block, those of `encode` too."""
        twin = super().with_blocks(fn)
        twin.vision = tuple(fn(block) for block in self.vision)
        twin.encoder = tuple(fn(block) for block in self.encoder)
        return twin

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Context:
        """Encode the latest observation (B, 1, ...): latent, state, what is told of the world, pictures."""
        own = self.policy.config.input_features
        batch = cast({key: batch[key][:, 0] for key in own}, self.placement.dtype)
        pictures = {key: batch[key] for key in self.policy.config.image_features}
        seen = list(self._looks(pictures, run).values())
        tokens = torch.cat([torch.stack(self._vectors(batch)), *map(_rows, seen)])  # (S, B, D)
        positions = self._positions(seen) if self._constants is None else self._constants.positions
        if len(positions) != len(tokens):
            raise ObservationMismatch(
                f"pictures give {len(tokens)} tokens, those of config.json's sizes {len(positions)}, for "
                "which positions were computed; give pictures of the policy's own size"
            )
        for attend, think in zip(self.encoder[::2], self.encoder[1::2], strict=True):
            tokens = through(run, attend, tokens, positions)
            tokens = through(run, think, tokens)
        return Context(self.network.encoder.norm(tokens), positions)

    def look(self, batch: Batch, cameras: Collection[str]) -> Looks:
        """What the ResNet makes of the pictures of these cameras, (B, D, h, w) each."""
        chosen = {key: batch[key][:, 0] for key in self.policy.config.image_features if key in cameras}
        return self._looks(cast(chosen, self.placement.dtype), compute)

    def _looks(self, pictures: Looks, run: Runner) -> Looks:
        """What the ResNet makes of pictures: each camera's block, or the first one of all."""
        if self.is_together:
            return look_at(partial(through, run, self.vision[0]), pictures, is_together=True)
        blocks = dict(zip(self.policy.config.image_features, self.vision, strict=True))
        return {key: through(run, blocks[key], picture) for key, picture in pictures.items()}

    def _vectors(self, batch: Batch) -> list[Tensor]:
        """Tokens (B, D) of what is no picture."""
        net, config, rows = self.network, self.policy.config, rows_of(batch)
        known = self._constants
        found = [self._latent(rows) if known is None else known.latent.expand(rows, -1)]
        if config.robot_state_feature:
            found.append(net.encoder_robot_state_input_proj(batch[OBS_STATE]))
        if config.env_state_feature:
            found.append(net.encoder_env_state_input_proj(batch[OBS_ENV_STATE]))
        return found

    def _latent(self, rows: int) -> Tensor:
        """Token (B, D) of the latent, which is zero outside training, with or without a VAE."""
        size, place = self.policy.config.latent_dim, self.placement
        zeros = torch.zeros(rows, size, dtype=place.dtype, device=place.device)
        return self.network.encoder_latent_input_proj(zeros)

    def _positions(self, seen: list[Tensor]) -> Tensor:
        """Positions (S, 1, D) of vectors and of pictures as they were seen (B, D, h, w)."""
        net = self.network
        found = [net.encoder_1d_feature_pos_embed.weight.unsqueeze(1)]
        found += [_rows(net.encoder_cam_feat_pos_embed(h).to(h.dtype)) for h in seen]
        return torch.cat(found)

    def condition(self, step: Step, context: Context) -> tuple[Tensor, Tensor]:
        """What the decoder attends to, and its keys, (S, B, D) both."""
        return context.memory, context.memory + context.positions

    def denoise(self, x: Tensor, condition: tuple[Tensor, Tensor], run: Runner = compute) -> Tensor:
        """Predict actions (B, H, A); of x nothing is read."""
        memory, keys = condition
        config = self.policy.config
        h = memory.new_zeros(config.chunk_size, memory.shape[1], config.dim_model)
        layers = zip(self.blocks[::3], self.blocks[1::3], self.blocks[2::3], strict=True)
        for attend, look, think in layers:
            h = through(run, attend, h)
            h = through(run, look, h, memory, keys)
            h = through(run, think, h)
        return self.network.action_head(self.network.decoder.norm(h).transpose(0, 1))

    def chunk(self, context: Context) -> Tensor:
        """Normalised actions (B, H, A) of what `encode` gave: all there is to a chunk, in one pass."""
        empty = context.memory.new_empty(0)
        return self.finish(self.denoise(empty, self.condition(self.sampler.steps[0], context)), context)

    def resample(self, name: str, n_steps: int, spacing: Spacing = OWN) -> Sampler:
        """Refuse: there are no steps."""
        raise UnsupportedPolicy(
            f"policy {self.spec.type!r} makes its chunk in one pass: it has no sampler that could be another"
        )

    @property
    def dead_work(self) -> Mapping[str, str]:
        """What is computed though it never changes, or is never read."""
        return {
            CONSTANTS: "the first decoder layer's self-attention sees zeros, the latent is zero, positions "
            "and the ResNet's normalisation are fixed: computed once",
            ATTENTION_WEIGHTS: "attention returns its weights, averaged over heads, and nobody reads them",
        }

    def without(self, parts: tuple[str, ...]) -> Self:
        """Return a twin that leaves these parts out."""
        check_own_blocks(self, self.spec, "leave out dead work")
        twin = copy.copy(self)
        twin._needs_weights = ATTENTION_WEIGHTS not in parts
        backbone = getattr(self.network, "backbone", None)
        is_folded = CONSTANTS in parts
        twin._take_apart(_without_norms(backbone) if is_folded and backbone is not None else backbone)
        if is_folded:
            with torch.no_grad():
                twin._fold()
        return twin

    def _fold(self) -> None:
        """Compute what is constant."""
        config, place = self.policy.config, self.placement
        zeros = torch.zeros(config.chunk_size, 1, config.dim_model, dtype=place.dtype, device=place.device)
        first = self.blocks[0].fn(zeros)
        start = replace(self.blocks[0], fn=lambda h: first.expand(-1, h.shape[1], -1))
        self.blocks = (start, *self.blocks[1:])
        seen = [self._sized(feature.shape) for feature in config.image_features.values()]
        self._constants = _Constants(self._latent(1), self._positions(seen))

    def _sized(self, shape: tuple[int, ...]) -> Tensor:
        """An empty feature map (1, D, h, w) of a picture of a shape (3, H, W)."""
        like = self.placement
        picture = torch.zeros(1, *shape, dtype=like.dtype, device=like.device)
        size = self.network.backbone(picture)["feature_map"].shape
        return torch.empty(1, self.policy.config.dim_model, *size[-2:], dtype=like.dtype, device=like.device)


def _take(x: Tensor, out: Tensor, memory: Any, noise: Any) -> tuple[Tensor, Any]:
    """The only step: what came out is the chunk."""
    return out, memory


def _residual(block_id: str, norm: nn.Module, branch: Branch, is_pre: bool) -> Block:
    """A branch with its normalisation: before it, and added to the stream; or after the sum, in its place."""
    if is_pre:
        return Block(block_id, lambda h, *cond: branch(norm(h), *cond))
    return Block(block_id, lambda h, *cond: norm(h + branch(h, *cond)), additive=False)


def _mlp(layer: ACTEncoderLayer | ACTDecoderLayer) -> Branch:
    return lambda h: layer.linear2(layer.activation(layer.linear1(h)))


def _rows(h: Tensor) -> Tensor:
    """A feature map (B, D, h, w) as tokens (h w, B, D)."""
    return h.flatten(2).permute(2, 0, 1)


def _without_norms(backbone: nn.Module) -> nn.Module:
    """Return a twin of a ResNet whose frozen normalisations are part of the convolutions before them."""
    twin = copy.deepcopy(backbone)
    leaves = [(name, module) for name, module in twin.named_modules() if module.state_dict()]
    for (_, conv), (name, norm) in pairwise([one for one in leaves if not one[1]._modules]):
        if isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d):
            statistics = norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *statistics)
            owner, _, leaf = name.rpartition(".")
            setattr(twin.get_submodule(owner), leaf, nn.Identity())
    return twin
