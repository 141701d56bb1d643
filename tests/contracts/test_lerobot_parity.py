"""From what a robot gives to what it is told, by lerobot's own path and by a `Session`: the same.

lerobot's path is that of `lerobot-eval`: its loader, `preprocess_observation`, the checkpoint's preprocessor,
the policy, the checkpoint's postprocessor. Noise is the same on both sides, since every draw of one shape is
one fixed draw here. Faults of lerobot's own checkpoints, by their ids: A11 to A14, G1 to G4, G9, G13, B1, G7.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs import NormalizationMode
from lerobot_itself import LeRobot, draw_alike, moments, ours
from lerobot_policies import TASK, TYPES, saved

from vivace.policies.load import load_policy
from vivace.policies.session import Session

EXACT = {"rtol": 0, "atol": 0}
ROUNDED = {"rtol": 1e-4, "atol": 1e-4}
"""Where a staged form computes in another order than lerobot; actions are around 10."""


@pytest.fixture(autouse=True)
def same_noise(monkeypatch):
    """Make every draw of a shape the same draw, whoever draws."""
    draw_alike(monkeypatch)


def both(checkpoint: Path, rows: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The chunks of a session and of lerobot, as far as lerobot gives them."""
    loaded = load_policy(checkpoint)
    seen = moments(loaded.staged.spec, rows)
    found = ours(Session(loaded, task=TASK), seen)
    theirs = LeRobot(checkpoint)
    wanted = theirs.chunk(seen[0]) if len(seen) == 1 else theirs.selected(seen)
    return found[:, : wanted.shape[1]], wanted


CHUNKED = ("act", "diffusion", "multi_task_dit", "pi0", "pi05", "pi0_fast", "smolvla", "xvla")
TOLERANCE = {"multi_task_dit": ROUNDED}
MODES = ("MEAN_STD", "MIN_MAX", "QUANTILES", "QUANTILE10", "IDENTITY")


def normalised(state: str, action: str, visual: str = "IDENTITY") -> dict[str, dict]:
    """A policy's normalisation, as a field of its config."""
    names = {"STATE": state, "ACTION": action, "VISUAL": visual}
    return {"normalization_mapping": {key: NormalizationMode[name] for key, name in names.items()}}


@pytest.mark.parametrize("kind", CHUNKED)
def test_a_policy_acts_as_in_lerobot(kind):
    """G1 (prompts that hold the state), G3, G4: what the preprocessor adds reaches the policy."""
    found, wanted = both(saved(kind))
    np.testing.assert_allclose(found, wanted, **TOLERANCE.get(kind, EXACT))
    assert np.ptp(wanted) > 0.1
    found, wanted = both(saved(kind), rows=2)
    np.testing.assert_allclose(found, wanted, **ROUNDED)
    assert not np.allclose(wanted[0], wanted[1], **ROUNDED)


def same(found, wanted) -> bool:
    """Whether two things a policy is given are equal."""
    if isinstance(wanted, torch.Tensor):
        return found.dtype == wanted.dtype and torch.equal(found, wanted)
    return type(found) is type(wanted) and found == wanted


@pytest.mark.parametrize("kind", TYPES)
def test_a_policy_is_given_all_that_lerobot_gives_it(kind):
    """G1, G3, G4, G13: observations, prompts, ids, texts, whatever the preprocessor returns."""
    checkpoint = saved(kind)
    session = Session(load_policy(checkpoint), task=TASK)
    seen = moments(session.spec, rows=2)
    stacked = {key: np.stack([moment[key] for moment in seen], axis=1) for key in seen[0]}
    batch = session.prepare(stacked)
    theirs = LeRobot(checkpoint)
    ready = [theirs.ready(moment, TASK) for moment in seen]
    outcomes = {"action", "next.reward", "next.done", "next.truncated", "info"}
    assert batch.keys() == ready[-1].keys() - outcomes
    for key, value in batch.items():
        if key in theirs.policy.config.input_features:
            assert same(value, torch.stack([one[key] for one in ready], dim=1)), key
        else:
            assert same(value, ready[-1][key]), key


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [kind for kind in CHUNKED if kind not in ("act", "diffusion")])
def test_every_normalisation_is_that_of_lerobot(kind, mode):
    """G1: states and actions normalised in every way lerobot knows."""
    found, wanted = both(saved(kind, **normalised(mode, mode)))
    np.testing.assert_allclose(found, wanted, **TOLERANCE.get(kind, EXACT))


@pytest.mark.parametrize(("state", "action"), [("QUANTILES", "MIN_MAX"), ("IDENTITY", "QUANTILE10")])
def test_pictures_are_normalised_as_in_lerobot(state, action):
    changes = normalised(state, action, "MEAN_STD")
    found, wanted = both(saved("act", **changes))
    np.testing.assert_allclose(found, wanted, **EXACT)
    found, wanted = both(saved("diffusion", **normalised(state, action, "MIN_MAX")))
    np.testing.assert_allclose(found, wanted, **EXACT)


def with_relative_actions(folder: Path, checkpoint: Path) -> Path:
    """A copy of a checkpoint whose saved processors hold lerobot's pair of relative and absolute actions."""
    copy = folder / "relative"
    shutil.copytree(checkpoint, copy)
    for name, normaliser, step, after in (
        ("policy_preprocessor.json", "normalizer_processor", "relative_actions_processor", 0),
        ("policy_postprocessor.json", "unnormalizer_processor", "absolute_actions_processor", 1),
    ):
        pipeline = json.loads((copy / name).read_text())
        at = [it["registry_name"] for it in pipeline["steps"]].index(normaliser)
        pipeline["steps"].insert(at + after, {"registry_name": step, "config": {"enabled": True}})
        (copy / name).write_text(json.dumps(pipeline))
    return copy


def test_relative_actions_in_saved_processors(tmp_path):
    """A12: actions that are offsets to the state at which they were predicted."""
    plain = saved("act")
    found, wanted = both(with_relative_actions(tmp_path, plain), rows=2)
    np.testing.assert_allclose(found, wanted, **ROUNDED)
    assert not np.allclose(found, both(plain, rows=2)[0], **ROUNDED)


@pytest.mark.parametrize("kind", ["pi0", "pi05", "pi0_fast"])
def test_relative_actions_of_a_policy(kind):
    """G2: `use_relative_actions`, without one of the joints."""
    names = ["shoulder", "elbow", "wrist", "gripper"]
    relative = {"use_relative_actions": True, "action_feature_names": names}
    found, wanted = both(saved(kind, **relative), rows=2)
    np.testing.assert_allclose(found, wanted, **ROUNDED)
    plain, _ = both(saved(kind), rows=2)
    assert np.abs(found - plain)[..., :3].min() > 0.01
    np.testing.assert_allclose(found[..., 3], plain[..., 3], **ROUNDED)
