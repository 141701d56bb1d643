"""lerobot's `pi0` in stages: SigLIP, `language.i.{kv,attn,mlp}` of Gemma, then `action.i.{attn,mlp}` a step.

The action expert's layer i looks at the keys and values of language layer i (`policies.language.expert`). Its
rows are one of the state, which sees no action, and one of each action, which see all. The flow runs from
noise at t = 1 to actions at t = 0. Plain it is bit-equal to lerobot's own chunk.

Hoisted, what x does not enter is computed once: the time's half of the layer that mixes time and action,
W [a, t] = W_a a + W_t t, for all steps, and, once a chunk, the state's row through all layers, whose keys and
values then stand among those of the prefix.
"""

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding, pad_vector
from torch import Tensor

from vivace.policies.batch import Batch
from vivace.policies.block import Block, Runner, compute, through
from vivace.policies.cameras import NO_LOOKS, Looks
from vivace.policies.forms import (
    CamerasForm,
    DenoisingForm,
    LackingForm,
    LanguageForm,
    VisionForm,
    policy_spec,
    told_of,
)
from vivace.policies.language.attention import EAGER, masks_of
from vivace.policies.language.expert import ExpertLayer, Kept, modulated
from vivace.policies.language.llama import Reads, StagedLlama
from vivace.policies.language.prefix import (
    Fresh,
    PatchSelector,
    PrefixRows,
    Sight,
    keep_all,
    of_all_cameras,
    token_mask,
)
from vivace.policies.placement import Placement
from vivace.policies.sampling.sampler import Sampler, Step
from vivace.policies.sampling.samplers import OWN, make_flow_sampler
from vivace.policies.sampling.spacing import Spacing
from vivace.policies.spec import STATE, ActionKind
from vivace.policies.vla.pali_reader import STAGES, PaliReader, dead_work


class Context(NamedTuple):
    """What an observation is to the expert; a tree of tensors."""

    kept: Kept
    state: tuple[Tensor, ...] = ()
    """Row of the state (B, 1, D); none if it is among what was kept, or part of the prompt."""


class Condition(NamedTuple):
    """What one step knows besides x; a tree of tensors."""

    context: Context
    times: Tensor
    """What the step's time makes (B or 1, ...)."""


