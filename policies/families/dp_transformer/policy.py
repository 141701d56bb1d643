"""The transformer Diffusion Policy (arXiv 2303.04137) as a lerobot policy, `--policy.type=dp_transformer`.

lerobot's own `diffusion` is the U-Net form only. lerobot finds the policy class from the config class by
name, in this module. Observations are low-dimensional, images, or both; images go through lerobot's
ResNet encoder with spatial softmax, one feature vector an image.
Sampling uses the exact network of `dp_network`; acceleration goes through `dp_staged`.
"""

from collections import deque
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import DiffuserSchedulerConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionRgbEncoder
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.utils import populate_queues
from lerobot.processor import make_default_policy_processor_steps, make_policy_processor_pipelines
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE
from torch import Tensor, nn

from vivace.policies.dtype import cast, dtype_of
from vivace.policies.families.dp_transformer.network import TransformerForDiffusion
from vivace.policies.sampling.noise import GlobalNoise
from vivace.policies.sampling.noise_schedule import NoiseSchedule
from vivace.policies.sampling.samplers import make_sampler


@PreTrainedConfig.register_subclass("dp_transformer")
@dataclass
class DPTransformerConfig(PreTrainedConfig):
    """Settings of a transformer Diffusion Policy; defaults are the original Push-T low-dim experiment."""

    n_obs_steps: int = 2
    horizon: int = 16
    n_action_steps: int = 8
    control_hz: float | None = None
    """Control rate of the demonstrations it was trained on [Hz]; None: not known."""
    action_kinds: tuple[str, ...] = ()
    """What each action dimension means: absolute, delta, velocity; none: not known."""
    n_layer: int = 8
    n_head: int = 4
    n_emb: int = 256
    p_drop_emb: float = 0.0
    p_drop_attn: float = 0.01
    causal_attn: bool = True
    n_cond_layers: int = 0

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.MEAN_STD,
            "STATE": NormalizationMode.MIN_MAX,
            "ENV": NormalizationMode.MIN_MAX,
            "ACTION": NormalizationMode.MIN_MAX,
        }
    )

    vision_backbone: str = "resnet18"
    pretrained_backbone_weights: str | None = None
    use_group_norm: bool = True
    spatial_softmax_num_keypoints: int = 32
    use_separate_rgb_encoder_per_camera: bool = True
    resize_shape: tuple[int, int] | None = None
    crop_shape: tuple[int, int] | None = None
    crop_is_random: bool = True

    noise_scheduler_type: str = "DDPM"
    num_inference_steps: int | None = None
    num_train_timesteps: int = 100
    beta_schedule: str = "squaredcos_cap_v2"
    beta_start: float = 1e-4
    beta_end: float = 2e-2
    prediction_type: str = "epsilon"
    clip_sample: bool = True
    clip_sample_range: float = 1.0

    optimizer_lr: float = 1e-4
    optimizer_betas: tuple[float, float] = (0.9, 0.95)
    optimizer_weight_decay: float = 1e-3
    scheduler_warmup_steps: int = 1000

    def __post_init__(self):
        """Check what dataclass fields cannot say."""
        super().__post_init__()
        NoiseSchedule.of(self)
        if self.n_emb % self.n_head:
            raise ValueError(f"n_emb={self.n_emb} is not a multiple of n_head={self.n_head}")
        if self.n_action_steps > self.horizon - self.n_obs_steps + 1:
            raise ValueError(
                f"n_action_steps={self.n_action_steps} exceeds horizon - n_obs_steps + 1 = "
                f"{self.horizon - self.n_obs_steps + 1}"
            )

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW as in the original project."""
        return AdamWConfig(
            lr=self.optimizer_lr, betas=self.optimizer_betas, weight_decay=self.optimizer_weight_decay
        )

    def get_scheduler_preset(self) -> DiffuserSchedulerConfig:
        """Cosine with linear warm-up."""
        return DiffuserSchedulerConfig(name="cosine", num_warmup_steps=self.scheduler_warmup_steps)

    def validate_features(self) -> None:
        """At least one observation and the action must be declared."""
        if self.action_feature is None:
            raise ValueError("dp_transformer needs an 'action' output feature")
        if not (self.robot_state_feature or self.env_state_feature or self.image_features):
            raise ValueError("dp_transformer needs a state, an environment state or an image observation")
        sizes = {feature.shape for feature in self.image_features.values()}
        are_made_equal = self.resize_shape or self.crop_shape
        if len(sizes) > 1 and not (self.use_separate_rgb_encoder_per_camera or are_made_equal):
            raise ValueError(
                f"cameras have sizes {sorted(sizes)}, and one encoder reads them all; give resize_shape or "
                "crop_shape, or use_separate_rgb_encoder_per_camera=true"
            )

    @property
    def observation_delta_indices(self) -> list[int]:
        """Observations of one window, relative to now."""
        return list(range(1 - self.n_obs_steps, 1))

    @property
    def action_delta_indices(self) -> list[int]:
        """Actions of one window, relative to now."""
        return list(range(1 - self.n_obs_steps, 1 - self.n_obs_steps + self.horizon))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return


class DPTransformerPolicy(PreTrainedPolicy):
    """The transformer Diffusion Policy."""

    config_class = DPTransformerConfig
    name = "dp_transformer"

    def __init__(self, config: DPTransformerConfig, **kwargs: Any):
        super().__init__(config)
        config.validate_features()
        self.config: DPTransformerConfig = config
        low_dim = [f for f in (config.robot_state_feature, config.env_state_feature) if f]
        cond_dim = sum(f.shape[0] for f in low_dim)
        self.rgb_encoders = nn.ModuleList()
        if config.image_features:
            count = len(config.image_features) if config.use_separate_rgb_encoder_per_camera else 1
            cameras = list(config.image_features)[:count]
            self.rgb_encoders.extend(DiffusionRgbEncoder(_of_one(config, camera)) for camera in cameras)
            feature_dim: Any = self.rgb_encoders[0].feature_dim
            cond_dim += feature_dim * len(config.image_features)
        self.model = TransformerForDiffusion(
            action_dim=config.action_feature.shape[0],
            horizon=config.horizon,
            n_obs_steps=config.n_obs_steps,
            cond_dim=cond_dim,
            n_layer=config.n_layer,
            n_head=config.n_head,
            n_emb=config.n_emb,
            p_drop_emb=config.p_drop_emb,
            p_drop_attn=config.p_drop_attn,
            causal_attn=config.causal_attn,
            n_cond_layers=config.n_cond_layers,
        )
        self.schedule = NoiseSchedule.of(config)
        self.sampler = make_sampler(
            config.noise_scheduler_type.lower(),
            config.num_inference_steps or config.num_train_timesteps,
            self.schedule,
        )
        self.reset()

    def get_optim_params(self) -> list[dict]:
        """Network with weight decay on matrices only; image encoders with 1e-6."""
        groups = self.model.parameter_groups(self.config.optimizer_weight_decay)
        if len(self.rgb_encoders):
            groups.append({"params": list(self.rgb_encoders.parameters()), "weight_decay": 1e-6})
        return groups

    def reset(self) -> None:
        """Forget the observation history and the queued actions."""
        keys = [OBS_STATE] if self.config.robot_state_feature else []
        keys += [OBS_ENV_STATE] if self.config.env_state_feature else []
        keys += list(self.config.image_features)
        self._queues: dict[str, deque] = {key: deque(maxlen=self.config.n_obs_steps) for key in keys}
        self._queues[ACTION] = deque(maxlen=self.config.n_action_steps)

    def features(self, batch: dict[str, Tensor]) -> Tensor:
        """Encode observations (B, To, ...) as features (B, To, cond_dim), low-dimensional ones last."""
        return self.joined(batch, self.seen(batch))

    def seen(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Features (B, To, n) of every camera."""
        parts, batch = [], cast(batch, dtype_of(self.model))
        for i, key in enumerate(self.config.image_features):
            encoder = self.rgb_encoders[min(i, len(self.rgb_encoders) - 1)]
            images = batch[key]  # (B, To, C, H, W)
            parts.append(encoder(images.flatten(0, 1)).unflatten(0, images.shape[:2]))
        return tuple(parts)

    def joined(self, batch: dict[str, Tensor], seen: tuple[Tensor, ...]) -> Tensor:
        """Features (B, To, cond_dim) of what was seen and of the low-dimensional observations."""
        parts, batch = list(seen), cast(batch, dtype_of(self.model))
        if self.config.robot_state_feature:
            parts.append(batch[OBS_STATE])
        if self.config.env_state_feature:
            parts.append(batch[OBS_ENV_STATE])
        return torch.cat(parts, dim=-1)

    @torch.no_grad()
    def sample_actions(self, batch: dict[str, Tensor], noise: Any = None) -> Tensor:
        """Sample normalised chunks (B, H, A) by the plain loop over the whole network."""
        draw = noise or GlobalNoise()
        cond = self.features(batch)
        like = cond.new_empty((), dtype=torch.promote_types(cond.dtype, torch.float32))
        x = draw((cond.shape[0], self.config.horizon, self.config.action_feature.shape[0]), like)
        memory: tuple[Tensor, ...] = ()
        for step in self.sampler.on(cond.device).steps:
            out = self.model(x.to(cond), step.t.expand(x.shape[0]), cond).to(x)
            x, memory = step.advance(x, out, memory, draw)
        return x

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Normalised actions to execute (B, n_action_steps, A) from the queued observations.

        Where none are queued from the batch, as lerobot's policy server asks: (B, To, ...), or (B, ...) of
        one moment, which stands for all, as in `select_action` at the beginning of an episode.
        """
        self.eval()
        queues = {key: queue for key, queue in self._queues.items() if key != ACTION}
        if all(queues.values()):
            seen = {key: torch.stack(list(queue), dim=1) for key, queue in queues.items()}
        else:
            seen = {key: self._with_time(key, batch[key]) for key in queues}
        start = self.config.n_obs_steps - 1
        return self.sample_actions(seen)[:, start : start + self.config.n_action_steps]

    def _with_time(self, key: str, value: Tensor) -> Tensor:
        """Observations (B, To, ...) of those, or of one moment (B, ...)."""
        shape = self.config.input_features[key].shape
        if value.ndim > 1 + len(shape):
            return value
        return value.unsqueeze(1).repeat(1, self.config.n_obs_steps, *[1] * len(shape))

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Return the next action (B, A); samples a new chunk when the queue is empty."""
        batch = {key: value for key, value in batch.items() if key != ACTION}
        self._queues = populate_queues(self._queues, batch)
        if not self._queues[ACTION]:
            self._queues[ACTION].extend(self.predict_action_chunk(batch).transpose(0, 1))
        return self._queues[ACTION].popleft()

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, None]:
        """Denoising loss of a batch of windows: observations (B, To, ...), actions (B, H, A)."""
        seen = dict(batch)
        for key in self.config.image_features:
            if seen[key].dim() == 4:
                seen[key] = seen[key].unsqueeze(1)
        return self.loss(seen, batch[ACTION]), None

    def loss(self, batch: dict[str, Tensor], actions: Tensor) -> Tensor:
        """Mean squared error of what the denoiser should say at random timesteps."""
        noise = torch.randn_like(actions)
        t = torch.randint(self.config.num_train_timesteps, (actions.shape[0],), device=actions.device)
        noisy = self.schedule.diffuse(actions, noise, t)
        target = self.schedule.target(actions, noise, t)
        return F.mse_loss(self.model(noisy, t, self.features(batch)), target)


