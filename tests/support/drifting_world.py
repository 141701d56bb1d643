"""A light gymnasium world, importable by any process, in which a chosen episode can kill who runs it."""

import os
import signal
from pathlib import Path

import gymnasium
import numpy as np

STEPS = 24
WORLD = ("--env.type=gym", "--env.id=drifting_world:Drift-v0", '--env.keys={"": observation.state}',
         "--env.control_hz=20", "--env.action_kinds=[delta]")  # fmt: skip
"""Flags of `vivace`."""


class Drift(gymnasium.Env):
    """A state (5,) that drifts to either side, and that actions (3,) push; solved on one side of it.

    Args:
        dies_at: seed of the episode that kills its process at its sixth step, as often as `lives` says.
        lives: file with how often it still does.
    """

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (5,), np.float32)
    action_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    metadata = {"render_fps": 20}

    def __init__(self, dies_at=None, lives=""):
        self.dies_at, self.lives = dies_at, Path(lives)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.ticks = seed, 0
        self.state = self.np_random.normal(size=5)
        return self.state.astype(np.float32), {}

    def step(self, action):
        self.ticks += 1
        self.state = self.state + 0.2 * np.sin(3 * self.state)
        self.state[:3] += 0.02 * np.asarray(action)
        if self.seed == self.dies_at and self.ticks == 6:
            self.die()
        success = bool(self.state[0] > 0.9)
        return self.state.astype(np.float32), 0.0, False, False, {"is_success": success}

    def die(self):
        left = int(self.lives.read_text())
        if left:
            self.lives.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)


gymnasium.register("Drift-v0", Drift, max_episode_steps=STEPS)
