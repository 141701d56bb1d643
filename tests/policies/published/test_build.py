"""Published architectures with random weights: as many parameters as published, nothing from the Hub."""

import json
import re

import numpy as np
import pytest
import torch
from lerobot_policies import pi_as_published
from torch import nn

from vivace.eval.cli import main
from vivace.policies.errors import BadSetting
from vivace.policies.published import weights
from vivace.policies.published.architecture import ARCHITECTURES
from vivace.policies.published.build import build_published, options
from vivace.policies.published.tokenizer import QWEN, SMOLVLM, stand_in
from vivace.policies.published.weights import fill, without_weights
from vivace.policies.session import Session

MILLIONS = {
    "act": 52,
    "diffusion": 263,
    "smolvla": 450,
    "pi0": 4028,
    "pi05": 4143,
    "groot": 3144,
    "xvla": 880,
}
"""Type -> parameters in memory; of pi0 and pi05 half a billion are a head that lerobot does not run."""
SMALL_ACT = {
    "cameras": 3,
    "dim_model": 32,
    "n_heads": 4,
    "dim_feedforward": 48,
    "n_encoder_layers": 1,
    "use_vae": False,
    "chunk_size": 8,
}
FLAGS = [f"--policy.{name}={value}" for name, value in SMALL_ACT.items()]


@pytest.fixture(autouse=True)
def published_sizes(monkeypatch):
    """Other tests of this process make pi0 and its kin small."""
    pi_as_published(monkeypatch)


def test_every_architecture_is_held_to_a_number():
    assert set(ARCHITECTURES.names()) == set(MILLIONS)


@pytest.mark.parametrize(
    "kind",
    [it if it in ("act", "smolvla", "xvla") else pytest.param(it, marks=pytest.mark.long) for it in MILLIONS],
)
def test_what_does_not_fit_is_refused_with_what_it_needs(kind, monkeypatch):
    """And it has the parameters it is published with, before any of them is there."""
    monkeypatch.setattr(weights, "_free", lambda device: 1e8)
    with pytest.raises(
        BadSetting, match=rf"'{kind}' has {MILLIONS[kind]} million parameters, .* 0.1 GB free"
    ):
        build_published(kind)


@pytest.mark.parametrize(
    ("kind", "full", "half"),
    [("smolvla", "1.8", "0.9"), pytest.param("pi05", "16.6", "9.4", marks=pytest.mark.long)],
)
def test_half_precision_is_counted_as_lerobot_keeps_it(kind, full, half, monkeypatch):
    """pi05 keeps some parts in float32 by its own dtype."""
    monkeypatch.setattr(weights, "_free", lambda device: 1e8)
    with pytest.raises(BadSetting, match=rf"parameters, {full} GB, .*; --policy.dtype=bfloat16 takes about"):
        build_published(kind)
    with pytest.raises(BadSetting, match=rf"parameters, {half} GB, .* 0.1 GB free; free some"):
        build_published(kind, dtype="bfloat16")


def test_a_small_one_runs_and_is_the_same_every_time():
    first, again = build_published("act", SMALL_ACT), build_published("act", SMALL_ACT)
    assert first.fingerprint == again.fingerprint
    spec = first.staged.spec
    assert list(spec.observation_shapes) == [
        "observation.images.top",
        "observation.images.more_1",
        "observation.images.more_2",
        "observation.state",
    ]
    assert (spec.horizon, spec.n_action_steps) == (8, 8)
    random = np.random.default_rng(0)
    seen = {
        key: random.integers(0, 256, (1, 1, *shape[1:], 3), np.uint8)
        if "image" in key
        else random.normal(size=(1, 1, *shape)).astype(np.float32)
        for key, shape in spec.observation_shapes.items()
    }
    chunk = Session(first).predict(seen, [(0, 0)])
    assert chunk.shape == (1, 8, 14)
    assert np.isfinite(chunk).all()
    assert chunk.std() > 0


