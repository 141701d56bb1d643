"""Token Recycling: draft from what the model itself ranked second, third, … (arXiv 2408.08696).

A table holds, for every token, the k tokens the model last ranked highest behind it. A tree grows from the
last known token along the table, is verified in one pass, and the pass's own rankings go back into the table.
Here a token's place within its action counts as well, since the same bin of another dimension means another
thing; the table begins as calibration left it and what a chunk adds is forgotten after the chunk, so that a
policy's answer depends on its observation alone. The tree's shape follows from how often each rank was right.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from vivace.accel.decoding import Decoding
from vivace.accel.registry import register
from vivace.accel.settings import check_tensors
from vivace.accel.technique import CalibrationData, decoding, with_tokens
from vivace.accel.techniques.draft_tree import MAX_NODES, Tree, best_first, decode_by_tree, greedy_logits
from vivace.accel.variant import Choices, Variant
from vivace.policies.block import Runner, compute
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import Execution
from vivace.policies.language.decoding import Decoded, Prefix
from vivace.policies.sampling.noise import Noise


@dataclass(frozen=True, kw_only=True)
class RecyclingOptions:
    """How much is guessed."""

    k: int = 8
    """Candidates behind a token."""
    nodes: int = 16
    """Nodes of the tree, the last known token included."""

    def __post_init__(self) -> None:
        """Both must allow a guess."""
        if self.k < 1 or not 2 <= self.nodes <= MAX_NODES:
            raise BadSetting(
                f"token_recycling k={self.k}, nodes={self.nodes}; needed: k >= 1, 2 <= nodes <= {MAX_NODES}"
            )


@register
@dataclass(frozen=True, kw_only=True)
class TokenRecycling(Decoding):
    """The table, and the tree's shape."""

    kind: ClassVar[str] = "token_recycling"
    label: ClassVar[str] = "Token Recycling"
    colour: ClassVar[str] = "#7a5cc0"
    Options: ClassVar[type] = RecyclingOptions
    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {"small": {"k": 3, "nodes": 6}}

    parents: tuple[int, ...]
    """Of every node; node 0 is the root."""
    ranks: tuple[int, ...]
    """Which of its parent's candidates a node is."""
    rates: tuple[float, ...] = ()
    """How often each rank was right in calibration."""
    options: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)
    """"table": candidates (places in an action, ids, k)."""

    @property
    def is_exact(self) -> bool:
        """Every guess is verified."""
        return True

    @property
    def width(self) -> int:
        """Nodes of a tree."""
        return len(self.parents)

    @classmethod
    def calibrate(cls, execution: Execution, data: CalibrationData, options: Mapping[str, Any]) -> Self:
        """Fill the table from greedy decoding; options are the fields of `RecyclingOptions`."""
        policy = with_tokens(execution, cls.kind)
        chosen = cls.read_options(options)
        tokens, logits = greedy_logits(decoding(execution, cls.kind), data)
        ids, period = policy.action_ids, policy.period
        k = min(chosen.k, len(ids))
        best = (logits[..., ids.start : ids.stop].topk(k).indices + ids.start).cpu()  # (B, n, k)
        tokens = tokens.cpu()  # what is counted is looked at one by one
        places = torch.arange(tokens.shape[1]) % period
        table = torch.empty(period, len(ids), k, dtype=torch.int32)
        for place in range(period):  # a token that was never seen: what is frequent behind its place
            behind = tokens[:, places == (place + 1) % period] - ids.start
            counts = behind.clamp(0, len(ids) - 1).flatten().bincount(minlength=len(ids))
            table[place] = counts.topk(k).indices + ids.start
        right = torch.zeros(k)
        for row in range(len(tokens)):
            for j in range(tokens.shape[1] - 1):
                token = min(max(int(tokens[row, j]) - ids.start, 0), len(ids) - 1)
                candidates = table[j % period, token]
                right += candidates == tokens[row, j + 1]
                table[j % period, token] = best[row, j + 1]
        rates = (right / max(1, len(tokens) * (tokens.shape[1] - 1))).clamp(min=1e-4).tolist()
        parents, ranks = best_first(rates, chosen.nodes)
        return cls(
            parents=parents,
            ranks=ranks,
            rates=tuple(round(rate, 4) for rate in rates),
            options={"k": chosen.k, "nodes": chosen.nodes},
            tensors={"table": table},
        )

    def check(self, execution: Execution) -> None:
        """Raise if the policy writes no tokens, or others, or if the tree is none."""
        policy = with_tokens(execution, self.kind)
        ids = policy.action_ids
        check_tensors(self.kind, self.tensors, {"table": (torch.int32, (policy.period, len(ids), None))})
        table = self.tensors["table"]
        k, nodes = table.shape[2], len(self.parents)
        if k > len(ids) or table.min() < ids.start or table.max() >= ids.stop:
            raise PlanMismatch(
                f"token_recycling has {k} candidates of ids {int(table.min())}..{int(table.max())}, this "
                f"policy's actions are {ids.start}..{ids.stop - 1}; recalibrate: "
                "vivace calibrate --policy.path=…"
            )
        is_tree = self.parents[:1] == (0,) and all(0 <= up < i for i, up in enumerate(self.parents[1:], 1))
        if not is_tree or len(self.ranks) != nodes or not all(0 <= rank < k for rank in self.ranks):
            raise PlanMismatch(
                f"token_recycling has parents {list(self.parents)} and ranks {list(self.ranks)}; needed are "
                f"parents before their children, from 0, and as many ranks of 0..{k - 1}; recalibrate: "
                "vivace calibrate --policy.path=…"
            )
        if not 2 <= nodes <= MAX_NODES or len(self.rates) not in (0, k):
            raise PlanMismatch(
                f"token_recycling has {nodes} nodes and {len(self.rates)} rates; needed: 2..{MAX_NODES} "
                f"nodes, {k} rates; recalibrate: vivace calibrate --policy.path=…"
            )

    @classmethod
    def variants(cls, staged: Any, options: RecyclingOptions) -> Iterator[Variant]:
        """Yield itself."""
        yield Variant("recycling", cls.label, ((cls.kind, vars(options)),), cls.colour, is_short=True)

    @classmethod
    def search_space(cls, staged: Any) -> Mapping[str, Choices]:
        """Offer small trees and large ones."""
        return {"k": (4, 8, 16), "nodes": (8, 16, 32, 64)}

    def apply(self, execution: Execution) -> Execution:
        """Decode so, the table where the policy is."""
        execution = decoding(execution, self.kind)
        return replace(execution, decoder=_Table(self, execution.policy))


