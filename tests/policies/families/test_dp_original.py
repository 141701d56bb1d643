"""A state dict in the original project's layout loads, and predicts what the original formula gives."""

import os
import shutil
from pathlib import Path

import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature

from vivace.eval.cli import main
from vivace.policies.errors import PolicyNotFound
from vivace.policies.families.dp_transformer.original import from_original, read
from vivace.policies.families.dp_transformer.payload import read_payload
from vivace.policies.load import load_policy
from vivace.policies.tiny.policies import tiny_dp_transformer


@pytest.fixture
def original():
    """What the original project saves for a small low-dimensional policy, names and shapes."""
    policy = tiny_dp_transformer(n_layer=3)
    state = {f"model.{name}": value for name, value in policy.model.state_dict().items()}
    state |= {"model._dummy_variable": torch.zeros(0), "mask_generator._dummy_variable": torch.zeros(0)}
    limits = {
        "obs": (torch.arange(5.0), torch.arange(5.0) + 2),
        "action": (-torch.ones(3), 3 * torch.ones(3)),
    }
    for key, (low, high) in limits.items():
        scale = 2 / (high - low)
        state[f"normalizer.params_dict.{key}.scale"] = scale
        state[f"normalizer.params_dict.{key}.offset"] = -1 - scale * low
        for name, value in {"min": low, "max": high, "mean": (low + high) / 2, "std": low * 0 + 1}.items():
            state[f"normalizer.params_dict.{key}.input_stats.{name}"] = value
    return policy, state


def test_network_and_normaliser_are_the_originals(original):
    policy, state = original
    loaded, preprocess, postprocess = from_original(state, n_head=4, n_action_steps=4)
    assert loaded.config.n_layer == 3
    assert (loaded.config.horizon, loaded.config.n_obs_steps) == (8, 2)
    x, t, cond = torch.randn(2, 8, 3), torch.tensor([3, 50]), torch.randn(2, 2, 5)
    assert torch.equal(loaded.model(x, t, cond), policy.model(x, t, cond))
    raw = torch.randn(1, 5)
    scale, offset = (state[f"normalizer.params_dict.obs.{n}"] for n in ("scale", "offset"))
    torch.testing.assert_close(
        preprocess({"observation.state": raw})["observation.state"], raw * scale + offset
    )
    scale, offset = (state[f"normalizer.params_dict.action.{n}"] for n in ("scale", "offset"))
    action = torch.rand(1, 3) * 2 - 1
    torch.testing.assert_close(postprocess(action), (action - offset) / scale)


def test_damaged_state_dicts_are_refused(original):
    _, state = original
    with pytest.raises(PolicyNotFound, match=r"lacks 'model\.head\.weight'"):
        from_original(
            {k: v for k, v in state.items() if k != "model.head.weight"}, n_head=4, n_action_steps=4
        )
    with pytest.raises(PolicyNotFound, match=r"Missing key\(s\) in state_dict: \"model\.ln_f\.bias\""):
        from_original({k: v for k, v in state.items() if k != "model.ln_f.bias"}, n_head=4, n_action_steps=4)
    with pytest.raises(PolicyNotFound, match="lacks the normaliser's"):
        from_original({k: v for k, v in state.items() if "obs.scale" not in k}, n_head=4, n_action_steps=4)


CKPT = Path(__file__).with_name("diffusion_policy.ckpt")
"""Saved as the project does, by dill 0.4.1 with settings of omegaconf 2.1.1: a low-dimensional policy of one
layer, whose EMA weights differ from the others by one."""


def test_a_checkpoint_of_the_project_by_command_line(tmp_path, capsys):
    """E7: the EMA's weights, and what the settings say, from the file or from a run's folder."""
    run = tmp_path / "run" / "checkpoints"
    run.mkdir(parents=True)
    shutil.copy(CKPT, run / "latest.ckpt")
    for i, path in enumerate((CKPT, tmp_path / "run")):
        assert main(["convert", f"--run={path}", f"--output_dir={tmp_path / str(i)}"]) == 0
    assert '"type": "dp_transformer"' in capsys.readouterr().out
    loaded = load_policy(tmp_path / "0")
    assert load_policy(tmp_path / "1").fingerprint == loaded.fingerprint
    config = loaded.policy.config
    assert (config.horizon, config.n_obs_steps, config.n_action_steps, config.n_head) == (4, 2, 2, 2)
    assert (config.num_train_timesteps, config.noise_scheduler_type) == (50, "DDPM")
    ema = read_payload(CKPT)[1]["ema_model"]
    assert torch.equal(loaded.policy.state_dict()["model.head.bias"], ema["model.head.bias"])
    raw = torch.rand(1, 5)
    found = loaded.preprocess({"observation.state": raw})["observation.state"]
    scale, offset = (ema[f"normalizer.params_dict.obs.{name}"] for name in ("scale", "offset"))
    torch.testing.assert_close(found, raw * scale + offset)


