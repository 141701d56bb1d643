"""A world for any policy: pictures and states of the shapes that its config names, a few ticks long."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from vivace.envs.protocol import TaskInfo
from vivace.envs.registry import register_world
from vivace.policies.spec import ActionKind

TICKS = 8


class AnyWorld:
    """What is seen follows from the seed, and moves with the actions, so that those matter."""

    def __init__(self, features: dict[str, tuple[int, ...]], action_dim: int, control_hz: float):
        self.features, self.action_dim, self.control_hz = features, action_dim, control_hz

    def reset(self, *, seed: int, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        self.random, self.at, self.ticks = np.random.default_rng(seed), np.zeros(self.action_dim), 0
        return self.seen(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.at, self.ticks = self.at + 0.1 * np.tanh(action), self.ticks + 1
        return self.seen(), 0.0, False, self.ticks >= TICKS, {"is_success": False}

    def seen(self) -> dict[str, np.ndarray]:
        return {key: self.sight(shape) for key, shape in self.features.items()}

    def sight(self, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 3:
            return self.random.integers(0, 256, (*shape[1:], shape[0]), dtype=np.uint8)
        found: np.ndarray = (self.random.normal(2.0, 1.0, shape) + self.at.mean()).astype(np.float32)
        return found

    def close(self) -> None: ...


def task_names() -> tuple[str, ...]:
    return tuple(_FEATURES)


def describe(task: str) -> TaskInfo:
    kinds = (ActionKind.ABSOLUTE,) * _ACTION_DIM[task]
    return TaskInfo(
        control_hz=20.0,
        action_kinds=kinds,
        instruction="put the red cube on the plate",
        observations=tuple(_FEATURES[task]),
    )


def make(task: str, *, control_hz: float | None = None, **options: Any) -> AnyWorld:
    return AnyWorld(_FEATURES[task], _ACTION_DIM[task], control_hz or 20.0)


_FEATURES: dict[str, dict[str, tuple[int, ...]]] = {}
"""Task -> key and shape of what is seen."""
_ACTION_DIM: dict[str, int] = {}
"""Task -> numbers of an action."""


def world_of(checkpoint: Path, name: str, without: str = "") -> list[str]:
    """Flags of a world that shows what a checkpoint's config asks for, but for one of it."""
    register_world("any", "any_world")
    config = json.loads((checkpoint / "config.json").read_text())
    inputs = config["input_features"].items()
    _FEATURES[name] = {key: tuple(feature["shape"]) for key, feature in inputs if key != without}
    (_ACTION_DIM[name],) = config["output_features"]["action"]["shape"]
    return ["--env.type=any", f"--env.task={name}"]
