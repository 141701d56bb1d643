"""A plan says which episodes it was fitted to, and is not judged on them."""

import json

import pytest
import torch

from vivace.accel.apply import calibrate
from vivace.accel.judgement import check_apart, fitted_seeds
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.tiny.policies import tiny_dp_transformer


def test_a_plan_remembers_its_episodes_through_its_file(tmp_path):
    staged = stage(tiny_dp_transformer(n_layer=1))
    mark = fingerprint(staged.policy, staged.spec.block_ids)
    data = CalibrationData({"observation.state": torch.rand(3, 2, 5)}, ((8, 0), (7, 0), (8, 1)))
    plan = calibrate(staged, mark, data, [("hoist", {})])
    plan.save(tmp_path)
    assert json.loads((tmp_path / "acceleration.json").read_text())["measurements"] == {
        "fitted_seeds": [7, 8]
    }
    restored = AccelerationPlan.load(tmp_path)
    assert fitted_seeds(restored) == {7, 8} == data.seeds
    check_apart(fitted_seeds(restored), range(9, 20))
    with pytest.raises(
        BadSetting, match="episode 8 was calibrated on, and is asked to judge by; judge by others"
    ):
        check_apart(fitted_seeds(restored), [8, 9])


def test_an_older_plan_says_its_first_episode_and_one_without_says_none():
    mark = fingerprint((staged := stage(tiny_dp_transformer(n_layer=1))).policy, staged.spec.block_ids)
    assert fitted_seeds(AccelerationPlan(mark, (), {"seed": 1_000_000})) == {1_000_000}
    assert fitted_seeds(AccelerationPlan(mark)) == set()
    for seeds in (3, [1.5], ["a"]):
        with pytest.raises(PlanMismatch, match="which are no seeds; recalibrate"):
            fitted_seeds(AccelerationPlan(mark, (), {"fitted_seeds": seeds}))
