"""STAND (arXiv 2506.04708): draft from n-grams that store what the model believed, not only what it chose.

Behind every n-gram seen in calibration the table keeps the k likeliest next tokens with their mean
probabilities. A tree of the likeliest paths grows from the last known token, looking up the longest n-gram
that is known; `stochastic` draws it by Gumbel-top-k instead, so that a poor table is explored. The tree is
verified in one pass. Contexts here, besides the last tokens, are the token one action earlier, since actions
change slowly, and the place in the chunk alone.
"""

import heapq
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from vivace.accel.decoding import Decoding
from vivace.accel.registry import register
from vivace.accel.settings import check_tensors
from vivace.accel.technique import CalibrationData, decoding, with_tokens
from vivace.accel.techniques.draft_tree import MAX_NODES, Tree, decode_by_tree, greedy_logits
from vivace.accel.variant import Choices, Variant
from vivace.policies.block import Runner, compute
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import Execution
from vivace.policies.language.decoding import Decoded, Prefix
from vivace.policies.sampling.noise import Noise

Context = tuple[int, ...]
"""(which kind of context, place, tokens …)."""


@dataclass(frozen=True, kw_only=True)
class StandOptions:
    """How much is guessed."""

    k: int = 8
    """Tokens kept behind an n-gram."""
    nodes: int = 16
    """Nodes of the tree, the last known token included."""
    order: int = 3
    """Longest n-gram."""
    stochastic: bool = False
    """Draw the tree by Gumbel-top-k."""

    def __post_init__(self) -> None:
        """All must allow a guess."""
        if self.k < 1 or not 2 <= self.nodes <= MAX_NODES or self.order < 1:
            raise BadSetting(
                f"stand k={self.k}, nodes={self.nodes}, order={self.order}; needed: k >= 1, "
                f"2 <= nodes <= {MAX_NODES}, order >= 1"
            )


