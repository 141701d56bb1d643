"""Adaptive action ensemble: the latest chunks vote on the present action (CogACT, 2411.19650, 3.4)."""

from collections import deque

import torch
import torch.nn.functional as F
from torch import Tensor


class AdaptiveEnsemble:
    """Weighs what recent chunks say of the present step by their likeness to the newest.

    a = sum_k w_k a_k,    w_k ∝ exp(alpha * cos(a_k, a_newest))
    """

    def __init__(self, horizon: int, alpha: float = 0.1):
        """Remember nothing yet.

        Args:
            horizon: chunks that vote.
            alpha: how much likeness counts; 0 is the plain mean.
        """
        self._chunks: deque[Tensor] = deque(maxlen=horizon)
        self._alpha = alpha

    def __call__(self, chunk: Tensor) -> Tensor:
        """Add a chunk (B, H, A) made at this step, and return the action (B, A) of this step.

        The j-th newest chunk votes with its action number j, if it is that long.
        """
        self._chunks.appendleft(chunk)
        votes = [old[:, age] for age, old in enumerate(self._chunks) if age < old.shape[1]]
        actions = torch.stack(votes)  # (K, B, A)
        likeness = F.cosine_similarity(actions, actions[:1], dim=-1)
        weights = (self._alpha * likeness).exp()
        return (weights[..., None] * actions).sum(0) / weights.sum(0)[..., None]
