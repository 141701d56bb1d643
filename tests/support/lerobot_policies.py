"""lerobot's own policy types in miniature, with random weights, made without a network.

`saved(type)` gives a checkpoint folder as lerobot's users have them: config, weights, lerobot's own
processors with statistics; tokenizers are beside it. The robot is made up: 5 joints, 4 actions, two cameras
(`front` and `wrist`) where a policy takes two.

pi0, pi05 and pi0_fast know two sizes only, of billions; this module makes both of them small in this
process, so their checkpoints can be loaded in a process that has imported it, and in no other.
"""

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors
from lerobot.processor import TokenizerProcessorStep
from torch import Tensor, nn
from transformers import AutoProcessor

from vivace.policies.tiny.policies import tiny_clip

STATE_DIM, ACTION_DIM = 5, 4
CAMERAS = ("front", "wrist")
TASK = "put the red cube on the plate"

UNBUILDABLE: dict[str, str] = {
    "fastwam": "it loads the video VAE and the text encoder of Wan 2.2 by their names on the Hub",
    "lingbot_va": "its first chunk loads the video VAE and the text encoder of Wan 2.2",
    "molmoact2": "it starts from a checkpoint of MolmoAct2's own form, with processors of its own",
    "wall_x": "it starts from a checkpoint of Wall-X's own form, a mixture of experts over Qwen2.5-VL",
}
"""Type -> why it is not built small without a network."""


def features(size: tuple[int, int] = (48, 64), cameras: int = 2, state: bool = True) -> dict[str, Any]:
    """Input and output features of the made-up robot."""
    seen = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, *size)) for name in CAMERAS}
    seen = dict(list(seen.items())[:cameras])
    if state:
        seen["observation.state"] = PolicyFeature(FeatureType.STATE, (STATE_DIM,))
    return {
        "input_features": seen,
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
        "device": "cpu",
    }


def statistics(config: Any) -> dict[str, dict[str, Tensor]]:
    """Statistics of a made-up dataset, every kind that lerobot knows, of all features of a policy."""
    random = torch.Generator().manual_seed(7)
    found = {}
    for key, feature in {**config.input_features, **config.output_features}.items():
        if feature.type is FeatureType.VISUAL:
            shape, middle, spread = (3, 1, 1), 0.45, 0.25
        else:
            shape, middle, spread = tuple(feature.shape), 3.0, 2.0
        mean = middle * torch.rand(shape, generator=random) + middle / 2
        std = spread * (0.5 + torch.rand(shape, generator=random))
        low, high = (mean - 2.5 * std, mean + 2.5 * std) if shape != (3, 1, 1) else (mean * 0, mean * 0 + 1)
        found[key] = {"mean": mean, "std": std, "min": low, "max": high, "q50": mean}
        found[key] |= {"q01": mean - 2 * std, "q99": mean + 2 * std}
        found[key] |= {"q10": mean - 1.2 * std, "q90": mean + 1.2 * std}
    return found