def test_nothing_in_a_checkpoint_is_run(tmp_path):
    """E7."""
    harm = tmp_path / "harm"

    class Harm:
        def __reduce__(self):
            return os.system, (f"touch {harm}",)

    file = tmp_path / "latest.ckpt"
    torch.save({"cfg": {}, "state_dicts": {}, "pickles": Harm()}, file)
    with pytest.raises(PolicyNotFound, match=r"holds more than tensors and settings \(posix.system\)"):
        read_payload(file)
    assert not harm.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda p: p["cfg"]["policy"].update(_target_="x.DiffusionUnetLowdimPolicy"),
            "a DiffusionUnetLowdim",
        ),
        (lambda p: p["cfg"]["policy"].update(pred_action_steps_only=True), "pred_action_steps_only=True"),
        (lambda p: p["cfg"]["policy"]["model"].update(time_as_cond=False), "time_as_cond=False"),
        (lambda p: p["cfg"]["policy"]["noise_scheduler"].update(steps_offset=1), "steps_offset=1"),
        (lambda p: p["state_dicts"].pop("ema_model"), "lacks state_dicts.ema_model; it has model"),
        (lambda p: p["state_dicts"]["ema_model"].pop("model.pos_emb"), "state dict lacks 'model.pos_emb'"),
        (lambda p: p.pop("cfg"), "lacks cfg or state_dicts"),
    ],
)
def test_checkpoints_that_are_not_read(tmp_path, change, message):
    """E7."""
    settings, states = read_payload(CKPT)
    payload = {"cfg": settings, "state_dicts": {name: dict(state) for name, state in states.items()}}
    change(payload)
    torch.save(payload, tmp_path / "latest.ckpt")
    with pytest.raises(PolicyNotFound, match=message):
        read(tmp_path, None)
    (tmp_path / "latest.ckpt").write_bytes(CKPT.read_bytes()[:20_000])
    with pytest.raises(PolicyNotFound, match="is truncated or not a checkpoint of Diffusion Policy"):
        read(tmp_path, None)


def hybrid(policy):
    """What the project saves for a policy with two cameras, its state between them, robomimic's names."""
    state = {}
    for name, value in policy.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "model":
            state[name] = value
            continue
        i, _, rest = rest.partition(".")
        inside = {"backbone": "backbone.nets", "pool": "pool", "out": "nets.3"}
        layer, _, rest = rest.partition(".")
        if rest != "pos_grid":
            prefix = f"obs_encoder.obs_nets.{('front', 'wrist')[int(i)]}."
            state[f"{prefix}{inside[layer]}.{rest}"] = value
            if layer == "backbone":  # robomimic registers it twice
                state[f"{prefix}nets.0.nets.{rest}"] = value
    weight = state["model.cond_obs_emb.weight"]
    width = (weight.shape[1] - 5) // 2
    front, wrist, felt = weight.split([width, width, 5], dim=1)
    state["model.cond_obs_emb.weight"] = torch.cat([front, felt, wrist], dim=1)
    one = torch.ones(1)
    for key, (scale, offset) in {
        "front": (2 * one, -one),
        "wrist": (2 * one, -one),
        "joints": (torch.full((3,), 0.5), torch.zeros(3)),
        "gripper": (one, 0 * one),
        "action": (torch.full((3,), 0.1), torch.full((3,), -2.0)),
    }.items():
        state[f"normalizer.params_dict.{key}.scale"] = scale
        state[f"normalizer.params_dict.{key}.offset"] = offset
    return state


def test_a_policy_with_cameras(tmp_path):
    """E7: of two sizes, the state between them, parts of the state of different scales."""
    cameras = {"front": (64, 64), "wrist": (96, 64)}
    seen = {f"observation.images.{n}": PolicyFeature(FeatureType.VISUAL, (3, *s)) for n, s in cameras.items()}
    seen["observation.state"] = PolicyFeature(FeatureType.STATE, (5,))
    policy = tiny_dp_transformer(input_features=seen, crop_shape=(56, 56), spatial_softmax_num_keypoints=32)
    settings, _ = read_payload(CKPT)
    described = settings["policy"]
    described |= {
        "_target_": "diffusion_policy.policy.x.DiffusionTransformerHybridImagePolicy",
        "shape_meta": {
            "obs": {
                "front": {"shape": [3, 64, 64], "type": "rgb"},
                "joints": {"shape": [3]},
                "gripper": {"shape": [2]},
                "wrist": {"shape": [3, 96, 64], "type": "rgb"},
            },
            "action": {"shape": [3]},
        },
        "crop_shape": [56, 56],
        "obs_encoder_group_norm": True,
        "n_head": 4,
        "n_action_steps": 4,
        "num_inference_steps": 10,
    }
    del described["model"]
    torch.save({"cfg": settings, "state_dicts": {"ema_model": hybrid(policy)}}, tmp_path / "latest.ckpt")
    assert main(["convert", f"--run={tmp_path}", f"--output_dir={tmp_path / 'out'}"]) == 0
    loaded = load_policy(tmp_path / "out")
    batch = {key: torch.rand(1, 2, *feature.shape) for key, feature in seen.items()}
    ready = loaded.preprocess(dict(batch))
    for name in cameras:
        key = f"observation.images.{name}"
        torch.testing.assert_close(ready[key], 2 * batch[key] - 1)
    scale = torch.tensor([0.5, 0.5, 0.5, 1, 1])
    torch.testing.assert_close(ready["observation.state"], batch["observation.state"] * scale)
    action = torch.rand(1, 3)
    torch.testing.assert_close(loaded.postprocess(action), (action + 2) / 0.1)
    with torch.no_grad():
        torch.testing.assert_close(loaded.policy.features(batch), policy.features(batch))
        x, t = torch.randn(1, 8, 3), torch.tensor([3])
        cond = policy.features(batch)
        torch.testing.assert_close(loaded.policy.model(x, t, cond), policy.model(x, t, cond))
