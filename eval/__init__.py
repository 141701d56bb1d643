"""Measure success, latency, and both at once."""

import importlib

_LAZY = {
    "simulation.rollout": ("RolloutSettings", "rollout"),
    "simulation.episode": ("EpisodeResult",),
    "simulation.latency_model": ("LatencyModel",),
    "measure.statistics": ("paired_difference", "percentiles", "wilson_interval"),
}
_HOME = {name: module for module, names in _LAZY.items() for name in names}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
