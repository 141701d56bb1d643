"""Any gymnasium environment as a world: G13."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete

from vivace.envs import make
from vivace.envs.registry import describe, own_task
from vivace.policies.errors import BadSetting, UnknownEnvironment
from vivace.policies.spec import ActionKind, PolicySpec

SPEC = PolicySpec(
    type="fake", action_dim=2, horizon=8, n_obs_steps=1, n_action_steps=4, blocks=(),
    observation_shapes={"observation.state": (5,), "observation.image": (3, 48, 64)},
    action_kinds=(ActionKind.DELTA,) * 2,
)  # fmt: skip


class Desk(gymnasium.Env):
    """Nested observations, a camera of 48 x 64, success under another name and at the last step only."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(self, render_mode=None, rate=None, dt=None, discrete=False):
        joints = Dict({"pos": Box(-9, 9, (2,)), "vel": Box(-9, 9, (2,))})
        inner = Dict({"joints": joints, "grip": Box(0, 1, ())})
        self.observation_space = Dict({"robot": inner, "eye": Box(0, 255, (48, 64, 3), np.uint8)})
        self.action_space = Discrete(3) if discrete else Box(-1, 1, (2,), np.float64)
        self.control_hz, self.dt = rate, dt

    def seen(self):
        robot = {"joints": {"pos": self.at.copy(), "vel": np.ones(2)}, "grip": np.float64(0.5)}
        return {"robot": robot, "eye": np.full((48, 64, 3), self.ticks, np.uint8)}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.ticks = self.np_random.uniform(-1, 1, 2), 0
        return self.seen(), {}

    def step(self, action):
        assert action.dtype == np.float64
        self.at, self.ticks = self.at + action, self.ticks + 1
        info = {"task": {"done": self.ticks == 4}} if self.ticks == 4 else {}
        return (
            self.seen(),
            -float(np.abs(self.at).sum()),
            False,
            False,
            {**info, "near": float(self.ticks % 3)},
        )


KEYS = {"robot.joints.pos": "observation.state", "robot.joints.vel": "observation.state",
        "robot.grip": "observation.state", "eye": "observation.image"}  # fmt: skip


@pytest.fixture(autouse=True)
def desk():
    gymnasium.register("desk/Desk-v0", entry_point=Desk, max_episode_steps=6)
    gymnasium.register("desk/Endless-v0", entry_point=Desk)
    yield
    for name in ("desk/Desk-v0", "desk/Endless-v0"):
        del gymnasium.registry[name]


def test_g13_nested_observations_are_named_and_joined():
    world = make("gym", id="desk/Desk-v0", keys=KEYS, success_key="task.done", score="near", spec=SPEC)
    assert (world.control_hz, world.max_episode_steps) == (20.0, 6)
    values, _ = world.reset(seed=3)
    assert values["observation.state"].dtype == np.float32
    np.testing.assert_allclose(values["observation.state"][2:], [1, 1, 0.5])
    assert values["observation.image"].shape == (48, 64, 3)
    infos = [world.step(np.array([0.1, 0.2], np.float32))[4] for _ in range(4)]
    assert [info.get("is_success") for info in infos] == [None, None, None, True]
    assert [info["score"] for info in infos] == [1.0, 2.0, 0.0, 1.0]
    best = make("gym", id="desk/Desk-v0", keys=KEYS, score="reward")
    best.reset(seed=3)
    _, reward, _, _, info = best.step(np.zeros(2, np.float32))
    assert info["score"] == reward < 0
    assert world.initial_action is None, "displacements: zeros hold still"


def test_the_id_is_the_task_and_what_it_says_of_itself_is_known():
    assert own_task("gym", id="desk/Desk-v0", keys=KEYS) == "desk/Desk-v0"
    known = describe("gym", id="desk/Desk-v0", keys=KEYS)
    assert (known.control_hz, known.action_dim, known.action_kinds) == (20.0, 2, ())
    assert known.observations == tuple(KEYS.values())
    assert make("gym", id="desk/Desk-v0", keys=KEYS, control_hz=50.0).control_hz == 50.0, (
        "render_fps is a hint"
    )
    assert make("gym", id="desk/Desk-v0", keys=KEYS, kwargs={"rate": 50}).control_hz == 50.0
    assert make("gym", id="desk/Desk-v0", keys=KEYS, kwargs={"dt": 0.05}).control_hz == 20.0
    physics = {"id": "desk/Desk-v0", "keys": KEYS, "kwargs": {"dt": 0.01}}
    assert describe("gym", **physics).control_hz is None
    assert make("gym", **physics, control_hz=50.0).control_hz == 50.0


@pytest.mark.parametrize(("options", "message"), [
    ({"id": ""}, "needs --env.id, as of gymnasium.make"),
    ({"id": "nowhere/Thing-v0"}, "gymnasium cannot make 'nowhere/Thing-v0'.*No module named 'nowhere'"),
    ({"kwargs": {"discrete": True}}, r"actions are Discrete\(3\); policies here give real numbers"),
    ({"kwargs": {"wheels": 3}}, "gymnasium cannot make 'desk/Desk-v0'.*wheels"),
    ({"keys": {"foot": "observation.state"}}, r"names 'foot', but .* are .*robot.joints.pos \(2,\)"),
    ({"keys": {"eye": "observation.image"}}, "the policy needs 'observation.state', and nothing is named so"),
    ({"kwargs": {"rate": 50}, "control_hz": 20.0}, "control_hz=20, but a step of this environment is 1/50 s"),
    ({"kwargs": {"dt": 0.01}}, "does not say how long a step is, or its dt and render_fps differ"),
])  # fmt: skip
def test_what_does_not_fit_is_one_line(options, message):
    with pytest.raises(BadSetting, match=message) as told:
        make("gym", **({"id": "desk/Desk-v0", "keys": KEYS, "spec": SPEC} | options))
    assert "\n" not in str(told.value)


def test_absolute_targets_begin_where_the_robot_is_or_as_told():
    spec = replace(
        SPEC, observation_shapes={"observation.state": (2,)}, action_kinds=(ActionKind.ABSOLUTE,) * 2
    )
    keys = {"robot.joints.pos": "observation.state"}
    world = make("gym", id="desk/Desk-v0", keys=keys, spec=spec)
    assert world.initial_action is None
    values, _ = world.reset(seed=1)
    assert world.initial_action == tuple(values["observation.state"].tolist())
    told = make("gym", id="desk/Desk-v0", keys=keys, spec=spec, initial_action=[0.5, 0.25])
    told.reset(seed=1)
    assert told.initial_action == (0.5, 0.25)
    with pytest.raises(BadSetting, match="nobody says what to hold before the first action"):
        make("gym", id="desk/Desk-v0", keys=KEYS, spec=replace(spec, observation_shapes={})).reset(seed=1)


def test_a_score_that_is_not_there_is_refused():
    world = make("gym", id="desk/Desk-v0", keys=KEYS, score="far")
    world.reset(seed=0)
    with pytest.raises(UnknownEnvironment, match="info has no 'far' to score by, but near; give another"):
        world.step(np.zeros(2, np.float32))


@pytest.mark.sim
def test_names_that_lerobots_environments_use_need_no_keys():
    world = make("gym", id="gym_pusht/PushT-v0", kwargs={"obs_type": "pixels_agent_pos"})
    assert set(world.reset(seed=0)[0]) == {"observation.image", "observation.state"}
    bare = make("gym", id="gym_pusht/PushT-v0")
    assert {key: value.shape for key, value in bare.reset(seed=0)[0].items()} == {"observation.state": (5,)}
