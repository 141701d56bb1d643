"""Recorded episodes as a robot: shown one by one, whatever is commanded."""

import numpy as np
import pytest
from strangers_robot import FPS, JOINTS, TASKS, frame

from vivace.deploy.loop.robot import Ends, Measures, Resets, able, trait
from vivace.deploy.robots.registry import action_kinds, action_names, initial_action
from vivace.eval.live.recorded_robot import dataset
from vivace.policies.errors import BadSetting
from vivace.policies.load import load_policy
from vivace.policies.spec import ActionKind


@pytest.fixture(scope="module")
def spec(strangers_policy):
    return load_policy(strangers_policy).staged.spec


def test_every_action_shows_the_next_frame_and_is_compared(spec, recordings):
    robot = dataset(spec, FPS, repo=str(recordings), episodes=[3, 1])
    assert all(able(robot, ability) is not None for ability in (Ends, Measures, Resets))
    assert trait(robot, "is_simulated")
    assert action_names(robot, spec) == JOINTS
    assert set(action_kinds(robot, JOINTS, spec)) == {ActionKind.ABSOLUTE}
    robot.reset(1)
    for index in range(12):
        assert not robot.is_over
        seen = robot.observe()
        assert (seen.tick, seen.time_s, seen.task) == (index, pytest.approx(index / FPS), TASKS[1])
        for key in spec.observation_shapes:
            np.testing.assert_array_equal(seen.values[key], frame(1, index)[key])
        robot.act(frame(1, index)["action"] + np.float32(0.5 if index == 4 else 0.0))
    assert robot.is_over
    robot.act(np.zeros(7))
    assert (robot.measured["episodes"], robot.measured["actions"]) == ([1], 12)
    found = robot.measured["difference"]["joint_2.pos"]
    assert found["largest"] == pytest.approx(0.5, abs=1e-6)
    assert found["mean"] == pytest.approx(0.5 / 12, abs=1e-6)
    recorded = np.stack([frame(1, i)["action"] for i in range(12)])
    assert found["spread"] == pytest.approx(recorded.std(0)[1], abs=1e-6)


def test_it_begins_where_the_recorded_one_was(spec, recordings):
    robot = dataset(spec, FPS, repo=str(recordings), instruction="wave")
    assert robot.observe().task == "wave"
    assert robot.initial_action == pytest.approx(frame(0, 0)["action"].tolist())
    assert len(initial_action(robot, spec)) == len(JOINTS)


def test_a_file_of_observations_without_actions_plays_too(spec, tmp_path):
    frames = [frame(0, i) for i in range(3)]
    arrays = {key: np.stack([one[key] for one in frames]) for key in spec.observation_shapes}
    np.savez(tmp_path / "obs.npz", **arrays, episode=np.zeros(3, int))
    robot = dataset(spec, FPS, file=str(tmp_path / "obs.npz"))
    for _ in range(3):
        robot.act(np.zeros(7))
    assert robot.is_over
    assert robot.measured["difference"] == {}


@pytest.mark.parametrize(("hz", "options", "message"), [
    (FPS, {}, "robot 'dataset' needs --robot.options="),
    (FPS, {"episodes": [9]}, "has no episode 9; the last is 3"),
    (20.0, {}, "was recorded at 10 Hz and would be played back at 20; give --control_hz=10"),
])  # fmt: skip
def test_what_cannot_be_played_is_refused(spec, recordings, hz, options, message):
    given = {} if "needs" in message else {"repo": str(recordings)}
    with pytest.raises(BadSetting, match=message):
        dataset(spec, hz, **given, **options)