class _Table:
    """The decoder, and the drafter of one policy; its state is the table, one for each row of the batch."""

    def __init__(self, settings: TokenRecycling, policy: Any):
        self._settings, self.width = settings, settings.width
        self._first, self._last, self._period = policy.action_ids[0], policy.action_ids[-1], policy.period
        device = policy.placement.device
        self._table = settings.tensors["table"].to(device).long()
        self._parents = torch.tensor([settings.parents], device=device)

    def __call__(
        self, policy: Any, prompt: Prefix, noise: Noise, draft: Tensor | None = None, run: Runner = compute
    ) -> Decoded:
        """Decode a chunk; see `policies.language.decoding.Decoder`."""
        return decode_by_tree(self, policy, prompt, noise, run)

    def begin(self, prompt: Prefix, noise: Noise) -> Tensor:
        """The table as calibrated (B, period, ids, k)."""
        return self._table.expand(len(prompt.logits), *self._table.shape).clone()

    def guess(self, state: Tensor, tokens: Tensor, place: Tensor) -> Tree:
        """Grow the tree along the table."""
        rows = torch.arange(len(place), device=place.device)
        nodes, places = [tokens[rows, place]], [place]
        for parent, rank in zip(self._settings.parents[1:], self._settings.ranks[1:], strict=True):
            nodes.append(state[rows, places[parent] % self._period, self._row(nodes[parent]), rank])
            places.append(places[parent] + 1)
        return Tree(torch.stack(nodes, 1), self._parents)

    def learn(self, state: Tensor, tree: Tree, places: Tensor, logits: Tensor) -> Tensor:
        """Put the pass's rankings into the table, which is this chunk's own."""
        rows = torch.arange(len(places), device=places.device)
        best = logits[..., self._first : self._last + 1].topk(state.shape[-1]).indices + self._first
        for node in range(self.width):
            state[rows, places[:, node] % self._period, self._row(tree.tokens[:, node])] = best[:, node]
        return state

    def _row(self, tokens: Tensor) -> Tensor:
        """Row of the table of a token; an id that is no action's has the nearest one's."""
        return tokens.clamp(self._first, self._last) - self._first
