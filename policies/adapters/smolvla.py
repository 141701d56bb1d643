"""lerobot's `smolvla` in stages: SigLIP -> `language.i.{kv,attn,mlp}` -> per step `action.i.{attn,mlp}`.

SmolVLM reads images, instruction and state once a chunk; of it an expert of as many layers, or fewer, reads
the keys and values of each of its layers. A layer of the expert looks at them beside those of the actions
up to each (self-attention), or at them alone, projected once more by its own matrices (cross-attention).
`StagedSmolVLA` runs lerobot's own modules and is bit-equal to its chunk in float32. No row of pictures and
text sees the state's, so those may be read apart from it (`see`, `perceive`): equal to 1e-5.

`HoistedSmolVLA` computes once what x does not enter: keys and values of the cross layers, masks and angles
once a chunk; and once at all the time's part of what enters the expert,

    W_in [W_a x + b_a, t] + b_in  =  (W_1 W_a) x  +  (W_1 b_a + W_2 t + b_in),   W_in = [W_1, W_2]

What nobody reads is left out by `without`: see `dead_work`.
"""

import copy
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from lerobot.policies.common.vla_utils import create_sinusoidal_pos_embedding
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from torch import Tensor

from vivace.policies.batch import Batch
from vivace.policies.block import Runner, compute, through
from vivace.policies.cameras import NO_LOOKS, Looks
from vivace.policies.errors import PlanMismatch, UnsupportedPolicy
from vivace.policies.forms import (
    CamerasForm,
    CausalForm,
    LackingForm,
    LanguageForm,
    VisionForm,
    check_own_blocks,
    policy_spec,
    told_of,
)
from vivace.policies.language.attention import Look
from vivace.policies.language.llama import Reads
from vivace.policies.language.prefix import (
    Fresh,
    LayerView,
    PatchSelector,
    PrefixRows,
    Sight,
    Survivors,
    keep_all,
    of_all_cameras,
    survivors,
    take_rows,
)
from vivace.policies.language.smolvlm import angles_at, staged_language
from vivace.policies.sampling.sampler import Sampler, Step
from vivace.policies.sampling.samplers import OWN, make_flow_sampler
from vivace.policies.sampling.spacing import Spacing
from vivace.policies.spec import ActionKind
from vivace.policies.vla.smol_expert import Attended, Context, earlier, expert_layers, into
from vivace.policies.vla.smol_reader import SmolReader

Condition = tuple[Tensor, Attended]
"""What time adds, (B, W), and what the layers look at."""


