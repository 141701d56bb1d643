"""How a bundle's policy writes its actions as tokens, as the manifest says it."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from vivace.policies.plain_data import Between, Longest


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """How tokens are found; but for the kind as `accel.techniques.jacobi.Jacobi`, whose fields these are."""

    kind: Literal["greedy", "greedy_executed", "jacobi"] = "greedy"
    init: Literal["prompt", "previous", "marginal"] = "prompt"
    freeze: bool = True
    max_iterations: Annotated[int, Between(0, 2**16)] = 0
    tolerance: Annotated[float, Between(0.0, 2.0)] = 0.0
    until: Literal["all", "executed"] = "all"
    table: Annotated[tuple[Annotated[int, Between(0, 2**31)], ...], Longest(2**16)] = ()


@dataclass(frozen=True)
class TokenProgram:
    """How a bundle's policy writes a chunk."""

    extend: Annotated[int, Between(0, 4095)]
    """Graph that reads more tokens behind what was read."""
    n: Annotated[int, Between(1, 2**16)]
    """Tokens of a chunk."""
    executed: Annotated[int, Between(1, 2**16)]
    """Tokens of the actions that will be executed."""
    n_bins: Annotated[int, Between(2, 2**16)]
    end: Annotated[int, Between(2, 2**31)]
    """One more than the highest id of an action; see `policies.language.action_bins`."""
    decoder: Decoder

    def tokenize(self, actions: np.ndarray) -> np.ndarray:
        """Tokens (n,) of normalised actions (H, A); -1 where an action holds NaN."""
        edges = np.linspace(-1, 1, self.n_bins)
        is_known = np.isfinite(actions).all(-1, keepdims=True)
        tokens = self.end - np.digitize(np.clip(np.nan_to_num(actions), -1, 1).astype(np.float64), edges)
        return np.where(is_known, tokens, -1).ravel()

    def detokenize(self, tokens: np.ndarray, action_dim: int) -> np.ndarray:
        """Normalised actions (1, H, A) of tokens (n,)."""
        edges = np.linspace(-1, 1, self.n_bins)
        centres = ((edges[:-1] + edges[1:]) / 2).astype(np.float32)
        found: np.ndarray = centres[np.clip(self.end - tokens - 1, 0, self.n_bins - 2)]
        return found.reshape(1, -1, action_dim)
