import numpy as np
import pytest

from vivace.envs import NoiseSettings, expert, make
from vivace.envs.metaworld.experts import ActionNoise
from vivace.policies.errors import BadSetting, UnknownEnvironment


@pytest.mark.sim
@pytest.mark.parametrize("task", ["push-v3", "pick-place-v3", "reach-v3", "reach-moving", "push-disturbed"])
def test_expert_solves_its_task(task):
    env, act = make("metaworld", task), expert(task)
    for seed in range(100_000, 100_005):
        observation, _ = env.reset(seed=seed)
        is_over = is_success = False
        while not (is_over or is_success):
            action = act(observation["observation.state"])
            assert np.abs(action).max() <= 1.0
            observation, _, _, is_over, info = env.step(action)
            is_success = info["is_success"]
        assert is_success, seed


@pytest.mark.parametrize("task", ["push-v3", "reach-moving", "push-disturbed"])
def test_a_state_has_one_label(task):
    state = np.random.default_rng(0).uniform(0, 1, 39).astype(np.float32)
    act = expert(task)
    first = act(state)
    act(state + 0.1)
    np.testing.assert_array_equal(act(state), first)
    assert first.dtype == np.float32


def test_unknown_expert_names_the_nearest():
    with pytest.raises(UnknownEnvironment, match=r"'reach-movng' has no scripted expert; .*reach-moving"):
        expert("reach-movng")


def test_clean_episodes_are_left_alone():
    noise = ActionNoise(NoiseSettings(scales=(0.0,), probabilities=(1.0,)), seed=0)
    action = np.array([0.1, -0.2, 0.3, 1.0], np.float32)
    assert noise(action) is action


def test_noise_has_its_scale_and_depends_on_its_seed():
    settings = NoiseSettings(scales=(0.2,), probabilities=(1.0,), burst_probability=0.0)
    runs = []
    for seed in (1, 1, 2):
        noise = ActionNoise(settings, seed)
        runs.append(np.array([noise(np.zeros(4)) for _ in range(2000)]))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()
    np.testing.assert_allclose(runs[0][:, :3].std(axis=0), 0.2, rtol=0.15)
    assert runs[0][:, 3].std() < 0.1, "the gripper is disturbed less"


def test_bursts_stand_still_with_the_gripper_held():
    settings = NoiseSettings(scales=(0.1,), probabilities=(1.0,), burst_probability=0.05)
    noise = ActionNoise(settings, seed=3)
    executed = np.array([noise(np.array([0.5, 0.5, 0.5, 1.0])) for _ in range(400)])
    still = (executed[:, :3] == 0.0).all(axis=1)
    assert 20 < still.sum() < 390
    starts = np.flatnonzero(still[1:] & ~still[:-1]) + 1
    np.testing.assert_array_equal(executed[starts, 3], executed[starts - 1, 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": (0.1,)}, "give one probability per scale"),
        ({"scales": (-0.1, 0.0, 0.1)}, "needed: scales >= 0"),
        ({"memory": 1.0}, r"memory in \[0, 1\)"),
    ],
)
def test_impossible_noise_is_refused(options, message):
    with pytest.raises(BadSetting, match=message):
        NoiseSettings(**options)
