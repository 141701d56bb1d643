"""lerobot's `diffusion` in stages: encode -> per step condition -> `action.{downK,mid,upK}.*` -> final conv.

`StagedDiffusion` runs lerobot's own U-Net modules and is bit-equal to `DiffusionModel.conditional_sample`.
`HoistedDiffusion` computes once what x does not enter. A residual block reads its FiLM vector off the
timestep embedding t and the observation o through Mish, which is elementwise, and a linear layer:

    W Mish([t, o]) + b  =  W_t Mish(t)  +  (W_o Mish(o) + b)

The first term is computed for all steps at construction, the second once a chunk, both for all blocks at
once. It is equal to 1e-5, since matrix products are then done in other shapes.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from lerobot.policies.diffusion.modeling_diffusion import (
    DiffusionConditionalResidualBlock1d,
    DiffusionPolicy,
)
from lerobot.utils.constants import OBS_ENV_STATE, OBS_IMAGES, OBS_STATE
from torch import Tensor, nn

from vivace.policies.block import Block, Runner, compute, through
from vivace.policies.dtype import cast, embed_time
from vivace.policies.forms import SeeingForm, policy_spec, stacked, unstacked
from vivace.policies.language.prefix import PatchSelector, keep_all
from vivace.policies.sampling.noise_schedule import NoiseSchedule
from vivace.policies.sampling.sampler import Sampler, Step
from vivace.policies.sampling.samplers import OWN, Spacing, make_sampler
from vivace.policies.spec import ActionKind
from vivace.policies.staged import Batch


class StagedDiffusion(SeeingForm):
    """lerobot's U-Net Diffusion Policy as a `DenoisingPolicy`, over its own modules.

    Every block replaces the stream, mostly by one of another shape, so a runner may reuse or forecast a
    block's output but not skip the block.
    """

    chunk_method = "diffusion.generate_actions"

    def __init__(self, policy: DiffusionPolicy, action_kinds: tuple[ActionKind, ...] = ()):
        self.policy = policy.eval()
        self.network = policy.diffusion.unet
        config = policy.config
        self.schedule = NoiseSchedule.of(config)
        self.sampler = self.resample(
            config.noise_scheduler_type.lower(), config.num_inference_steps or config.num_train_timesteps
        )
        levels = {
            **{f"down{k}": modules for k, modules in enumerate(self.network.down_modules)},
            "mid": self.network.mid_modules,
            **{f"up{k}": modules for k, modules in enumerate(self.network.up_modules)},
        }
        self.blocks = tuple(block for name, modules in levels.items() for block in self._level(name, modules))
        self.stages = {"action": ("diffusion.unet",)}
        if config.image_features:
            self.stages["vision"] = ("diffusion.rgb_encoder",)
        self._n_residual = 2 * len(levels)
        self.spec = policy_spec(config, self.blocks, action_kinds)

    def _level(self, name: str, modules: nn.ModuleList) -> Iterator[Block]:
        """Two residual blocks, and a strided convolution where the resolution changes."""
        yield self._residual_block(f"action.{name}.0", modules[0])
        yield self._residual_block(f"action.{name}.1", modules[1])
        if _resamples(modules):
            yield Block(f"action.{name}.sample", modules[2], additive=False)

    def _residual_block(self, block_id: str, module: DiffusionConditionalResidualBlock1d) -> Block:
        return Block(block_id, module, additive=False)

    def see(self, batch: Batch, run: Runner = compute, select: PatchSelector = keep_all) -> Tensor:
        """Features of all cameras (B, To, n): what lerobot puts between the state and the environment's."""
        batch = cast(batch, self.placement.dtype)
        state, cameras = batch[OBS_STATE], list(self.policy.config.image_features)
        if not cameras:
            return state[..., :0]
        environment = self.policy.config.env_state_feature
        n_behind = environment.shape[0] if environment else 0
        images = {OBS_IMAGES: stacked(batch, cameras)}
        features = self.policy.diffusion._prepare_global_conditioning(batch | images)
        features = features.unflatten(1, state.shape[1:2] + (-1,))
        return features[..., state.shape[-1] : features.shape[-1] - n_behind]

    def perceive(self, batch: Batch, seen: Tensor) -> Tensor:
        """Observation features (B, D) of all observation steps and cameras."""
        batch = cast(batch, self.placement.dtype)
        parts = [batch[OBS_STATE], seen]
        if self.policy.config.env_state_feature:
            parts.append(batch[OBS_ENV_STATE])
        return torch.cat(parts, dim=-1).flatten(1)

    def window(self, given: Batch) -> Batch:
        """What `encode` takes: the queued observations, each camera under its own name."""
        return unstacked(given, self.policy.config)

    def returned(self, actions: Tensor) -> Tensor:
        """Actions to execute (B, n_action_steps, A), from the newest observation on."""
        first = self.spec.first_action
        return actions[:, first : first + self.spec.n_action_steps]

    def condition(self, step: Step, context: Tensor) -> tuple[Tensor, ...]:
        """Timestep embedding and observation (B, E + D), the same for every residual block."""
        t = embed_time(self.network.diffusion_step_encoder, step.t.expand(context.shape[0]))
        return (torch.cat([t, context], dim=-1),) * self._n_residual

    def denoise(self, x: Tensor, condition: tuple[Tensor, ...], run: Runner = compute) -> Tensor:
        """Predict noise or clean actions (B, H, A) from x (B, H, A)."""
        h = x.transpose(1, 2)
        blocks, conditions = iter(self.blocks), iter(condition)

        def residual(h: Tensor) -> Tensor:
            h = through(run, next(blocks), h, next(conditions))
            return through(run, next(blocks), h, next(conditions))

        skips: list[Tensor] = []
        for modules in self.network.down_modules:
            h = residual(h)
            skips.append(h)
            h = through(run, next(blocks), h) if _resamples(modules) else h
        h = residual(h)
        for modules in self.network.up_modules:
            h = residual(torch.cat([h, skips.pop()], dim=1))
            h = through(run, next(blocks), h) if _resamples(modules) else h
        return self.network.final_conv(h).transpose(1, 2)

    def resample(self, name: str, n_steps: int, spacing: Spacing = OWN) -> Sampler:
        """Build another diffusion sampler of the same process."""
        return make_sampler(name, n_steps, self.schedule, spacing).on(self.placement.device)

    def _hoisted(self, sampler: Sampler) -> "HoistedDiffusion":
        """Return a twin with the timestep's part of the FiLM vectors precomputed for the sampler's steps."""
        return HoistedDiffusion(self, sampler)


