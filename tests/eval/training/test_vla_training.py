"""VLAs in miniature: trained on a few images, gone on from, one's backbone taken for the other."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vivace.envs.demonstrations import load_demonstrations
from vivace.eval.cli import main
from vivace.eval.training.vla_recipe import demonstrated, present
from vivace.eval.verbs import distill
from vivace.policies.execution import as_trained, decode
from vivace.policies.load import load_policy
from vivace.policies.sampling.noise import EpisodeNoise

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


@pytest.mark.long
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
    for name in ("language.embed_tokens.weight", "lm_head.weight"):  # neighbouring bins begin alike
        rows = torch.nn.functional.normalize(student[name][-256:], dim=1)
        assert (rows[1:] * rows[:-1]).sum(1).min() > 0.9 > (rows[100:] * rows[:-100]).sum(1).mean()
    evaluate = ["bench", "--policy.path=tokens", "--env.task=window-open-halfway", "--env.max_steps=4",
                "--accel.episodes=1", "--accel.samples=2", "--accel.judged_episodes=1",
                "--accel.judged_samples=2", "--bench.repeats=1", "--bench.compile=false",
                "--bench.only=[]", "--output_dir=bench"]  # fmt: skip
    assert main(evaluate) == 0
    assert train("token_vla", "wrong", "--backbone=cogact", "--policy.language_width=32") == 2
    assert "this policy needs" in capsys.readouterr().err
    assert train("cogact", "more", "--start=cogact", "--policy.patch_drop=0.2") == 0
    config = json.loads((folder_of("more") / "config.json").read_text())
    assert config["patch_drop"] == 0.2


def test_the_head_alone_learns_on_stored_features(capsys):
    assert train("cogact", "trunk") == 0
    more = ("--start=trunk", "--head_only=6", "--train.steps=2")
    assert train("cogact", "head", *more) == 0
    before, after = weights("trunk"), weights("head")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("action_model.") for name in changed)
    stored = Path("head/features.safetensors").stat().st_mtime_ns
    assert train("cogact", "head", *more, "--train.steps=3") == 0
    assert Path("head/features.safetensors").stat().st_mtime_ns == stored
    assert train("token_vla", "none", "--head_only=6") == 2
    assert "policy 'token_vla' has none" in capsys.readouterr().err


def folder_of(name):
    return Path(name) / "pretrained_model"


@pytest.fixture(scope="module")
def teacher(folder):
    data = f"--data=[{folder / 'data'}]"
    assert main(["train", "--policy.type=token_vla", *SMALL, data, f"--output_dir={folder / 'teacher'}"]) == 0
    return "teacher"


DISTILL = ("--data=[data]", "--distill.trajectories=20", "--train.steps=2", "--train.batch_size=2")


def test_distil_collects_once_and_teaches(teacher, capsys, monkeypatch):
    monkeypatch.setattr(distill, "SHARD", 8)
    command = ["distill", "--teacher=teacher", *DISTILL, "--output_dir=student"]
    assert main(command) == 0
    summary = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert summary["trajectories"] == 20
    assert 1 <= summary["teacher_passes"] <= 7
    assert any(not torch.equal(value, weights("teacher")[name]) for name, value in weights("student").items())
    files = sorted(Path("student/trajectories").iterdir())
    assert [file.name for file in files] == [f"{i:05d}.safetensors" for i in range(3)]
    before = files[2].stat().st_mtime_ns
    files[0].write_bytes(files[0].read_bytes()[:-50])
    assert main([*command, "--train.steps=3"]) == 2
    assert "is truncated or no trajectory file" in capsys.readouterr().err
    files[0].unlink()
    assert main([*command, "--train.steps=3"]) == 0
    assert files[2].stat().st_mtime_ns == before
    assert main(["distill", "--teacher=student", *DISTILL, "--output_dir=student"]) == 2
    assert "of another teacher" in capsys.readouterr().err


def test_trajectories_end_where_greedy_decoding_does(teacher):
    loaded = load_policy("teacher")
    windows = demonstrated(load_demonstrations(Path("data"), True), loaded.policy, loaded.preprocess)
    found = distill.collect(loaded, windows, range(6), Path("checked"), 4)
    batches = distill.TrajectoryBatches(windows, found)
    seen, _ = batches.batch(torch.arange(6))
    batch = present(loaded.policy, {k: v for k, v in seen.items() if k.startswith("observation")})
    expected = decode(as_trained(loaded.staged), batch, EpisodeNoise([(i, 0) for i in range(6)]))
    assert torch.equal(seen["trajectory.answer"], expected.tokens)
    assert (seen["trajectory.state"][:, 0] == expected.tokens[:, 0]).all()


def test_adapters_are_merged(teacher):
    command = ["distill", "--teacher=teacher", *DISTILL, "--distill.lora_rank=2", "--train.lr=0.1",
               "--train.warmup=1", "--output_dir=adapted"]  # fmt: skip
    assert main(command) == 0
    before, after = weights("teacher"), weights("adapted")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.allclose(before[name], after[name], atol=1e-6)}
    assert changed
    assert all(name.startswith("language.layers.") and "_proj" in name for name in changed)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--distill.trajectories=100000"], "the data has"),
        (["--distill.target=ema"], "distill target='ema'; choose one of self, average, teacher"),
        (["--distill.delta_max=-1"], "delta_max=-1.0"),
        (["--teacher=zoo/halfway"], "holds a policy of type 'cogact'; token_vla can be distilled"),
        (["--student=other"], "teacher has horizon=2, student 3"),
    ],
)
def test_distil_refuses(teacher, flags, message, capsys):
    assert train("token_vla", "other", "--policy.horizon=3") == 0
    assert main(["distill", "--teacher=teacher", *DISTILL, "--output_dir=refused", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(Path("refused").glob("pretrained_model"))
