"""When each block is computed: BAC's adaptive schedule and Bubbling Union, and the plain baselines.

    cos(a, b)  similarity of one block's output at steps a and b, from an uncached run
    ACS        choose S update steps 0 = c_1 < … < c_S maximising the similarity kept by reuse:
               anchor       sum over segments of sum_{t in segment} cos(c_m, t)        (default)
               consecutive  sum over t that are not updates of cos(t, t - 1)
    BUA        the n blocks of highest volatility  mean_{i<j} mean |x_i - x_j|  also update whenever
               a feed-forward block of the same or a later layer does

Sources: BAC, arXiv 2506.13456 (sections on ACS and BUA; consecutive form), ky-ji/HAS (anchor form, union).
Deviations: similarities are averaged over a handful of observations where the code uses one; the forced
last step is an option where the code always adds step 99; with one selected block the union still
happens, where the code wants two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self, cast

import numpy as np

from vivace.policies.errors import BadSetting, CalibrationError

Schedule = dict[str, tuple[int, ...]]


Method = Literal[
    "bac", "shared", "uniform", "deepcache", "layered"
]  # named: draccus finds no text behind quotes
Objective = Literal["anchor", "consecutive"]


@dataclass(frozen=True, kw_only=True)
class UpdateOptions:
    """How update steps are chosen."""

    method: Method = "bac"
    """bac: per block; shared: one ACS schedule for all; uniform: every S-th share of the steps; deepcache:
    uniform for the inner half of the blocks, the outer blocks every step; layered: per block, as many as
    `parts` says of its part of the blocks."""
    updates: int | None = None
    """Updates per block including step 0 (S), 1..number of steps; when not given 10, or half of the steps
    where that is fewer."""
    bubbling: int | None = None
    """Volatile blocks that follow downstream feed-forward updates (n); 0 leaves Bubbling Union out; when not
    given 5, or all blocks where there are fewer."""
    parts: tuple[int, ...] = ()
    """Updates in equal parts of the blocks, from the first to the last, each 1..number of steps; with method
    layered alone, in place of `updates`."""
    objective: Objective = "anchor"
    """What is compared: each step with the one it reuses (anchor), or with the step before it."""
    force_last: bool = False
    """Also compute every block at the last step, as the authors' code does."""

    def __post_init__(self):
        """Check the choices; ranges that depend on the policy are checked at calibration."""
        for name, known in (
            ("method", ("bac", "shared", "uniform", "deepcache", "layered")),
            ("objective", ("anchor", "consecutive")),
        ):
            if getattr(self, name) not in known:
                raise BadSetting(f"{name}={getattr(self, name)!r} is not one of {', '.join(known)}")
        if self.bubbling is not None and self.bubbling < 0:
            raise BadSetting(f"bubbling={self.bubbling} is negative; choose 0 to leave Bubbling Union out")
        if bool(self.parts) != (self.method == "layered"):
            raise BadSetting(
                f"method={self.method} and parts={list(self.parts)}; parts go with method layered, and it "
                "needs them"
            )

    def settled(self, n_steps: int, n_blocks: int) -> Self:
        """Return the same with numbers that fit a policy where none were given."""
        updates, bubbling = self.updates, self.bubbling
        return replace(
            self,
            updates=min(10, max(1, n_steps // 2)) if updates is None else updates,
            bubbling=min(5, n_blocks) if bubbling is None else bubbling,
        )


def check_updates(updates: int, n_steps: int) -> None:
    """Raise `CalibrationError` if S is not in 1..n_steps."""
    if not 1 <= updates <= n_steps:
        raise CalibrationError(
            f"updates={updates}, but the sampler runs {n_steps} steps; choose 1..{n_steps}"
        )


def optimal_updates(similarity: np.ndarray, updates: int, objective: str = "anchor") -> tuple[int, ...]:
    """Choose the steps at which one block is computed, maximising the similarity kept by reuse.

    Dynamic programme over segments: best[k, i] is the best value of steps 0..i with k updates.

    Args:
        similarity: of the block's output between steps, (S, S), in [-1, 1].
        updates: number of computed steps, 1..S; step 0 is always one of them.
        objective: "anchor" or "consecutive", see the module.

    Returns:
        Computed steps, ascending, first is 0.

    Raises:
        CalibrationError: `updates` is outside 1..S, or `similarity` is not square.
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise CalibrationError(f"similarity has shape {similarity.shape}; a square matrix is needed")
    n = len(similarity)
    check_updates(updates, n)
    value = segment_values(similarity, objective)
    best = value[0].copy()
    came_from = np.zeros((updates, n), dtype=int)
    for k in range(1, updates):
        extended = np.full(n, -np.inf)
        for last in range(k, n):
            starts = np.arange(k, last + 1)
            candidates = best[starts - 1] + value[starts, last]
            came_from[k, last] = starts[np.argmax(candidates)]
            extended[last] = candidates.max()
        best = extended
    steps, last = [], n - 1
    for k in range(updates - 1, 0, -1):
        steps.append(int(came_from[k, last]))
        last = steps[-1] - 1
    return (0, *reversed(steps))


def segment_values(similarity: np.ndarray, objective: str) -> np.ndarray:
    """Value of computing at step a and reusing through step b, (S, S); -inf below the diagonal."""
    n = len(similarity)
    if objective == "anchor":
        kept = np.cumsum(np.triu(similarity), axis=1)
    else:
        steps = np.concatenate([[0.0], np.diagonal(similarity, offset=-1)])
        totals = np.cumsum(steps)
        kept = totals[None, :] - totals[:, None]
    return np.where(np.arange(n)[None, :] >= np.arange(n)[:, None], kept, -np.inf)


def uniform_updates(n_steps: int, updates: int) -> tuple[int, ...]:
    """Spread `updates` evenly over the steps, first is 0."""
    check_updates(updates, n_steps)
    return tuple(sorted({int(i * n_steps / updates) for i in range(updates)}))


def known_updates(n_steps: int, method: str, updates: int | None) -> tuple[int, ...]:
    """Update steps as far as they are known before calibration: those spread evenly, else the first alone."""
    if method != "uniform" or updates is None:
        return (0,)
    return uniform_updates(n_steps, updates)


def bubbling_union(schedule: Mapping[str, Sequence[int]], volatile: Sequence[str]) -> Schedule:
    """Let volatile blocks update with every feed-forward block of the same or a later layer.

    A U-Net has no feed-forward blocks, so there the schedule stays as it is.

    Args:
        schedule: block id -> update steps, in the order the blocks run.
        volatile: ids of the blocks that follow.
    """
    feed_forward = [name for name in schedule if name.endswith(".mlp")]
    union = {}
    for name, steps in schedule.items():
        followed = [f for f in feed_forward if name in volatile and _layer(f) >= _layer(name)]
        union[name] = tuple(sorted(set(steps).union(*(schedule[f] for f in followed))))
    return union


def _layer(block_id: str) -> int:
    return int(block_id.split(".")[1])


def choose_updates(
    blocks: Sequence[str],
    similarity: Mapping[str, np.ndarray],
    volatility: Mapping[str, float],
    n_steps: int,
    options: UpdateOptions,
) -> Schedule:
    """Choose every block's update steps.

    Args:
        blocks: block ids in the order they run.
        similarity: block id -> (S, S); read by "bac", "shared" and "layered" only.
        volatility: block id -> mean absolute change of its output between steps.
        n_steps: steps of the sampler.
        options: how to choose.

    Raises:
        CalibrationError: S is outside 1..n_steps, or n exceeds the number of blocks.
    """
    options = options.settled(n_steps, len(blocks))
    updates, bubbling = cast(int, options.updates), cast(int, options.bubbling)
    check_updates(updates, n_steps)
    if options.method == "bac" and bubbling > len(blocks):
        raise CalibrationError(
            f"bubbling={bubbling}, but the policy has {len(blocks)} blocks; choose 0..{len(blocks)}, or "
            "leave it out"
        )
    if options.method == "bac":
        schedule = {b: optimal_updates(similarity[b], updates, options.objective) for b in blocks}
        volatile = sorted(blocks, key=lambda b: -volatility[b])[:bubbling]
        schedule = bubbling_union(schedule, volatile) if volatile else schedule
    elif options.method == "layered":
        share = len(options.parts) / len(blocks)
        numbers = {block: options.parts[int(i * share)] for i, block in enumerate(blocks)}
        for n_updates in options.parts:
            check_updates(n_updates, n_steps)
        schedule = {b: optimal_updates(similarity[b], numbers[b], options.objective) for b in blocks}
    elif options.method == "shared":
        mean = np.mean([similarity[b] for b in blocks], axis=0)
        schedule = dict.fromkeys(blocks, optimal_updates(mean, updates, options.objective))
    else:
        steps = uniform_updates(n_steps, updates)
        deep = inner_half(blocks) if options.method == "deepcache" else set(blocks)
        schedule = {b: steps if b in deep else tuple(range(n_steps)) for b in blocks}
    if options.force_last:
        schedule = {b: tuple(sorted({*steps, n_steps - 1})) for b, steps in schedule.items()}
    return schedule


def inner_half(blocks: Sequence[str]) -> set[str]:
    """Blocks that DeepCache reuses (arXiv 2312.00858): all but the first and last level of a U-Net.

    A policy without levels (`downK`, `upK`) has its middle half reused.
    """
    down = [b for b in blocks if b.startswith("action.down")]
    if not down:
        quarter = len(blocks) // 4
        return set(blocks[quarter : len(blocks) - quarter])
    last_up = max(b.split(".")[1] for b in blocks if b.startswith("action.up"))
    return {b for b in blocks if b.split(".")[1] not in ("down0", last_up)}
