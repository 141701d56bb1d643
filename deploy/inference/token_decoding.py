"""Decode a chunk of action tokens with numpy, one row at a time: greedily, or as `techniques.jacobi` does."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vivace.deploy.bundle.token_program import TokenProgram
from vivace.deploy.system.deadline import Deadline
from vivace.policies.sampling.streams import Streams

Extend = Callable[[np.ndarray, int], np.ndarray]
"""(tokens (T,), how many before them are kept) -> logits (T, V) of what follows each; keeps what it read."""


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
    match program.decoder.kind:
        case "jacobi":
            return _jacobi(program, prompted, extend, noise, action_dim, deadline or Deadline())
        case "greedy":
            return _greedy(program, prompted, extend, action_dim, program.n)
        case "greedy_executed":
            return _greedy(program, prompted, extend, action_dim, program.executed)


def _greedy(
    program: TokenProgram, prompted: Prompted, extend: Extend, action_dim: int, n: int
) -> tuple[np.ndarray, int]:
    """Decode n tokens, the rest as the last action."""
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
