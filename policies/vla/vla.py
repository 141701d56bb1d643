"""What OpenVLA and CogACT share: two vision backbones, a projector, a Llama that reads patches and prompt."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim.optimizers import AdamWConfig
from lerobot.processor import make_default_policy_processor_steps, make_policy_processor_pipelines
from lerobot.utils.constants import ACTION, OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from torch import Tensor, nn
from transformers.models.llama.configuration_llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from vivace.policies.language.prefix import Layout
from vivace.policies.language.tokenize import PromptStep
from vivace.policies.vla.structured_dropout import thinned
from vivace.policies.vla.vision import FusedProjector, FusedVision

LAST_LAYER = {
    "last_layer": "of what leaves the last language layer the row of the prompt's last token is read alone"
}
"""What a policy of this form computes and nobody reads."""


@dataclass
class VisionLanguageConfig(PreTrainedConfig):
    """Settings of the vision and language side; defaults are the 7-billion form on Llama-2."""

    n_obs_steps: int = 1
    horizon: int = 16
    """Actions of a chunk."""
    n_action_steps: int = 16
    control_hz: float | None = None
    """Control rate of the demonstrations it was trained on [Hz]; None: not known."""
    action_kinds: tuple[str, ...] = ()
    """What each action dimension means: absolute, delta, velocity; none: not known."""

    image_size: int = 224
    dino_model: str = "vit_large_patch14_reg4_dinov2.lvd142m"
    dino_options: dict[str, Any] = field(default_factory=dict)
    """Changes of timm's architecture, e.g. {"depth": 4, "embed_dim": 192, "num_heads": 3}."""
    siglip_model: str = "vit_so400m_patch14_siglip_224"
    siglip_options: dict[str, Any] = field(default_factory=dict)

    language_layers: int = 32
    language_width: int = 4096
    language_heads: int = 32
    language_kv_heads: int = 32
    language_mlp: int = 11008
    language_vocabulary: int = 32064
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    layer_drop: float = 0.0
    """Training: each row skips a random share of the language layers, up to this one."""
    patch_drop: float = 0.0
    """Training: each row loses a random share of the patches, up to this one, after a first layer."""

    max_positions: int = 2048
    """Longest stream the language model was made for: first token, patches, text, action tokens."""
    max_tokens: int = 64
    prompt_suffix: tuple[int, ...] = (29871,)
    """Ids after the prompt; the last one is the query."""
    bos_token: int = 1
    pad_token: int = 32000

    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.IDENTITY,
            "ACTION": NormalizationMode.QUANTILES,
        }
    )

    optimizer_lr: float = 2e-5
    optimizer_weight_decay: float = 0.0

    def __post_init__(self):
        """Check what dataclass fields cannot say."""
        super().__post_init__()
        self._check_heads("language")
        if self.n_action_steps > self.horizon:
            raise ValueError(f"n_action_steps={self.n_action_steps} exceeds horizon={self.horizon}")
        for name in ("layer_drop", "patch_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; needed: 0 <= {name} < 1")

    def _check_heads(self, part: str) -> None:
        width, heads = getattr(self, f"{part}_width"), getattr(self, f"{part}_heads")
        if width % heads:
            raise ValueError(f"{part}_width={width} is not a multiple of {part}_heads={heads}")

    def get_optimizer_preset(self) -> AdamWConfig:
        """AdamW at a constant rate, as in the original projects."""
        return AdamWConfig(lr=self.optimizer_lr, weight_decay=self.optimizer_weight_decay)

    def get_scheduler_preset(self) -> None:
        """No schedule."""
        return

    def validate_features(self) -> None:
        """A camera and the action must be declared."""
        if self.action_feature is None:
            raise ValueError(f"{self.type} needs an 'action' output feature")
        if not self.image_features:
            raise ValueError(f"{self.type} needs a camera: an input feature 'observation.images.<name>'")

    @property
    def observation_delta_indices(self) -> list[int]:
        """The present observation."""
        return [0]

    @property
    def action_delta_indices(self) -> list[int]:
        """Actions of one chunk, relative to now."""
        return list(range(self.horizon))

    @property
    def reward_delta_indices(self) -> None:
        """No rewards."""
        return

    def llama(self) -> LlamaConfig:
        """The language model's own config."""
        settings: dict[str, Any] = dict(
            vocab_size=self.language_vocabulary,
            hidden_size=self.language_width,
            intermediate_size=self.language_mlp,
            num_hidden_layers=self.language_layers,
            num_attention_heads=self.language_heads,
            num_key_value_heads=self.language_kv_heads,
            max_position_embeddings=self.max_positions,
            rms_norm_eps=self.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
        )
        return LlamaConfig(**settings)


