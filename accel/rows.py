"""What happens to each block at each step, worked out before anything runs.

A block is either fresh (computed) at a step, or obtained as a linear combination of its last fresh
outputs: weights (1,) is plain reuse, more weights a forecast. Consecutive additive blocks with the same
weights collapse into one group whose histories are summed once, so that a step at which every branch is
reused costs one addition. Replacing blocks never collapse.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from vivace.policies.block import Block, Cache, Runner
from vivace.policies.execution import Denoising, Execution
from vivace.policies.spec import BlockInfo

Predictor = Callable[[Sequence[int], int], tuple[float, ...]]
"""(steps of the kept outputs, newest first; step asked for) -> weights of those outputs."""


def reuse(history: Sequence[int], step: int) -> tuple[float, ...]:
    """Reuse the newest output as it is."""
    return (1.0,)


@dataclass(frozen=True)
class Group:
    """Consecutive blocks whose summed output is one combination of kept outputs."""

    members: tuple[str, ...]
    weights: tuple[float, ...]
    is_renewed: bool
    """The summed histories must be made anew: a member was just computed, or the group is new."""


@dataclass(frozen=True)
class Row:
    """One step of a schedule; steps whose rows are equal compute the same."""

    fresh: frozenset[str]
    groups: tuple[Group, ...]
    depth: int
    """How many outputs of a fresh block are kept."""

    @cached_property
    def leads(self) -> dict[str, Group]:
        """First member -> its group."""
        return {group.members[0]: group for group in self.groups}


class RowRunner:
    """Run one row; nothing is changed in place, the next step's cache is a new mapping."""

    def __init__(self, row: Row, cache: Cache):
        self._row, self._kept = row, dict(cache)

    @property
    def cache(self) -> Cache:
        """Kept outputs by block id, summed ones by tuple of ids."""
        return self._kept

    def __call__(self, block: Block, h: Tensor, *cond: Tensor) -> Tensor | None:
        """Compute, combine, or pass the stream on when an earlier block of the group spoke for this one."""
        if block.id in self._row.fresh:
            out = block.fn(h, *cond)
            self._kept[block.id] = (out, *self._kept.get(block.id, ()))[: self._row.depth]
            return out
        group = self._row.leads.get(block.id)
        return None if group is None else _combine(group.weights, self._histories(group, h))

    def _histories(self, group: Group, h: Tensor) -> tuple[Tensor, ...]:
        """Kept outputs of a group, as many rows as the stream has."""
        if len(group.members) == 1:
            return tuple(_as_many(output, h) for output in self._kept[group.members[0]])
        key = "+".join(group.members)
        if group.is_renewed:
            kept = [self._kept[member] for member in group.members]
            self._kept[key] = tuple(
                torch.stack([_as_many(outputs[j], h) for outputs in kept]).sum(0)
                for j in range(len(group.weights))
            )
        return tuple(_as_many(output, h) for output in self._kept[key])


def _as_many(output: Tensor, h: Tensor) -> Tensor:
    """Under guidance the rows without a condition come last, and may have been given up since."""
    return output if output.shape == h.shape else output[: h.shape[0]]


def _combine(weights: tuple[float, ...], outputs: tuple[Tensor, ...]) -> Tensor:
    total = outputs[0] if weights[0] == 1.0 else weights[0] * outputs[0]
    for weight, output in zip(weights[1:], outputs[1:], strict=False):
        total = torch.add(total, output, alpha=weight)
    return total


@dataclass(frozen=True)
class Rows:
    """A static schedule: the action runner of an execution."""

    rows: tuple[Row, ...]

    def __call__(self, index: int, cache: Cache) -> Runner:
        """Return the runner of one step."""
        return RowRunner(self.rows[index], cache)

    def can_begin(self, first: int) -> bool:
        """Whether no step from this one on uses what an earlier one computed."""
        computed: dict[str, int] = {}
        for row in self.rows[first:]:
            used = {member: len(group.weights) for group in row.groups for member in group.members}
            if any(computed.get(member, 0) < n for member, n in used.items()):
                return False
            for name in row.fresh:
                computed[name] = computed.get(name, 0) + 1
        return True

    @property
    def programs(self) -> int:
        """Distinct steps."""
        return len(set(self.rows))


def schedule_of(execution: Execution) -> Rows | None:
    """Return the static schedule an execution runs; None if it computes everything, or decides as it runs."""
    match execution:
        case Denoising(action=Rows() as schedule):
            return schedule
    return None


def make_rows(
    blocks: Sequence[BlockInfo],
    updates: Mapping[str, Sequence[int]],
    n_steps: int,
    depth: int = 1,
    predict: Predictor = reuse,
) -> Rows:
    """Turn update steps into rows.

    Args:
        blocks: the denoiser's blocks in the order they run.
        updates: block id -> steps at which it is computed, ascending, first is 0; a block that is not
            named is computed at every step.
        n_steps: steps of the sampler (S).
        depth: how many computed outputs are kept, at least what `predict` asks for.
        predict: weights of the kept outputs at a step that is not computed.
    """
    rows: list[Row] = []
    for step in range(n_steps):
        fresh = frozenset(b.id for b in blocks if b.id not in updates or step in updates[b.id])
        previous = rows[-1] if rows else None
        groups = []
        for members, weights in _runs(blocks, fresh, updates, step, depth, predict):
            before = previous.leads.get(members[0]) if previous else None
            same = before is not None and before.members == members and len(before.weights) == len(weights)
            groups.append(Group(members, weights, is_renewed=not same))
        rows.append(Row(fresh, tuple(groups), depth))
    return Rows(tuple(rows))


def _runs(
    blocks: Sequence[BlockInfo],
    fresh: frozenset[str],
    updates: Mapping[str, Sequence[int]],
    step: int,
    depth: int,
    predict: Predictor,
) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    """Maximal runs of consecutive reused blocks that share their weights."""
    runs: list[tuple[list[str], tuple[float, ...], bool]] = []
    extends = False
    for block in blocks:
        if block.id in fresh:
            extends = False
            continue
        history = [u for u in reversed(updates[block.id]) if u < step][:depth]
        weights = predict(history, step)
        if extends and block.additive and runs[-1][2] and runs[-1][1] == weights:
            runs[-1][0].append(block.id)
        else:
            runs.append(([block.id], weights, block.additive))
        extends = True
    return [(tuple(members), weights) for members, weights, _ in runs]
