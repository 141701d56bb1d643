"""Simulated benchmarks with lerobot's observation keys, their scripted experts and demonstrations."""

import importlib
import os

os.environ.setdefault("MUJOCO_GL", "egl")  # read once, when mujoco is imported: renders without a display

_HOME = {
    "MetaWorld": "metaworld",
    "MovingReach": "dynamic",
    "DisturbedPush": "dynamic",
    "Expert": "experts",
    "ActionNoise": "experts",
    "make": "registry",
    "task_names": "registry",
    "EpisodeBatch": "vector",
    "CollectSettings": "collect",
    "collect": "collect",
    "load_demonstrations": "collect",
}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
