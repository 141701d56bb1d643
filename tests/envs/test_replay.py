"""Moments drawn afterwards are the frames that would have been drawn then."""

import numpy as np
import pytest

from vivace.envs import make
from vivace.envs.metaworld.replay import Replay

pytestmark = pytest.mark.sim


def test_what_is_drawn_afterwards_is_what_was_there():
    env = make("metaworld", "reach-moving", render_size=64)
    replay = Replay(env)
    moments, frames = [], []
    for seed in (3, 4):  # the second episode has its goal elsewhere
        env.reset(seed=seed)
        replay.begin()
        for _ in range(6):
            env.step(np.array([0.8, -0.5, 0.3, 1.0], np.float32))
        moments.append(replay.take())
        frames.append(env.render())
    drawn = [replay.draw(moment) for moment in (moments[1], moments[0])]
    env.close()
    assert np.array_equal(drawn[0], frames[1])
    assert np.array_equal(drawn[1], frames[0])
    assert not np.array_equal(*frames)
