"""Twins of networks: other modules in some places, the same weights in all others, and nothing changed."""

import copy
from collections.abc import Mapping

from torch import nn


def with_modules[Net: nn.Module](network: Net, others: Mapping[str, nn.Module]) -> Net:
    """Return a twin of a network that has other modules in some places; weights are shared.

    Args:
        network: stays as it is.
        others: name of a place, as of `named_modules` -> the module that is there instead.
    """
    return _with(network, others, "")


def _with[Net: nn.Module](module: Net, others: Mapping[str, nn.Module], before: str) -> Net:
    twin = copy.copy(module)
    twin._modules = {
        name: others.get(before + name, child and _with(child, others, f"{before}{name}."))
        for name, child in module._modules.items()
    }
    return twin
