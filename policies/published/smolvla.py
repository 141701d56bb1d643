"""SmolVLA as published: the first 16 layers of SmolVLM2-500M and an action expert, 450 million parameters.

Numbers: lerobot 0.6.1's `SmolVLAConfig`, the features of lerobot/smolvla_base, and config.json of
HuggingFaceTB/SmolVLM2-500M-Video-Instruct, whose text model is SmolLM2-360M and whose vision tower is
SigLIP-B/16 at 512 pixels. 64 tokens a camera.
"""

from pathlib import Path
from typing import Any

from vivace.policies.published.architecture import Architecture
from vivace.policies.published.tokenizer import SMOLVLM, stand_in

_TEXT = {
    "model_type": "llama",
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
    "head_dim": 64,
    "vocab_size": 49280,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
}
_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}


def _write(folder: Path) -> dict[str, Any]:
    """Write the language model's config, and a processor around a tokenizer that stands in for its own."""
    from transformers import SmolVLMConfig, SmolVLMProcessor
    from transformers.models.smolvlm.image_processing_smolvlm import SmolVLMImageProcessor
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    vlm = folder / "smolvlm2-500m"
    SmolVLMConfig(
        text_config=_TEXT, vision_config=_VISION, scale_factor=4, image_token_id=49190, pad_token_id=2
    ).save_pretrained(vlm)
    tokenizer = stand_in(extra_special_tokens=SMOLVLM)
    SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor()).save_pretrained(vlm)
    return {"vlm_model_name": str(vlm)}


SMOLVLA = Architecture(
    source="lerobot/smolvla_base; HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
    cameras={f"observation.images.camera{i}": (256, 256) for i in (1, 2, 3)},
    state=6,
    actions=6,
    settings={"load_vlm_weights": False},
    write=_write,
)
