"""Actions as tokens: uniform bins on [-1, 1], on the last ids of a vocabulary (OpenVLA, arXiv 2406.09246)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vivace.policies.errors import BadSetting


@dataclass(frozen=True)
class ActionBins:
    """Between normalised actions and token ids.

    n edges span [-1, 1]; the n - 1 centres between them are what a token can mean. The id of bin b, counted
    from 1, is `end - b`: the lowest action has the highest id.
    """

    n: int = 256
    end: int = 32000
    """The vocabulary's size without padding."""

    def __post_init__(self) -> None:
        """The ids must exist."""
        if self.n < 3 or self.end <= self.n:
            raise BadSetting(
                f"{self.n} action bins on the last ids of a vocabulary of {self.end}: too small; needed: at "
                f"least 3 bins and a vocabulary of more than as many ids"
            )

    @property
    def first(self) -> int:
        """The lowest id of an action."""
        return self.end - self.n

    def encode(self, actions: Tensor) -> Tensor:
        """Ids of normalised actions of any shape; what is outside [-1, 1] is clipped."""
        return self.on(actions.device).encode(actions)

    def decode(self, ids: Tensor) -> Tensor:
        """Normalised actions of ids of any shape; an id that is no action's counts as the nearest one."""
        return self.on(ids.device).decode(ids)

    def on(self, device: torch.device) -> "BinTable":
        """Return the bins as a table on a device, to be made once."""
        edges = np.linspace(-1, 1, self.n)
        centres = torch.from_numpy((edges[:-1] + edges[1:]) / 2).float()
        return BinTable(self, torch.from_numpy(edges).to(device), centres.to(device))


@dataclass(frozen=True, eq=False)
class BinTable:
    """Bins, their edges and centres on a device."""

    bins: ActionBins
    edges: Tensor
    """(n,) float64"""
    centres: Tensor
    """(n - 1,)"""

    def encode(self, actions: Tensor) -> Tensor:
        """Ids of normalised actions of any shape; what is outside [-1, 1] is clipped."""
        return self.bins.end - torch.bucketize(actions.clamp(-1, 1).double(), self.edges, right=True)

    def decode(self, ids: Tensor) -> Tensor:
        """Normalised actions of ids of any shape; an id that is no action's counts as the nearest one."""
        return self.centres[(self.bins.end - ids - 1).clamp(0, self.bins.n - 2)]
