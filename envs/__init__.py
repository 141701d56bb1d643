"""Simulated worlds with lerobot's observation keys, scripted experts and demonstrations."""

import importlib
import os
import sys

from vivace.envs.registry import make, register_world, task_names

if sys.platform == "linux":  # elsewhere mujoco refuses it
    os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is first imported: renders without a display
_LAZY = {
    "metaworld.dynamic": ("MovingReach", "DisturbedPush"),
    "metaworld.world": ("MetaWorld",),
    "metaworld.experts": ("expert",),
    "metaworld.demonstrations": ("collect",),
    "demonstrations": ("CollectSettings", "Demonstrations", "NoiseSettings", "load_demonstrations", "record"),
}
_HOME = {name: module for module, names in _LAZY.items() for name in names}
__all__ = ["make", "register_world", "task_names", *_HOME]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
