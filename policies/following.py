"""Chunks of several episodes at once, each of which may follow another: what is alike runs together."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vivace.policies.batch import Batch, take
from vivace.policies.carry import NOTHING, PAST, Carry, Slot
from vivace.policies.errors import NonFiniteActions, UnsupportedPolicy
from vivace.policies.execution import Denoising, sample_after
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.real_time_chunking import Continuation
from vivace.policies.stopwatch import Mark, ignore


def sample_episodes(
    execution: Denoising,
    batch: Batch,
    noise_keys: Sequence[tuple[int, ...]],
    slots: Sequence[Slot],
    followed: Sequence[tuple[tuple[int, ...], int]],
    follow: Continuation | None = None,
    mark: Mark = ignore,
) -> Tensor:
    """Sample chunks of normalised actions (B, H, A), each after the one before of its own episode.

    Rows that follow the like of each other run in one batch: those that follow nothing, and of the others
    those whose carries are of one form.

    Args:
        execution: the policy, and how to run it.
        batch: normalised observations.
        noise_keys: name the noise of each row, and its chunk.
        slots: hold what chunks leave, one a row.
        followed: key of the chunk that each row follows, and how many of its actions are past.
        follow: as of `sample`.
        mark: as of `sample`.

    Raises:
        NonFiniteActions: as of `sample`; a slot whose only row it was is cleared.
        UnsupportedPolicy: what a chunk leaves does not come apart by rows.
    """
    carries = [
        _with_past(slot.get(execution, key), past, execution)
        for slot, (key, past) in zip(slots, followed, strict=True)
    ]
    groups: dict[Any, list[int]] = defaultdict(list)
    for row, carry in enumerate(carries):
        groups[_form(carry)].append(row)
    found: list[tuple[Tensor, Carry]] = [(torch.empty(0), NOTHING)] * len(carries)
    for rows in groups.values():
        part = replace(follow, actions=follow.actions[rows], weights=follow.weights[rows]) if follow else None
        noise = EpisodeNoise([noise_keys[row] for row in rows])
        carry = _joined([carries[row] for row in rows])
        try:
            actions, left = sample_after(execution, take(batch, rows), noise, carry, part, mark)
        except NonFiniteActions:
            if len(carries) == 1:
                slots[0].clear()
            raise
        for place, row in enumerate(rows):
            found[row] = actions[place : place + 1], _row(left, place, len(rows))
    for slot, key, (_, left) in zip(slots, noise_keys, found, strict=True):
        slot.put(execution, key, left)
    return torch.cat([actions for actions, _ in found])


def _with_past(carry: Carry, past: int, execution: Denoising) -> Carry:
    if not carry:
        return carry
    return {**carry, PAST: execution.policy.placement.move(torch.tensor([past]))}


def _form(carry: Carry) -> Any:
    """What tells carries apart that cannot run together: their plain values, and the shapes of the rest."""
    leaves, tree = pytree.tree_flatten(dict(carry))
    return tree, tuple(tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves)


def _joined(carries: Sequence[Carry]) -> Carry:
    """Put carries of one form behind each other."""
    if len(carries) == 1 or not carries[0]:
        return carries[0]
    first, *others = (pytree.tree_flatten(dict(carry)) for carry in carries)
    rows = zip(first[0], *(leaves for leaves, _ in others), strict=True)
    leaves = [torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0] for parts in rows]
    found: Carry = pytree.tree_unflatten(leaves, first[1])
    return found


def _row(carry: Carry, row: int, rows: int) -> Carry:
    """What one row left.

    Raises:
        UnsupportedPolicy: a tensor has other rows than the batch.
    """

    def part(leaf: Tensor) -> Tensor:
        if leaf.ndim == 0 or leaf.shape[0] != rows:
            raise UnsupportedPolicy(
                f"what a chunk leaves to the next has a tensor of shape {tuple(leaf.shape)} for {rows} "
                "observations, which does not come apart by observation; leave it out of the plan"
            )
        return leaf[row : row + 1]

    found: Carry = pytree.tree_map_only(Tensor, part, dict(carry))
    return found
