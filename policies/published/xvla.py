"""X-VLA as published: Florence-2-large without its decoder and a soft-prompted head, 0.9 billion parameters.

Numbers: lerobot 0.6.1's `XVLAConfig`, whose defaults are those of the head, and config.json of
microsoft/Florence-2-large, in Microsoft's own form, as X-VLA's checkpoints hold it. Three views of 224 pixels
(2toINF/X-VLA-Pt). The tokenizer is BART's, for which a stand-in is made.
"""

from vivace.policies.published.architecture import Architecture

_VISION = {
    "model_type": "davit",
    "dim_embed": [256, 512, 1024, 2048],
    "depths": [1, 1, 9, 1],
    "num_heads": [8, 16, 32, 64],
    "num_groups": [8, 16, 32, 64],
    "patch_size": [7, 3, 3, 3],
    "patch_stride": [4, 2, 2, 2],
    "patch_padding": [3, 1, 1, 1],
    "patch_prenorm": [False, True, True, True],
    "window_size": 12,
    "drop_path_rate": 0.1,
    "projection_dim": 1024,
    "image_pos_embed": {"type": "learned_abs_2d", "max_pos_embeddings": 50},
    "visual_temporal_embedding": {"type": "COSINE", "max_temporal_embeddings": 100},
    "image_feature_source": ["spatial_avg_pool", "temporal_avg_pool"],
}
_TEXT = {
    "model_type": "florence2_language",
    "d_model": 1024,
    "vocab_size": 51289,
    "max_position_embeddings": 4096,
    "encoder_layers": 12,
    "decoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "decoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_attention_heads": 16,
    "activation_function": "gelu",
    "scale_embedding": False,
}
XVLA = Architecture(
    source="2toINF/X-VLA-Pt; microsoft/Florence-2-large",
    cameras={f"observation.images.{name}": (224, 224) for name in ("image", "image2", "image3")},
    state=20,
    actions=20,
    settings={
        "florence_config": {"vision_config": _VISION, "text_config": _TEXT, "image_token_id": 51289 - 1}
    },
)