class StagedSmolVLA(CamerasForm, LackingForm, VisionForm, LanguageForm, CausalForm):
    """lerobot's smolvla as a `DenoisingPolicy` with a language stage, over its own modules.

    With `add_image_special_tokens` the three tokens around a camera's patches count among its patches. Rows
    of cameras that an observation lacks count as padding of the text.

    Raises:
        UnsupportedPolicy: lerobot cannot run it either.
    """

    chunk_method = "_get_action_chunk"

    sees = True
    last_read = Reads.NOTHING

    def __init__(self, policy: SmolVLAPolicy, action_kinds: tuple[ActionKind, ...] = ()):
        config = policy.config
        self.policy: Any = policy.eval()
        self._core: Any = policy.model
        self._vlm: Any = self._core.vlm_with_expert
        self._reader = SmolReader(policy, self.placement)
        self.language = staged_language(self._vlm)
        self._expert = expert_layers(policy)
        vlm = "model.vlm_with_expert"
        self.stages = {
            "vision": (f"{vlm}.vlm.model.vision_model.encoder", f"{vlm}.vlm.model.connector"),
            "language": (f"{vlm}.vlm.model.text_model.layers",),
            "action": (f"{vlm}.lm_expert.layers",),
        }
        self.blocks = tuple(block for layer in self._expert for block in layer.blocks)
        self.sampler = self.resample("euler", config.num_steps)
        self._head_dim = self._vlm.config.text_config.head_dim
        actions = torch.arange(config.chunk_size, device=self.placement.device)[None]
        self._restarted = angles_at(actions, self._head_dim)
        """Angles of positions as layers that cross count them, from the first action on."""
        spec = policy_spec(config, self.blocks, action_kinds, latent_dim=config.max_action_dim)
        self.spec = replace(spec, n_obs_steps=1)  # it looks at no other, whatever its config says

    @property
    def dead_work(self) -> Mapping[str, str]:
        """Part of its work that nobody reads -> why."""
        config = self.policy.config
        found = {
            "last_layer": f"of language layer {self._expert[-1].reads} the expert reads keys and values "
            "alone: its attention and MLP, and whatever is behind it, go unread"
        }
        if config.pad_language_to == "max_length" or config.prefix_length > 0:
            found["prompt_padding"] = (
                f"what is read is padded (pad_language_to={config.pad_language_to}, "
                f"prefix_length={config.prefix_length}): no row looks at padding, and no position counts it"
            )
        if config.empty_cameras:
            found["empty_cameras"] = (
                f"pictures of {config.empty_cameras} cameras that nobody has are filled with -1, read, and "
                "masked"
            )
        return found

    def without(self, parts: tuple[str, ...]) -> Self:
        """Return a twin that leaves out these parts of `dead_work`."""
        twin = super().without(parts)
        if "last_layer" in parts:
            n = 1 + self.language.layers.index(self._expert[-1].reads)
            twin.language = twin.language.with_layers(tuple(range(n)))
        return twin

    @property
    def attend(self) -> Look:
        """How rows look at keys, in the language model and in the expert."""
        return self.language.attention.look

    def attending(self, look: Look) -> Self:
        """Return a twin that looks so."""
        check_own_blocks(self, self.spec, "choose how it looks at keys")
        twin = copy.copy(self)
        twin.language = self.language.looking(look)
        twin._expert = tuple(layer.looking(look) for layer in self._expert)
        twin.blocks = tuple(block for layer in twin._expert for block in layer.blocks)
        return twin

    def with_cameras_together(self) -> Self:
        """Return a twin that looks at pictures of one size in one call."""
        twin = super().with_cameras_together()
        twin._reader = self._reader.together()
        return twin

    def with_layers(self, kept: tuple[int, ...]) -> Self:
        """Return a twin that runs these language layers only, and the layers of the expert that read them."""
        twin = super().with_layers(kept)
        stay = [j for j, it in enumerate(self._expert) if it.reads in twin.language.layers]
        if not stay:
            raise PlanMismatch(
                f"of the language layers that stay, {list(twin.language.layers)}, the expert reads none; "
                f"keep one of {[it.reads for it in self._expert]}"
            )
        twin._expert = tuple(self._expert[j] for j in stay)
        twin.blocks = tuple(block for j in stay for block in self.blocks[2 * j : 2 * j + 2])
        twin.spec = replace(self.spec, blocks=told_of(twin.blocks))
        return twin

    def with_branches(self, kept: tuple[int, ...]) -> Self:
        """Return a twin in which of the other language layers keys and values are left, for the expert."""
        twin = copy.copy(self)
        twin.language = self.language.with_branches(kept)
        return twin

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Any:
        """Keys and values of the language layers that the expert reads.

        Raises:
            ObservationMismatch: patches are to be dropped, and a camera is missing.
        """
        return self._context(self._read(self._reader(batch, self.left_out), run, select))

    def look(self, batch: Batch, cameras: Collection[str]) -> Looks:
        """What the vision tower makes of the pictures of these cameras, (B, n, D) each."""
        return self._reader.look(batch, cameras)

    def see(
        self,
        batch: Batch,
        run: Runner = compute,
        select: PatchSelector = keep_all,
        looks: Looks = NO_LOOKS,
    ) -> Sight:
        """Read pictures and prompt, of which no row sees the state; as of `LookingPolicy`.

        Raises:
            ObservationMismatch: as of `encode`.
        """
        return self._read(self._reader(batch, self.left_out, looks, has_state=False), run, select)

    def perceive(self, batch: Batch, seen: Sight) -> Any:
        """Keys and values of what was seen and, behind it, of the state, which is read now."""
        h = self._reader.felt(batch)
        one = torch.ones(len(h), 1, dtype=torch.bool, device=h.device)
        return self._context(self.language.renew(Fresh(h, seen.position, one[:, None], one), seen))

    def pixels(self, batch: Batch) -> tuple[Tensor, ...]:
        """Pixels of each patch (B, n, p) of each camera there is; of a token around them there are none."""
        return self._reader.pixels(batch)

    def renew(self, batch: Batch, seen: Sight, patches: Tensor, run: Runner = compute) -> tuple[Any, Sight]:
        """Read some patches (B, k), and the prompt, anew; as of `RenewingPolicy`."""
        h, prefix, _ = self._reader(batch, self.left_out, has_state=False)
        of_patches = seen.without_last(seen.n_rows - prefix.n_visual)
        found = self.language.renew(Fresh.of(h, prefix, patches), of_patches, run)
        return self.perceive(batch, found), found

    def _read(self, given: tuple[Tensor, PrefixRows, Tensor], run: Runner, select: PatchSelector) -> Sight:
        """What every language layer writes of a prefix, as `SmolReader` gives it."""
        h, prefix, there = given
        rows: list[tuple[Tensor, Tensor]] = []
        masks = [there]
        select = of_all_cameras(select, self.n_patches)

        def selecting(view: LayerView) -> Tensor | Survivors | None:
            kept = select(view)
            if kept is not None:
                chosen = survivors(kept)
                cut = _kept(there, chosen.patches, there.shape[1] - prefix.is_text.shape[1])
                masks[:] = [there, cut] if chosen.early == "keep" else [cut]
            return kept

        self.language(h, prefix, run, selecting, lambda keys, values: rows.append((keys, values)))
        keys, values = (tuple(pair[k] for pair in rows) for k in (0, 1))
        of_length = {mask.shape[1]: mask for mask in masks}
        return Sight(
            keys, values, tuple(of_length[each.shape[2]] for each in keys), there.sum(1, keepdim=True)
        )

    def _context(self, seen: Sight) -> Context:
        """Keys and values of the language layers that the expert reads."""
        read = [self.language.layers.index(it.reads) for it in self._expert]
        there = {seen.there[i].shape[1]: seen.there[i] for i in read}
        keys, values = (tuple(rows[i] for i in read) for rows in (seen.keys, seen.values))
        return Context(keys, values, tuple(there.values()), seen.position)

    def said(self, context: Any) -> Tensor:
        """Return the mean value (B, heads x d) of the last layer that the expert reads."""
        return context.values[-1].mean(2).flatten(1)

    def condition(self, step: Step, context: Context) -> Condition:
        """Embedding of the time (B, W), and what every layer of the expert looks at."""
        config, device = self.policy.config, step.t.device
        sines = create_sinusoidal_pos_embedding(
            step.t.expand(len(context.position)),
            self._vlm.expert_hidden_size,
            config.min_period,
            config.max_period,
            device=device,
        )
        return sines.to(self._core.action_in_proj.weight.dtype), self._attended(context)

    def _attended(self, context: Context) -> Attended:
        """Project keys and values as the layers of the expert take them; make masks and angles."""
        n = self.spec.horizon
        pairs = [it.given(k, v) for it, k, v in zip(self._expert, context.keys, context.values, strict=True)]
        crossed, joined = (
            {k.shape[2] for it, k in zip(self._expert, context.keys, strict=True) if it.crosses is crosses}
            for crosses in (True, False)
        )
        beside = tuple(
            torch.cat([mask[:, None].expand(-1, n, -1), earlier(n, mask).expand(len(mask), -1, -1)], dim=2)
            for mask in context.there
            if mask.shape[1] in joined
        )
        angles: tuple[Tensor, ...] = ()
        if joined:
            at = context.position + torch.arange(n, device=context.position.device)
            angles = angles_at(at, self._head_dim)
        return Attended(
            tuple(k for k, _ in pairs),
            tuple(v for _, v in pairs),
            tuple(mask[:, None, None] for mask in context.there if mask.shape[1] in crossed),
            tuple(mask[:, None] for mask in beside),
            angles,
        )

    def _denoise(self, x: Tensor, condition: Condition, run: Runner) -> Tensor:
        """Predict the velocity (B, H, max_action_dim) at x of that shape."""
        time, attended = condition
        n = x.shape[1]
        h = self._enter(x, time).to(self._vlm.lm_expert.norm.weight.dtype)
        there = {mask.shape[3]: mask for mask in attended.there}
        beside = {mask.shape[3] - n: mask for mask in attended.beside}
        restarted = tuple(it[:, :n] for it in self._restarted)
        for j, it in enumerate(self._expert):
            keys, values = attended.keys[j], attended.values[j]
            masks, angles = (there, restarted) if it.crosses else (beside, attended.angles)
            attend, feed_forward = self.blocks[2 * j : 2 * j + 2]
            h = through(run, attend, h, keys, values, masks[keys.shape[2]], *angles)
            h = through(run, feed_forward, h)
        return into(self._core.action_out_proj, self._vlm.lm_expert.norm(h))

    def _enter(self, x: Tensor, time: Tensor) -> Tensor:
        """What the expert reads (B, H, W) of noisy actions and the time."""
        actions = into(self._core.action_in_proj, x)
        both = torch.cat([actions, time[:, None].expand_as(actions)], dim=2)
        return self._core.action_time_mlp_out(F.silu(self._core.action_time_mlp_in(both)))

    def window(self, given: Batch) -> Batch:
        """What `encode` takes.

        Raises:
            UnsupportedPolicy: lerobot has turned the state into another robot's already.
        """
        if self.policy.config.adapt_to_pi_aloha:
            raise UnsupportedPolicy(
                "lerobot changes the state of a 'smolvla' with adapt_to_pi_aloha before it asks for a chunk, "
                "and so would we; run it by lerobot"
            )
        return super().window(given)

    def finish(self, x: Tensor, context: Any) -> Tensor:
        """Cut x to the robot's actions (B, H, A), in the robot's own angles if they were another's."""
        actions = super().finish(x, context)
        if self.policy.config.adapt_to_pi_aloha:
            actions = self.policy._pi_aloha_encode_actions(actions.clone())
        return actions

    def resample(self, name: str, n_steps: int, spacing: Spacing = OWN) -> Sampler:
        """Build another sampler of the same flow, from t = 1 to 0; raises `BadSetting`."""
        return make_flow_sampler(name, n_steps, spacing, noise_at=1).on(self.placement.device)

    def _hoisted(self, sampler: Sampler) -> "HoistedSmolVLA":
        """Return a twin that projects the context once a chunk and has the time's part as a table."""
        return HoistedSmolVLA(self, sampler)


