"""Techniques that make a policy cheaper, and the plan that holds them."""

import importlib

_LAZY = {
    "apply": ("accelerate", "calibrate"),
    "plan": ("AccelerationPlan",),
    "registry": ("register",),
    "technique": ("CalibrationData", "Need", "Seam", "Technique"),
    "flops": ("count_flops",),
}
_HOME = {name: module for module, names in _LAZY.items() for name in names}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
