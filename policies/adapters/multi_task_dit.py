"""lerobot's `multi_task_dit` in stages: encode -> per step modulation -> `action.i.{attn,mlp}` -> projection.

`StagedMultiTaskDiT` runs lerobot's own modules and is bit-equal to its sampling, for both objectives and
both kinds of attention. `HoistedMultiTaskDiT` computes once what x does not enter. A layer reads its
modulation (shift, scale and gate of both branches) off the timestep embedding t and the observation o
through SiLU, which is elementwise, and a linear layer:

    W SiLU([t, o]) + b  =  W_t SiLU(t)  +  (W_o SiLU(o) + b)

The first term is computed for all steps at construction, the second once a chunk. It is equal to 1e-5,
since matrix products are then done in other shapes.
"""

import torch
import torch.nn.functional as F
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import (
    MultiTaskDiTPolicy,
    TransformerBlock,
    modulate,
)
from lerobot.utils.constants import OBS_IMAGES, OBS_STATE
from torch import Tensor

from vivace.policies.block import Block, Runner, compute, through
from vivace.policies.dtype import cast, embed_time
from vivace.policies.forms import SeeingForm, policy_spec, stacked, unstacked
from vivace.policies.language.prefix import PatchSelector, keep_all
from vivace.policies.sampling.noise_schedule import NoiseSchedule
from vivace.policies.sampling.sampler import Sampler, Step
from vivace.policies.sampling.samplers import OWN, Spacing, make_flow_sampler, make_sampler
from vivace.policies.spec import ActionKind
from vivace.policies.staged import Batch


class StagedMultiTaskDiT(SeeingForm):
    """lerobot's multi-task diffusion transformer as a `DenoisingPolicy`, over its own modules.

    Besides state and cameras it reads the instruction: `observation.language.tokens` and
    `observation.language.attention_mask` (B, L), which the checkpoint's preprocessor makes of "task".
    """

    chunk_method = "_generate_actions"

    def __init__(self, policy: MultiTaskDiTPolicy, action_kinds: tuple[ActionKind, ...] = ()):
        self.policy = policy.eval()
        self.network = policy.noise_predictor
        self.blocks = tuple(
            block
            for i, layer in enumerate(self.network.transformer_blocks)
            for block in _layer_blocks(i, layer)
        )
        config = policy.config
        self.stages = {"action": ("noise_predictor.transformer_blocks",)}
        if config.image_features:
            self.stages["vision"] = ("observation_encoder.vision_encoder",)
        self.sampler = (
            self.resample(
                config.noise_scheduler_type.lower(), config.num_inference_steps or config.num_train_timesteps
            )
            if config.is_diffusion
            else self.resample(config.integration_method, config.num_integration_steps)
        )
        self.spec = policy_spec(config, self.blocks, action_kinds)

    def see(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Tensor:
        """Features of cameras and instruction (B, To, n): what lerobot puts behind the state."""
        batch = cast(batch, self.placement.dtype)
        state, cameras = batch[OBS_STATE], list(self.policy.config.image_features)
        if cameras:
            batch = batch | {OBS_IMAGES: stacked(batch, cameras)}
        features = self.policy.observation_encoder.encode(batch)
        return features.unflatten(1, state.shape[1:2] + (-1,))[..., state.shape[-1] :]

    def perceive(self, batch: Batch, seen: Tensor) -> Tensor:
        """Conditioning vector (B, D): state, cameras and instruction of all observation steps."""
        state = cast(batch, self.placement.dtype)[OBS_STATE]
        return torch.cat([state, seen], dim=-1).flatten(1)

    def window(self, given: Batch) -> Batch:
        """What `encode` takes: the queued observations, each camera under its own name."""
        return unstacked(given, self.policy.config)

    def returned(self, actions: Tensor) -> Tensor:
        """Actions to execute (B, n_action_steps, A), from the newest observation on."""
        first = self.spec.first_action
        return actions[:, first : first + self.spec.n_action_steps]

    def condition(self, step: Step, context: Tensor) -> tuple[Tensor, ...]:
        """Modulation (B, 3n) of every block: shift, scale and gate."""
        t = embed_time(self.network.time_mlp, step.t.expand(context.shape[0]))
        features = torch.cat([t, context], dim=-1)
        return tuple(
            modulation
            for layer in self.network.transformer_blocks
            for modulation in layer.adaLN_modulation(features).chunk(2, dim=-1)
        )

    def denoise(self, x: Tensor, condition: tuple[Tensor, ...], run: Runner = compute) -> Tensor:
        """Predict noise, clean actions or velocity (B, H, A) from x (B, H, A)."""
        h = self.network.input_proj(x)
        if self.network.pos_embedding is not None:
            h = h + self.network.pos_embedding[:, : x.shape[1]]
        for block, modulation in zip(self.blocks, condition, strict=True):
            h = through(run, block, h, modulation)
        return self.network.output_proj(h)

    def resample(self, name: str, n_steps: int, spacing: Spacing = OWN) -> Sampler:
        """Build another sampler of the process the policy was trained with; raises `BadSetting`."""
        config = self.policy.config
        if config.is_diffusion:
            sampler = make_sampler(name, n_steps, NoiseSchedule.of(config), spacing)
        else:
            sampler = make_flow_sampler(name, n_steps, spacing)
        return sampler.on(self.placement.device)

    def _hoisted(self, sampler: Sampler) -> "HoistedMultiTaskDiT":
        """Return a twin with the timestep's part of the modulation precomputed for the sampler's steps."""
        return HoistedMultiTaskDiT(self, sampler)


def _layer_blocks(i: int, layer: TransformerBlock) -> tuple[Block, Block]:
    def attend(h: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation.unsqueeze(1).chunk(3, dim=-1)
        h = modulate(layer.norm1(h), shift, scale)
        return gate * (layer.attn(h) if layer.use_rope else layer.multihead_attn(h, h, h)[0])

    def feed_forward(h: Tensor, modulation: Tensor) -> Tensor:
        shift, scale, gate = modulation.unsqueeze(1).chunk(3, dim=-1)
        return gate * layer.mlp(modulate(layer.norm2(h), shift, scale))

    return Block(f"action.{i}.attn", attend), Block(f"action.{i}.mlp", feed_forward)


class HoistedMultiTaskDiT(StagedMultiTaskDiT):
    """The same policy with everything that x does not enter computed once."""

    def __init__(self, plain: StagedMultiTaskDiT, sampler: Sampler):
        super().__init__(plain.policy)
        self.spec, self.sampler = plain.spec, sampler
        self._linears = [layer.adaLN_modulation[1] for layer in self.network.transformer_blocks]
        self._n_time = self.network.timestep_embed_dim
        with torch.no_grad():
            t = torch.stack([step.t for step in sampler.steps])
            embedding = F.silu(embed_time(self.network.time_mlp, t))  # (S, E)
            self._time = torch.cat(
                [F.linear(embedding, linear.weight[:, : self._n_time]) for linear in self._linears], dim=-1
            )  # (S, L * 6n)

    def perceive(self, batch: Batch, seen: Tensor) -> Tensor:
        """Observation's part of the modulation of all layers (B, L * 6n)."""
        features = F.silu(super().perceive(batch, seen))
        return torch.cat(
            [F.linear(features, linear.weight[:, self._n_time :], linear.bias) for linear in self._linears],
            dim=-1,
        )

    def condition(self, step: Step, context: Tensor) -> tuple[Tensor, ...]:
        """Modulation (B, 3n) of every block: shift, scale and gate."""
        return (step.of(self._time, self.sampler) + context).chunk(len(self.blocks), dim=-1)
