"""Cameras that a policy names and nobody has: it acts without them, as it does in lerobot."""

import json
import shutil

import numpy as np
import pytest
from lerobot_itself import LeRobot, draw_alike, moments, ours
from lerobot_policies import TASK, saved

from vivace.accel.apply import accelerate, calibrate, exact_plan
from vivace.accel.technique import CalibrationData
from vivace.policies.errors import ObservationMismatch
from vivace.policies.load import load_policy
from vivace.policies.session import Session
from vivace.policies.vla.siglip import StagedSiglip

FRONT, WRIST, STATE = "observation.images.front", "observation.images.wrist", "observation.state"


@pytest.fixture(autouse=True)
def same_noise(monkeypatch):
    """Make every draw of a shape the same draw, whoever draws."""
    draw_alike(monkeypatch)


@pytest.mark.parametrize(
    ("kind", "there", "settings"),
    [
        *((kind, WRIST, {}) for kind in ("pi0", "pi05", "pi0_fast", "smolvla", "xvla", "groot")),
        ("smolvla", FRONT, {"empty_cameras": 1}),
        ("smolvla", WRIST, {"empty_cameras": 1, "add_image_special_tokens": True}),
    ],
)
def test_a_policy_acts_without_them_as_in_lerobot(kind, there, settings):
    checkpoint = saved(kind, **settings)
    loaded = load_policy(checkpoint, has=(there, STATE))
    assert loaded.absent == tuple({FRONT, WRIST} - {there})
    seen = moments(loaded.staged.spec)
    assert seen[0].keys() == {there, STATE}
    found, wanted = ours(Session(loaded, task=TASK), seen), LeRobot(checkpoint).chunk(seen[0])
    np.testing.assert_array_equal(found[:, : wanted.shape[1]], wanted)
    whole = load_policy(checkpoint)
    assert whole.fingerprint == loaded.fingerprint
    assert np.abs(ours(Session(whole, task=TASK), moments(whole.staged.spec)) - found).max() > 1e-3


def exact(loaded):
    """As trained, and without what nobody reads."""
    plan = exact_plan(loaded.staged, loaded.fingerprint)
    return loaded.as_trained, accelerate(loaded.staged, plan, loaded.fingerprint)


@pytest.mark.parametrize(("kind", "settings"), [("pi0", {}), ("smolvla", {"empty_cameras": 1})])
def test_an_absent_camera_is_padding_to_exact_work(kind, settings, monkeypatch):
    """lerobot fills it, reads it and masks it: a call of the tower and its rows can go."""
    loaded = load_policy(saved(kind, **settings), has=(FRONT, STATE))
    seen = {key: value[:, None] for key, value in moments(loaded.staged.spec)[0].items()}
    plain, fast = (Session(loaded, it, TASK) for it in exact(loaded))
    np.testing.assert_allclose(fast.predict(seen, [(0, 0)]), plain.predict(seen, [(0, 0)]), rtol=0, atol=1e-4)
    assert [looks(session, seen, monkeypatch) for session in (plain, fast)] == [2, 1]


def looks(session, seen, monkeypatch) -> int:
    """How often the vision tower is run for a chunk."""
    calls, run = [], StagedSiglip.__call__
    with monkeypatch.context() as patch:
        patch.setattr(StagedSiglip, "__call__", lambda *given: calls.append(1) or run(*given))
        session.predict(seen, [(0, 0)])
    return len(calls)


@pytest.mark.parametrize("kind", ["pi0", "pi05", "pi0_fast", "smolvla", "groot"])
def test_patches_are_those_of_the_cameras_there_are(kind):
    whole, lacking = load_policy(saved(kind)), load_policy(saved(kind), has=(WRIST, STATE))
    assert len(whole.staged.n_patches) == 2
    assert lacking.staged.n_patches == whole.staged.n_patches[1:]
    assert lacking.staged.with_weights(lacking.policy).n_patches == lacking.staged.n_patches
    k = sum(lacking.staged.n_patches) // 2
    data = CalibrationData(Session(lacking, task=TASK).blank(), ((0, 0),))
    wanted = [("patch_select", {"k_final": k, "k_key": 1})]
    plan = calibrate(lacking.staged, lacking.fingerprint, data, wanted)
    session = Session(lacking, accelerate(lacking.staged, plan, lacking.fingerprint), TASK)
    assert np.isfinite(ours(session, moments(session.spec))).all()


def test_it_is_known_by_the_name_that_the_robot_would_have_for_it(tmp_path):
    """A renaming inside the checkpoint says what it was called, not that it is there."""
    checkpoint = tmp_path / "renaming"
    shutil.copytree(saved("pi0"), checkpoint)
    file = checkpoint / "policy_preprocessor.json"
    pipeline = json.loads(file.read_text())
    pipeline["steps"][0]["config"]["rename_map"] = {"observation.images.top": FRONT}
    file.write_text(json.dumps(pipeline))
    loaded = load_policy(checkpoint, has=(WRIST, STATE))
    assert loaded.absent == ("observation.images.top",)
    assert loaded.staged.cameras == (WRIST,)
    seen = moments(loaded.staged.spec)
    np.testing.assert_array_equal(ours(Session(loaded, task=TASK), seen), LeRobot(checkpoint).chunk(seen[0]))


@pytest.mark.parametrize(
    ("kind", "has", "rename_map"),
    [
        ("act", (FRONT, STATE), {}),
        ("pi0", (STATE,), {}),
        ("pi0", (FRONT, "observation.images.side", STATE), {}),
        ("pi0", (FRONT, STATE), {"observation.images.side": WRIST}),
    ],
    ids=["it acts with all alone", "there is none", "one has another name", "somebody says it is there"],
)
def test_otherwise_all_are_asked_for(kind, has, rename_map):
    loaded = load_policy(saved(kind), rename_map=rename_map, has=has)
    assert not loaded.absent
    assert len(loaded.staged.spec.observation_shapes) == 3
    seen = [{key: value for key, value in moments(loaded.staged.spec)[0].items() if key in has}]
    with pytest.raises(ObservationMismatch, match="but the policy needs 'observation.images"):
        ours(Session(loaded, task=TASK), seen)
