"""Data of a robot that has fewer cameras than a policy names."""

import json

import numpy as np
import pytest
from any_world import world_of
from lerobot_policies import TASK, saved

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.eval.cli import main
from vivace.policies.load import load_policy
from vivace.policies.session import Session

FEW = ["--accel.samples=2", "--accel.judged_samples=2"]
WRIST, SIDE = "observation.images.wrist", "observation.images.side"


def recorded(folder, *cameras):
    """A file of four moments of a robot that has these cameras."""
    random = np.random.default_rng(0)
    seen = {key: random.integers(0, 256, (4, 48, 64, 3), np.uint8) for key in cameras}
    seen["observation.state"] = random.uniform(1, 5, (4, 5)).astype(np.float32)
    np.savez(folder / "obs.npz", **seen, task=np.full(4, TASK))
    return f"--data.file={folder / 'obs.npz'}"


def asked(verb, kind, *more):
    return main([verb, f"--policy.path={saved(kind)}", *more])


def test_it_is_told_once_and_acted_without(tmp_path, capsys):
    data, out = recorded(tmp_path, WRIST), tmp_path / "plan"
    told = f"{tmp_path / 'obs.npz'} has no observation.images.front: the policy acts without, as in lerobot"
    plan = ["--accel.techniques=[dead_work,hoist]", f"--output_dir={out}"]
    assert asked("calibrate", "pi0", data, *FEW, *plan) == 0
    assert capsys.readouterr().err.count(told) == 1
    assert asked("explain", "pi0", data, f"--accel.path={out}") == 0
    assert capsys.readouterr().err.count(told) == 1


def test_a_world_without_it_is_acted_in(tmp_path, capsys):
    world = world_of(saved("smolvla"), "smolvla-one-camera", without=WRIST)
    asking = ["--eval.n_episodes=2", "--eval.timed_chunks=1", "--eval.curve=[]", "--eval.video=false",
              "--eval.lineup=false", "--latency.type=none", f"--output_dir={tmp_path}/out"]  # fmt: skip
    assert asked("eval", "smolvla", *world, *asking) == 0
    assert f"any smolvla-one-camera has no {WRIST}: the policy acts without" in capsys.readouterr().err


def test_doctor_holds_it_against_lerobot_without(tmp_path, capsys):
    assert asked("doctor", "smolvla", recorded(tmp_path, WRIST)) == 0
    assert "has no observation.images.front" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "cameras"), [("act", [WRIST]), ("pi0", [WRIST, SIDE])])
def test_else_it_is_refused_in_one_line(kind, cameras, tmp_path, capsys):
    """Of a policy that needs all, or where the camera may be there by another name."""
    assert asked("calibrate", kind, recorded(tmp_path, *cameras), *FEW, f"--output_dir={tmp_path}/out") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vivace")]
    assert len(lines) == 1
    assert "but the policy needs 'observation.images.front'" in lines[0]
    assert "--rename_map" in lines[0]


@pytest.mark.long
@pytest.mark.parametrize("kind", ["smolvla", "pi0", "xvla", "groot"])
def test_a_bundle_of_it_asks_for_what_there_is(kind, tmp_path, capsys):
    data, made = recorded(tmp_path, WRIST), tmp_path / "bundle"
    assert asked("export", kind, data, "--export.samples=1", f"--output_dir={made}") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert max(told["chunk_error"], told["lerobot_error"]) <= 1e-4
    policy = OrtPolicy(Bundle.load(made), task=TASK)
    assert set(policy.spec.observation_shapes) == {WRIST, "observation.state"}
    loaded = load_policy(saved(kind), has=(WRIST, "observation.state"))
    with np.load(tmp_path / "obs.npz") as file:
        seen = {key: file[key][:1, None] for key in policy.spec.observation_shapes}
    found, wanted = (it.predict(seen, [(0, 0)]) for it in (policy, Session(loaded, task=TASK)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
