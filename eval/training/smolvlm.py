"""The vision-language model of a miniature SmolVLA: its config and tokenizer, and weights of another VLA.

lerobot builds its SmolVLM of a folder, or a place on the Hub, with a config and a processor; the weights come
with the policy's.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, normalizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMProcessor
from transformers.models.smolvlm.image_processing_smolvlm import SmolVLMImageProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

from vivace.envs.demonstrations import Demonstrations
from vivace.eval.training.settings import SmolVLAOptions
from vivace.policies.errors import BadSetting
from vivace.policies.load import LoadedPolicy, load_policy
from vivace.policies.vla.vla import VisionLanguage

VLM = "vlm"
"""Name of the folder, inside a checkpoint."""
_SPECIAL = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
_MOMENTS = 256
"""Demonstrated moments that a connector is fitted on."""


def write_smolvlm(folder: Path, options: SmolVLAOptions, tokenizer: Tokenizer, texts: list[str]) -> int:
    """Write config and processor of a miniature SmolVLM; return the tokens of the longest text.

    Args:
        folder: made if it is not there.
        options: sizes.
        tokenizer: with ids 0, 1, 2 of padding, BOS, EOS; what SmolVLM needs besides is added.
        texts: to count tokens of.
    """
    copied = Tokenizer.from_str(tokenizer.to_str())
    copied.normalizer = normalizers.Lowercase()  # as ours are trained
    fast = PreTrainedTokenizerFast(
        tokenizer_object=copied,
        pad_token=copied.id_to_token(0),
        bos_token=copied.id_to_token(1),
        eos_token=copied.id_to_token(2),
        additional_special_tokens=list(_SPECIAL.values()),
        extra_special_tokens=_SPECIAL,
        model_max_length=512,
    )
    text = {
        "model_type": "llama",
        "hidden_size": options.language_width,
        "intermediate_size": options.language_mlp,
        "num_hidden_layers": options.language_layers,
        "num_attention_heads": options.language_heads,
        "num_key_value_heads": options.language_heads,
        "head_dim": options.language_width // options.language_heads,
        "vocab_size": len(fast),
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
    }
    vision = {
        "hidden_size": options.vision_width,
        "intermediate_size": options.vision_mlp,
        "num_hidden_layers": options.vision_layers,
        "num_attention_heads": options.vision_heads,
        "image_size": options.image_size,
        "patch_size": options.patch_size,
        "hidden_act": "gelu",
    }
    config: Any = SmolVLMConfig
    config(
        text_config=text,
        vision_config=vision,
        scale_factor=options.scale_factor,
        image_token_id=fast.convert_tokens_to_ids(_SPECIAL["image_token"]),
        pad_token_id=0,
    ).save_pretrained(folder)
    SmolVLMProcessor(SmolVLMImageProcessor(), fast, SmolVLMVideoProcessor()).save_pretrained(folder)
    return max(len(ids) for ids in fast(texts)["input_ids"])


def backbone(path: str) -> LoadedPolicy:
    """Load a VLA to begin with; raises `BadSetting` if it is none of ours."""
    loaded = load_policy(path)
    if not isinstance(loaded.policy, VisionLanguage):
        raise BadSetting(f"--backbone holds a policy of type {loaded.policy.config.type!r}; a VLA is needed")
    return loaded


@torch.no_grad()
def take_backbone(policy: Any, other: Any, demonstrations: Demonstrations) -> None:
    """Begin a SmolVLA with another VLA's second vision tower and language model.

    Where it has fewer language layers than the other it begins with some of the other's, evenly spread.
    The other VLA has a second tower and a projector of its own form, which the connector, one matrix, stands
    for as well as it can: it is fitted to give what the projector gives, by least squares over moments of the
    demonstrations. The expert stays random.

    Raises:
        BadSetting: the sizes differ.
    """
    vlm = policy.model.vlm_with_expert.vlm.model
    tower = other.vision_backbone.siglip_featurizer
    _load(vlm.vision_model, _siglip(tower.state_dict()), "vision")
    n, wanted = len(other.language.layers), len(vlm.text_model.layers)
    _load(vlm.text_model, _layers(other.language.state_dict(), evenly(n, wanted)), "language")
    embeddings = vlm.text_model.embed_tokens.weight
    scale = embeddings.shape[1] ** 0.5  # SmolVLA multiplies what it reads by it
    embeddings[: len(other.language.embed_tokens.weight)] /= scale
    if vlm.connector.scale_factor == 1:
        _fit_connector(vlm, other, demonstrations, scale)


def _siglip(timm: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a timm tower under SmolVLM's names; the norm behind it begins as one of ones."""
    found = {
        "embeddings.patch_embedding.weight": timm["patch_embed.proj.weight"],
        "embeddings.patch_embedding.bias": timm["patch_embed.proj.bias"],
        "embeddings.position_embedding.weight": timm["pos_embed"][0],
    }
    parts = {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    for name, weight in timm.items():
        if not name.startswith("blocks."):
            continue
        block, part, kind = name.split(".", 2)[1], *name.split(".", 2)[2].rsplit(".", 1)
        layer = f"encoder.layers.{block}."
        if part == "attn.qkv":
            for which, third in zip("qkv", weight.chunk(3), strict=True):
                found[f"{layer}self_attn.{which}_proj.{kind}"] = third
        else:
            found[f"{layer}{parts[part]}.{kind}"] = weight
    return found


def evenly(n: int, wanted: int) -> list[int]:
    """Return so many of n layers, the first and the last among them; all n where fewer are there."""
    return np.linspace(0, n - 1, min(n, wanted)).round().astype(int).tolist()


def _layers(weights: dict[str, Tensor], chosen: list[int]) -> dict[str, Tensor]:
    """Weights of a language model with the chosen layers alone."""
    found = {name: weight for name, weight in weights.items() if not name.startswith("layers.")}
    for new, old in enumerate(chosen):
        before = f"layers.{old}."
        found |= {
            f"layers.{new}.{name.removeprefix(before)}": weight
            for name, weight in weights.items()
            if name.startswith(before)
        }
    return found


def _load(module: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Copy into a module what it has of some weights; rows of embeddings that they lack stay as they are."""
    mine = module.state_dict()
    for name in mine.keys() & weights.keys():
        into, found = mine[name], weights[name]
        if name == "embed_tokens.weight":
            into = into[: len(found)]
        if into.shape != found.shape:
            raise BadSetting(
                f"--backbone has {what} weights {name} of shape {tuple(found.shape)}, this policy needs "
                f"{tuple(into.shape)}; give the same sizes"
            )
        into.copy_(found)
    lacking = sorted(mine.keys() - weights.keys() - {"post_layernorm.weight", "post_layernorm.bias"})
    if lacking:
        raise BadSetting(f"--backbone has no {what} weights {lacking[0]}; give no more layers than it has")


def _fit_connector(vlm: Any, other: Any, demonstrations: Demonstrations, scale: float) -> None:
    """Let the connector, and the bias of the norm before it, give what the other's projector gives."""
    rows = np.linspace(0, len(demonstrations.episode) - 1, _MOMENTS).astype(int)
    features, wanted = [], []
    for some in torch.from_numpy(rows).split(64):
        for images in demonstrations.images.values():
            image = torch.from_numpy(images[some.numpy()]).float() / 255
            features.append(vlm.vision_model(pixel_values=image * 2 - 1).last_hidden_state.flatten(0, 1))
            wanted.append(other.projector(other.vision_backbone(image)).flatten(0, 1))
    x, y = torch.cat(features), torch.cat(wanted)
    fitted = _least_squares(torch.cat([x, torch.ones(len(x), 1)], 1), y)
    weight, constant = fitted[:-1], fitted[-1:]
    vlm.connector.modality_projection.proj.weight.copy_(weight.T / scale)
    vlm.vision_model.post_layernorm.bias.copy_(_least_squares(weight.T, constant.T)[:, 0])


def _least_squares(x: Tensor, y: Tensor) -> Tensor:
    """Return w of least || x w - y ||^2, kept small: what a norm gives is short of a dimension."""
    squares = x.T @ x
    ridge = 1e-4 * squares.diagonal().mean() * torch.eye(len(squares))
    return torch.linalg.solve(squares + ridge, x.T @ y)
