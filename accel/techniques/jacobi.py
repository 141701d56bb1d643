"""Jacobi decoding: guess a whole chunk of tokens, correct all of them at once, repeat until nothing changes.

    y_i <- argmax p(y | y_{<i}, x) for all i in parallel                          (CEED-VLA, arXiv 2506.13725)

After k passes at least the first k + 1 tokens are those of greedy decoding, so n - 1 passes always suffice
and the fixed point is greedy decoding's answer, token for token. Faster because several settle in a pass.

Exact unless it is told to stop early: after `max_iterations` passes (the paper's early exit), or once a pass
moves no action by more than `tolerance`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from vivace.accel.decoding import Decoding
from vivace.accel.registry import register
from vivace.accel.technique import CalibrationData, decoding, with_tokens
from vivace.accel.techniques.greedy import executed_tokens
from vivace.accel.variant import Choices, Variant
from vivace.policies.block import Runner, compute
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import Execution, decode
from vivace.policies.language.decoding import Decoded, Prefix, chain, ending, has_ended, unread
from vivace.policies.sampling.noise import EpisodeNoise, Noise

INITS = ("prompt", "previous", "marginal")
UNTIL = ("all", "executed")


@dataclass(frozen=True, kw_only=True)
class JacobiOptions:
    """How a chunk is guessed, and when it is good enough."""

    init: str = "prompt"
    """First guess. prompt: random tokens of the prompt, as in the original code; previous: what is left of
    the chunk before, then as prompt; marginal: at each place the token that is most frequent there."""
    freeze: bool = True
    """Tokens that are settled leave the block, their keys and values are kept: later passes are shorter."""
    max_iterations: int = 0
    """Early exit after so many passes; 0: none."""
    tolerance: float = 0.0
    """Stop once a pass moves no action by more than this (normalised, [-1, 1]); 0: once none changes."""
    until: str = "all"
    """all: every token settled; executed: those of the `n_action_steps` actions that will be executed."""

    def __post_init__(self) -> None:
        """Choices must be known, limits not negative."""
        if self.init not in INITS or self.until not in UNTIL:
            raise BadSetting(
                f"jacobi init {self.init!r}, until {self.until!r}; choose init of {', '.join(INITS)} and "
                f"until of {', '.join(UNTIL)}"
            )
        if self.max_iterations < 0 or self.tolerance < 0:
            raise BadSetting(
                f"jacobi max_iterations={self.max_iterations}, tolerance={self.tolerance}; "
                "0 or more is needed"
            )


@register
@dataclass(frozen=True, kw_only=True)
class Jacobi(JacobiOptions, Decoding):
    """The options, and what is guessed first."""

    kind: ClassVar[str] = "jacobi"
    label: ClassVar[str] = "Jacobi"
    colour: ClassVar[str] = "#4c78c9"
    is_default: ClassVar[bool] = True
    Options: ClassVar[type] = JacobiOptions
    hidden: ClassVar[tuple[str, ...]] = ("table",)
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "frozen": {},
        "marginal": {"init": "marginal", "freeze": False},
        "executed": {"until": "executed"},
        "exit": {"max_iterations": 2},
    }

    table: tuple[int, ...] = ()
    """marginal: the first guess (n,)."""

    @property
    def is_exact(self) -> bool:
        """Unless it stops early: the fixed point is greedy decoding's answer."""
        return not (self.max_iterations or self.tolerance)

    @property
    def reads_one_size(self) -> bool:
        """Whether settled tokens stay in the block."""
        return not self.freeze

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Count tokens where a table is asked for; options are the fields of `JacobiOptions`."""
        chosen = super().calibrate(execution, data, options)
        if chosen.init != "marginal":
            return chosen
        tokens = decode(decoding(execution, cls.kind), data.batch, EpisodeNoise(data.noise_keys)).tokens
        return replace(chosen, table=tuple(tokens.mode(dim=0).values.tolist()))

    def check(self, execution: Execution) -> None:
        """Raise if the policy writes no tokens, or chunks of another length."""
        policy = with_tokens(execution, self.kind)
        n, known = policy.n_tokens, range(policy.vocabulary)
        if self.init != "marginal" and not self.table:
            return
        if len(self.table) != n or any(token not in known for token in self.table):
            raise PlanMismatch(
                f"jacobi has a table of {len(self.table)} tokens, a chunk of this policy has {n}, of ids "
                f"0..{known[-1]}; recalibrate: vivace calibrate --policy.path=…"
            )

    def in_bundle(self) -> dict[str, Any]:
        """Say its kind and all of its settings."""
        return {"kind": self.kind, **vars(self)}

    @classmethod
    def variants(cls, staged: Any, options: JacobiOptions) -> Iterator[Variant]:
        """Yield first guesses, exact all, and earlier and earlier exits."""

        def row(name: str, label: str, is_short: bool = False, **chosen: Any) -> Variant:
            is_early = "max_iterations" in chosen or "tolerance" in chosen
            colour = "#0b8f7d" if is_early else cls.colour
            return Variant(name, label, ((cls.kind, chosen),), colour, is_short)

        yield row("jacobi", "Jacobi", freeze=False)
        yield row("freeze", "Jacobi, prefix frozen", is_short=True)
        yield row("marginal", "Jacobi, from the usual tokens", init="marginal")
        yield row("previous", "Jacobi, from the chunk before", init="previous")
        yield row("executed", "Jacobi, executed actions only", until="executed")
        yield row("tolerance", "Jacobi, until moves < 0.02", tolerance=0.02)
        for n in (1, 2, 4, 8):
            label = f"early exit, {n} pass" + ("es" if n > 1 else "")
            yield row(f"exit-{n}", label, is_short=n < 8, max_iterations=n)
        yield row("jacobi", "Jacobi", freeze=False).compiled()

    @classmethod
    def search_space(cls, staged: Any) -> Mapping[str, Choices]:
        """Offer every first guess, and early exits."""
        return {
            "init": INITS,
            "freeze": (True, False),
            "until": UNTIL,
            "max_iterations": (0, 1, 2, 4, 8),
            "tolerance": (0.0, 0.005, 0.02),
        }

    def __call__(
        self,
        policy: Any,
        prompt: Prefix,
        noise: Noise,
        draft: Tensor | None = None,
        run: Runner = compute,
        watch: Callable[[Tensor], None] = lambda tokens: None,
    ) -> Decoded:
        """Decode a chunk; see `language.decoding.Decoder`. `watch` is told the first guess and every pass."""
        n, batch = policy.n_tokens, len(prompt.logits)
        first_token = prompt.logits.argmax(-1, keepdim=True)
        guess = self._guess(policy, prompt, noise, draft)
        tokens = torch.cat([first_token, guess, first_token], dim=1)  # one place too many: see `target`
        watch(tokens[:, :n])
        needed = n if self.until == "all" else executed_tokens(policy)
        past = prompt.past.with_room(n if batch == 1 else 2 * n)
        places = torch.arange(n, device=tokens.device)
        settled = torch.zeros_like(tokens)
        passes = torch.zeros(batch, dtype=torch.long, device=tokens.device)
        done = (passes >= n - 1) | has_ended(policy, first_token)
        first = torch.zeros_like(passes)  # tokens before it are read and kept
        while (width := unread(n - 1, first, done)) > 0:
            window = first[:, None] + places[:width]
            target = (window + 1).clamp(max=n)  # what is behind the chunk's end goes to a place of its own
            read = tokens.gather(1, window.clamp(max=n - 2))
            logits, written = policy.extend(read, past, *chain(width, tokens.device), run)
            passes = passes + ~done
            old = tokens.gather(1, target)
            new = torch.where((target < n) & ~done[:, None], logits.argmax(-1), old)
            agrees = new == old
            before, tokens = tokens, tokens.scatter(1, target, new)
            watch(tokens[:, :n])
            settled = torch.where(tokens != before, passes[:, None], settled)
            # a guess that agrees was right, and what follows the last one of them is right now
            right = (first + agrees.cumprod(1).sum(1) + 1).clamp(max=n - 1)  # tokens 0 … right are greedy's
            enough = (right + 1 >= needed) | has_ended(policy, tokens[:, :n], right)
            if self.tolerance:
                moved = policy.detokenize(tokens[:, :n]) - policy.detokenize(before[:, :n])
                enough |= moved.abs().flatten(1).amax(1) <= self.tolerance
            if self.max_iterations:
                enough |= passes >= self.max_iterations
            if self.freeze:
                past = written.keep(torch.where(done, 0, right - first))
                first = torch.where(done, first, right)
            done = done | enough
        return ending(policy, Decoded(tokens[:, :n], passes, settled[:, :n]))

    def _guess(self, policy: Any, prompt: Prefix, noise: Noise, draft: Tensor | None) -> Tensor:
        """Tokens 1 … n - 1 to begin with, (B, n - 1)."""
        n = policy.n_tokens
        if self.init == "marginal":
            table = torch.tensor(self.table[1:], dtype=torch.long)
            return policy.placement.move(table).expand(len(prompt.ids), -1)
        uniform = torch.special.ndtr(noise((len(prompt.ids), n - 1), prompt.logits.float()))
        length = prompt.is_text.sum(1, keepdim=True)
        random = prompt.ids.gather(1, (uniform * length).long().clamp(max=length - 1))
        if self.init == "previous" and draft is not None:
            return torch.where(draft[:, 1:] >= 0, draft[:, 1:], random)
        return random
