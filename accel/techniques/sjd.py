"""Speculative Jacobi Decoding (arXiv 2410.01699): sample several tokens a pass, as if one by one.

A block of guesses, each drawn from a known distribution q, is read in one pass. From the left, guess y is
kept with probability min(1, p(y) / q(y)), p being what the model says given the tokens kept before it. At the
first refusal that token is drawn from max(0, p - q), normalised, and everything behind is guessed anew from
this pass's p, which becomes its q.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vivace.accel.decoding import Decoding
from vivace.accel.registry import register
from vivace.accel.variant import Variant
from vivace.policies.block import Runner, compute
from vivace.policies.errors import BadSetting
from vivace.policies.language.decoding import Decoded, Prefix, chain, ending, has_ended, unread
from vivace.policies.sampling.noise import Noise

_COLDEST, _HOTTEST = 1e-6, 1e6
"""Temperatures; beyond them softmax is one-hot, or uniform."""


@dataclass(frozen=True, kw_only=True)
class SjdOptions:
    """How random the actions are."""

    temperature: float = 1.0
    """Of the softmax the tokens are drawn from."""

    def __post_init__(self) -> None:
        """The temperature must be positive, and leave logits that float32 can hold."""
        if not _COLDEST <= self.temperature <= _HOTTEST:
            raise BadSetting(
                f"sjd temperature={self.temperature}; it must be above 0 (greedy: use jacobi), "
                f"{_COLDEST:g}..{_HOTTEST:g}"
            )


@register
@dataclass(frozen=True, kw_only=True)
class Sjd(SjdOptions, Decoding):
    """The options, which say it all."""

    kind: ClassVar[str] = "sjd"
    label: ClassVar[str] = "SJD"
    colour: ClassVar[str] = "#d9822b"
    Options: ClassVar[type] = SjdOptions

    @classmethod
    def variants(cls, staged: Any, options: SjdOptions) -> Iterator[Variant]:
        """Yield the temperature asked for."""
        label = f"{cls.label}, temperature {options.temperature:g}"
        yield Variant(cls.kind, label, ((cls.kind, vars(options)),), cls.colour)

    def __call__(
        self, policy: Any, prompt: Prefix, noise: Noise, draft: Tensor | None = None, run: Runner = compute
    ) -> Decoded:
        """Decode a chunk; see `policies.language.decoding.Decoder`."""
        n, batch = policy.n_tokens, len(prompt.logits)
        first_p = self._distribution(prompt.logits)
        token = draw(first_p[:, None], uniforms(noise, batch, 1, first_p))
        # the first guesses: any token the model knows, each as likely
        q = torch.full_like(first_p, 1 / first_p.shape[-1])[:, None].expand(-1, n + 1, -1)
        guess = draw(q[:, 1:], uniforms(noise, batch, n, q))
        tokens = torch.cat([token, guess], dim=1)  # one place too many: see `target`
        past = prompt.past.with_room(n if batch == 1 else 2 * n)
        places = torch.arange(n, device=tokens.device)
        kept = torch.zeros(batch, dtype=torch.long, device=tokens.device)  # token `kept` is the last sure one
        passes, settled = torch.zeros_like(kept), torch.zeros_like(tokens)
        done = (kept >= n - 1) | has_ended(policy, tokens[:, :n], kept)
        while (width := unread(n - 1, kept, done)) > 0:
            window = kept[:, None] + places[:width]
            target = (window + 1).clamp(max=n)  # what is behind the chunk's end goes to a place of its own
            inside = (target < n) & ~done[:, None]
            read = tokens.gather(1, window.clamp(max=n - 2))
            logits, past = policy.extend(read, past, *chain(width, tokens.device), run)
            passes = passes + ~done
            p, guess = self._distribution(logits), tokens.gather(1, target)
            of_target = target[..., None].expand_as(p)
            q_here = q.gather(1, of_target)
            ratio = pick(p, guess) / pick(q_here, guess).clamp(min=1e-30)
            # n numbers a pass however few are wanted: the width is the batch's, a row's draws are its own
            chance, other = (uniforms(noise, batch, n, p)[:, :width] for _ in range(2))
            accepted = (chance < ratio) & inside
            run_length = accepted.long().cumprod(1).sum(1)  # guesses kept
            rest = (p - q_here).clamp(min=0)
            rest = torch.where(rest.sum(-1, keepdim=True) > 0, rest, p)
            refused = places[:width] == run_length[:, None]
            anew = draw(torch.where(refused[..., None], rest, p), other)
            new = torch.where((places[:width] < run_length[:, None]) | ~inside, guess, anew)
            before, tokens = tokens, tokens.scatter(1, target, new)
            settled = torch.where(tokens != before, passes[:, None], settled)
            q = q.scatter(1, of_target, torch.where(inside[..., None], p, q_here))
            sure = torch.where(done, kept, (kept + run_length + 1).clamp(max=n - 1))
            past, kept = past.keep(sure - kept), sure
            done = (kept >= n - 1) | has_ended(policy, tokens[:, :n], kept)
        return ending(policy, Decoded(tokens[:, :n], passes, settled[:, :n]))

    def _distribution(self, logits: Tensor) -> Tensor:
        return (logits.float() / self.temperature).softmax(-1)


def uniforms(noise: Noise, batch: int, n: int, like: Tensor) -> Tensor:
    """Uniform numbers (B, n) in (0, 1) from a stream of normal ones."""
    return torch.special.ndtr(noise((batch, n), like).float())


def draw(p: Tensor, uniform: Tensor) -> Tensor:
    """Draw ids (B, n) from weights p (B, n, V) by uniform numbers (B, n)."""
    steps = p.double().cumsum(-1)
    return (
        torch.searchsorted(steps, (uniform.double() * steps[..., -1])[..., None], right=True)
        .squeeze(-1)
        .clamp(max=p.shape[-1] - 1)
    )


def pick(p: Tensor, ids: Tensor) -> Tensor:
    """Return the probabilities (B, n) of ids (B, n) under p (B, n, V)."""
    return p.gather(-1, ids[..., None]).squeeze(-1)
