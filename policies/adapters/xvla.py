"""lerobot's `xvla` in stages: DaViT -> `language.i.{kv,attn,mlp}` -> joint `action.i.{attn,mlp}` -> decoder.

`StagedXVLA` runs lerobot's own modules and is bit-equal to `XVLAModel.generate_actions`. Its head runs the
action tokens and all context (text and first view as BART read them, the other views, the soft prompts of the
robot's domain) through one stack, where every token looks at every other; only the action tokens are decoded.
`HoistedXVLA` computes once what x does not enter: with [x, p, s] an action, the proprioception and the sines
of the time, and W the encoder's weights of the robot's domain,

    [x, p, s] W + b  =  x W_x  +  (p W_p + b)  +  s W_s

the second term and the context's tokens once a chunk, the third for all steps and domains at construction. It
is equal to 1e-5, since matrix products are then done in other shapes.

Grippers are logits in the network and shares in an action. x is held in actions throughout: what
`postprocess` changes, `preprocess` hides from the network, so nothing else changes, and chunks can continue
others.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from lerobot.policies.xvla import action_hub
from lerobot.policies.xvla.modeling_xvla import XVLAPolicy
from lerobot.policies.xvla.soft_transformer import timestep_embedding
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor

from vivace.policies.action_kinds import kinds_of_config
from vivace.policies.batch import Batch
from vivace.policies.block import Block, Runner, compute, through
from vivace.policies.dtype import cast
from vivace.policies.errors import ObservationMismatch, UnsupportedPolicy
from vivace.policies.forms import DenoisingForm, LackingForm, LanguageForm, check_own_blocks
from vivace.policies.language.bart import StagedBart
from vivace.policies.language.prefix import PatchSelector, PrefixRows, keep_all, take_rows
from vivace.policies.sampling.clean_flow import make_clean_flow_sampler
from vivace.policies.sampling.sampler import Sampler, Step
from vivace.policies.sampling.samplers import OWN
from vivace.policies.sampling.spacing import Spacing
from vivace.policies.spec import ActionKind, BlockInfo, PolicySpec
from vivace.policies.vla.davit import grids, padded_stages, see
from vivace.policies.vla.joint_layer import JointLayer

LAST_LAYER, WINDOWS = "last_layer", "window_padding"


class Seen(NamedTuple):
    """What is made of views and instruction."""

    text: Tensor
    """First view and instruction as BART read them (B, S, D)."""
    views: Tensor
    """Tokens of the other views (B, V, D), zeros of those that are not there."""
    places: Tensor
    """Position embeddings of text and views (1 or B, S + V, W)."""


class Observed(NamedTuple):
    """What is made of an observation, once a chunk."""

    seen: Seen
    proprio: Tensor
    domain: Tensor
    """Id of the robot's domain (B,)."""


class Given(NamedTuple):
    """What the denoiser is given besides x."""

    context: Tensor
    """Tokens (B, C, W): text, views, soft prompts."""
    proprio: Tensor
    time: Tensor
    """Sines of the time (B, T)."""
    domain: Tensor


