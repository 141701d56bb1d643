"""Read OpenVLA checkpoints in the layout of the Hugging Face hub.

    RUN/config.json                        {"model_type": "openvla", "timm_model_ids", "norm_stats", …}
    RUN/dataset_statistics.json            of a fine-tuned one: its own statistics, config.json has the base's
    RUN/model.safetensors, or RUN/model.safetensors.index.json and its shards
        language_model.{model,lm_head}.*, projector.fc{1,2,3}.*,
        vision_backbone.{featurizer,fused_featurizer}.*

A fine-tuned checkpoint that writes chunks has the same files; `horizon` says how many actions.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lerobot.configs.types import FeatureType, PolicyFeature
from safetensors.torch import load_file
from torch import Tensor

from vivace.policies.checkpoint.find import INDEX, WEIGHTS
from vivace.policies.checkpoint.shards import tensor_names, weight_files
from vivace.policies.errors import PolicyNotFound
from vivace.policies.families.originals import Original, action_statistics, check_read, read_json, rename
from vivace.policies.families.token_vla.policy import TokenVLAConfig

CAMERA = "observation.images.primary"
_PREFIXES: dict[str, str | None] = {
    "language_model.model.": "language.",
    "language_model.lm_head.": "lm_head.",
    "projector.fc1.": "projector.projector.0.",
    "projector.fc2.": "projector.projector.2.",
    "projector.fc3.": "projector.projector.4.",
    "vision_backbone.featurizer.": "vision_backbone.dino_featurizer.",
    "vision_backbone.fused_featurizer.": "vision_backbone.siglip_featurizer.",
}
_TEXT = {
    "hidden_size": "language_width",
    "num_hidden_layers": "language_layers",
    "num_attention_heads": "language_heads",
    "num_key_value_heads": "language_kv_heads",
    "intermediate_size": "language_mlp",
    "rms_norm_eps": "rms_norm_eps",
}
"""Fields of the language model's config, absent where they are Llama-2 7B's -> ours."""


def convert_state_dict(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the original's tensors to `TokenVLAPolicy`'s; raises `PolicyNotFound`."""
    renamed = rename(weights, _PREFIXES, "the checkpoint")
    # the original renames timm's LayerScale, because transformers rewrites names with "gamma"
    return {name.replace(".scale_factor", ".gamma"): tensor for name, tensor in renamed.items()}


def read(run: Path, unnorm_key: str | None, architecture: Mapping[str, Any] | None = None) -> Original:
    """Read a checkpoint folder; see `originals.convert`."""
    file = run / "config.json"
    described = read_json(file)
    own = run / "dataset_statistics.json"
    if own.is_file():  # OpenVLA's deploy.py takes these instead
        statistics = action_statistics(read_json(own), own, unnorm_key)
    else:
        statistics = action_statistics(described.get("norm_stats", {}), file, unnorm_key)
    try:
        settings = _settings(described, len(statistics["q01"])) | dict(architecture or {})
    except (KeyError, TypeError, IndexError) as error:
        raise PolicyNotFound(f"{file} lacks {error}; this is not OpenVLA's config") from error
    edge = settings["image_size"]
    settings["input_features"] = {CAMERA: PolicyFeature(FeatureType.VISUAL, (3, edge, edge))}
    return Original(TokenVLAConfig(**settings), convert_state_dict(_load(run)), {"action": statistics})


def _settings(described: Mapping[str, Any], action_dim: int) -> dict[str, Any]:
    """Fields of `TokenVLAConfig` that the original's config tells."""
    text = described.get("text_config", {})
    dino, siglip = described["timm_model_ids"]
    vocabulary = text.get("vocab_size", TokenVLAConfig.language_vocabulary)
    return {
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (action_dim,))},
        "device": "cpu",
        "image_size": described["image_sizes"][0],
        "dino_model": dino,
        "siglip_model": siglip,
        "language_vocabulary": vocabulary,
        "vocabulary_end": vocabulary - described["pad_to_multiple_of"],
        "n_action_bins": described["n_action_bins"],
        "pad_token": described["pad_token_id"],
        **{ours: text[theirs] for theirs, ours in _TEXT.items() if theirs in text},
    }


def _load(run: Path) -> dict[str, Tensor]:
    files = weight_files(run)
    if not files[0].is_file():
        raise PolicyNotFound(f"{run} has no {WEIGHTS} and no {INDEX}")
    check_read(run, [file.name for file in files])
    tensor_names(run)  # raises unless every file is there and holds what the index says
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= load_file(file)
    return weights
