"""Decoding a chunk of action tokens: what a decoder is, and the greedy one."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vivace.policies.block import Runner, compute
from vivace.policies.language.past import Past
from vivace.policies.sampling.noise import Noise


@dataclass(frozen=True)
class Prefix:
    """What a token policy read before it writes: the observation and the instruction."""

    past: Past
    logits: Tensor
    """Of the first token (B, V)."""
    ids: Tensor
    """Ids of the instruction (B, L)."""
    is_text: Tensor
    """Which of them are not padding (B, L)."""


@dataclass(frozen=True)
class Decoded:
    """The tokens of a chunk, and what they cost."""

    tokens: Tensor
    """(B, n)"""
    passes: Tensor
    """Forward passes after the prefix's, (B,)."""
    settled: Tensor
    """Pass after which each token no longer changed, (B, n); 0: it was right in the first guess."""


class Decoder(Protocol):
    """Turns what was read into the tokens of a chunk."""

    def __call__(
        self, policy: Any, prefix: Prefix, noise: Noise, draft: Tensor | None, run: Runner, /
    ) -> Decoded:
        """Decode.

        Args:
            policy: a `TokenPolicy`.
            prefix: what it read.
            noise: where random numbers come from.
            draft: tokens the chunk may begin with (B, n), -1 where nothing is known; None: nothing at all.
            run: runs the blocks of the language stage.
        """


def greedy(
    policy: Any,
    prefix: Prefix,
    noise: Noise,
    draft: Tensor | None = None,
    run: Runner = compute,
    n: int | None = None,
) -> Decoded:
    """Decode one token a pass, the most likely one: the baseline of every other decoder.

    Arguments are those of `Decoder`; `n` tokens, a whole chunk when None.
    """
    n = policy.n_tokens if n is None else n
    token = prefix.logits.argmax(-1, keepdim=True)
    tokens, past = [token], prefix.past.with_room(n)
    alone = chain(1, token.device)
    for _ in range(n - 1):
        logits, past = policy.extend(token, past, *alone, run)
        past = past.keep(torch.ones_like(past.n_kept))
        token = logits.argmax(-1)
        tokens.append(token)
        if policy.end_token is not None and has_ended(policy, torch.cat(tokens, dim=1)).all():
            break
    found = F.pad(torch.cat(tokens, dim=1), (0, n - len(tokens)))
    settled = torch.arange(n, device=token.device).expand(len(token), n)
    passes = torch.full_like(past.n_kept, len(tokens) - 1)
    if policy.end_token is not None:  # a row that has ended needs none of the passes its neighbours take
        ends = found == policy.end_token
        passes = torch.where(ends.any(1), ends.long().argmax(1), passes)
    return ending(policy, Decoded(found, passes, settled))


def has_ended(policy: Any, tokens: Tensor, upto: Tensor | None = None) -> Tensor:
    """Whether the chunk's end is among tokens (B, n), or among those up to an index (B,); (B,) bool."""
    if policy.end_token is None:
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    ends = tokens == policy.end_token
    if upto is not None:
        ends = ends & (torch.arange(tokens.shape[1], device=tokens.device) <= upto[:, None])
    return ends.any(1)


def unread(n: int, first: Tensor, done: Tensor) -> int:
    """Tokens of n that the next pass has to read, those behind the first one known (B,) of any row not done.

    The one number that the host waits for in a pass of a decoder that decides how far it goes; 0: all done.
    """
    return n - int(torch.where(done, n, first).min())


def ending(policy: Any, decoded: Decoded) -> Decoded:
    """Return what was decoded with zeros behind the chunk's end."""
    if policy.end_token is None:
        return decoded
    ends = (decoded.tokens == policy.end_token).long().cumsum(1)
    behind = (ends - (decoded.tokens == policy.end_token).long()) > 0
    return replace(decoded, tokens=decoded.tokens.masked_fill(behind, 0))


def chain(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What n tokens in a row see of each other (1, n, n), and how far behind each stands (1, n)."""
    return torch.ones(1, n, n, dtype=torch.bool, device=device).tril(), torch.arange(n, device=device)[None]