class VisionLanguage(nn.Module):
    """The vision and language side of a policy; the policy's class derives from it and adds what acts."""

    config: Any
    training: bool
    sample_actions: Callable[[dict[str, Tensor]], Tensor]
    """Normalised chunks (B, H, A)."""
    loss: Callable[[dict[str, Tensor], Tensor], tuple[Tensor, Tensor]]
    """Of a batch and actions (B, H, A); and the stream (B, D) of the prompt's last token."""

    def build_backbone(self, config: VisionLanguageConfig) -> None:
        """Make the modules, with random weights."""
        self.vision_backbone = FusedVision(
            config.image_size,
            config.dino_model,
            config.siglip_model,
            config.dino_options,
            config.siglip_options,
        )
        self.projector = FusedProjector(self.vision_backbone.width, config.language_width)
        self.language = LlamaModel(config.llama())

    def get_optim_params(self) -> list[dict]:
        """All parameters; weight decay on matrices only."""
        matrices = [p for p in self.parameters() if p.requires_grad and p.ndim >= 2]
        others = [p for p in self.parameters() if p.requires_grad and p.ndim < 2]
        decay = self.config.optimizer_weight_decay
        return [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]

    def reset(self) -> None:
        """Forget queued actions."""
        self._queue: deque[Tensor] = deque(maxlen=self.config.n_action_steps)

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Normalised chunks (B, n_action_steps, A)."""
        self.eval()
        return self.sample_actions(batch)[:, : self.config.n_action_steps]

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Return the next action (B, A)."""
        if not self._queue:
            self._queue.extend(self.predict_action_chunk(batch).transpose(0, 1))
        return self._queue.popleft()

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, None]:
        """Loss of a batch: images, prompt tokens and actions (B, H, A)."""
        return self.loss(batch, batch[ACTION])[0], None

    def embed(self, batch: dict[str, Tensor]) -> Tensor:
        """Language-model input (B, 1 + N + L - 1, D): BOS, the patches of all cameras, the other text.

        Args:
            batch: images (B, [1,] 3, H, W) in [0, 1] by key, and the prompt's tokens (B, L).
        """
        patches = []
        for key in self.config.image_features:
            image = batch[key].to(self.language.embed_tokens.weight.dtype)
            image = image[:, 0] if image.ndim == 5 else image
            patches.append(self.projector(self.vision_backbone(image)))
        text = self.language.embed_tokens(batch[OBS_LANGUAGE_TOKENS])
        return torch.cat([text[:, :1], *patches, text[:, 1:]], dim=1)

    def read(self, h: Tensor, layout: Layout | None = None) -> Tensor:
        """Final normalised stream (B, S, D) of embeddings (B, S, D): BOS, patches, and more.

        In training, layers and patches are left out as the config says (`structured_dropout`).

        Args:
            h: the embeddings.
            layout: where the rows stand; causal, padding on the right, when None.
        """
        config = self.config
        layers, patches = (config.layer_drop, config.patch_drop) if self.training else (0.0, 0.0)
        if layout is None and not (layers or patches):
            return self.language(inputs_embeds=h, use_cache=False).last_hidden_state
        layout = layout or Layout.causal(h.shape[1], h.device)
        return thinned(self.language, h, self.n_visual, layers, patches, layout)

    @property
    def n_patches(self) -> tuple[int, ...]:
        """Patches of each camera."""
        return (self.vision_backbone.n_patches,) * len(self.config.image_features)

    @property
    def n_visual(self) -> int:
        """Patches of all cameras."""
        return sum(self.n_patches)

    def cognition(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the final hidden state (B, D) of the prompt's last token: CogACT's cognition feature."""
        hidden = self.read(self.embed(batch))
        return query_row(hidden, batch[OBS_LANGUAGE_ATTENTION_MASK])


def query_row(hidden: Tensor, is_text: Tensor) -> Tensor:
    """Row (B, D) of the last token that is not padding, of (B, S, D) whose last L rows are the text."""
    behind = is_text.shape[1] - is_text.sum(1)  # padding tokens
    last = hidden.shape[1] - 1 - behind
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def make_vla_processors(
    config: VisionLanguageConfig,
    dataset_stats: dict[str, dict[str, Any]] | None = None,
    tokenizer: Any = None,
) -> tuple[Any, Any]:
    """Build lerobot's processor pipelines, with the prompt's tokens.

    Args:
        config: of the policy.
        dataset_stats: statistics of the training data; "q01" and "q99" of the actions count.
        tokenizer: a `tokenizers.Tokenizer`; needed unless it is loaded from a checkpoint afterwards.
    """
    steps = make_default_policy_processor_steps(config, dataset_stats, normalizer_device=config.device)
    prompt = PromptStep(
        suffix=tuple(config.prompt_suffix),
        bos=config.bos_token,
        pad=config.pad_token,
        max_tokens=config.max_tokens,
        tokenizer=tokenizer,
    )
    return make_policy_processor_pipelines(
        input_steps=[
            steps.rename_observations,
            steps.add_batch_dim,
            steps.to_device,
            prompt,
            steps.normalize,
        ],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )
