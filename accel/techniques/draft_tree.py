"""Draft trees: guess several continuations, verify them in one pass, keep the path greedy decoding takes.

Every pass yields the tokens of the longest right path and one more, the model's own next token, so decoding
is greedy's, token for token, however poor the guesses.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from vivace.accel.technique import CalibrationData
from vivace.policies.block import Runner
from vivace.policies.execution import Decoding
from vivace.policies.language.decoding import Decoded, Prefix, chain, ending, greedy, has_ended
from vivace.policies.sampling.noise import EpisodeNoise, Noise

MAX_NODES = 1024
"""Of a tree: what one pass can read."""


@dataclass(frozen=True)
class Tree:
    """Guesses of one pass; node 0 is the last token that is known."""

    tokens: Tensor
    """(B, T)"""
    parents: Tensor
    """Index of each node's parent, smaller than its own; the root's is 0. (B or 1, T)"""

    def sight(self) -> tuple[Tensor, Tensor]:
        """Which nodes each node sees (B or 1, T, T), and its depth (B or 1, T)."""
        rows, width = self.parents.shape
        sees = torch.eye(width, dtype=torch.bool, device=self.parents.device).repeat(rows, 1, 1)
        for node in range(1, width):
            above = sees.gather(1, self.parents[:, node, None, None].expand(-1, 1, width)).squeeze(1)
            sees[:, node] |= above
        return sees, sees.sum(-1) - 1


class Drafter(Protocol):
    """Guesses continuations, and may learn from what the model said."""

    width: int
    """Nodes of a tree, the root included."""

    def begin(self, prompt: Prefix, noise: Noise) -> Any:
        """Return what the drafter knows at the start of a chunk."""

    def guess(self, state: Any, tokens: Tensor, place: Tensor) -> Tree:
        """Grow a tree behind the last known token.

        Args:
            state: what the drafter knows.
            tokens: the chunk so far (B, n); what lies behind `place` is unknown.
            place: index of the last known token (B,).
        """

    def learn(self, state: Any, tree: Tree, places: Tensor, logits: Tensor) -> Any:
        """Return the state after a pass.

        Args:
            state: before it.
            tree: what was guessed.
            places: index in the chunk of each node's token (B, T).
            logits: what the model said behind each node (B, T, V).
        """


def decode_by_tree(drafter: Drafter, policy: Any, prompt: Prefix, noise: Noise, run: Runner) -> Decoded:
    """Decode a chunk greedily with a drafter's guesses."""
    n, batch, width = policy.n_tokens, len(prompt.logits), drafter.width
    device = prompt.logits.device
    tokens = torch.zeros(batch, n + width, dtype=torch.long, device=device)  # the last pass may overshoot
    tokens[:, 0] = prompt.logits.argmax(-1)
    settled = torch.zeros_like(tokens)
    place = torch.zeros(batch, dtype=torch.long, device=device)
    passes, steps = torch.zeros_like(place), torch.arange(width, device=device)
    past, state = prompt.past.with_room(n + 2 * width), drafter.begin(prompt, noise)
    while not (done := (place >= n - 1) | has_ended(policy, tokens, place)).all():
        tree = drafter.guess(state, tokens, place)
        sees, depth = tree.sight()
        logits, past = policy.extend(tree.tokens, past, sees, depth, run)
        passes = passes + ~done
        path, length, following = follow(tree, sees, depth, logits.argmax(-1))
        # behind the last known token come those of the path, then what the model says behind its last node
        new = tree.tokens.gather(1, path).roll(-1, 1).scatter(1, length[:, None] - 1, following[:, None])
        target = (place[:, None] + 1 + steps).clamp(max=n + width - 1)
        is_new = (steps < length[:, None]) & ~done[:, None]
        tokens = tokens.scatter(1, target, torch.where(is_new, new, tokens.gather(1, target)))
        settled = settled.scatter(1, target, torch.where(is_new, passes[:, None], settled.gather(1, target)))
        past = past.keep_path(path, torch.where(done, 0, length))
        state = drafter.learn(state, tree, place[:, None] + depth, logits)
        place = torch.where(done, place, place + length)
    return ending(policy, Decoded(tokens[:, :n], passes, settled[:, :n]))


def follow(tree: Tree, sees: Tensor, depth: Tensor, said: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Walk from the root along what the model said, as far as it goes.

    Args:
        tree: the guesses.
        sees: which nodes each node sees (B or 1, T, T).
        depth: of each node (B or 1, T).
        said: the model's next token behind each node (B, T).

    Returns:
        The nodes of the path (B, T), root first, its length (B,), and the token behind its last node (B,).
    """
    batch, width = tree.tokens.shape
    nodes, depth = torch.arange(width, device=said.device), depth.expand(batch, -1)
    is_right = (tree.tokens == said.gather(1, tree.parents.expand(batch, -1))) | (nodes == 0)
    is_reached = (is_right[:, None] | ~sees).all(2)  # all that it sees are right
    last = depth.masked_fill(~is_reached, -1).argmax(1, keepdim=True)
    above = sees.expand(batch, -1, -1).gather(1, last[..., None].expand(-1, -1, width)).squeeze(1)
    place = depth.masked_fill(~above, width)  # those that are not on the path go to a place of their own
    path = nodes.new_zeros(batch, width + 1).scatter(1, place, nodes.expand(batch, -1))[:, :width]
    return path, depth.gather(1, last).squeeze(1) + 1, said.gather(1, last).squeeze(1)


def best_first(rates: Sequence[float], width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return parents and ranks of the tree of `width` nodes that holds the likeliest paths.

    Args:
        rates: how often the guess of each rank is right, best first.
        width: nodes, the root included.
    """
    parents, ranks = [0], [0]
    frontier = [(-rate, 0, rank) for rank, rate in enumerate(rates)]
    heapq.heapify(frontier)
    while len(parents) < width and frontier:
        chance, parent, rank = heapq.heappop(frontier)
        parents.append(parent)
        ranks.append(rank)
        for next_rank, rate in enumerate(rates):
            heapq.heappush(frontier, (chance * rate, len(parents) - 1, next_rank))
    return tuple(parents), tuple(ranks)


@torch.inference_mode()
def greedy_logits(execution: Decoding, data: CalibrationData) -> tuple[Tensor, Tensor]:
    """Return the greedy tokens (B, n) of calibration observations and the logits (B, n, V) of each."""
    policy = execution.policy
    prompt = policy.encode(data.batch, execution.language, execution.select)
    n = policy.n_tokens
    tokens = greedy(policy, prompt, EpisodeNoise(data.noise_keys), None, execution.language).tokens
    if n == 1:
        return tokens, prompt.logits[:, None]
    behind, _ = policy.extend(
        tokens[:, :-1], prompt.past.with_room(n), *chain(n - 1, tokens.device), execution.language
    )
    return tokens, torch.cat([prompt.logits[:, None], behind], dim=1)