def test_weights_that_are_shared_stay_shared_and_keep_the_size_of_what_goes_through():
    with without_weights():
        net = nn.Sequential(nn.Linear(400, 300), nn.LayerNorm(300), nn.Linear(300, 400, bias=False))
        net.append(nn.Linear(400, 300))
        net[3].weight = net[0].weight
        net.register_buffer("kept", torch.arange(3))
    assert all(parameter.is_meta for parameter in net.parameters())
    assert net.kept.tolist() == [0, 1, 2]
    fill(net, torch.device("cpu"), seed=0)
    assert net[3].weight is net[0].weight
    assert not any(parameter.is_meta for parameter in net.parameters())
    x = torch.randn(100, 400)
    assert net[0](x).std().item() == pytest.approx(1, abs=0.1)
    assert net[2](net[1](net[0](x))).std().item() == pytest.approx(1, abs=0.1)


def test_a_stand_in_counts_words_digits_and_marks():
    tokenizer = stand_in(extra_special_tokens=SMOLVLM)
    assert len(tokenizer("pick up the red cube\n").input_ids) == 6
    assert len(tokenizer("State: 12 7;\nAction: ").input_ids) == 2 + 3 + 2 + 2 + 2
    assert tokenizer.fake_image_token_id == tokenizer.convert_tokens_to_ids("<fake_token_around_image>") > 3
    known = stand_in(ids=QWEN)
    assert known("<|image_pad|>").input_ids == [151655]


def test_what_can_be_chosen_is_what_was_published():
    chosen = options("smolvla")()
    assert (chosen.cameras, chosen.num_steps, chosen.chunk_size) == (3, 10, 50)
    assert options("act")().pretrained_backbone_weights is None
    assert not {"n_action_steps", "optimizer_lr", "device", "push_to_hub"} & set(vars(chosen))


def said(capsys, *flags: str) -> tuple[int, str, str]:
    code = main(["bench", "--policy.type=act", *flags])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_dtype_that_lerobots_own_code_does_not_run_in_leaves_its_row_out(tmp_path, capsys):
    """Its U-Net embeds time in float32, whatever its weights are; our stages are cast where they begin."""
    small = ["--policy.type=diffusion", "--policy.down_dims=[16,32]", "--policy.num_train_timesteps=3",
             "--policy.dtype=bfloat16", "--policy.crop_shape=[64,64]", "--policy.cameras=1"]  # fmt: skip
    timing = ["--bench.only=[hoist]", "--bench.repeats=1", "--bench.threads=1", "--accel.samples=1",
              "--accel.judged_samples=1", f"--output_dir={tmp_path}"]  # fmt: skip
    assert main(["bench", *small, *timing]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(last["plans"]) == {"plain", "hoist"}
    assert last["left_out"]["lerobot"].startswith("lerobot's code does not run in bfloat16: ")


@pytest.mark.long
def test_bench_times_it_and_says_that_its_weights_are_random(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    timing = [
        "--bench.repeats=1",
        "--bench.threads=1",
        "--bench.compile=false",
        f"--output_dir={tmp_path}/out",
    ]
    code, out, err = said(capsys, *FLAGS, *timing)
    assert code == 0, err
    told = json.loads(out.splitlines()[-1])
    assert told["plans"]["plain"]["latency_s"] > 0
    assert told["built"].startswith("random weights: act as published (lerobot/act_aloha")
    assert "nothing learned" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["policy"]["path"] == "act, random weights"
    assert results["observations"]["judged"]["n"] == 2


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (
            ["--policy.path=zoo/push"],
            "--policy.path beside --policy.type=act: random weights have learned from",
        ),
        (["--env.task=push-v3"], "--env beside --policy.type=act"),
        (["--bench.n_episodes=3"], "has random weights: no success to judge by episodes"),
        (["--policy.type=rt2"], "policy.type='rt2' has no published size here; known: smolvla, pi0, pi05"),
        (
            ["--policy.n_heads=7"],
            "policy.type=act does not take these settings: .*embed_dim must be divisible",
        ),
    ],
    ids=lambda it: it if isinstance(it, str) else " ".join(it),
)
def test_what_it_cannot_be_asked_is_refused_in_one_line(flags, why, capsys):
    code, _, err = said(capsys, *flags)
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert re.search(why, err), err


def test_other_verbs_take_no_architecture(capsys):
    assert main(["eval", "--policy.type=act"]) == 2
    assert "which vivace calibrate, export and bench take; give" in capsys.readouterr().err


@pytest.mark.long
def test_what_is_built_twice_is_the_same_policy_to_a_plan():
    """Though tokenizer and config lay in another temporary folder."""
    first, second = (build_published("smolvla", {"num_vlm_layers": 2}) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert first.policy.config.vlm_model_name.startswith("published/")
