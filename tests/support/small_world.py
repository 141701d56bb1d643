"""An environment of lerobot's that shows what a checkpoint's config asks for, a few ticks long.

`--env.type=small --env.checkpoint=FOLDER`: what is rewarded is what was told, so that two runs of one seed
have the same rewards only if every action was the same.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from any_world import TICKS, AnyWorld
from gymnasium import spaces
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot_policies import TASK

IMAGES = "observation.images."


def _config(checkpoint: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(checkpoint) / "config.json").read_text())
    return found.get("base", found)  # of type vivace


@EnvConfig.register_subclass("small")
@dataclass
class SmallConfig(EnvConfig):
    """A world for one checkpoint."""

    task: str | None = "Small-v0"
    fps: int = 10
    checkpoint: str = ""

    def __post_init__(self) -> None:
        config = _config(self.checkpoint)
        for key, feature in (config["input_features"] | config["output_features"]).items():
            name = _name(key)
            kind, shape = FeatureType(feature["type"]), tuple(feature["shape"])
            self.features[name] = PolicyFeature(kind, (*shape[1:], shape[0]) if len(shape) == 3 else shape)
            self.features_map[name] = key

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        return {"checkpoint": self.checkpoint}


def _name(key: str) -> str:
    """What the environment calls an observation of the policy's."""
    camera = key.removeprefix(IMAGES)
    return f"pixels/{camera}" if camera != key else {"observation.state": "agent_pos"}.get(key, key)


class Small(gymnasium.Env):
    """What is seen follows from the seed and the actions, and success from all of those."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012  gymnasium's own form
    render_mode, task_description = "rgb_array", TASK

    def __init__(self, checkpoint: str):
        config = _config(checkpoint)
        shapes = {key: tuple(feature["shape"]) for key, feature in config["input_features"].items()}
        self.world = AnyWorld(shapes, 1, 10.0)
        (n,) = config["output_features"]["action"]["shape"]
        self.action_space = spaces.Box(-np.inf, np.inf, (n,), np.float32)
        self.observation_space = _space(self.reset(seed=0)[0])

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        self.seed = self.seed if seed is None else seed
        seen, info = self.world.reset(seed=self.seed)
        return _nested(seen), info

    def step(self, action: np.ndarray) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        seen, _, ended, is_late, _ = self.world.step(action)
        is_there = bool(1e3 * self.world.at.sum() % 2 < 1)  # turns with the last digits of any action
        return _nested(seen), float(np.sum(action)), ended or is_late, False, {"is_success": is_there}

    def render(self) -> np.ndarray:
        return np.zeros((64, 64, 3), np.uint8)


def _nested(seen: dict[str, np.ndarray]) -> dict[str, Any]:
    flat = {_name(key): value for key, value in seen.items()}
    cameras = {
        name.removeprefix("pixels/"): value for name, value in flat.items() if name.startswith("pixels/")
    }
    return {name: value for name, value in flat.items() if not name.startswith("pixels/")} | (
        {"pixels": cameras} if cameras else {}
    )


def _space(seen: Any) -> spaces.Space[Any]:
    if isinstance(seen, dict):
        return spaces.Dict({key: _space(value) for key, value in seen.items()})
    if seen.dtype == np.uint8:
        return spaces.Box(0, 255, seen.shape, np.uint8)
    return spaces.Box(-np.inf, np.inf, seen.shape, np.float32)


gymnasium.register("gym_small/Small-v0", Small, max_episode_steps=TICKS)