def _of_one(config: DPTransformerConfig, camera: str) -> DPTransformerConfig:
    """The config as if there were one camera: lerobot's encoder goes by the first one's size."""
    one = copy(config)
    one.input_features = {camera: config.image_features[camera]}
    return one


def make_dp_transformer_pre_post_processors(
    config: DPTransformerConfig, dataset_stats: dict[str, dict[str, Any]] | None = None
) -> tuple[Any, Any]:
    """Build lerobot's processor pipelines; a constant dimension is only shifted, as in the original."""
    stats = {key: _spread(values) for key, values in (dataset_stats or {}).items()}
    steps = make_default_policy_processor_steps(config, stats, normalizer_device=config.device)
    return make_policy_processor_pipelines(
        input_steps=[steps.rename_observations, steps.add_batch_dim, steps.to_device, steps.normalize],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )


def _spread(values: dict[str, Any], eps: float = 1e-4) -> dict[str, Any]:
    """Widen dimensions whose range is under `eps` to +-1, so that lerobot's min-max only shifts them."""
    if "min" not in values or "max" not in values:
        return values
    low, high = torch.as_tensor(values["min"]).float(), torch.as_tensor(values["max"]).float()
    flat = high - low < eps
    return values | {"min": torch.where(flat, low - 1, low), "max": torch.where(flat, low + 1, high)}
