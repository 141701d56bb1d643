"""A checkpoint that brings its own vision-language model's config and tokenizer, wherever it lies."""

import json
import shutil

import pytest
import torch
from lerobot_policies import saved
from safetensors.torch import load_file

from vivace.policies.errors import PolicyNotFound
from vivace.policies.load import load_policy


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A smolvla with its folder inside, named by it in config.json and the preprocessor."""
    folder = tmp_path_factory.mktemp("inside") / "policy"
    shutil.copytree(saved("smolvla"), folder)
    config = json.loads((folder / "config.json").read_text())
    shutil.copytree(config["vlm_model_name"], folder / "vlm")
    rename(folder, "./vlm")
    return folder


def rename(folder, name):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vlm_model_name": name}))
    file = folder / "policy_preprocessor.json"
    pipeline = json.loads(file.read_text())
    for step in pipeline["steps"]:
        if step["registry_name"] == "tokenizer_processor":
            step["config"]["tokenizer_name"] = name
    file.write_text(json.dumps(pipeline))


def test_it_loads_anywhere_and_a_plan_fits_it_there(whole, tmp_path, monkeypatch):
    moved = shutil.copytree(whole, tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    here, there = load_policy(whole), load_policy(moved)
    assert here.fingerprint == there.fingerprint
    assert there.policy.config.vlm_model_name == "./vlm"
    elsewhere = load_policy(saved("smolvla"))
    for name, weight in elsewhere.policy.state_dict().items():
        assert torch.equal(weight, there.policy.state_dict()[name])
    seen = {"observation.state": torch.zeros(5), "task": "put it down"}
    tokens = [it.preprocess(dict(seen))["observation.language.tokens"] for it in (elsewhere, there)]
    assert torch.equal(*tokens)


def test_what_is_saved_again_names_it_alike(whole, tmp_path):
    loaded = load_policy(whole)
    loaded.policy.save_pretrained(tmp_path)
    loaded.preprocess.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["vlm_model_name"] == "./vlm"
    steps = json.loads((tmp_path / "policy_preprocessor.json").read_text())["steps"]
    assert "./vlm" in [step["config"].get("tokenizer_name") for step in steps]
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(whole / "model.safetensors").keys()


@pytest.mark.parametrize("name", ["./gone", "./../other"])
def test_a_folder_that_is_not_inside(whole, tmp_path, name):
    (tmp_path / "other").mkdir()
    folder = shutil.copytree(whole, tmp_path / "policy")
    rename(folder, name)
    with pytest.raises(PolicyNotFound, match=f"vlm_model_name={name} is no folder of this checkpoint"):
        load_policy(folder)