def _resamples(modules: nn.ModuleList) -> bool:
    """Whether the resolution changes behind a level's residual blocks."""
    return len(modules) > 2 and not isinstance(modules[2], nn.Identity)


class HoistedDiffusion(StagedDiffusion):
    """The same policy with everything that x does not enter computed once."""

    def __init__(self, plain: StagedDiffusion, sampler: Sampler):
        super().__init__(plain.policy)
        self.spec, self.sampler = plain.spec, sampler
        levels = (*self.network.down_modules, self.network.mid_modules, *self.network.up_modules)
        linears = [module.cond_encoder[1] for level in levels for module in level[:2]]
        self._channels = [linear.out_features for linear in linears]
        n = self.policy.config.diffusion_step_embed_dim
        with torch.no_grad():
            t = torch.stack([step.t for step in sampler.steps])
            embedding = F.mish(embed_time(self.network.diffusion_step_encoder, t))  # (S, E)
            self._time = F.linear(
                embedding, torch.cat([linear.weight[:, :n] for linear in linears])
            )  # (S, F)
            self._weight = torch.cat([linear.weight[:, n:] for linear in linears])  # (F, D)
            self._bias = torch.cat([linear.bias for linear in linears])  # (F,)

    def _residual_block(self, block_id: str, module: DiffusionConditionalResidualBlock1d) -> Block:
        def modulate(h: Tensor, film: Tensor) -> Tensor:
            out, film = module.conv1(h), film.unsqueeze(-1)
            if module.use_film_scale_modulation:
                scale, bias = film.chunk(2, dim=1)
                out = scale * out + bias
            else:
                out = out + film
            return module.conv2(out) + module.residual_conv(h)

        return Block(block_id, modulate, additive=False)

    def perceive(self, batch: Batch, seen: Tensor) -> Tensor:
        """Observation's part of the FiLM vectors of all residual blocks (B, F)."""
        return F.linear(F.mish(super().perceive(batch, seen)), self._weight, self._bias)

    def condition(self, step: Step, context: Tensor) -> tuple[Tensor, ...]:
        """FiLM vector (B, C), or scale and bias (B, 2C), of every residual block."""
        return (step.of(self._time, self.sampler) + context).split(self._channels, dim=-1)
