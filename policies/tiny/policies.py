"""Miniature policies with seeded random weights, for tests, tours and smoke runs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig
from lerobot.policies.multi_task_dit.modeling_multi_task_dit import MultiTaskDiTPolicy
from torch import Tensor

from vivace.policies.families.cogact.policy import CogACTConfig, CogACTPolicy
from vivace.policies.families.dp_transformer.policy import DPTransformerConfig, DPTransformerPolicy
from vivace.policies.families.token_vla.policy import TokenVLAConfig, TokenVLAPolicy


def tiny_dp_transformer(images: bool = False, **changes: Any) -> DPTransformerPolicy:
    """Build a miniature transformer Diffusion Policy; the same weights at every call.

    Observations are a state (5,), with `images` also one camera (3, 64, 64); actions are (3,).

    Args:
        images: observe `observation.images.front` too.
        **changes: fields of `DPTransformerConfig` that differ from the miniature's.
    """
    camera = {"observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 64, 64))} if images else {}
    settings: dict[str, Any] = {
        "input_features": {"observation.state": PolicyFeature(FeatureType.STATE, (5,)), **camera},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (3,))},
        "device": "cpu",
        "n_layer": 2,
        "n_emb": 32,
        "horizon": 8,
        "n_action_steps": 4,
        "num_inference_steps": 10,
        "crop_shape": None,
        "spatial_softmax_num_keypoints": 4,
    }
    config = DPTransformerConfig(**(settings | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = DPTransformerPolicy(config)
        for parameter in policy.model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return policy.eval()


def tiny_diffusion(images: bool = False, **changes: Any) -> DiffusionPolicy:
    """Build a miniature of lerobot's U-Net Diffusion Policy; the same weights at every call.

    Observations are a state (5,), and an environment state (4,) or, with `images`, one camera (3, 64, 64);
    actions are (3,). 64 pixels are the least power of two that resnet18 does not shrink to a single
    position, whose spatial softmax would ignore the image.

    Args:
        images: observe `observation.images.front` instead of `observation.environment_state`.
        **changes: fields of `DiffusionConfig` that differ from the miniature's.
    """
    if images:
        exteroception = {"observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 64, 64))}
    else:
        exteroception = {"observation.environment_state": PolicyFeature(FeatureType.ENV, (4,))}
    settings: dict[str, Any] = {
        "input_features": {"observation.state": PolicyFeature(FeatureType.STATE, (5,)), **exteroception},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (3,))},
        "device": "cpu",
        "n_obs_steps": 2,
        "horizon": 8,
        "n_action_steps": 4,
        "vision_backbone": "resnet18",
        "pretrained_backbone_weights": None,
        "crop_shape": None,
        "use_group_norm": True,
        "spatial_softmax_num_keypoints": 4,
        "down_dims": (16, 32),
        "kernel_size": 3,
        "n_groups": 4,
        "diffusion_step_embed_dim": 16,
        "num_train_timesteps": 10,
    }
    config = DiffusionConfig(**(settings | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DiffusionPolicy(config).eval()


def tiny_clip(folder: Path) -> Path:
    """Write a miniature CLIP with its tokenizer; the same weights at every call.

    Two layers of width 32 for text (16 tokens) and for images of 32 pixels in patches of 16. The tokenizer
    knows single bytes and no merges.

    Args:
        folder: where the checkpoint folder is made.

    Returns:
        The checkpoint folder; "clip" is part of its name, as lerobot's config demands.
    """
    from transformers import CLIPConfig, CLIPModel

    clip = folder / "tiny-clip"
    clip.mkdir(parents=True, exist_ok=True)
    vocabulary = _write_clip_tokenizer(clip)
    tower = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "projection_dim": 32,
    }
    start, end = vocabulary["<|startoftext|>"], vocabulary["<|endoftext|>"]
    text = {"vocab_size": len(vocabulary), "bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = CLIPConfig(  # type: ignore[call-arg]  # its fields are made by a decorator
        text_config=tower | text | {"max_position_embeddings": 16},
        vision_config=tower | {"image_size": 32, "patch_size": 16},
        projection_dim=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(clip)
    return clip


def _write_clip_tokenizer(clip: Path) -> dict[str, int]:
    """Write vocab.json, merges.txt and tokenizer_config.json; returns token -> id."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    (clip / "vocab.json").write_text(json.dumps(vocabulary))
    (clip / "merges.txt").write_text("#version: 0.2\n")
    (clip / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 16})
    )
    return vocabulary


