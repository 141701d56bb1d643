import numpy as np
import pytest

from vivace.envs import MetaWorld, make, task_names
from vivace.envs.metaworld import camera
from vivace.envs.metaworld.world import SPEED_M_S
from vivace.envs.registry import instruction
from vivace.policies.errors import BadSetting, UnknownEnvironment
from vivace.policies.spec import ActionKind

pytestmark = pytest.mark.sim
TASKS = ("push-v3", "drawer-open-v3", "box-close-v3", "reach-moving", "push-disturbed")


def _states(env: MetaWorld, seed: int, steps: int = 40) -> np.ndarray:
    random = np.random.default_rng(seed)
    observation, _ = env.reset(seed=seed)
    states = [observation["observation.state"]]
    for _ in range(steps):
        observation, *_ = env.step(random.uniform(-1, 1, 4))
        states.append(observation["observation.state"])
    return np.array(states)


@pytest.mark.parametrize(("task", "hz"), [*((task, None) for task in TASKS), ("push-v3", 50.0)])
def test_an_episode_depends_on_its_seed_alone(task, hz):
    """At 50 Hz too, where a tick is no whole number of Meta-World's steps and resets stepped by a part."""
    env = make("metaworld", task, control_hz=hz)
    first = _states(env, 5)
    _states(env, 6, steps=60)
    np.testing.assert_array_equal(_states(env, 5), first)
    other = make("metaworld", task, control_hz=hz)
    _states(other, 9, steps=20)
    np.testing.assert_array_equal(_states(other, 5), first)


@pytest.mark.parametrize("task", TASKS)
def test_seeds_place_things_differently_and_the_goal_is_visible(task):
    env = make("metaworld", task)
    starts = np.array([env.reset(seed=seed)[0]["observation.state"] for seed in range(4)])
    assert len(np.unique(starts, axis=0)) == 4
    assert np.abs(starts[:, 36:39]).max() > 0.1


def test_unseeded_resets_go_on_from_the_last_seed():
    env = make("metaworld", "push-v3")
    env.reset(seed=1)
    second = env.reset()[0]["observation.state"]
    third = env.reset()[0]["observation.state"]
    assert (second != third).any()
    env.reset(seed=1)
    np.testing.assert_array_equal(env.reset()[0]["observation.state"], second)


def test_observation_and_action_spaces_hold_what_is_given():
    env = make("metaworld", "pick-place-v3", image_size=32, cameras=("corner2", "topview"))
    observation, info = env.reset(seed=0)
    assert set(observation) == {
        "observation.state",
        "observation.images.corner2",
        "observation.images.topview",
    }
    assert env.observation_space.contains(observation)
    assert info["is_success"] is False
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert isinstance(reward, float)
    assert (terminated, truncated, info["is_success"]) == (False, False, False)
    np.testing.assert_array_equal(
        make("metaworld", "pick-place-v3").reset(seed=0)[0]["observation.state"],
        env.reset(seed=0)[0]["observation.state"],
    )
    env.close()


def test_images_are_upright():
    env = make("metaworld", "push-v3", image_size=64, render_size=96)
    observation, _ = env.reset(seed=0)
    image = observation["observation.images.corner2"].astype(float)
    sky, ground = image[:8].mean(axis=(0, 1)), image[-24:, 24:48].mean(axis=(0, 1))
    assert np.ptp(sky) < 12, "the plain grey background is at the top"
    assert ground[0] - ground[2] > 18, "the brown table is at the bottom"
    frame = env.render()
    assert frame.shape == (96, 96, 3)
    assert frame.dtype == np.uint8
    assert frame.std() > 10
    env.close()
    assert env.render().shape == (96, 96, 3), "a closed renderer opens again"
    env.close()


def test_actions_are_displacements_and_a_gripper_command():
    env = make("metaworld", "push-v3")
    assert env.action_kinds == (ActionKind.DELTA, ActionKind.DELTA, ActionKind.DELTA, ActionKind.ABSOLUTE)
    env.reset(seed=0)
    before = env.step(np.zeros(4))[0]["observation.state"][:3]
    for _ in range(10):
        after = env.step(np.array([9.0, 0.0, 0.0, 0.0]))[0]["observation.state"][:3]
    assert 0.05 < after[0] - before[0] < 0.11, "at most 0.8 m/s, whatever is asked for"


def test_episode_ends_after_max_episode_steps():
    env = make("metaworld", "reach-v3", max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(np.zeros(4))[3] for _ in range(3)] == [False, False, True]
    assert env.ticks == 3


@pytest.mark.parametrize("control_hz", [20.0, 30.0, 50.0, 80.0, 100.0, 400.0])
def test_the_worlds_time_passes_as_the_clock_says(control_hz):
    env = make("metaworld", "reach-moving", control_hz=control_hz)
    env.reset(seed=0)
    began_s = env._world.data.time
    for tick in range(1, 31):
        env.step(np.zeros(4))
        assert abs(env._world.data.time - began_s - tick / control_hz) <= 0.5 / env.physics_hz + 1e-9
        assert env.time_s == pytest.approx(env._world.data.time - began_s)
    assert env.max_episode_steps == round(7.5 * control_hz)


