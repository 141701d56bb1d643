"""Which trials are worth a closer look: those that no other one beats, and those that come after them."""

from collections.abc import Callable, Sequence

import numpy as np

from vivace.eval.tune.candidate import Trial


def layers(points: np.ndarray) -> list[list[int]]:
    """Sort points into layers: the front, the front of what is left without it, and so on.

    Args:
        points: (N, D), each number the smaller the better; a point is beaten by one that is nowhere larger
            and somewhere smaller.

    Returns:
        Places of the points of each layer, in the order of the first number.
    """
    left, found = list(range(len(points))), []
    while left:
        some = points[left]
        no_larger = (some[None] <= some[:, None]).all(-1)  # [i, j]: j is nowhere larger than i
        smaller = np.any(some[None] < some[:, None], axis=-1)
        front = [left[i] for i in np.flatnonzero(~np.any(no_larger & smaller, axis=1))]
        found.append(sorted(front, key=lambda i: tuple(points[i])))
        left = [i for i in left if i not in front]
    return found


def spread[One](places: Sequence[One], most: int) -> list[One]:
    """Pick some of a sequence evenly, first and last among them."""
    if len(places) <= most:
        return list(places)
    return [places[i] for i in sorted({round(x) for x in np.linspace(0, len(places) - 1, most)})]


def promising(trials: Sequence[Trial], most: int, *costs: Callable[[Trial], float]) -> list[Trial]:
    """Pick trials by costs and action error: evenly along the front, then along the next, so many in all.

    Args:
        trials: all of known error.
        most: how many.
        costs: the smaller the better, such as counted work.
    """
    if not trials:
        return []
    points = np.array([[*(cost(trial) for cost in costs), trial.action_error] for trial in trials])
    found: list[int] = []
    for layer in layers(points):
        found += spread(layer, most - len(found)) if most > len(found) else []
    return [trials[i] for i in found]