def tokenizer_folder(folder: Path, names: dict[str, str] | None = None) -> Path:
    """Write a tokenizer of bytes with the special tokens that PaliGemma, SmolVLM and Qwen have.

    Args:
        folder: where its own folder is made.
        names: attribute -> token, of a tokenizer that says which of its tokens are what.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text = folder / ("tokenizer" if names is None else "named-tokenizer")
    if text.exists():
        return text
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<pad>", "<bos>", "<eos>", *_SMOLVLM.values(), *_QWEN]
    tokenizer = Tokenizer(models.BPE({it: i for i, it in enumerate([*special, *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=[*_SMOLVLM.values(), *_QWEN],
        **({} if names is None else {"extra_special_tokens": names}),
        model_max_length=512,
    ).save_pretrained(text)
    return text


_SMOLVLM = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
_QWEN = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCABULARY = 320
"""More ids than the tokenizer has."""


def _resnet(**more: Any) -> dict[str, Any]:
    return {"vision_backbone": "resnet18", "pretrained_backbone_weights": None} | more


def _act(folder: Path) -> dict[str, Any]:
    sizes = {"dim_model": 32, "n_heads": 4, "dim_feedforward": 48, "n_encoder_layers": 2, "latent_dim": 8}
    return features() | _resnet(**sizes, use_vae=False, chunk_size=8, n_action_steps=4)


def _diffusion(folder: Path) -> dict[str, Any]:
    sizes = {"down_dims": (16, 32), "kernel_size": 3, "n_groups": 4, "diffusion_step_embed_dim": 16}
    run = {"n_obs_steps": 2, "horizon": 8, "n_action_steps": 4, "num_train_timesteps": 10}
    return features((64, 96)) | _resnet(**sizes, **run, crop_shape=None, spatial_softmax_num_keypoints=4)


def _multi_task_dit(folder: Path) -> dict[str, Any]:
    clip = str(tiny_clip(folder))
    sizes = {"hidden_dim": 32, "num_layers": 2, "num_heads": 4, "timestep_embed_dim": 16}
    run = {"n_obs_steps": 2, "horizon": 8, "n_action_steps": 4, "num_train_timesteps": 10}
    towers = {"vision_encoder_name": clip, "text_encoder_name": clip, "tokenizer_max_length": 16}
    return features((40, 40)) | sizes | run | towers | {"image_crop_shape": (32, 32)}


def _vqbet(folder: Path) -> dict[str, Any]:
    sizes = {"gpt_input_dim": 32, "gpt_output_dim": 32, "gpt_n_layer": 2, "gpt_n_head": 4}
    sizes |= {"gpt_hidden_dim": 32, "vqvae_embedding_dim": 16, "vqvae_enc_hidden_dim": 16, "vqvae_n_embed": 8}
    run = {"n_obs_steps": 3, "n_action_pred_token": 2, "action_chunk_size": 3}
    return features((64, 96), cameras=1) | _resnet(
        **sizes, **run, crop_shape=None, spatial_softmax_num_keypoints=4
    )


def _tdmpc(folder: Path) -> dict[str, Any]:
    sizes = {"image_encoder_hidden_dim": 8, "state_encoder_hidden_dim": 16, "latent_dim": 8, "mlp_dim": 16}
    run = {"n_gaussian_samples": 16, "n_pi_samples": 4, "n_elites": 4, "cem_iterations": 2, "horizon": 3}
    seen = features((64, 64), cameras=1)
    camera = seen["input_features"].pop("observation.images.front")
    seen["input_features"]["observation.image"] = camera  # it reads no other name
    return seen | sizes | run | {"use_mpc": False}


def _gaussian_actor(folder: Path) -> dict[str, Any]:
    sizes = {"latent_dim": 16, "state_encoder_hidden_dim": 16, "image_encoder_hidden_dim": 8}
    return features((64, 64)) | sizes | {"dataset_stats": None}


def _pi(folder: Path) -> dict[str, Any]:
    run = {"chunk_size": 6, "n_action_steps": 4, "image_resolution": (32, 32)}
    return features() | run


def _make_pi_small() -> None:
    """Make pi0, pi05 and pi0_fast small in this process: their config names two sizes only, both large."""
    from lerobot.policies.pi0 import modeling_pi0
    from lerobot.policies.pi0_fast import modeling_pi0_fast
    from lerobot.policies.pi05 import modeling_pi05

    gemma = SimpleNamespace(width=32, depth=3, mlp_dim=48, num_heads=4, num_kv_heads=1, head_dim=8)

    def paligemma(real: Any) -> Any:
        def small(config: Any) -> Any:
            config.image_token_index = config.text_config.vocab_size = config._vocab_size = VOCABULARY
            vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "patch_size": 8}
            vision |= {"num_attention_heads": 4, "image_size": 32, "projection_dim": 32}
            for name, value in vision.items():
                setattr(config.vision_config, name, value)
            config.projection_dim = 32
            return real(config)

        return small

    def expert(real: Any) -> Any:
        def small(config: Any) -> Any:
            config.vocab_size = VOCABULARY
            return real(config)

        return small

    def config(real: Any) -> Any:
        return lambda variant: gemma

    for module in (modeling_pi0, modeling_pi05, modeling_pi0_fast):
        for name, smaller in (
            ("get_gemma_config", config),
            ("PaliGemmaForConditionalGenerationWithPiGemma", paligemma),
            ("PiGemmaForCausalLM", expert),
        ):
            if hasattr(module, name):
                _PI.append((module, name, getattr(module, name)))
                setattr(module, name, smaller(getattr(module, name)))


_PI: list[tuple[Any, str, Any]] = []
"""Module, name and what lerobot has there, of all that makes pi0 and its kin small."""
_make_pi_small()


def pi_as_published(monkeypatch: Any) -> None:
    """Let pi0, pi05 and pi0_fast have lerobot's own sizes for the length of a test."""
    for module, name, real in _PI:
        monkeypatch.setattr(module, name, real)