class StagedXVLA(LackingForm, LanguageForm, DenoisingForm):
    """X-VLA as a `DenoisingPolicy` with a language stage, over its own modules.

    Whatever `n_obs_steps` says, lerobot's policy looks at the newest observation alone.

    Raises:
        UnsupportedPolicy: its action mode is not lerobot's own.
    """

    chunk_method = "_get_action_chunk"

    def __init__(self, policy: XVLAPolicy, action_kinds: tuple[ActionKind, ...] = ()):
        self.policy = policy.eval()
        config, model = policy.config, policy.model
        self.model: Any = model
        self.head: Any = model.transformer
        self.space: Any = model.action_space
        if type(self.space).__module__ != action_hub.__name__:
            raise UnsupportedPolicy(
                f"policy 'xvla' has action_mode={config.action_mode!r}, which is not one of lerobot's own: "
                "what it does to actions is not known here; run it by lerobot"
            )
        self.sampler = self.resample("renoise", max(1, int(config.num_denoising_steps)))
        self.language = StagedBart(model.vlm.language_model.encoder)
        self.stages = {
            "vision": ("model.vlm.vision_tower",),
            "language": ("model.vlm.language_model.encoder.layers",),
            "action": ("model.transformer.blocks",),
        }
        self.tower: Any = model.vlm.vision_tower
        size = config.resize_imgs_with_padding or next(iter(config.image_features.values())).shape[1:]
        self._padded = padded_stages(self.tower, size)
        rows, columns = grids(self.tower, size)[-1]
        self.n_patches = (1 + rows * columns,)  # their mean is one of them
        self._n_finished = self.space.postprocess(torch.zeros(1, 1, model.dim_action)).shape[-1]
        self._build_blocks()
        action_dim = config.action_feature.shape[0]
        self.spec = PolicySpec(
            type=config.type,
            action_dim=action_dim,
            horizon=config.chunk_size,
            n_obs_steps=1,
            n_action_steps=config.n_action_steps,
            observation_shapes={key: tuple(f.shape) for key, f in config.input_features.items()},
            action_kinds=kinds_of_config(config, action_kinds, action_dim),
            blocks=tuple(BlockInfo(block.id, block.additive) for block in self.blocks),
            latent_dim=model.dim_action,
        )

    def _build_blocks(self) -> None:
        """Make the blocks of the head, the last layer without what nobody reads if that is left out."""
        n, modules = self.policy.config.chunk_size, list(self.head.blocks)
        cut = len(modules) - 1 if LAST_LAYER in self.left_out else None
        layers = [JointLayer(layer, n, is_cut=i == cut) for i, layer in enumerate(modules)]

        def blocks(attend: str) -> tuple[Block, ...]:
            return tuple(
                Block(f"action.{i}.{branch}", getattr(layer, name))
                for i, layer in enumerate(layers)
                for branch, name in (("attn", attend), ("mlp", "alone_mlp" if attend == "alone" else "mlp"))
            )

        self.blocks, self._keeping, self._alone = blocks("attend"), blocks("keeping"), blocks("alone")

    @property
    def dead_work(self) -> Mapping[str, str]:
        """Parts of its work that nobody reads."""
        config = self.policy.config
        found = {
            LAST_LAYER: f"of the last of {config.depth} joint layers only the {config.chunk_size} action "
            "tokens are decoded: of the context its keys and values are read, but no query, attention or MLP"
        }
        if self._padded:
            found[WINDOWS] = (
                f"stages {', '.join(map(str, self._padded))} of DaViT pad the windows of their attention: "
                "projections of padding are their bias, and what padding finds is cut off"
            )
        return found

    def without(self, parts: tuple[str, ...]) -> Self:
        """Return a twin that leaves these parts of its dead work out."""
        check_own_blocks(self, self.spec, "leave out dead work")
        twin = copy.copy(self)
        twin.left_out = frozenset(parts)
        twin._build_blocks()
        return twin

    def with_blocks(self, fn: Callable[[Block], Block]) -> Self:
        """Return a twin that runs `fn(block)` in the place of every block; weights are shared."""
        twin = super().with_blocks(fn)
        twin._keeping, twin._alone = (tuple(map(fn, blocks)) for blocks in (self._keeping, self._alone))
        return twin

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Any:
        """Read views, instruction and proprioception."""
        return self.perceive(batch, self.see(batch, run, select))

    @property
    def sees(self) -> bool:
        """Whether it has cameras: always."""
        return True

    def see(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Seen:
        """Read views and instruction."""
        ids = batch[OBS_LANGUAGE_TOKENS]
        images, _ = self.policy._prepare_images(cast(batch, self.placement.dtype))
        features = self._views(images, sum(key in batch for key in self.policy.config.image_features))
        h = torch.cat([features[:, 0], self.model.vlm.get_input_embeddings()(ids)], dim=1)
        is_text = batch.get(OBS_LANGUAGE_ATTENTION_MASK)
        is_text = torch.ones_like(ids, dtype=torch.bool) if is_text is None else is_text.bool()
        text, rows = self.language(h, PrefixRows(self.n_patches, is_text, n_before=0), run, select)
        views = features[:, 1:].flatten(1, 2)
        return Seen(text, views, self._places(h.shape[1], views.shape[1], rows))

    def perceive(self, batch: Batch, seen: Seen) -> Any:
        """What was seen, proprioception, and whose robot it is."""
        whose = (len(seen.text), seen.text.device)
        proprio = self.policy._prepare_state(cast(batch, self.placement.dtype), *whose)
        return Observed(seen, proprio.to(seen.text.dtype), self.policy._get_domain_id(batch, *whose))

    def _views(self, images: Tensor, n: int) -> Tensor:
        """Features (B, views, tokens, D) of images (B, views, 3, H, W), the first n of them; zeros behind."""
        missing = images.shape[1] - n
        images, vlm = images[:, :n].flatten(0, 1), self.model.vlm
        if WINDOWS in self.left_out:
            found = vlm.multi_modal_projector(see(self.tower, images))
        else:
            found = vlm.get_image_features(images).pooler_output
        return F.pad(found.unflatten(0, (-1, n)), (0, 0, 0, 0, 0, missing))

    def _places(self, n_text: int, n_views: int, rows: Tensor | None) -> Tensor:
        """Position embeddings of text and views, of the text's rows that are left if some were dropped."""
        first = self.policy.config.chunk_size
        found = self.head.pos_emb[:, first : first + n_text + n_views]
        if found.shape[1] < n_text + n_views:
            raise ObservationMismatch(
                f"actions, text and views are {first + n_text + n_views} tokens, the policy has positions "
                f"for max_len_seq={self.head.pos_emb.shape[1]}; give a shorter instruction or fewer views"
            )
        if rows is None:
            return found
        views = found[:, n_text:].expand(len(rows), -1, -1)
        return torch.cat([take_rows(found[:, :n_text], rows), views], dim=1)

    def said(self, context: Any) -> Tensor:
        """Mean (B, D) of what BART says of its tokens, or of what the head is given of all context."""
        return (context.seen.text if isinstance(context, Observed) else context.context).mean(1)

    def condition(self, step: Step, context: Any) -> Any:
        """Context's tokens, proprioception and the time."""
        t = step.t.to(self.placement.dtype).expand(len(context.domain))
        time = timestep_embedding(t, self.head.dim_time)
        return Given(self._context(context.seen, context.domain), context.proprio, time, context.domain)

    def _context(self, seen: Seen, domain: Tensor) -> Tensor:
        """Tokens of text, views and soft prompts (B, C, W)."""
        head = self.head
        whose = (domain,) if head.use_hetero_proj else ()
        tokens = [head.vlm_proj(seen.text, *whose), head.aux_visual_proj(seen.views, *whose)]
        found = torch.cat(tokens, dim=1) + seen.places
        if head.len_soft_prompts > 0:
            prompts = head.soft_prompt_hub(domain).view(len(domain), head.len_soft_prompts, head.hidden_size)
            found = torch.cat([found, prompts], dim=1)
        return found

    def denoise(self, x: Tensor, condition: Any, run: Runner = compute) -> Tensor:
        """Predict clean actions (B, H, L) from x (B, H, L)."""
        h = torch.cat([self._actions(x, condition), condition.context], dim=1)
        for block in self.blocks:
            h = through(run, block, h)
        return self._decoded(h[:, : x.shape[1]], condition)

    def denoise_keeping(
        self, x: Tensor, condition: Any, run: Runner = compute
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """As `denoise`; and keys and values (B, C, 2 W) of the context in every layer."""
        h = torch.cat([self._actions(x, condition), condition.context], dim=1)
        kept = []
        for attend, feed_forward in zip(self._keeping[::2], self._keeping[1::2], strict=True):
            out, context = run(attend, h)  # type: ignore[misc]  # never skipped
            kept.append(context)
            h = through(run, feed_forward, h + out)
        return self._decoded(h[:, : x.shape[1]], condition), tuple(kept)

    def denoise_alone(
        self, x: Tensor, condition: Any, kept: tuple[Tensor, ...], run: Runner = compute
    ) -> Tensor:
        """As `denoise`, with the action tokens alone, which look at each other and at what was kept."""
        h = self._actions(x, condition)
        for attend, feed_forward, context in zip(self._alone[::2], self._alone[1::2], kept, strict=True):
            h = through(run, attend, h, context)
            h = through(run, feed_forward, h)
        return self._decoded(h, condition)

    def _actions(self, x: Tensor, given: Any) -> Tensor:
        """Action tokens (B, H, W)."""
        proprio, x = self.space.preprocess(given.proprio, x)
        n = x.shape[1]
        beside = (proprio, given.time)
        tokens = torch.cat([x, *(it.unsqueeze(1).expand(-1, n, -1) for it in beside)], dim=-1)
        return self.head.action_encoder(tokens, given.domain) + self.head.pos_emb[:, :n]

    def _decoded(self, h: Tensor, given: Any) -> Tensor:
        """Clean actions of the last action tokens."""
        return self._in_actions(self.head.action_decoder(self.head.norm(h), given.domain))

    def _in_actions(self, out: Tensor) -> Tensor:
        """What the network says, grippers as an action has them; as wide as x."""
        if self._n_finished == out.shape[-1]:
            return self.space.postprocess(out)
        rest = out[..., self._n_finished :]
        return torch.cat([self.space.postprocess(out), rest], dim=-1)

    def finish(self, x: Tensor, context: Any) -> Tensor:
        """Cut the last x to what lerobot's policy gives, which its processors may cut further."""
        return x if self._n_finished == x.shape[-1] else x[..., : self._n_finished]

    def resample(self, name: str, n_steps: int, spacing: Spacing = OWN) -> Sampler:
        """Build another sampler of the same flow: renoise or euler."""
        return make_clean_flow_sampler(name, n_steps, spacing).on(self.placement.device)

    def _hoisted(self, sampler: Sampler) -> "HoistedXVLA":
        """Return a twin with the time's part of the action tokens precomputed for the sampler's steps."""
        return HoistedXVLA(self, sampler)


class Prepared(NamedTuple):
    """What `HoistedXVLA` makes of an observation, once a chunk."""

    context: Tensor
    """Tokens (B, C, W): text, views, soft prompts."""
    proprio: Tensor
    encoder: Tensor
    """Weights of an action's numbers (B, L, W)."""
    tokens: Tensor
    """What is added to every action token but for the time: proprioception, bias, position (B, H, W)."""
    decoder: Tensor
    """Weights (B, W, L) of the decoder."""
    bias: Tensor
    """Its bias (B, 1, L)."""
    domain: Tensor


class HoistedXVLA(StagedXVLA):
    """The same policy with everything that x does not enter computed once."""

    def __init__(self, plain: StagedXVLA, sampler: Sampler):
        super().__init__(plain.policy)
        self.spec, self.sampler, self.language = plain.spec, sampler, plain.language
        self.left_out = plain.left_out
        self._build_blocks()
        encoder, dtype = self.head.action_encoder, self.placement.dtype
        n = self.head.dim_time
        with torch.no_grad():
            t = torch.stack([step.t for step in sampler.steps]).to(dtype)
            weight = encoder.fc.weight.view(-1, encoder.input_size, encoder.output_size)[:, -n:]
            time = timestep_embedding(t, n)  # (S, T)
            self._time = (time @ weight).transpose(0, 1).contiguous()  # (S, domains, W)

    def perceive(self, batch: Batch, seen: Seen) -> Any:
        """All that x does not enter, and the weights of the robot's domain."""
        _, felt, domain = super().perceive(batch, seen)
        encoder, decoder = self.head.action_encoder, self.head.action_decoder
        horizon, width = self.spec.latent_shape
        weight = encoder.fc(domain).view(-1, encoder.input_size, encoder.output_size)
        proprio, _ = self.space.preprocess(felt, felt.new_zeros(len(domain), horizon, width))
        told = proprio.unsqueeze(1) @ weight[:, width : width + proprio.shape[-1]]
        bias = encoder.bias(domain).unsqueeze(1)
        return Prepared(
            context=self._context(seen, domain),
            proprio=felt,
            encoder=weight[:, :width],
            tokens=told + bias + self.head.pos_emb[:, :horizon],
            decoder=decoder.fc(domain).view(-1, decoder.input_size, decoder.output_size),
            bias=decoder.bias(domain).unsqueeze(1),
            domain=domain,
        )

    def condition(self, step: Step, context: Any) -> Any:
        """The same with the time added to the action tokens."""
        time = step.of(self._time, self.sampler).index_select(0, context.domain)
        return context._replace(tokens=context.tokens + time.unsqueeze(1))

    def _actions(self, x: Tensor, given: Any) -> Tensor:
        """Action tokens (B, H, W)."""
        _, x = self.space.preprocess(given.proprio, x)
        return x @ given.encoder + given.tokens

    def _decoded(self, h: Tensor, given: Any) -> Tensor:
        """Clean actions of the last action tokens."""
        return self._in_actions(self.head.norm(h) @ given.decoder + given.bias)
