"""What a policy is, and how each known one decomposes into stages and blocks."""

import importlib

_LAZY = {
    "load": ("LoadedPolicy", "load_policy", "register_adapter", "stage"),
    "session": ("Session",),
    "staged": ("DenoisingPolicy",),
    "execution": ("Decoding", "Denoising", "Execution", "as_trained", "sample"),
    "block": ("Block", "Runner"),
    "spec": ("ActionKind", "Chunk", "Observation", "PolicySpec"),
    "errors": ("VivaceError",),
    "sampling.noise": ("EpisodeNoise", "GlobalNoise"),
}
_HOME = {name: module for module, names in _LAZY.items() for name in names}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