class HoistedSmolVLA(StagedSmolVLA):
    """The same policy with everything that x does not enter computed once."""

    def __init__(self, plain: StagedSmolVLA, sampler: Sampler):
        vars(self).update(vars(plain))
        self.sampler = sampler
        core, width = self._core, self._vlm.expert_hidden_size
        with torch.no_grad():
            times = torch.stack([step.t for step in sampler.steps])
            config = self.policy.config
            sines = create_sinusoidal_pos_embedding(
                times, width, config.min_period, config.max_period, device=times.device
            )
            weight = core.action_time_mlp_in.weight.float()
            before = core.action_in_proj
            bias = core.action_time_mlp_in.bias + weight[:, :width] @ before.bias.float()
            kind = before.weight.dtype
            self._weight = (weight[:, :width] @ before.weight.float()).to(kind)  # (W, max_action_dim)
            self._time = (sines.to(kind).float() @ weight[:, width:].T + bias).to(kind)  # (S, W)

    def encode(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Attended:
        """What every layer of the expert looks at."""
        return self._attended(super().encode(batch, run, select))

    def perceive(self, batch: Batch, seen: Sight) -> Attended:
        """What every layer of the expert looks at."""
        return self._attended(super().perceive(batch, seen))

    def condition(self, step: Step, context: Attended) -> Condition:  # type: ignore[override]
        """What the time adds (W,), and what every layer of the expert looks at."""
        return step.of(self._time, self.sampler), context

    def _enter(self, x: Tensor, time: Tensor) -> Tensor:
        return self._core.action_time_mlp_out(F.silu(F.linear(x.to(self._weight.dtype), self._weight) + time))


def _kept(mask: Tensor, kept: Tensor, n_patches: int) -> Tensor:
    """Which rows are there (B, S'), of these patches (B, K) and all that follows the patches, of (B, S)."""
    chosen = take_rows(mask[:, :n_patches, None], kept)[..., 0]
    return torch.cat([chosen, mask[:, n_patches:]], dim=1)
