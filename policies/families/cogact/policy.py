"""CogACT (arXiv 2411.19650) as a lerobot policy, `--policy.type=cogact`.

Two vision backbones are fused and projected into a Llama-form language model; the last token of its prompt
becomes the cognition feature, and a diffusion transformer turns that one feature into a chunk of actions.
Sampling here uses the modules as they are; acceleration goes through `cogact_staged`.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from lerobot.configs import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from vivace.policies.errors import BadSetting
from vivace.policies.families.cogact.dit import SIZES, ActionModel, DiT
from vivace.policies.families.cogact.ensemble import AdaptiveEnsemble
from vivace.policies.sampling.noise import GlobalNoise
from vivace.policies.sampling.noise_schedule import NoiseSchedule
from vivace.policies.sampling.sampler import Sampler
from vivace.policies.sampling.samplers import OWN, Spacing, ddim_at, make_sampler
from vivace.policies.vla.vla import VisionLanguage, VisionLanguageConfig, make_vla_processors


@PreTrainedConfig.register_subclass("cogact")
@dataclass
class CogACTConfig(VisionLanguageConfig):
    """Settings of a CogACT policy; defaults are CogACT-Base on Llama-2 7B."""

    ensemble_horizon: int = 0
    """Chunks that vote in `select_action`, one inference a step (the original: 2 or 7); 0: no ensemble."""
    ensemble_alpha: float = 0.1

    action_head: str = "base"
    """small, base, large, or custom: then the next three count."""
    action_layers: int = 12
    action_width: int = 768
    action_heads: int = 12
    guidance_scale: float = 1.5
    """Classifier-free guidance; 1 is none."""
    condition_dropout: float = 0.1
    """Share of training rows without a condition."""
    repeated_diffusion_steps: int = 8
    """Noise draws per observation in a training step."""

    gripper_dims: tuple[int, ...] = ()
    """Action dimensions that are made 0 or 1 at `gripper_threshold`, e.g. (6,)."""
    gripper_threshold: float = 0.5

    prompt_suffix: tuple[int, ...] = (29871, 2)
    """Ids after the prompt; the last one is the cognition query."""

    noise_scheduler_type: str = "DDIM"
    num_inference_steps: int | None = 10
    num_train_timesteps: int = 100
    beta_schedule: str = "squaredcos_cap_v2"
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    prediction_type: str = "epsilon"
    clip_sample: bool = False
    clip_sample_range: float = 1.0

    def __post_init__(self):
        """Check what dataclass fields cannot say."""
        super().__post_init__()
        NoiseSchedule.of(self)
        if self.action_head in SIZES:
            self.action_layers, self.action_width, self.action_heads = SIZES[self.action_head]
        elif self.action_head != "custom":
            raise ValueError(f"action_head={self.action_head!r}; choose one of {', '.join(SIZES)}, custom")
        self._check_heads("action")


class CogACTPolicy(VisionLanguage, PreTrainedPolicy):
    """Vision, language, cognition token, diffusion transformer."""

    config_class = CogACTConfig
    name = "cogact"

    def __init__(self, config: CogACTConfig, **kwargs: Any):
        super().__init__(config)
        config.validate_features()
        self.config: CogACTConfig = config
        self.build_backbone(config)
        self.action_model = ActionModel(
            DiT(
                config.action_feature.shape[0],
                config.horizon,
                config.language_width,
                config.action_layers,
                config.action_width,
                config.action_heads,
            )
        )
        self.schedule = NoiseSchedule.of(config)
        self.reset()

    @property
    def sampler(self) -> Sampler:
        """The sampler the config asks for."""
        steps = self.config.num_inference_steps or self.config.num_train_timesteps
        return self.resample(self.config.noise_scheduler_type.lower(), steps)

    def resample(self, name: str, n_steps: int, spacing: Spacing = OWN) -> Sampler:
        """Build a sampler of the same process; DDIM's own spacing is the original's."""
        if name == "ddim" and spacing == OWN:
            return ddim_at(ddim_timesteps(n_steps, self.config.num_train_timesteps), self.schedule)
        return make_sampler(name, n_steps, self.schedule, spacing)

    def reset(self) -> None:
        """Forget queued actions and votes."""
        super().reset()
        self._ensemble = AdaptiveEnsemble(max(1, self.config.ensemble_horizon), self.config.ensemble_alpha)

    @torch.no_grad()
    def sample_actions(self, batch: dict[str, Tensor], noise: Any = None) -> Tensor:
        """Sample normalised chunks (B, H, A) by the plain loop over whole networks."""
        draw, net, scale = noise or GlobalNoise(), self.action_model.net, self.config.guidance_scale
        z = self.cognition(batch)
        like = z.new_empty((), dtype=torch.promote_types(z.dtype, torch.float32))
        x = draw((z.shape[0], self.config.horizon, self.config.action_feature.shape[0]), like)
        is_guided = scale > 1
        if is_guided:  # both branches in one call, as the original does
            z = torch.cat([z, net.z_embedder.uncondition.expand_as(z)])
        memory: tuple[Tensor, ...] = ()
        for step in self.sampler.on(x.device).steps:
            out = net((torch.cat([x, x]) if is_guided else x).to(z), step.t.expand(z.shape[0]), z)
            if is_guided:
                out, without = out.chunk(2)
                out = without + scale * (out - without)
            x, memory = step.advance(x, out.to(x), memory, draw)
        return finish(x, self.config)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Return the next action (B, A): of the queue, or the vote of the latest chunks."""
        if self.config.ensemble_horizon:
            self.eval()
            return self._ensemble(self.sample_actions(batch))
        return super().select_action(batch)

    def loss(self, batch: dict[str, Tensor], actions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error of what the head should say, several draws a row; and the features (B, D)."""
        z = self.cognition(batch)
        return self.action_loss(z, actions), z

    def action_loss(self, z: Tensor, actions: Tensor, head: ActionModel | None = None) -> Tensor:
        """Loss from cognition features (B, D), of the policy's own head when none is given."""
        repeats = self.config.repeated_diffusion_steps
        z = z.repeat_interleave(repeats, dim=0)
        actions = actions.repeat_interleave(repeats, dim=0)
        net = (head or self.action_model).net
        is_dropped = torch.rand(len(z), 1, device=z.device) < self.config.condition_dropout
        z = torch.where(is_dropped, net.z_embedder.uncondition.to(z), z)
        noise = torch.randn_like(actions)
        t = torch.randint(self.config.num_train_timesteps, (len(z),), device=z.device)
        target = self.schedule.target(actions, noise, t)
        return F.mse_loss(net(self.schedule.diffuse(actions, noise, t), t, z).float(), target)


def full_size(action_head: str = "base") -> CogACTPolicy:
    """Build the 7-billion form on the meta device: every module and shape, no weights."""
    config = CogACTConfig(
        input_features={"observation.images.primary": PolicyFeature(FeatureType.VISUAL, (3, 224, 224))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
        gripper_dims=(6,),
        action_head=action_head,
        device="cpu",
    )
    with torch.device("meta"):
        return CogACTPolicy(config).eval()


def ddim_timesteps(n_steps: int, total: int) -> tuple[int, ...]:
    """Timesteps of the original's DDIM, descending: multiples of the first stride that gives as many.

    Raises:
        BadSetting: no whole stride gives so many.
    """
    if n_steps == 1:
        return (total // 2,)
    stride = next((s for s in range(1, total) if len(range(0, total, s)) == n_steps), None)
    if stride is None:
        raise BadSetting(
            f"cogact's DDIM steps over {total} timesteps at a whole stride, which cannot give {n_steps} steps"
        )
    return tuple(reversed(range(0, total, stride)))


def finish(x: Tensor, config: CogACTConfig) -> Tensor:
    """Clip to [-1, 1] and make the gripper's dimensions 0 or 1."""
    actions = x.clamp(-1, 1)
    for dim in config.gripper_dims:
        closed = (actions[..., dim : dim + 1] >= config.gripper_threshold).to(actions)
        actions = torch.cat([actions[..., :dim], closed, actions[..., dim + 1 :]], dim=-1)
    return actions


def make_cogact_pre_post_processors(
    config: CogACTConfig,
    dataset_stats: dict[str, dict[str, Any]] | None = None,
    tokenizer: Any = None,
) -> tuple[Any, Any]:
    """Build lerobot's processor pipelines; see `vla.make_vla_processors`."""
    return make_vla_processors(config, dataset_stats, tokenizer)
