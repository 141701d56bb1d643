"""CogACT's own run folders: written here in miniature, with timm's and transformers' real key names."""

import json
import pickle

import numpy as np
import pytest
import timm
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vivace.deploy.export.lerobot_path import path_error
from vivace.policies.errors import BadSetting, PolicyNotFound
from vivace.policies.families.cogact.dit import ActionModel, DiT
from vivace.policies.families.cogact.original import CAMERA, convert_state_dict, read, read_run
from vivace.policies.families.cogact.policy import CogACTPolicy, full_size
from vivace.policies.families.convert import convert
from vivace.policies.language.tokenize import train_tokenizer
from vivace.policies.load import load_policy
from vivace.policies.session import Session
from vivace.policies.vla.vision import FusedProjector

VIT = {"patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 2}
ARCHITECTURE = {
    "image_size": 32,
    "dino_options": VIT,
    "siglip_options": VIT,
    "language_layers": 2,
    "language_width": 32,
    "language_heads": 4,
    "language_kv_heads": 4,
    "language_mlp": 48,
    "language_vocabulary": 384,
    "action_layers": 2,
    "action_width": 32,
    "action_heads": 2,
    "max_tokens": 24,
    "prompt_suffix": (2,),
    "pad_token": 0,
}
STATISTICS = {
    "bridge": {
        "action": {"q01": [-2.0] * 6 + [0.0], "q99": [4.0] * 6 + [1.0], "mask": [True] * 6 + [False]},
        "num_transitions": 3,
    },
    "fractal": {"action": {"q01": [0.0] * 7, "q99": [1.0] * 7}},
}


def original_parts(size, vit, llama, head, vision_width):
    """Four state dicts under the original project's names."""
    llm = LlamaForCausalLM(LlamaConfig(**llama))
    fused = {
        f"{name}_featurizer.{key}": value
        for name, model in (
            ("dino", "vit_large_patch14_reg4_dinov2.lvd142m"),
            ("siglip", "vit_so400m_patch14_siglip_224"),
        )
        for key, value in timm.create_model(model, num_classes=0, img_size=size, **vit).state_dict().items()
    }
    net = ActionModel(DiT(7, 16, llama["hidden_size"], *head)).state_dict()
    return {
        "vision_backbone": fused,
        "projector": FusedProjector(vision_width, llama["hidden_size"]).state_dict(),
        "llm_backbone": {f"llm.{key}": value for key, value in llm.state_dict().items()},
        "action_model": net | {"net.history_embedder.linear.weight": torch.zeros(1)},
    }


def miniature_parts():
    torch.manual_seed(0)
    llama = {
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    return original_parts(32, VIT, llama, (2, 32, 2), 64)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"vla": {"base_vlm": "prism-dinosiglip-224px+7b"}}))
    (folder / "dataset_statistics.json").write_text(json.dumps(STATISTICS))
    torch.save({"model": miniature_parts()}, folder / "checkpoints" / "step-000001.pt")
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
        parts = original_parts(224, {}, llama, (12, 768, 12), 2176)
    renamed = convert_state_dict(parts)
    expected = {name: tensor.shape for name, tensor in full_size("base").state_dict().items()}
    assert {name: tensor.shape for name, tensor in renamed.items()} == expected
    assert sum(tensor.numel() for tensor in renamed.values()) / 1e9 == pytest.approx(7.50, abs=0.01)


def test_a_run_folder_becomes_a_checkpoint(run, tmp_path):
    output = tmp_path / "converted"
    config = convert(run, output, tmp_path / "tokenizer.json", "bridge", ARCHITECTURE)
    assert (config.horizon, config.action_head, config.gripper_dims) == (16, "custom", (6,))
    loaded = load_policy(output)
    reference = CogACTPolicy(read_run(run, ARCHITECTURE)[0])
    reference.load_state_dict(convert_state_dict(miniature_parts()))
    for name, tensor in reference.state_dict().items():
        assert torch.equal(tensor, loaded.policy.state_dict()[name]), name
    image = np.random.default_rng(0).integers(0, 256, (1, 1, 32, 32, 3), dtype=np.uint8)
    actions = Session(loaded, task="open the drawer").predict({CAMERA: image}, [(0, 0)])
    assert actions.shape == (1, 16, 7)
    assert actions[..., :6].min() >= -2.0
    assert actions[..., :6].max() <= 4.0
    assert set(np.unique(actions[..., 6])) <= {0.0, 1.0}
    wide = np.random.default_rng(1).integers(0, 256, (1, 1, 48, 64, 3), dtype=np.uint8)  # A14
    assert Session(loaded, task="open the drawer").predict({CAMERA: wide}, [(0, 0)]).shape == (1, 16, 7)
    assert path_error(loaded, "open the drawer", {CAMERA: wide[0, 0]}) <= 1e-6


def test_statistics_leave_masked_dimensions_alone(run):
    found = read(run, "bridge", ARCHITECTURE).statistics["action"]
    assert found["q01"].tolist() == [-2.0] * 6 + [-1.0]
    assert found["q99"].tolist() == [4.0] * 6 + [1.0]


@pytest.mark.parametrize(
    ("key", "message"),
    [("breeze", "'breeze' is not there; datasets: bridge, fractal"), (None, "give unnorm_key")],
)
def test_an_unknown_dataset_is_named(run, key, message):
    with pytest.raises(BadSetting, match=message):
        read(run, key, ARCHITECTURE)


def test_a_missing_statistic_is_named(run):
    broken = {"bridge": {"action": {"q01": [0.0]}}}
    (run / "dataset_statistics.json").write_text(json.dumps(broken))
    with pytest.raises(PolicyNotFound, match=r"lacks action\.q99"):
        read(run, "bridge", ARCHITECTURE)


class Bomb:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": Bomb()}, "more than tensors"),
        ({"weights": {}}, "no dict of state dicts"),
        ({"model": {"projector": {"a": 1}}}, r"projector\.a is no tensor"),
        ({"model": {"projector": {"projector.0.weight": torch.zeros(1)}}}, "'action_model' is needed"),
    ],
)
def test_other_pickles_are_refused_and_not_executed(run, content, message, capsys):
    torch.save(content, run / "checkpoints" / "step-000001.pt")
    with pytest.raises(PolicyNotFound, match=message):
        read_run(run, ARCHITECTURE)
    assert "executed" not in capsys.readouterr().out


def test_a_truncated_file_is_refused(run):
    file = run / "checkpoints" / "step-000001.pt"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(PolicyNotFound, match="truncated or not a checkpoint"):
        read_run(run, ARCHITECTURE)


def test_two_checkpoints_are_one_too_many(run):
    (run / "checkpoints" / "other.pt").write_bytes(pickle.dumps({}))
    with pytest.raises(PolicyNotFound, match="holds 2 .pt files"):
        read_run(run, ARCHITECTURE)


def test_nothing_is_written_when_something_is_wrong(run, tmp_path):
    output = tmp_path / "converted"
    with pytest.raises(BadSetting, match="not a tokenizer"):
        convert(run, output, run / "config.json", "bridge", ARCHITECTURE)
    with pytest.raises(BadSetting, match="unnorm_key"):
        convert(run, output, tmp_path / "tokenizer.json", "nope", ARCHITECTURE)
    assert not output.exists()
