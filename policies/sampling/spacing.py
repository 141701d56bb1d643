"""Where steps begin: by a name, or by how wide they are (free sets of times: AutoDiffusion, 2309.10438)."""

from collections.abc import Sequence

import numpy as np

from vivace.policies.errors import BadSetting

Spacing = str | tuple[float, ...]
"""A name, or how wide steps are in equal parts of the schedule, relative to each other (`falling_times`)."""


def falling_times(widths: Sequence[float], n_steps: int) -> list[float]:
    """Return where n steps begin, from 1 (noise alone) on; the last one ends at 0.

        s(u) = w_j in part j of J,    time(i) = 1 - S(i / n) / S(1),    S(u) = integral of s from 0 to u

    With J = n the widths of the steps are those given, so that every set of times can be said; fewer of them
    bend the schedule, and mean the same whatever the number of steps.

    Args:
        widths: w_j, positive, of equal parts of the schedule; only their ratios count.
        n_steps: how many.
    """
    parts = np.concatenate([[0.0], np.cumsum(widths)]) / np.sum(widths)
    passed = np.interp(np.arange(n_steps) / n_steps, np.linspace(0, 1, len(parts)), parts)
    return [float(1 - share) for share in passed]


def check_parts(widths: Sequence[float]) -> None:
    """Raise `BadSetting` unless widths of steps are positive and finite, and there are some."""
    if not widths or not all(0 < width < np.inf for width in widths):
        raise BadSetting(f"widths of steps {list(widths)}; at least one is needed, each above 0 and finite")
