"""VLAs in miniature: trained on a few images, gone on from, one's backbone taken for the other."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vivace.eval.cli import main

pytestmark = pytest.mark.sim

SMALL = ("--data=[data]", "--policy.image_size=32", "--policy.patch_size=8", "--policy.vision_layers=2",
         "--policy.vision_width=16", "--policy.language_layers=3", "--policy.language_width=16",
         "--policy.language_heads=2", "--policy.language_mlp=16", "--policy.horizon=2",
         "--policy.n_action_steps=2", "--train.batch_size=2", "--train.steps=1")  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two short demonstrations with images."""
    folder = tmp_path_factory.mktemp("vla")
    collect = ["collect", "--env.task=window-open-halfway", "--collect.episodes=2", "--collect.image_size=32",
               "--collect.max_steps=150", f"--output_dir={folder / 'data'}"]  # fmt: skip
    assert main(collect) == 0
    return folder


@pytest.fixture(autouse=True)
def _there(folder, monkeypatch):
    monkeypatch.chdir(folder)


def weights(name):
    return load_file(f"{name}/pretrained_model/model.safetensors")


def train(kind, out, *more):
    return main(["train", f"--policy.type={kind}", *SMALL, *more, f"--output_dir={out}"])


def test_a_cogact_and_a_token_vla_on_its_backbone(capsys):
    assert train("cogact", "cogact", "--policy.layer_drop=0.4", "--policy.patch_drop=0.5") == 0
    assert np.isfinite(json.loads(capsys.readouterr().out.strip().splitlines()[-1])["loss"])
    assert train("token_vla", "tokens", "--backbone=cogact", "--train.lr=1e-9") == 0
    teacher, student = weights("cogact"), weights("tokens")
    shared = [name for name in teacher if name.startswith(("vision_backbone.", "projector.", "language."))]
    for name in shared:
        ours = student[name][: len(teacher[name])]
        torch.testing.assert_close(ours, teacher[name], atol=1e-6, rtol=0)
    vocabulary = len(teacher["language.embed_tokens.weight"])
    assert len(student["language.embed_tokens.weight"]) == vocabulary + 256 == len(student["lm_head.weight"])
    evaluate = ["bench", "--policy.path=tokens", "--env.task=window-open-halfway", "--env.max_steps=4",
                "--accel.episodes=1", "--accel.samples=2", "--bench.repeats=1", "--bench.compile=false",
                "--bench.only=[]", "--output_dir=bench"]  # fmt: skip
    assert main(evaluate) == 0
    assert train("token_vla", "wrong", "--backbone=cogact", "--policy.language_width=32") == 2
    assert "this policy needs" in capsys.readouterr().err
    assert train("cogact", "more", "--start=cogact", "--policy.patch_drop=0.2") == 0
    config = json.loads((folder_of("more") / "config.json").read_text())
    assert config["patch_drop"] == 0.2


def folder_of(name):
    from pathlib import Path

    return Path(name) / "pretrained_model"
