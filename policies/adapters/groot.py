"""lerobot's `groot` (GR00T N1.7) in stages: Qwen3-VL -> `language.i` -> `context.i` -> `action.i.{attn,ff}`.

The head reads the stream behind the last language layer, refines it (`context.i`), and lets action tokens
look at it: every other layer of the denoiser attends to itself, the others in turn to the text and
to the patches. Actions flow from noise at t = 0 to t = 1, t in whole buckets.

`StagedGroot` runs lerobot's own modules and is bit-equal to its chunk of the same noise, under its autocast
too. Where weights themselves are bfloat16 lerobot adds the steps up in it, and we in float32. `without`
leaves out what nobody reads: the language head, what a layer of the denoiser never looks at, casts of the
same weights at every use. `HoistedGroot` computes keys and values of the context once a chunk, and what
depends on the timestep alone once. Chunks continue others in lerobot's own way for groot (`overlap`).
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, Self
from typing import cast as cast_type

import torch
from lerobot.policies.groot.groot_n1_7 import CategorySpecificLinear
from lerobot.policies.groot.modeling_groot import GrootPolicy
from torch import Tensor

from vivace.policies.action_kinds import kinds_of_config
from vivace.policies.block import Block, Runner, compute, through
from vivace.policies.dtype import cast, cast_once
from vivace.policies.errors import BadSetting, ObservationMismatch, UnsupportedPolicy
from vivace.policies.forms import DenoisingForm, LackingForm, LanguageForm
from vivace.policies.language.prefix import PatchSelector, PrefixRows, keep_all, take_rows
from vivace.policies.language.qwen3_vl import StagedQwen3VL, causal, mean_text, order_of, positions
from vivace.policies.sampling.overlap import Overlap, overlap
from vivace.policies.sampling.real_time_chunking import Continuation, RealTimeChunking
from vivace.policies.sampling.sampler import Sampler, Step
from vivace.policies.sampling.samplers import OWN, make_flow_sampler
from vivace.policies.sampling.spacing import Spacing
from vivace.policies.spec import ActionKind, BlockInfo, PolicySpec
from vivace.policies.staged import Batch
from vivace.policies.vla.qwen3_vision import Pictures, Tables, look
from vivace.policies.vla.vl_dit import (
    Condition,
    Context,
    Seen,
    attend,
    attend_to_keys,
    feed_forward,
    in_buckets,
    is_modulated,
    keyed,
    looks,
    modulations,
    normed,
    refining,
)

_HEAD, _OTHER, _CONSTANTS = "language_head", "other_context", "constants"
_STAGES = {
    "vision": ("_groot_model.backbone.model.model.visual",),
    "language": (
        "_groot_model.backbone.model.model.language_model.layers",
        "_groot_model.action_head.vl_self_attention",
    ),
    "action": ("_groot_model.action_head.model.transformer_blocks",),
}


class StagedGroot(LackingForm, LanguageForm, DenoisingForm):
    """A GR00T N1.7 taken apart, over its own modules."""

    _attend = staticmethod(attend)

    def __init__(self, policy: GrootPolicy, action_kinds: tuple[ActionKind, ...] = ()):
        config: Any = policy.config
        if config.n_obs_steps != 1:
            raise UnsupportedPolicy(
                f"policy 'groot' takes one observation, in lerobot too; n_obs_steps={config.n_obs_steps} in "
                "config.json, set it to 1"
            )
        self.policy = policy.eval()
        model: Any = policy._groot_model
        self.head, self.net = model.action_head, model.action_head.model
        self._qwen = model.backbone.model
        self._visual = model.backbone.visual
        self.language = StagedQwen3VL(
            model.backbone.language_model, len(self._visual.deepstack_visual_indexes)
        )
        layers = getattr(self.head.vl_self_attention, "transformer_blocks", ())
        self.context = tuple(block for i, layer in enumerate(layers) for block in refining(i, layer))
        self.blocks = self._action_blocks()
        self.stages = _STAGES
        self._looks = looks(self.net)
        self._tables: dict[Pictures, Tables] = {}
        self._preprocess: Any = None
        self._prepare: Callable[[Batch], Batch] = dict
        self._pictures: Pictures | None = None
        self._overlap: Overlap | None = None
        self.sampler = self.resample("euler", self.head.num_inference_timesteps)
        self.spec = self._spec(action_kinds)

    def _spec(self, action_kinds: tuple[ActionKind, ...]) -> PolicySpec:
        config: Any = self.policy.config
        action_dim, most = config.action_feature.shape[0], self.head.action_horizon
        horizon = min(most, len(config.action_delta_indices))
        return PolicySpec(
            type=config.type,
            action_dim=action_dim,
            horizon=horizon,
            n_obs_steps=1,
            n_action_steps=min(horizon, self.policy._action_queue_steps),
            observation_shapes={key: tuple(f.shape) for key, f in config.input_features.items()},
            action_kinds=kinds_of_config(config, action_kinds, action_dim),
            blocks=tuple(BlockInfo(block.id, block.additive) for block in self.blocks),
            latent_dim=self.head.action_dim,
            latent_horizon=None if most == horizon else most,
        )

    def _action_blocks(self) -> tuple[Block, ...]:
        layers = self.net.transformer_blocks
        return tuple(block for i, layer in enumerate(layers) for block in self._layer_blocks(i, layer))

    def _layer_blocks(self, i: int, layer: Any) -> tuple[Block, Block]:
        n = int(is_modulated(layer))

        def attention(h: Tensor, *cond: Tensor) -> Tensor:
            return self._attend(layer.attn1, normed(layer, h, *cond[:n]), *cond[n:])

        return Block(f"action.{i}.attn", attention), Block(f"action.{i}.ff", feed_forward(layer))

    @cached_property
    def n_patches(self) -> tuple[int, ...]:
        """Patches of each picture: as the preprocessor makes them of pictures of the sizes that it is told.

        Without one, as the model's config says.
        """
        merge = self._visual.spatial_merge_size
        if self._preprocess is None:
            config = self.policy._groot_model.config
            height, width = (side // self._visual.patch_size // merge for side in config.image_target_size)
            return (height * width,) * len(self.cameras)
        blank = {key: torch.zeros(1, *shape) for key, shape in self.spec.observation_shapes.items()}
        made = self._preprocess(blank | {"task": [""]})
        return Pictures.read(made, self._qwen.config.image_token_id, merge).counts

    def prepared_by(self, preprocess: Any) -> Self:
        """Return a twin that asks this preprocessor how many patches there are."""
        twin = copy.copy(self)
        twin._preprocess = preprocess
        twin.__dict__.pop("n_patches", None)
        return twin

    def preparing(self, prepare: Callable[[Batch], Batch], pictures: Pictures) -> Self:
        """Return a twin for a graph: it makes what it reads by `prepare`, with pictures of these sizes."""
        twin = copy.copy(self)
        twin._prepare, twin._pictures = prepare, pictures
        return twin

    def with_blocks(self, fn: Any) -> Self:
        """Return a twin that runs `fn(block)` in the place of every block; weights are shared."""
        twin = super().with_blocks(fn)
        twin.context = tuple(fn(block) for block in self.context)
        return twin

    def with_weights(self, policy: Any) -> Self:
        """Return the staged form of a twin with other weights, with as many layers, and without as much."""
        twin = super().with_weights(policy)
        twin.language = twin.language.with_layers(self.language.layers)
        twin.left_out, twin._preprocess = self.left_out, self._preprocess
        twin._prepare, twin._pictures = self._prepare, self._pictures
        return twin

    @property
    def dead_work(self) -> Mapping[str, str]:
        """Parts that nobody reads -> why."""
        found = {
            _HEAD: "the final norm and the language head run on every token, and the actions read neither"
        }
        if self._alternates:
            found[_OTHER] = (
                "a layer that looks at the text computes keys and values of the patches too, and the other "
                "way round"
            )
        if self._casts:
            found[_CONSTANTS] = (
                "use_bf16 casts float32 weights at every use; cast once, they take half as much memory more"
            )
        return {part: why for part, why in found.items() if part not in self.left_out}

    def without(self, parts: tuple[str, ...]) -> Self:
        """Return a twin that leaves these parts out."""
        twin = copy.copy(self)
        if _CONSTANTS in parts:
            matrices = [it.W for it in self.policy.modules() if isinstance(it, CategorySpecificLinear)]
            twin = self.with_weights(cast_once(self.policy, torch.bfloat16, matrices))
        twin.left_out = self.left_out.union(parts)
        return twin

    @property
    def _alternates(self) -> bool:
        """Whether layers look at text and patches in turn, not at all that there is."""
        return "text" in self._looks

    @property
    def _casts(self) -> bool:
        """Whether weights are cast to what is computed in, at every use."""
        return self.policy.config.use_bf16 and self.placement.dtype == torch.float32

    def _precision(self) -> AbstractContextManager[Any]:
        """What lerobot computes in."""
        if not self.policy.config.use_bf16:
            return nullcontext()
        return torch.autocast(self.placement.device.type, torch.bfloat16)

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Context:
        """Read pictures, instruction and state."""
        return self.perceive(batch, self.see(batch, run, select))

    sees = True
    """It has cameras."""

    def see(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Seen:
        """Read pictures and instruction."""
        with self._precision():
            h, prefix = self._read(cast(self._prepare(batch), self.placement.dtype), run, select)
            h = self.head.vlln(h)
            # lerobot's prompt of one observation has no padding to look at, that of a graph has
            told = () if self._pictures is None else (prefix.is_token(h.shape[1]),)
            for attention, mlp in zip(self.context[::2], self.context[1::2], strict=True):
                h = through(run, mlp, through(run, attention, h, *told))
            return Seen(self._seen(h, prefix), mean_text(h, prefix))

    def perceive(self, batch: Batch, seen: Seen) -> Context:
        """Read the state, of the robot that there is."""
        batch = cast(self._prepare(batch), self.placement.dtype)
        state, embodiment = batch["state"], batch["embodiment_id"]
        if state.shape[1] != self.head.config.state_history_length:
            raise ObservationMismatch(
                f"the preprocessor gives {state.shape[1]} states, the policy reads "
                f"{self.head.config.state_history_length}; save the processors again by lerobot's "
                "make_pre_post_processors"
            )
        with self._precision():
            state = self.head.state_encoder(state.view(len(state), 1, -1), embodiment)
            return Context(state, embodiment, seen)

    def _read(self, batch: Batch, run: Runner, select: PatchSelector) -> tuple[Tensor, PrefixRows]:
        """The stream behind the last language layer (B, S, D), and what its rows are."""
        token, merge = self._qwen.config.image_token_id, self._visual.spatial_merge_size
        pictures = self._pictures or Pictures.read(batch, token, merge)
        ids, is_token = batch["input_ids"], batch["attention_mask"] == 1
        patches, features, tables = self._look(batch["pixel_values"], pictures)
        is_patch = ids == token
        order, n = order_of(is_patch), pictures.n_patches
        h = self.language.model.embed_tokens(ids)
        at = order[:, :n, None].expand(-1, -1, h.shape[-1])
        h = h.scatter(1, at, patches.to(h.dtype).view(at.shape))
        prefix = PrefixRows(pictures.counts, is_token.gather(1, order[:, n:]), 0, order=order)
        where = positions(is_patch, is_token, tables.ended, tables.places)
        seen = causal(is_token) if pictures.is_padded else None
        features = [found.view(at.shape) for found in features]
        h, prefix = self.language(h, prefix, where, seen, features, run, select)
        if _HEAD not in self.left_out:
            self._qwen.lm_head(self.language.model.norm(h))
        return h, prefix

    @torch.compiler.disable  # dynamo cannot hold on to an array, such as the tables', in inference mode
    def _look(self, pixels: Tensor, pictures: Pictures) -> tuple[Tensor, Sequence[Tensor], Tables]:
        """Merged patches, features of earlier layers, and what depends on the sizes of pictures alone."""
        if pictures not in self._tables:
            self._tables[pictures] = Tables.of(self._visual, pictures, self.placement.device)
        return *look(self._visual, pixels, self._tables[pictures]), self._tables[pictures]

    def _seen(self, h: Tensor, prefix: PrefixRows) -> tuple[tuple[Tensor, ...], ...]:
        """What each layer of the denoiser looks at, of the context (B, S, D)."""
        if not self._alternates:
            return tuple(() if name == "itself" else (h,) for name in self._looks)
        order, length = cast_type(Tensor, prefix.order), h.shape[1]
        n = length - prefix.is_text.shape[1]
        if _OTHER in self.left_out:
            text = take_rows(h, order[:, n:]), prefix.is_text
            found = {"patches": (take_rows(h, order[:, :n]),), "text": text}
        else:
            is_patch = torch.zeros_like(order, dtype=torch.bool).scatter(1, order[:, :n], True)
            is_token = prefix.is_token(length)
            found = {"patches": (h, is_patch & is_token), "text": (h, ~is_patch & is_token)}
        return tuple(found.get(name, ()) for name in self._looks)

    def said(self, context: Context) -> Tensor:
        """Return the mean of the text's rows behind the last layer (B, D)."""
        return context.seen.said

    def condition(self, step: Step, context: Context) -> Condition:
        """What a step's timestep says to every layer, and what they look at."""
        with self._precision():
            t = step.t.expand(len(context.state))
            *scales, last = modulations(self.net, t)
            return self._conditioned(t, scales, last, context)

    def _conditioned(self, t: Tensor, scales: Any, last: Tensor, context: Context) -> Condition:
        following = iter(scales)
        layers = tuple(
            ((next(following),) if is_modulated(layer) else ()) + seen
            for layer, seen in zip(self.net.transformer_blocks, context.seen.layers, strict=True)
        )
        return Condition(t, layers, last, context)

    def denoise(self, x: Tensor, condition: Condition, run: Runner = compute) -> Tensor:
        """Predict the velocity (B, *latent_shape) at x of that shape."""
        head, embodiment = self.head, condition.context.embodiment
        with self._precision():
            h = head.action_encoder(x, condition.t, embodiment)
            if head.config.add_pos_embed:
                h = h + head.position_embedding(torch.arange(x.shape[1], device=x.device))[None]
            h = torch.cat([condition.context.state, h], dim=1)
            for attention, mlp, seen in zip(
                self.blocks[::2], self.blocks[1::2], condition.layers, strict=True
            ):
                h = through(run, attention, h, *seen)
                h = through(run, mlp, h)
            shift, scale = condition.last.chunk(2, dim=1)
            h = self.net.norm_out(h) * (1 + scale[:, None]) + shift[:, None]
            out = head.action_decoder(self.net.proj_out_2(h), embodiment)[:, -x.shape[1] :]
        return out if self._overlap is None else out * self._overlap.strength

    def returned(self, actions: Tensor) -> Tensor:
        """As many of a chunk's actions as lerobot's own method gives."""
        return actions[:, : self.policy._resolve_prediction_horizon(actions)]

    def finish(self, x: Tensor, context: Context) -> Tensor:
        """Cut the last x to the actions of a chunk (B, H, A)."""
        return x[:, : self.spec.horizon, : self.spec.action_dim]

    def resample(self, name: str, n_steps: int, spacing: Spacing = OWN) -> Sampler:
        """Build another sampler of the flow, rounded as lerobot's, whose times are whole buckets."""
        times = [(i / n_steps, 1.0 / n_steps) for i in range(n_steps)]
        flow = make_flow_sampler(name, n_steps, spacing, times=times)
        return in_buckets(flow, self.head.num_timestep_buckets).on(self.placement.device)

    def check_continuing(self, settings: RealTimeChunking) -> None:
        """Raise unless lerobot's own real-time chunking does what is asked.

        Raises:
            UnsupportedPolicy: actions are relative to a state that is gone by then.
            BadSetting: it is asked for in a way that lerobot has not.
        """
        if self.policy.config.use_relative_actions:
            raise UnsupportedPolicy(
                "policy 'groot' has use_relative_actions, and lerobot continues no chunk of such a one: its "
                "actions are offsets to a state that is gone; use mode async or sync"
            )
        if settings.method != "guidance" or settings.jacobian != "identity":
            raise BadSetting(
                "policy 'groot' continues chunks by lerobot's own real-time chunking, which is "
                f"method=guidance with jacobian=identity; found {settings.method} with {settings.jacobian}"
            )

    def continued(self, follow: Continuation) -> Self:
        """Return a twin whose chunks continue these, as lerobot's: they begin where those go on."""
        twin = copy.copy(self)
        twin._overlap = overlap(follow, self.spec.latent_shape, self.head.config.rtc_ramp_rate)
        return twin

    def begin(self, x: Tensor) -> Tensor:
        """Return the noise, with what is to be continued written into it."""
        return x if self._overlap is None else self._overlap.begin(x)

    def _hoisted(self, sampler: Sampler) -> "HoistedGroot":
        """Return a twin that computes once what x does not enter."""
        return HoistedGroot(self, sampler)


class HoistedGroot(StagedGroot):
    """The same policy with everything that x does not enter computed once."""

    def __init__(self, plain: StagedGroot, sampler: Sampler):
        vars(self).update(vars(plain))
        self.sampler, self.blocks = sampler, self._action_blocks()
        with torch.no_grad(), self._precision():
            t = torch.stack([step.t for step in sampler.steps])
            found = modulations(self.net, t)
            self._widths = [len(table[0]) for table in found]
            self._times = torch.cat(found, dim=1)  # (S, all)

    _attend = staticmethod(attend_to_keys)

    def see(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Seen:
        """Read pictures and instruction; what layers look at becomes keys and values."""
        seen = super().see(batch, run, select)
        with self._precision():
            layers = tuple(
                keyed(layer.attn1, *rows) if rows else ()
                for layer, rows in zip(self.net.transformer_blocks, seen.layers, strict=True)
            )
        return Seen(layers, seen.said)

    def condition(self, step: Step, context: Context) -> Condition:
        """What a step's timestep says to every layer, looked up."""
        rows = len(context.state)
        told = step.of(self._times, self.sampler).expand(rows, -1).split(self._widths, dim=-1)
        return self._conditioned(step.t.expand(rows), told[:-1], told[-1], context)
