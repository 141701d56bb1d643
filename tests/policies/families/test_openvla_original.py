"""OpenVLA's own checkpoints: written here in miniature, with timm's and transformers' real key names."""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from vivace.deploy.export.lerobot_path import path_error
from vivace.eval.cli import main
from vivace.policies.errors import BadSetting, PolicyNotFound
from vivace.policies.families.convert import convert
from vivace.policies.families.token_vla.original import CAMERA, convert_state_dict, read
from vivace.policies.families.token_vla.policy import TokenVLAPolicy, full_size
from vivace.policies.language.tokenize import train_tokenizer
from vivace.policies.load import load_policy
from vivace.policies.session import Session

VIT = {"patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 2}
ARCHITECTURE = {
    "dino_options": VIT,
    "siglip_options": VIT,
    "max_tokens": 24,
    "prompt_suffix": (2,),
    "pad_token": 0,
    "horizon": 2,
    "n_action_steps": 2,
}
CONFIG = {
    "model_type": "openvla",
    "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
    "image_sizes": [32, 32],
    "n_action_bins": 256,
    "pad_to_multiple_of": 64,
    "pad_token_id": 0,
    "text_config": {
        "vocab_size": 640 + 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    "norm_stats": {
        "bridge": {
            "action": {"q01": [-2.0] * 6 + [0.0], "q99": [4.0] * 6 + [1.0], "mask": [True] * 6 + [False]}
        },
        "fractal": {"action": {"q01": [0.0] * 7}},
    },
}


def original(size, vit, text):
    """State dict under the original project's names."""
    llm = LlamaForCausalLM(LlamaConfig(**text))
    width = 0
    weights = {f"language_model.{key}": value for key, value in llm.state_dict().items()}
    for part, model in zip(("featurizer", "fused_featurizer"), CONFIG["timm_model_ids"], strict=True):
        vision = timm.create_model(model, num_classes=0, img_size=size, **vit)
        width += vision.embed_dim
        for key, value in vision.state_dict().items():
            weights[f"vision_backbone.{part}.{key.replace('.gamma', '.scale_factor')}"] = value
    hidden = text["hidden_size"]
    for name, (inside, outside) in {
        "fc1": (width, 4 * width),
        "fc2": (4 * width, hidden),
        "fc3": (hidden, hidden),
    }.items():
        for key, value in torch.nn.Linear(inside, outside).state_dict().items():
            weights[f"projector.{name}.{key}"] = value
    return weights


def miniature():
    torch.manual_seed(0)
    return original(32, VIT, CONFIG["text_config"])


@pytest.fixture
def run(tmp_path):
    """A checkpoint in two shards."""
    folder = tmp_path / "openvla"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    weights = {name: value.contiguous() for name, value in miniature().items()}
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({name: weights[name] for name in part}, folder / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    train_tokenizer(["open the drawer"]).save(str(tmp_path / "tokenizer.json"))
    return folder


def test_every_key_and_shape_of_the_full_model():
    llama = {
        "vocab_size": 32064,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    }
    with torch.device("meta"):
        renamed = convert_state_dict(original(224, {}, llama))
    expected = {name: tensor.shape for name, tensor in full_size().state_dict().items()}
    assert {name: tensor.shape for name, tensor in renamed.items()} == expected
    assert sum(tensor.numel() for tensor in renamed.values()) / 1e9 == pytest.approx(7.54, abs=0.01)


def test_a_checkpoint_is_converted(run, tmp_path):
    output = tmp_path / "converted"
    config = convert(run, output, tmp_path / "tokenizer.json", "bridge", ARCHITECTURE)
    assert (config.type, config.horizon, config.vocabulary_end) == ("token_vla", 2, 640)
    loaded = load_policy(output)
    reference = TokenVLAPolicy(config)
    reference.load_state_dict(convert_state_dict(miniature()))
    for name, tensor in reference.state_dict().items():
        assert torch.equal(tensor, loaded.policy.state_dict()[name]), name
    image = np.random.default_rng(0).integers(0, 256, (1, 1, 32, 32, 3), dtype=np.uint8)
    actions = Session(loaded, task="open the drawer").predict({CAMERA: image}, [(0, 0)])
    assert actions.shape == (1, 2, 7)
    assert actions[..., :6].min() >= -2.0
    assert actions[..., :6].max() <= 4.0
    assert np.abs(actions[..., 6]).max() <= 1.0
    wide = np.random.default_rng(1).integers(0, 256, (1, 1, 48, 64, 3), dtype=np.uint8)  # A14
    assert Session(loaded, task="open the drawer").predict({CAMERA: wide}, [(0, 0)]).shape == (1, 2, 7)
    assert path_error(loaded, "open the drawer", {CAMERA: wide[0, 0]}) <= 1e-6


def test_the_command_converts(run, tmp_path, monkeypatch, capsys):
    def convert_miniature(run, output, tokenizer, key, chunk):  # a command converts the published size only
        return convert(run, output, tokenizer, key, ARCHITECTURE | chunk)

    monkeypatch.setattr("vivace.policies.families.convert.convert", convert_miniature)
    output = tmp_path / "converted"
    command = ["convert", f"--run={run}", f"--tokenizer={tmp_path / 'tokenizer.json'}", "--horizon=3"]
    assert main([*command, "--unnorm_key=bridge", f"--output_dir={output}"]) == 0
    told = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert told == {"policy": str(output), "type": "token_vla", "horizon": 3}
    assert load_policy(output).staged.spec.horizon == 3


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ("breeze", BadSetting, "'breeze' is not there; datasets: bridge, fractal"),
        ("fractal", PolicyNotFound, r"lacks action\.q99"),
        (None, BadSetting, "give unnorm_key"),
    ],
)
def test_statistics_that_are_not_there_are_named(run, key, error, message):
    with pytest.raises(error, match=message):
        read(run, key, ARCHITECTURE)


def test_damaged_folders_are_refused(run, tmp_path):
    shard = run / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(PolicyNotFound, match="truncated or not safetensors"):
        read(run, "bridge", ARCHITECTURE)
    shard.write_bytes(whole)
    index = run / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../elsewhere.safetensors"}}))
    with pytest.raises(PolicyNotFound, match="outside of its folder"):
        read(run, "bridge", ARCHITECTURE)
    index.unlink()
    with pytest.raises(PolicyNotFound, match="has no model.safetensors"):
        read(run, "bridge", ARCHITECTURE)
    (run / "config.json").write_text(json.dumps({key: CONFIG[key] for key in ("model_type", "norm_stats")}))
    with pytest.raises(PolicyNotFound, match="lacks 'timm_model_ids'"):
        convert(run, tmp_path / "out", tmp_path / "tokenizer.json", "bridge")
    assert not (tmp_path / "out").exists()


FINE_TUNED = {"my_robot": {"action": {"q01": [-0.1] * 7, "q99": [0.1] * 7, "mask": [True] * 7}}}


@pytest.mark.parametrize("key", ["my_robot", None])
def test_the_statistics_of_a_fine_tune_win(run, tmp_path, key):
    """E1: config.json still has the base's."""
    (run / "dataset_statistics.json").write_text(json.dumps(FINE_TUNED))
    arguments = ["convert", f"--run={run}", f"--tokenizer={tmp_path / 'tokenizer.json'}"]
    assert read(run, key, ARCHITECTURE).statistics["action"]["q99"] == pytest.approx([0.1] * 7)
    found = main([*arguments, "--unnorm_key=bridge", f"--output_dir={tmp_path / 'out'}"])
    assert found == 2  # as OpenVLA's own deploy.py: the base's are gone


@pytest.mark.parametrize(
    "name",
    [
        "action_head--5000_checkpoint.pt",
        "proprio_projector--5000_checkpoint.pt",
        "vision_backbone--5000_checkpoint.pt",
        "lora_adapter/adapter_model.safetensors",
        "model-00003-of-00003.safetensors",
        "pytorch_model.bin",
    ],
)
def test_a_folder_of_more_weights_is_another_policy(run, tmp_path, capsys, name):
    """E2: OpenVLA-OFT, and whatever else would be passed over."""
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_bytes(b"weights")
    arguments = ["convert", f"--run={run}", f"--tokenizer={tmp_path / 'tokenizer.json'}"]
    assert main([*arguments, "--unnorm_key=bridge", f"--output_dir={tmp_path / 'out'}"]) == 2
    assert f"holds weights that are not read: {name}; without them" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_a_trainer_keeps_is_no_weights(run):
    for name in ("training_args.bin", "optimizer.pt", "rng_state_0.pth"):
        (run / name).write_bytes(b"state")
    assert read(run, "bridge", ARCHITECTURE).config.horizon == 2