def test_a_tick_at_20_hz_is_four_of_metaworlds_steps():
    slow, fast = make("metaworld", "push-v3", control_hz=20), make("metaworld", "push-v3")
    assert (fast.control_hz, fast.max_episode_steps, slow.max_episode_steps) == (80.0, 300, 75)
    first, fine = slow.reset(seed=3)[0], fast.reset(seed=3)[0]
    np.testing.assert_array_equal(first["observation.state"], fine["observation.state"])
    random = np.random.default_rng(0)
    for _ in range(10):
        action = random.uniform(-1, 1, 4)
        before = first["observation.state"][:18]
        first = slow.step(action)[0]
        for _ in range(4):
            fine = fast.step(action)[0]
        np.testing.assert_array_equal(first["observation.state"][:18], fine["observation.state"][:18])
        np.testing.assert_array_equal(first["observation.state"][18:36], before, "what a tick ago was")


@pytest.mark.parametrize("control_hz", [20.0, 50.0, 80.0, 100.0])
def test_an_action_is_a_speed_whatever_the_rate(control_hz):
    env = make("metaworld", "reach-v3", control_hz=control_hz)
    env.reset(seed=0)
    start = env._world.data.mocap_pos[0, 0]
    for _ in range(round(0.1 * control_hz)):
        env.step(np.array([0.5, 0.0, 0.0, 0.0]))
    assert env._world.data.mocap_pos[0, 0] - start == pytest.approx(0.5 * SPEED_M_S * 0.1, rel=1e-6)


def test_every_task_has_a_description():
    assert len(task_names("metaworld")) == 58
    assert all(instruction("metaworld", task) for task in task_names("metaworld"))
    assert make("metaworld", "push-v3").task_description == "Push the puck to a goal"
    assert "moving" in make("metaworld", "reach-moving").task_description


def test_unknown_task_names_the_nearest():
    with pytest.raises(UnknownEnvironment, match=r"no task 'psh-v3'; the nearest .* push-v3"):
        make("metaworld", "psh-v3")
    with pytest.raises(UnknownEnvironment, match=r"Meta-World has no task 'push'; .* push-v3"):
        MetaWorld("push")


def test_unknown_type_lists_the_types():
    with pytest.raises(UnknownEnvironment, match="'gibson' does not exist; the types: metaworld, gym"):
        make("gibson", "push-v3")


def test_unknown_camera_lists_the_cameras():
    with pytest.raises(UnknownEnvironment, match=r"no camera 'left'; its cameras: .*corner2"):
        make("metaworld", "push-v3", cameras=("left",))
    with pytest.raises(BadSetting, match="cameras is empty"):
        make("metaworld", "push-v3", cameras=())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_episode_steps": 0}, "max_episode_steps is 0; at least 1"),
        ({"control_hz": 401.0}, r"control_hz is 401.0, but the physics runs at 400 Hz; .* own is 80 Hz"),
        ({"control_hz": 0.0}, "control_hz is 0.0"),
        ({"image_size": -1}, "image_size is -1"),
        ({"render_size": 0}, "render_size 0 px"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(BadSetting, match=message):
        make("metaworld", "push-v3", **options)


def test_lazy_images_are_those_of_their_moment():
    options = {"image_size": 32, "cameras": ("close_up",)}
    eager, lazy = (
        make("metaworld", "reach-v3", **options),
        make("metaworld", "reach-v3", lazy_images=True, **options),
    )
    key = "observation.images.close_up"
    seen = [env.reset(seed=3)[0] for env in (eager, lazy)]
    assert key not in list(seen[1])
    assert np.array_equal(seen[0][key], seen[1][key])
    moved = [env.step(np.ones(4))[0] for env in (eager, lazy)]
    assert np.array_equal(moved[0][key], moved[1][key])
    late = lazy.step(np.ones(4))[0]
    lazy.step(np.ones(4))
    with pytest.raises(BadSetting, match="moved on"):
        late[key]
    with pytest.raises(KeyError):
        late["observation.images.wrist"]


def test_worlds_alike_share_a_renderer_and_draw_what_they_draw_alone():
    """Opening one takes longer than an episode's pictures; another task, or size, has its own."""

    def seen(worlds):
        return [world.step(np.full(4, 0.5))[0]["observation.images.corner2"] for world in worlds]

    def begun(*tasks, size=48):
        worlds = [make("metaworld", task, image_size=size) for task in tasks]
        for seed, world in enumerate(worlds):
            world.reset(seed=seed)
        return worlds

    camera.close_renderers()
    tasks = "push-v3", "push-v3", "drawer-open-v3"
    together = [seen(worlds) for worlds in [begun(*tasks)] for _ in range(2)]
    assert len(camera._OPEN) == 2, "one for both worlds of a task"
    for i in range(3):
        camera.close_renderers()
        alone = begun(*tasks)
        for moment in range(2):
            np.testing.assert_array_equal(seen(alone)[i], together[moment][i])
    assert not np.array_equal(together[0][0], together[0][1])
    for size in range(20, 20 + 2 * camera._MOST_OPEN, 2):
        begun("push-v3", size=size)
    assert len(camera._OPEN) == camera._MOST_OPEN, "the last used ones stay open"
