"""Real-time chunking by overlap, as GR00T N1.7 has it: actions to be continued are written into the noise.

Of a chunk's actions the first n are known, the first d of them executed by the time it is there. All n stand
in x from the start; the velocity of the first d is 0, that of the k-th of the m = n - d others is

    (1 - exp(-r k / (m + 1))) / (1 - exp(-r))

of itself, r a rate; the rest is denoised as ever. Source: lerobot 0.6 `policies/groot/groot_n1_7.py`.
Deviation: there rows of zeros at the end of what is known count as unknown, here what weighs nothing does.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vivace.policies.sampling.real_time_chunking import Continuation


@dataclass(frozen=True)
class Overlap:
    """What chunks continue."""

    known: Tensor
    """Which of the actions that are denoised are known (B, H, 1)."""
    actions: Tensor
    """They (B, H, A), as wide as what is denoised; 0 where an action has no number."""
    strength: Tensor
    """How much of its velocity each action has (B, H, 1), in [0, 1]."""

    def begin(self, x: Tensor) -> Tensor:
        """Return the noise x (B, H, A) with what is known written into it."""
        return torch.where(self.known, self.actions.to(x.dtype), x)


def overlap(follow: Continuation, shape: tuple[int, int], rate: float) -> Overlap:
    """Return how chunks continue others: what weighs anything is known, what weighs 1 is executed by then.

    Args:
        follow: what they continue.
        shape: of what is denoised: actions, and numbers of each.
        rate: r, above 0.
    """
    rows, width = shape
    missing = rows - follow.actions.shape[1], width - follow.actions.shape[2]
    weights = F.pad(follow.weights, (0, 0, 0, missing[0]))
    known, is_executed = weights > 0, weights == 1
    n, d = (which.sum(1, keepdim=True) for which in (known, is_executed))
    k = torch.arange(rows, device=weights.device)[:, None] - d + 1
    rise = (1 - torch.exp(-rate * k / (n - d + 1))) / max(1 - math.exp(-rate), 1e-8)
    strength = torch.where(is_executed, 0.0, torch.where(known, rise, 1.0))
    return Overlap(known, F.pad(follow.actions, (0, missing[1], 0, missing[0])), strength)
