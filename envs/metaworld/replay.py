"""Moments of a world that runs in real time, drawn afterwards: drawing takes longer than a tick."""

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from vivace.envs.metaworld.world import _MODEL_FIELDS, MetaWorld


@dataclass(frozen=True, slots=True)
class Moment:
    """What it takes to draw the world as it was."""

    model: dict[str, np.ndarray]
    """Parts of the model that the episode's reset wrote into."""
    site_pos: np.ndarray
    """Marks move within an episode too."""
    qpos: np.ndarray
    mocap_pos: np.ndarray
    mocap_quat: np.ndarray


class Replay:
    """Takes and draws moments of one environment; the episode that runs is lost by drawing."""

    def __init__(self, env: MetaWorld) -> None:
        self._env = env
        self._episode: dict[str, np.ndarray] = {}

    @property
    def scene(self) -> tuple[Any, Any]:
        """MuJoCo's (model, data), for a viewer."""
        return self._env._world.model, self._env._world.data

    def begin(self) -> None:
        """Note what the reset of an episode made of the model."""
        model = self._env._world.model
        self._episode = {name: getattr(model, name).copy() for name in _MODEL_FIELDS}

    def take(self) -> Moment:
        """Return the present moment."""
        model, data = self.scene
        arrays = (model.site_pos, data.qpos, data.mocap_pos, data.mocap_quat)
        return Moment(self._episode, *(array.copy() for array in arrays))

    def draw(self, moment: Moment) -> np.ndarray:
        """Return the frame that `env.render()` would have returned at a moment, HWC RGB uint8."""
        model, data = self.scene
        for name, value in moment.model.items():
            getattr(model, name)[:] = value
        model.site_pos[:] = moment.site_pos
        data.qpos[:], data.mocap_pos[:] = moment.qpos, moment.mocap_pos
        data.mocap_quat[:] = moment.mocap_quat
        mujoco.mj_forward(model, data)
        return self._env.render()
