"""Decode a chunk of action tokens with numpy, one row at a time: greedily, or as `accel.jacobi` does."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np

from vivace.deploy.deadline import Deadline
from vivace.policies.plain_data import Between, Longest
from vivace.policies.streams import Streams

Extend = Callable[[np.ndarray, int], np.ndarray]
"""(tokens (T,), how many before them are kept) -> logits (T, V) of what follows each; keeps what it read."""


@dataclass(frozen=True, kw_only=True)
class Decoder:
    """How tokens are found; but for the kind as `accel.jacobi.Jacobi`, whose fields these are."""

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
    """One more than the highest id of an action; see `policies.action_bins`."""
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


@dataclass(frozen=True)
class Prompted:
    """What is known when decoding begins."""

    logits: np.ndarray
    """Of the first token (V,)."""
    ids: np.ndarray
    """Ids of the prompt's text, without padding (L,)."""
    draft: np.ndarray | None
    """Tokens of what the chunk before means (n,), -1 where it says nothing."""


def decode(
    program: TokenProgram,
    prompted: Prompted,
    extend: Extend,
    noise: Streams,
    action_dim: int,
    deadline: Deadline | None = None,
) -> tuple[np.ndarray, int]:
    """Return the tokens (n,) of a chunk, and the passes they took; Jacobi decoding stops at the deadline."""
    if program.decoder.kind == "jacobi":
        return _jacobi(program, prompted, extend, noise, action_dim, deadline or Deadline())
    n = program.n if program.decoder.kind == "greedy" else program.executed
    tokens = [int(prompted.logits.argmax())]
    while len(tokens) < n:
        logits = extend(np.array(tokens[-1:]), len(tokens) - 1)
        tokens.append(int(logits[-1].argmax()))
    found = np.array(tokens)
    missing = program.n - n
    more = np.tile(found[-action_dim:], -(-missing // action_dim))[:missing]
    return np.concatenate([found, more]), n - 1


def _jacobi(
    program: TokenProgram,
    prompted: Prompted,
    extend: Extend,
    noise: Streams,
    action_dim: int,
    deadline: Deadline,
) -> tuple[np.ndarray, int]:
    settings, n = program.decoder, program.n
    needed = n if settings.until == "all" else program.executed
    tokens = np.concatenate([[prompted.logits.argmax()], _guess(program, prompted, noise)])
    first = passes = 0  # tokens before `first` are read and kept
    is_done = n == 1
    while not is_done:
        logits = extend(tokens[first : n - 1], first)
        passes += 1
        before = tokens.copy()
        tokens[first + 1 :] = logits.argmax(-1)
        agrees = tokens[first + 1 :] == before[first + 1 :]
        right = min(first + int(agrees.cumprod().sum()) + 1, n - 1)  # tokens 0 … right are greedy's
        is_done = right + 1 >= needed
        if settings.tolerance:
            moved = program.detokenize(tokens, action_dim) - program.detokenize(before, action_dim)
            is_done |= bool(np.abs(moved).max() <= settings.tolerance)
        if settings.max_iterations:
            is_done |= passes >= settings.max_iterations
        is_done = is_done or deadline.is_too_near()
        if settings.freeze:
            first = right
    return tokens, passes


def _guess(program: TokenProgram, prompted: Prompted, noise: Streams) -> np.ndarray:
    """Tokens 1 … n - 1 to begin with."""
    settings, n = program.decoder, program.n
    if settings.init == "marginal":
        return np.array(settings.table[1:], dtype=np.int64)
    uniform = np.array([0.5 * (1 + math.erf(x / math.sqrt(2))) for x in noise((n - 1,))[0]])
    length = len(prompted.ids)
    random: np.ndarray = prompted.ids[np.minimum((uniform * length).astype(int), length - 1)]
    if settings.init == "previous" and prompted.draft is not None:
        return np.where(prompted.draft[1:] >= 0, prompted.draft[1:], random)
    return random
