import numpy as np
import pytest

from vivace.envs import EpisodeBatch, make
from vivace.policies.errors import BadSetting

pytestmark = pytest.mark.sim


def test_batched_episodes_equal_single_ones():
    seeds, actions = [11, 12, 13], np.random.default_rng(0).uniform(-1, 1, (12, 3, 4))
    with EpisodeBatch(lambda: make("metaworld", "push-disturbed"), 4) as batch:
        shown = [batch.reset(seeds), *(batch.step(row) for row in actions)]
    states = np.array([step.observations["observation.state"] for step in shown])  # (T, n, 39)
    env = make("metaworld", "push-disturbed")
    for i, seed in enumerate(seeds):
        observation, _ = env.reset(seed=seed)
        single = [observation, *(env.step(row[i])[0] for row in actions)]
        np.testing.assert_array_equal(states[:, i], [values["observation.state"] for values in single])


def test_an_episode_that_is_over_is_not_stepped():
    envs = EpisodeBatch(lambda: make("metaworld", "reach-v3", max_episode_steps=2), 2)
    step = envs.reset([0, 1])
    assert not step.is_over.any()
    step = envs.step(np.zeros((2, 4)))
    assert not step.is_over.any()
    last = envs.step(np.zeros((2, 4)))
    assert last.is_over.all()
    again = envs.step(np.ones((2, 4)))
    np.testing.assert_array_equal(
        again.observations["observation.state"], last.observations["observation.state"]
    )
    assert [env.unwrapped.ticks for env in envs.envs] == [2, 2]
    envs.close()


def test_number_of_seeds_is_checked():
    envs = EpisodeBatch(lambda: make("metaworld", "reach-v3"), 2)
    with pytest.raises(BadSetting, match="there are 3 seeds for 2 environments"):
        envs.reset([1, 2, 3])
    with pytest.raises(BadSetting, match="batch size is 0"):
        EpisodeBatch(lambda: make("metaworld", "reach-v3"), 0)