def tiny_multi_task_dit(clip: Path, **changes: Any) -> MultiTaskDiTPolicy:
    """Build a miniature of lerobot's multi-task diffusion transformer; the same weights at every call.

    Observations are a state (5,), one camera (3, 40, 40), cropped to 32 pixels, and an instruction of 16
    tokens at most; actions are (3,). Whatever starts at zero, such as the adaLN that closes every gate, is
    drawn at random, so that all blocks have an effect.

    Args:
        clip: a miniature CLIP, see `tiny_clip`.
        **changes: fields of `MultiTaskDiTConfig` that differ from the miniature's.
    """
    settings: dict[str, Any] = {
        "input_features": {
            "observation.state": PolicyFeature(FeatureType.STATE, (5,)),
            "observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 40, 40)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (3,))},
        "device": "cpu",
        "n_obs_steps": 2,
        "horizon": 8,
        "n_action_steps": 4,
        "hidden_dim": 32,
        "num_layers": 2,
        "num_heads": 4,
        "timestep_embed_dim": 16,
        "num_train_timesteps": 10,
        "num_integration_steps": 4,
        "image_crop_shape": (32, 32),
        "vision_encoder_name": str(clip),
        "text_encoder_name": str(clip),
        "tokenizer_max_length": 16,
    }
    config = MultiTaskDiTConfig(**(settings | changes))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = MultiTaskDiTPolicy(config)
        for parameter in policy.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return policy.eval()


def _tiny_vla(cameras: int) -> dict[str, Any]:
    """Vision and language side of the miniature VLAs."""
    names = ("front", "wrist")[:cameras]
    vit = {"patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 2}
    return {
        "input_features": {
            f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)) for name in names
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (3,))},
        "device": "cpu",
        "image_size": 32,
        "dino_options": vit,
        "siglip_options": vit,
        "language_layers": 4,
        "language_width": 32,
        "language_heads": 4,
        "language_kv_heads": 2,
        "language_mlp": 48,
        "language_vocabulary": 384,
        "horizon": 8,
        "n_action_steps": 4,
        "max_tokens": 24,
        "prompt_suffix": (2,),
        "pad_token": 0,
    }


def _random_weights[Policy: torch.nn.Module](make: Callable[[], Policy]) -> Policy:
    """A policy whose weights are all drawn from one distribution; the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = make()
        for parameter in policy.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return policy.eval()


def tiny_cogact(cameras: int = 1, **changes: Any) -> CogACTPolicy:
    """Build a miniature CogACT; the same weights at every call.

    Observations are `observation.images.front` (3, 32, 32), with two cameras also `…wrist`; actions (3,).

    Args:
        cameras: 1 or 2.
        **changes: fields of `CogACTConfig` that differ from the miniature's.
    """
    head = {"action_head": "custom", "action_layers": 2, "action_width": 32, "action_heads": 2}
    config = CogACTConfig(**(_tiny_vla(cameras) | head | changes))
    return _random_weights(lambda: CogACTPolicy(config))


def tiny_token_vla(cameras: int = 1, **changes: Any) -> TokenVLAPolicy:
    """Build a miniature token VLA; the same weights at every call. Observations as of `tiny_cogact`.

    Args:
        cameras: 1 or 2.
        **changes: fields of `TokenVLAConfig` that differ from the miniature's.
    """
    vocabulary = {"language_vocabulary": 640, "vocabulary_end": 640, "horizon": 4}
    config = TokenVLAConfig(**(_tiny_vla(cameras) | vocabulary | changes))
    return _random_weights(lambda: TokenVLAPolicy(config))


def tiny_pi0_fast(**changes: Any) -> Any:
    """Build a miniature of lerobot's pi0_fast; the same weights at every call.

    Observations are `observation.images.front` (3, 32, 32); actions (3,). Its two tokenizers cannot be had
    offline and are fakes: ids are their own text, and FAST tokens stand for one value each.

    Args:
        **changes: fields of `PI0FastConfig` that differ from the miniature's.
    """
    from lerobot.policies.pi0_fast.configuration_pi0_fast import PI0FastConfig
    from lerobot.policies.pi0_fast.modeling_pi0_fast import PI0FastPaliGemma, PI0FastPolicy, PI0FastPytorch
    from lerobot.policies.pi_gemma import PaliGemmaForConditionalGenerationWithPiGemma
    from transformers.models.paligemma.configuration_paligemma import PaliGemmaConfig

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    text = sizes | {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 300, "model_type": "gemma"}
    vision = sizes | {
        "image_size": 32,
        "patch_size": 8,
        "projection_dim": 32,
        "model_type": "siglip_vision_model",
    }
    whole: dict[str, Any] = {"image_token_index": 299, "projection_dim": 32}
    whole |= {"vision_config": vision, "text_config": text}
    settings: dict[str, Any] = {
        "input_features": {"observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 32, 32))},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (3,))},
        "device": "cpu",
        "image_resolution": (32, 32),
        "max_decoding_steps": 12,
        "chunk_size": 4,
        "n_action_steps": 4,
    }
    config = PI0FastConfig(**(settings | changes))

    def make() -> Any:
        policy, core, expert = (
            object.__new__(it) for it in (PI0FastPolicy, PI0FastPytorch, PI0FastPaliGemma)
        )
        for module in (policy, core, expert):
            torch.nn.Module.__init__(module)
        expert.paligemma = PaliGemmaForConditionalGenerationWithPiGemma(PaliGemmaConfig(**whole))
        core.paligemma_with_expert, core.config, core.rtc_processor = expert, config, None
        core.gradient_checkpointing_enabled = False
        core._paligemma_tokenizer = policy._paligemma_tokenizer = _FakeTokenizer()
        policy.model, policy.config, policy.action_tokenizer = core, config, None
        policy.detokenize_actions = _fake_fast
        return policy

    return _random_weights(make)


class _FakeTokenizer:
    """Stands for PaliGemma's tokenizer, which is on the hub only."""

    bos_token_id = 2

    def convert_tokens_to_ids(self, token: str) -> int:
        """The id of "|", the only one that is asked for."""
        return 124


def _fake_fast(tokens: Tensor, action_horizon: int, action_dim: int) -> Tensor:
    """Stands for the FAST tokenizer: the k-th token is the k-th value, ids below 300 become [-1, 1]."""
    return (tokens[:, : action_horizon * action_dim].float() / 150 - 1).unflatten(
        1, (action_horizon, action_dim)
    )