@register
@dataclass(frozen=True, kw_only=True)
class Stand(Decoding):
    """The table of n-grams."""

    kind: ClassVar[str] = "stand"
    label: ClassVar[str] = "STAND"
    colour: ClassVar[str] = "#7a5cc0"
    Options: ClassVar[type] = StandOptions
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "small": {"nodes": 6},
        "drawn": {"k": 4, "nodes": 6, "order": 2, "stochastic": True},
    }

    nodes: int
    order: int
    stochastic: bool = False
    n_tokens: int
    """Tokens of the chunks it was calibrated on."""
    options: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    """"contexts" (rows, 2 + order), padded with -1; "ids" and "chances" (rows, k)."""

    def __post_init__(self) -> None:
        """Ranges are those of the options."""
        StandOptions(nodes=self.nodes, order=self.order)

    @property
    def is_exact(self) -> bool:
        """Every guess is verified."""
        return True

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Fill the table from greedy decoding; options are the fields of `StandOptions`."""
        policy = with_tokens(execution, cls.kind)
        chosen = cls.read_options(options)
        tokens, logits = greedy_logits(decoding(execution, cls.kind), data)
        believed = logits.float().softmax(-1)
        sums: dict[Context, Tensor] = {}
        counts: dict[Context, int] = defaultdict(int)
        for row, chunk in enumerate(tokens.tolist()):
            for place in range(1, len(chunk)):
                for context in contexts(chunk[:place], chosen.order, policy.period):
                    counts[context] += 1
                    sums[context] = sums.get(context, 0) + believed[row, place]
        width = 2 + max(chosen.order, 1)
        known = sorted(sums)
        k = min(chosen.k, believed.shape[-1])
        best = [(sums[context] / counts[context]).topk(k) for context in known]
        ids = [found.indices.tolist() for found in best]
        chances = [found.values.tolist() for found in best]
        return cls(
            nodes=chosen.nodes,
            order=chosen.order,
            stochastic=chosen.stochastic,
            n_tokens=policy.n_tokens,
            options=asdict(chosen),
            tensors={
                "contexts": torch.tensor(
                    [[*context, *(-1,) * (width - len(context))] for context in known], dtype=torch.int32
                ).view(-1, width),
                "ids": torch.tensor(ids, dtype=torch.int32).view(-1, k),
                "chances": torch.tensor(chances, dtype=torch.float32).view(-1, k),
            },
        )

    def check(self, execution: Execution) -> None:
        """Raise if the policy writes no tokens, or chunks of another length."""
        policy = with_tokens(execution, self.kind)
        if policy.n_tokens != self.n_tokens:
            raise PlanMismatch(
                f"stand was calibrated on chunks of {self.n_tokens} tokens, this policy's have "
                f"{policy.n_tokens}; recalibrate: vivace calibrate --policy.path=…"
            )
        ids = self.tensors.get("ids", torch.empty(0))
        rows, k = ids.shape if ids.ndim == 2 else (None, None)
        needed: dict[str, tuple[torch.dtype, tuple[int | None, ...]]] = {
            "contexts": (torch.int32, (rows, 2 + self.order)),
            "ids": (torch.int32, (rows, k)),
            "chances": (torch.float32, (rows, k)),
        }
        check_tensors(self.kind, self.tensors, needed)
        lengths, chances = self.tensors["contexts"][:, 0], self.tensors["chances"]
        bad = (ids < 0) | (ids >= policy.vocabulary) | (chances < 0) | (chances > 1)
        if bad.any() or ((lengths < -1) | (lengths > self.order)).any():
            raise PlanMismatch(
                f"stand has a table of ids, chances or lengths out of range; needed are ids of "
                f"0..{policy.vocabulary - 1}, chances of 0..1, lengths of -1..{self.order}; recalibrate: "
                "vivace calibrate --policy.path=…"
            )

    def apply(self, execution: Execution) -> Execution:
        """Decode so."""
        return replace(decoding(execution, self.kind), decoder=_Bound(self, _read(self.tensors)))

    @classmethod
    def variants(cls, staged: Any, options: StandOptions) -> Iterator[Variant]:
        """Yield itself."""
        yield Variant(cls.kind, cls.label, ((cls.kind, vars(options)),), cls.colour, is_short=True)

    @classmethod
    def search_space(cls, staged: Any) -> Mapping[str, Choices]:
        """Offer small trees and large ones, shorter and longer n-grams."""
        return {"k": (4, 8, 16), "nodes": (8, 16, 32, 64), "order": range(1, 5), "stochastic": (False, True)}


@dataclass(frozen=True)
class _Bound:
    """The decoder: the settings with their table read once."""

    settings: Stand
    table: dict[Context, tuple[list[int], list[float]]]

    def __call__(
        self, policy: Any, prompt: Prefix, noise: Noise, draft: Tensor | None = None, run: Runner = compute
    ) -> Decoded:
        """Decode a chunk; see `policies.language.decoding.Decoder`."""
        return decode_by_tree(_Grams(self, policy.period), policy, prompt, noise, run)


class _Grams:
    """The drafter; its state is a random stream a row, or none."""

    def __init__(self, bound: _Bound, period: int):
        self.width, self._bound, self._period = bound.settings.nodes, bound, period

    def begin(self, prompt: Prefix, noise: Noise) -> list[np.random.Generator | None]:
        """Random streams, if the tree is drawn."""
        if not self._bound.settings.stochastic:
            return [None] * len(prompt.logits)
        seeds = noise((len(prompt.logits), 1), prompt.logits.float()).double().squeeze(1).tolist()
        return [np.random.default_rng(abs(int(seed * 2**48))) for seed in seeds]

    def guess(self, state: Any, tokens: Tensor, place: Tensor) -> Tree:
        """Grow every row's tree of likeliest paths."""
        grown = [
            self._grow(chunk[: last + 1], random)
            for chunk, last, random in zip(tokens.tolist(), place.tolist(), state, strict=True)
        ]
        nodes, parents = (torch.tensor(part, device=tokens.device) for part in zip(*grown, strict=True))
        return Tree(nodes, parents)

    def learn(self, state: Any, tree: Tree, places: Tensor, logits: Tensor) -> Any:
        """Nothing is learned from a chunk: the table stays as calibrated."""
        return state

    def _grow(self, known: list[int], random: np.random.Generator | None) -> tuple[list[int], list[int]]:
        nodes, parents, paths = [known[-1]], [0], [known]
        frontier: list[tuple[float, int, int]] = []
        self._push(frontier, 0.0, 0, known, random)
        while len(nodes) < self.width and frontier:
            cost, parent, token = heapq.heappop(frontier)
            nodes.append(token)
            parents.append(parent)
            paths.append([*paths[parent], token])
            self._push(frontier, cost, len(nodes) - 1, paths[-1], random)
        while len(nodes) < self.width:  # nothing more is known
            nodes.append(nodes[0])
            parents.append(0)
        return nodes, parents

    def _push(self, frontier, cost: float, node: int, path: list[int], random: np.random.Generator | None):
        settings = self._bound.settings
        for context in contexts(path, settings.order, self._period):
            found = self._bound.table.get(context)
            if found is None:
                continue
            ids, chances = found
            noise = random.gumbel(size=len(ids)) if random is not None else np.zeros(len(ids))
            for token, chance, bump in zip(ids, chances, noise, strict=True):
                heapq.heappush(frontier, (cost - math.log(max(chance, 1e-9)) - bump, node, token))
            return


def contexts(known: list[int], order: int, period: int) -> Iterator[Context]:
    """What the token behind `known` may be looked up by, the most telling first."""
    place = len(known)
    for length in range(min(order, place), 1, -1):
        yield (length, place % period, *known[-length:])
    if period > 1 and place >= period:
        yield (-1, place % period, known[-period])
    yield (1, place % period, known[-1])
    yield (0, place)


def _read(tensors: dict[str, Tensor]) -> dict[Context, tuple[list[int], list[float]]]:
    rows = zip(*(tensors[name].tolist() for name in ("contexts", "ids", "chances")), strict=True)
    return {_context(context): (ids, chances) for context, ids, chances in rows}


def _context(row: list[int]) -> Context:
    """Undo the padding."""
    n_tokens = abs(row[0])
    return tuple(row[: 2 + n_tokens])
