"""The simulated robot's window and film."""

from dataclasses import replace
from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

from vivace.eval.live.parts import _is_world
from vivace.eval.live.sim_robot import simulation
from vivace.policies.errors import BadSetting
from vivace.policies.spec import ActionKind, PolicySpec

pytestmark = pytest.mark.sim


def spec(**shapes):
    return PolicySpec(
        type="fake", action_dim=4, horizon=8, n_obs_steps=1, n_action_steps=4, blocks=(),
        observation_shapes={"observation.state": (39,), **shapes}, action_kinds=(ActionKind.DELTA,) * 4,
    )  # fmt: skip


def test_it_has_the_policys_cameras_and_the_tasks_words():
    robot = simulation(spec(**{"observation.images.close_up": (3, 32, 32)}), 20.0, task="drawer-open-halfway")
    seen = robot.observe()
    assert seen.values["observation.images.close_up"].shape == (32, 32, 3)
    assert seen.task == "Open the drawer"
    robot.act(np.zeros(4, np.float32))
    assert robot.observe().time_s > seen.time_s
    robot.close()
    shapes = {"observation.images.corner": (3, 48, 64), "observation.image": (3, 32, 32)}
    robot = simulation(spec(**shapes), 20.0)
    values = robot.observe().values
    robot.close()
    for key, (channels, height, width) in shapes.items():
        assert values[key].shape == (height, width, channels), "G13: each camera has its own size"


def test_the_film_shows_every_second_tick_at_50_hz():
    robot = simulation(spec(), 50.0, instruction="follow", max_steps=9)
    assert robot.observe().task == "follow"
    robot.reset(1)
    while not robot.is_over:
        robot.act(np.ones(4, np.float32))
    film = robot.film()
    robot.close()
    assert [number for number, _ in film] == [0, 2, 4, 6, 8]
    assert robot.film_fps == 25
    assert not np.array_equal(film[0][1], film[-1][1])


def test_what_is_drawn_afterwards_is_what_was_there():
    """Over two episodes, the second of which has its goal elsewhere."""
    robot = simulation(spec(), 25.0, max_steps=6)
    then = []
    for seed in (3, 4):
        robot.reset(seed)
        while not robot.is_over:
            then.append(robot.env.render())
            robot.act(np.array([0.8, -0.5, 0.3, 1.0], np.float32))
        robot.act(np.zeros(4, np.float32))  # the world is over and stands still
    film = robot.film()
    assert [number for number, _ in film] == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
    assert np.array_equal([frame for _, frame in film], then)
    assert not np.array_equal(then[0], then[6])


def test_any_world_is_a_robot():
    """C9: pusht, whose actions are targets: it holds where the finger is; its film is drawn afterwards."""
    assert _is_world("pusht")
    assert not _is_world("lerobot")
    assert not _is_world("hal")
    shapes = {"observation.state": (2,), "observation.image": (3, 96, 96)}
    unsaid = (ActionKind.UNKNOWN,) * 2
    policy = replace(spec(), action_dim=2, observation_shapes=shapes, action_kinds=unsaid)
    robot = simulation(policy, 10.0, world="pusht", max_steps=4)
    assert robot.action_kinds == (ActionKind.ABSOLUTE,) * 2, "the world says it"
    at = robot.observe().values["observation.state"]
    assert robot.initial_action == tuple(at.tolist())
    for _ in range(6):
        robot.act(at)
    assert robot.is_over
    assert [number for number, _ in robot.film()] == [0, 1, 2, 3]
    with pytest.raises(BadSetting, match="unexpected keyword argument 'wheels'; it takes viewer, .*fps"):
        simulation(policy, 10.0, world="pusht", wheels=3)


def test_the_window_follows_every_tick(monkeypatch):
    window = SimpleNamespace(synced=0, is_closed=False)
    window.sync = lambda: setattr(window, "synced", window.synced + 1)
    window.close = lambda: setattr(window, "is_closed", True)
    fake = SimpleNamespace(launch_passive=lambda model, data: window)
    monkeypatch.setattr(mujoco, "viewer", fake, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    robot = simulation(spec(), 20.0, viewer=True)
    for _ in range(3):
        robot.act(np.zeros(4, np.float32))
    robot.close()
    assert (window.synced, window.is_closed) == (3, True)
