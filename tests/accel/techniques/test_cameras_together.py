"""Cameras in one call: the same numbers, where it is measured to be faster."""

import pytest
import torch
from lerobot_policies import build, saved
from policy_cases import KEYS, observations

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.accel.techniques import cameras_together
from vivace.deploy.export.export import check_exportable
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.execution import as_trained, sample
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import load_policy, stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.session import Session
from vivace.policies.tiny.policies import tiny_diffusion

ALWAYS = [("cameras_together", {"measure": False})]


@pytest.fixture(scope="module")
def act(tmp_path_factory):
    return stage(build("act", tmp_path_factory.mktemp("act")))


@pytest.fixture(scope="module")
def data(act) -> CalibrationData:
    return CalibrationData(observations(act.policy), KEYS)


def plan_of(staged, data, wanted) -> AccelerationPlan:
    return calibrate(staged, fingerprint(staged.policy, staged.spec.block_ids), data, wanted)


def chunks(execution, data):
    return sample(execution, data.batch, EpisodeNoise(KEYS))


def calls(staged) -> list[int]:
    """Note how many pictures each call of the ResNet is given."""
    found: list[int] = []
    staged.network.backbone.register_forward_hook(lambda module, given, out: found.append(len(given[0])))
    return found


@pytest.mark.parametrize("more", [[], [("dead_work", {})]], ids=["alone", "with dead work"])
def test_one_call_sees_what_several_see(act, data, more):
    execution = accelerate(act, plan_of(act, data, [*ALWAYS, *more]))
    torch.testing.assert_close(chunks(execution, data), chunks(as_trained(act), data), atol=1e-5, rtol=0)


def test_there_is_one_call(act, data):
    execution = accelerate(act, plan_of(act, data, ALWAYS))
    ran = calls(act)
    chunks(as_trained(act), data)
    chunks(execution, data)
    assert ran == [len(KEYS), len(KEYS), 2 * len(KEYS)]


@pytest.mark.parametrize("times", [(2.0, 1.0), (2.0, 1.95)], ids=["faster", "no gain"])
def test_what_is_measured_to_be_faster_is_kept(act, data, times, monkeypatch, tmp_path):
    monkeypatch.setattr(cameras_together, "_timed", lambda policy, one: times)
    plan = plan_of(act, data, [("cameras_together", {})])
    (technique,) = plan.techniques
    assert technique.together == (times == (2.0, 1.0))
    assert technique.measured_ms == times
    plan.save(tmp_path)
    assert AccelerationPlan.load(tmp_path) == plan
    ran = calls(act)
    chunks(accelerate(act, plan), data)
    assert len(ran) == (1 if technique.together else 2)


def test_times_are_measured_in_turn(act, data):
    ran = calls(act)
    assert min(cameras_together._timed(act, data.one)) > 0
    assert ran == [1, 1, 2] * (1 + cameras_together._REPEATS)


def test_a_policy_with_one_camera_refuses(data):
    other = stage(tiny_diffusion(images=True))
    with pytest.raises(UnsupportedPolicy, match="cameras_together looks at several cameras in one call, but"):
        plan_of(other, data, ALWAYS)


def test_a_bundle_is_made_without_it():
    loaded = load_policy(saved("act"))
    blank = Session(loaded).blank()
    plan = calibrate(loaded.staged, loaded.fingerprint, CalibrationData(blank, ((1, 0),)), ALWAYS)
    runs, _ = check_exportable(loaded, {"plan": plan}, blank)
    assert runs["plan"].plan.techniques == ()