class StagedPI0(CamerasForm, LackingForm, VisionForm, LanguageForm, DenoisingForm):
    """A pi0 as a `DenoisingPolicy` with a language stage, over its own modules."""

    sees = True
    last_read = Reads.NOTHING
    _table: Tensor | None = None
    """What the times of all steps make (S, ...); None: it is not hoisted."""

    def __init__(self, policy: Any, action_kinds: tuple[ActionKind, ...] = ()):
        config = policy.config
        self.policy, self.net = policy.eval(), policy.model
        core = policy.model.paligemma_with_expert
        self.expert = core.gemma_expert.model
        self.language = StagedLlama(core.paligemma.model.language_model, attention=EAGER)
        self.layers = tuple(ExpertLayer(i, layer, EAGER) for i, layer in enumerate(self.expert.layers))
        self.blocks: tuple[Block, ...] = tuple(block for layer in self.layers for block in layer.blocks)
        self._reader = PaliReader(policy, self.placement)
        self.stages = {**STAGES, "action": ("model.paligemma_with_expert.gemma_expert.model.layers",)}
        self.sampler = self.resample("euler", config.num_inference_steps)
        spec = policy_spec(config, self.blocks, action_kinds, latent_dim=config.max_action_dim)
        self.spec = replace(spec, n_obs_steps=1)  # it looks at no other, whatever its config says

    @cached_property
    def placement(self) -> Placement:
        """Where it computes; in what x is read, which is float32 where lerobot's bfloat16 mixes both."""
        return Placement.of(self.net.action_in_proj)

    @property
    def dead_work(self) -> Mapping[str, str]:
        """What lerobot computes and nobody reads."""
        last = "of the last language layer the expert reads keys and values alone"
        return {"last_layer": last, **dead_work(self.policy.config)}

    def with_layers(self, kept: tuple[int, ...]) -> Self:
        """Return a twin that runs these language layers only, each with the expert's layer that reads it."""
        twin = super().with_layers(kept)
        twin.layers = tuple(self.layers[i] for i in kept)
        twin.blocks = tuple(block for i in kept for block in self.blocks[2 * i : 2 * i + 2])
        twin.spec = replace(self.spec, blocks=told_of(twin.blocks))
        return twin if self._table is None else twin._hoisted(self.sampler)

    def with_branches(self, kept: tuple[int, ...]) -> Self:
        """Return a twin in which of the other language layers keys and values are left, for the expert."""
        twin = copy.copy(self)
        twin.language = self.language.with_branches(kept)
        return twin

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Context:
        """Read pictures and prompt once; what the language layers write down, and the state."""
        return self.perceive(batch, self.see(batch, run, select))

    def look(self, batch: Batch, cameras: Collection[str]) -> Looks:
        """What the vision tower makes of the pictures of these cameras, (B, n, D) each."""
        return self._reader.look(batch, cameras, self.is_together)

    def see(
        self,
        batch: Batch,
        run: Runner = compute,
        select: PatchSelector = keep_all,
        looks: Looks = NO_LOOKS,
    ) -> Sight:
        """Read pictures and prompt; as of `LookingPolicy`.

        Raises:
            ObservationMismatch: there is no picture, or patches are to be dropped and a camera is missing.
        """
        return self._read(batch, run, select, looks)[0]

    def _read(
        self, batch: Batch, run: Runner, select: PatchSelector, looks: Looks = NO_LOOKS
    ) -> tuple[Sight, PrefixRows]:
        """What is written of pictures and prompt, and what they are."""
        h, prefix = self._embedded(batch, looks)
        select = of_all_cameras(select, self.n_patches)
        rows: list[tuple[Tensor, Tensor]] = []
        self.language(h, prefix, run, select, lambda keys, values: rows.append((keys, values)))
        keys, values = (tuple(pair[k] for pair in rows) for k in (0, 1))
        there = tuple(token_mask(prefix.is_text, each.shape[2]) for each in keys)
        position = token_mask(prefix.is_text, h.shape[1]).sum(1, keepdim=True)
        return Sight(keys, values, there, position), prefix

    def _embedded(self, batch: Batch, looks: Looks = NO_LOOKS) -> tuple[Tensor, PrefixRows]:
        """What the language stage reads (B, S, D), and what it is."""
        prompt = self._reader.prompt(batch, self.left_out)
        return self._reader(batch, prompt, self.left_out, looks, self.is_together)

    def pixels(self, batch: Batch) -> tuple[Tensor, ...]:
        """Pixels of each patch (B, n, p) of each camera there is."""
        return self._reader.pixels(batch)

    def renew(
        self, batch: Batch, seen: Sight, patches: Tensor, run: Runner = compute
    ) -> tuple[Context, Sight]:
        """Read some patches (B, k), and the prompt, anew; as of `RenewingPolicy`."""
        found = self._renewed(batch, seen, patches, run)
        return self.perceive(batch, found), found

    def _renewed(self, batch: Batch, seen: Sight, patches: Tensor, run: Runner) -> Sight:
        """What is written of pictures and prompt."""
        h, prefix = self._embedded(batch)
        of_patches = seen.without_last(seen.n_rows - prefix.n_visual)
        return self.language.renew(Fresh.of(h, prefix, patches), of_patches, run)

    def perceive(self, batch: Batch, seen: Sight) -> Context:
        """What the expert looks at: what was read, and the state, which comes first behind it."""
        weight, state = self.net.state_proj.weight, batch[STATE][:, -1]
        state = pad_vector(state, self.policy.config.max_state_dim).to(weight)
        state = self.net.state_proj(state)[:, None]
        horizon = self.spec.horizon
        if self._table is None:
            row = torch.arange(1 + horizon, device=state.device)
            sees = (row[:, None] > 0) | (row == 0)  # the state sees itself, actions see all
            return Context(self._kept(seen, sees), (state,))
        kept = self._kept(seen, torch.ones(1, 1, dtype=torch.bool, device=state.device))
        h, keys, values = state.to(kept.cos.dtype), [], []
        for i, layer in enumerate(self.layers):
            h, *own = layer.written(h, *kept.of(i))
            keys.append(own[0])
            values.append(own[1])
        there = tuple(torch.cat([each, each.new_ones(len(each), 1)], dim=1) for each in seen.there)
        every = torch.ones(horizon, horizon, dtype=torch.bool, device=state.device)
        return Context(self._kept(Sight(tuple(keys), tuple(values), there, seen.position + 1), every))

    def _kept(self, seen: Sight, among: Tensor) -> Kept:
        """What rows look at that come behind what was seen, and see each other so (T, T)."""
        at = seen.position + torch.arange(len(among), device=among.device)
        cos, sin = self.expert.rotary_emb(seen.keys[0], at)
        return Kept(seen.keys, seen.values, masks_of(EAGER, seen.there, among[None]), cos, sin)

    def said(self, context: Context) -> Tensor:
        """Values of the last layer, mean over its rows (B, n): of what it says the expert reads no more."""
        return context.kept.values[-1].mean(2).flatten(1)

    def condition(self, step: Step, context: Context) -> Condition:
        """What was read, and what the step's time makes."""
        if self._table is None:
            return Condition(context, self._made_of(step.t.expand(len(context.kept.cos))))
        return Condition(context, step.of(self._table, self.sampler)[None])

    def denoise(self, x: Tensor, condition: Condition, run: Runner = compute) -> Tensor:
        """Predict the velocity (B, H, latent) at x (B, H, latent)."""
        (kept, state), times = condition
        h = torch.cat([*state, self._begun(x, times)], dim=1).to(kept.cos.dtype)
        modulations = self._modulations(times)
        for i, (attend, feed_forward) in enumerate(zip(self.blocks[::2], self.blocks[1::2], strict=True)):
            h = through(run, attend, h, *kept.of(i), *modulations[2 * i])
            h = through(run, feed_forward, h, *modulations[2 * i + 1])
        h, _ = modulated(self.expert.norm, h, *modulations[-1])
        project = self.net.action_out_proj
        return project(h[:, -self.spec.horizon :].to(project.weight.dtype))

    def resample(self, name: str, n_steps: int, spacing: Spacing = OWN) -> Sampler:
        """Build another sampler of the same flow; raises `BadSetting`."""
        return make_flow_sampler(name, n_steps, spacing, noise_at=1).on(self.placement.device)

    def _hoisted(self, sampler: Sampler) -> Self:
        """Return a twin that has what the times of the sampler's steps make."""
        twin = copy.copy(self)
        twin.sampler = sampler
        with torch.no_grad():
            twin._table = self._table_of(torch.stack([step.t for step in sampler.steps]))
        return twin

    def _sines(self, t: Tensor) -> Tensor:
        """Sines and cosines (n, D) of times (n,)."""
        config, width = self.policy.config, self.net.action_in_proj.out_features
        sines = create_sinusoidal_pos_embedding(t, width, config.min_period, config.max_period, t.device)
        return sines.type(t.dtype)

    def _made_of(self, t: Tensor) -> Tensor:
        """What times (n,) make: their sines (n, D)."""
        return self._sines(t)

    def _table_of(self, t: Tensor) -> Tensor:
        """What is hoisted of times (n,): their half of the layer that mixes them with actions (n, D)."""
        mix = self.net.action_time_mlp_in
        sines = self._sines(t).to(mix.weight.dtype)
        return F.linear(sines, mix.weight[:, sines.shape[1] :], mix.bias)

    def _begun(self, x: Tensor, times: Tensor) -> Tensor:
        """First stream (B, H, D) of x, which is mixed with the time."""
        mix, h = self.net.action_time_mlp_in, self.net.action_in_proj(x)
        if self._table is None:
            h = mix(torch.cat([h, times[:, None].to(h.dtype).expand_as(h)], dim=2))
        else:
            h = F.linear(h, mix.weight[:, : h.shape[2]]) + times[:, None]
        return self.net.action_time_mlp_out(F.silu(h))

    def _modulations(self, times: Tensor) -> Sequence[tuple[Tensor, ...]]:
        """What modulates each norm: two a layer, and the last one; here nothing does."""
        return [()] * (len(self.blocks) + 1)