_FAST_IDS = 128


def know_fast() -> Any:
    """Let this process find the class of FAST tokenizers, which lerobot brings; returns it."""
    from lerobot.policies.molmoact2.molmoact2_hf_model.action_tokenizer import UniversalActionProcessor

    AutoProcessor.register(UniversalActionProcessor, UniversalActionProcessor)
    return UniversalActionProcessor


def _fast_folder(folder: Path) -> Path:
    """Write a FAST tokenizer fitted to noise."""
    fast = folder / "fast"
    chunks = list(np.random.default_rng(0).uniform(-1, 1, (32, 6, ACTION_DIM)))
    know_fast().fit(chunks, vocab_size=_FAST_IDS, time_horizon=6, action_dim=ACTION_DIM).save_pretrained(fast)
    return fast


def _flow_pi(folder: Path) -> dict[str, Any]:
    return _pi(folder) | {"num_inference_steps": 3, "max_state_dim": 8, "max_action_dim": 8}


def _pi0_fast(folder: Path) -> dict[str, Any]:
    names = {
        "text_tokenizer_name": str(tokenizer_folder(folder)),
        "action_tokenizer_name": str(_fast_folder(folder)),
    }
    more = {"max_decoding_steps": 10, "max_state_dim": 8, "max_action_dim": 8, "fast_skip_tokens": 16}
    return _pi(folder) | names | more | {"tokenizer_max_length": 96, "validate_action_token_prefix": False}


def _smolvla(folder: Path) -> dict[str, Any]:
    run = {"chunk_size": 6, "n_action_steps": 4, "num_steps": 3, "num_vlm_layers": 2}
    width = {"max_state_dim": 8, "max_action_dim": 8, "resize_imgs_with_padding": (64, 64)}
    return features() | run | width | {"vlm_model_name": str(_smolvlm(folder))}


def _smolvlm(folder: Path) -> Path:
    """Write config and processor of a miniature SmolVLM."""
    from transformers import AutoTokenizer, SmolVLMConfig, SmolVLMProcessor
    from transformers.models.smolvlm.image_processing_smolvlm import SmolVLMImageProcessor
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    vlm = folder / "smolvlm"
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(folder, _SMOLVLM))
    text = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCABULARY}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 64, "patch_size": 8}
    SmolVLMConfig(
        text_config=text, vision_config=vision, scale_factor=2, image_token_id=3, pad_token_id=0
    ).save_pretrained(vlm)
    SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor()).save_pretrained(vlm)
    return vlm


