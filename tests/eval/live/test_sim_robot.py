"""The simulated robot's window and film."""

from types import SimpleNamespace

import mujoco
import numpy as np
import pytest

from vivace.eval.live.sim_robot import metaworld
from vivace.policies.errors import BadSetting
from vivace.policies.spec import ActionKind, PolicySpec

pytestmark = pytest.mark.sim


def spec(**shapes):
    return PolicySpec(
        type="fake", action_dim=4, horizon=8, n_obs_steps=1, n_action_steps=4, blocks=(),
        observation_shapes={"observation.state": (39,), **shapes}, action_kinds=(ActionKind.DELTA,) * 4,
    )  # fmt: skip


def test_it_has_the_policys_cameras_and_the_tasks_words():
    robot = metaworld(spec(**{"observation.images.close_up": (3, 32, 32)}), 20.0, task="drawer-open-halfway")
    seen = robot.observe()
    assert seen.values["observation.images.close_up"].shape == (32, 32, 3)
    assert seen.task == "Open the drawer"
    robot.act(np.zeros(4, np.float32))
    assert robot.observe().time_s > seen.time_s
    robot.close()
    sizes = {f"observation.images.{name}": (3, n, n) for name, n in (("corner", 32), ("close_up", 64))}
    with pytest.raises(BadSetting, match=r"cameras have sizes \[32, 64\]; one size for all"):
        metaworld(spec(**sizes), 20.0)


def test_the_film_shows_every_second_tick_at_50_hz():
    robot = metaworld(spec(), 50.0, instruction="follow", max_steps=9)
    assert robot.observe().task == "follow"
    robot.reset(1)
    while not robot.is_over:
        robot.act(np.ones(4, np.float32))
    film = robot.film()
    robot.close()
    assert [number for number, _ in film] == [0, 2, 4, 6, 8]
    assert robot.film_fps == 25
    assert not np.array_equal(film[0][1], film[-1][1])


def test_the_window_follows_every_tick(monkeypatch):
    window = SimpleNamespace(synced=0, is_closed=False)
    window.sync = lambda: setattr(window, "synced", window.synced + 1)
    window.close = lambda: setattr(window, "is_closed", True)
    fake = SimpleNamespace(launch_passive=lambda model, data: window)
    monkeypatch.setattr(mujoco, "viewer", fake, raising=False)
    monkeypatch.setenv("DISPLAY", ":0")
    robot = metaworld(spec(), 20.0, viewer=True)
    for _ in range(3):
        robot.act(np.zeros(4, np.float32))
    robot.close()
    assert (window.synced, window.is_closed) == (3, True)