def _xvla(folder: Path) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "depth": 2, "num_heads": 4, "num_domains": 4, "len_soft_prompts": 4}
    run = {"chunk_size": 6, "n_action_steps": 4, "num_denoising_steps": 3, "action_mode": "auto"}
    width = {"max_state_dim": 8, "max_action_dim": 8, "resize_imgs_with_padding": (64, 64)}
    text = {"tokenizer_name": str(tokenizer_folder(folder)), "tokenizer_max_length": 16}
    vision = {"depths": (1, 1), "patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1)}
    vision |= {"patch_prenorm": (False, True), "embed_dim": (16, 32), "num_heads": (2, 4)}
    vision |= {"num_groups": (2, 4), "window_size": 4, "projection_dim": 32}
    bart = {"model_type": "bart", "d_model": 32, "vocab_size": VOCABULARY, "max_position_embeddings": 256}
    bart |= {"encoder_layers": 3, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    bart |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    florence = {"vision_config": vision, "text_config": bart, "image_token_id": 3}
    return features() | sizes | run | width | text | {"florence_config": florence}


_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ content['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_PATCH = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}


def _qwen(folder: Path, model: str) -> Path:
    """Write a miniature Qwen2.5-VL or Qwen3-VL, its processor beside it."""
    import transformers as hf
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    vlm = folder / model
    tokenizer = hf.AutoTokenizer.from_pretrained(tokenizer_folder(folder), padding_side="left")
    ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    ids |= {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": VOCABULARY, "dtype": "float32"}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8}
    vision |= {"out_hidden_size": 32, "spatial_merge_size": 2, "temporal_patch_size": 2}
    if model == "qwen3_vl":
        vision |= {"deepstack_visual_indexes": [1], "num_position_embeddings": 64}
    else:
        vision |= {"fullatt_block_indexes": [1], "window_size": 32}
    tokens = {f"{name.replace('pad', 'token')}_id": number for name, number in ids.items() if "pad" in name}
    tokens |= {f"{name}_token_id": number for name, number in ids.items() if "pad" not in name}
    large = {"qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[model]
    config = getattr(hf, f"{large}Config")(text_config=text, vision_config=vision, **tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(hf, f"{large}ForConditionalGeneration")(config).float().save_pretrained(vlm)
    videos = getattr(hf, "Qwen2VLVideoProcessor" if model == "qwen2_5_vl" else "Qwen3VLVideoProcessor")
    pixels = {"min_pixels": 32 * 32, "max_pixels": 64 * 64}
    images = Qwen2VLImageProcessor(**_PATCH, **pixels)
    processor = getattr(hf, f"{large}Processor")(
        image_processor=images, tokenizer=tokenizer, video_processor=videos(**_PATCH), chat_template=_CHAT
    )
    processor.save_pretrained(vlm)
    return vlm


def _eo1(folder: Path) -> dict[str, Any]:
    run = {"chunk_size": 6, "n_action_steps": 4, "num_denoise_steps": 3, "max_state_dim": 8}
    pixels = {"image_min_pixels": 32 * 32, "image_max_pixels": 64 * 64, "dtype": "float32"}
    return features() | run | pixels | {"max_action_dim": 8, "vlm_base": str(_qwen(folder, "qwen2_5_vl"))}


def _vla_jepa(folder: Path) -> dict[str, Any]:
    run = {"chunk_size": 6, "n_action_steps": 4, "num_inference_timesteps": 3, "torch_dtype": "float32"}
    sizes = {"action_hidden_size": 32, "action_num_layers": 2, "action_num_heads": 4}
    sizes |= {"action_attention_head_dim": 8, "num_target_vision_tokens": 4}
    tokens = {"num_action_tokens_per_timestep": 2, "num_embodied_action_tokens_per_instruction": 4}
    alone = {"enable_world_model": False, "gripper_dim": 3}
    return features() | run | sizes | tokens | alone | {"qwen_model_name": str(_qwen(folder, "qwen3_vl"))}


def _groot(folder: Path) -> dict[str, Any]:
    """Settings, and the base model it starts from, with neither statistics nor processors of its own."""
    from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config

    base = folder / "base"
    head = {"num_attention_heads": 2, "attention_head_dim": 16, "dropout": 0.0, "final_dropout": True}
    head |= {"positional_embeddings": None}
    dit = head | {"norm_type": "ada_norm", "output_dim": 32, "interleave_self_attention": True}
    config = GR00TN17Config(
        model_name=str(_qwen(folder, "qwen3_vl")),
        backbone_embedding_dim=32,
        select_layer=3,
        image_target_size=[64, 64],
        hidden_size=32,
        input_embedding_dim=32,
        max_state_dim=8,
        max_action_dim=8,
        max_num_embodiments=32,
        diffusion_model_cfg=dit | {"num_layers": 4},
        vl_self_attention_cfg=head | {"num_layers": 1},
        dtype="float32",
        model_dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GR00TN17(config, load_backbone_weights=False).save_pretrained(base)
    run = {"chunk_size": 6, "n_action_steps": 4, "use_bf16": False}
    return features() | run | {"max_state_dim": 8, "max_action_dim": 8, "base_model_path": str(base)}


def _evo1(folder: Path) -> dict[str, Any]:
    run = {"chunk_size": 6, "n_action_steps": 4, "num_inference_timesteps": 3, "max_views": 2}
    sizes = {"embed_dim": 32, "hidden_dim": 32, "state_hidden_dim": 32, "num_heads": 4, "num_layers": 2}
    sizes |= {"max_state_dim": 8, "max_action_dim": 8, "image_resolution": (32, 32)}
    vlm = {"vlm_model_name": str(_internvl(folder)), "vlm_num_layers": 2, "vlm_dtype": "float32"}
    return features() | run | sizes | vlm | {"use_flash_attn": False}


def _internvl(folder: Path) -> Path:
    """Write a miniature InternVL and its tokenizer."""
    from transformers import AutoTokenizer, InternVLConfig, InternVLModel

    vlm = folder / "internvl"
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder(folder))
    tokenizer.add_tokens(["<IMG_CONTEXT>", "<img>", "</img>"], special_tokens=True)
    tokenizer.save_pretrained(vlm)
    text = {"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": [32, 32], "patch_size": [8, 8]}
    token = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    config = InternVLConfig(text_config=text, vision_config=vision, image_token_id=token, image_seq_length=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        InternVLModel(config).float().save_pretrained(vlm)
    return vlm


SETTINGS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "act": _act,
    "diffusion": _diffusion,
    "multi_task_dit": _multi_task_dit,
    "vqbet": _vqbet,
    "tdmpc": _tdmpc,
    "gaussian_actor": _gaussian_actor,
    "pi0": _flow_pi,
    "pi05": _flow_pi,
    "pi0_fast": _pi0_fast,
    "smolvla": _smolvla,
    "xvla": _xvla,
    "eo1": _eo1,
    "vla_jepa": _vla_jepa,
    "groot": _groot,
    "evo1": _evo1,
}
"""Type -> settings of its config; what it needs beside the checkpoint is written into the folder."""
TYPES = tuple(SETTINGS)


def build(kind: str, folder: Path, **changes: Any) -> Any:
    """Build one; the same weights at every call.

    Args:
        kind: one of `TYPES`.
        folder: where tokenizers and towers are written, which the checkpoint names.
        **changes: fields of its config that differ from the miniature's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = make_policy_config(kind, **(SETTINGS[kind](folder) | changes))
    with torch.random.fork_rng(devices=[]), _offline(folder):
        torch.manual_seed(0)
        policy = get_policy_class(kind)(config)
        for parameter in policy.parameters():
            if not parameter.any() or (parameter.ndim > 1 and parameter.std() < 0.05):
                nn.init.normal_(parameter, std=0.1)
    if kind == "pi0_fast":  # of all ids those of actions are said
        first = policy._paligemma_tokenizer.vocab_size - config.fast_skip_tokens - _FAST_IDS
        policy.model.paligemma_with_expert.paligemma.lm_head.weight.data[first : first + _FAST_IDS] *= 6
    return policy.eval()


def save(kind: str, folder: Path, **changes: Any) -> Path:
    """Build one and save it as lerobot does, with its own processors and `statistics`; returns the folder."""
    policy = build(kind, folder, **changes)
    with _offline(folder):
        processors = make_pre_post_processors(policy.config, dataset_stats=statistics(policy.config))
    for pipeline in processors:
        for step in pipeline.steps:
            if isinstance(step, TokenizerProcessorStep) and not Path(step.tokenizer_name).exists():
                step.tokenizer_name = str(tokenizer_folder(folder))
            if type(step).__name__ == "GrootN17VLMEncodeStep":
                step.model_name, step.image_target_size = str(folder / "qwen3_vl"), [64, 64]
                step.image_crop_size = [56, 56]
    checkpoint = folder / "checkpoint"
    policy.save_pretrained(checkpoint)
    for pipeline in processors:
        pipeline.save_pretrained(checkpoint)
    _name_tokenizer(checkpoint / "policy_preprocessor.json", tokenizer_folder(folder))
    return checkpoint


def _name_tokenizer(file: Path, tokenizer: Path) -> None:
    """Write down the tokenizer of lerobot's FAST step, which 0.6.1 forgets when it is saved."""
    pipeline = json.loads(file.read_text())
    for step in pipeline["steps"]:
        if step["registry_name"] == "action_tokenizer_processor":
            step["config"]["paligemma_tokenizer_name"] = str(tokenizer)
    file.write_text(json.dumps(pipeline, indent=2))


_SAVED: dict[str, Path] = {}


def saved(kind: str, **changes: Any) -> Path:
    """The checkpoint folder of a type, saved once a test session; see `save`. Nobody may write into it."""
    what = f"{kind} {sorted(changes.items())}"
    if what not in _SAVED:
        _SAVED[what] = save(kind, Path(_session().name) / f"{kind}-{len(_SAVED)}", **changes)
    return _SAVED[what]


@cache
def _session() -> tempfile.TemporaryDirectory:
    """A folder that goes with the test session."""
    return tempfile.TemporaryDirectory(prefix="lerobot-policies-")


class _offline:  # noqa: N801  used as a context
    """Hub names of tokenizers become those in a folder, while a policy and its processors are made."""

    def __init__(self, folder: Path):
        from transformers import AutoTokenizer

        def local(name: Any, *args: Any, **kwargs: Any) -> Any:
            here = Path(str(name)).exists()
            return found(name if here else tokenizer_folder(folder), *args, **kwargs)

        found = AutoTokenizer.from_pretrained
        self._patch = mock.patch.object(AutoTokenizer, "from_pretrained", local)

    def __enter__(self) -> None:
        self._patch.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._patch.__exit__(*error)
