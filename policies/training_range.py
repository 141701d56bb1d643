"""What training saw of observations of numbers, and whether what comes in can be of the same kind.

Sensors drift, and robots reach further than they were shown, by a span at most; ten spans are another unit, a
broken sensor or another robot. Free of torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vivace.policies.arrays import is_image
from vivace.policies.spec import PolicySpec

PLAUSIBLE_SPANS = 10.0
"""How far outside of what training saw a number is still taken, in spans of that."""
_ROUNDING = 1e-6
"""Of a sensor, in units of its number: the least span of one that never changed."""
_STANDARD = 4.0
"""Standard deviations either side of the mean, where statistics hold no minimum and maximum."""
LEAST = np.float32(1e-8)
"""What lerobot divides by where a number never changed."""


@dataclass(frozen=True)
class Range:
    """What training saw of an observation, number by number, in the robot's units."""

    low: np.ndarray
    high: np.ndarray

    def spans_outside(self, x: np.ndarray, least: np.ndarray | np.float32 = LEAST) -> np.ndarray:
        """How far numbers are outside, in spans of the range; 0 inside.

        Args:
            x: numbers (..., *shape).
            least: what a span is at least: that of the normalisation, where a number never changed.
        """
        outside = np.maximum(np.maximum(self.low - x, x - self.high), 0)
        rounding = _ROUNDING * np.maximum(np.abs(self.low), np.abs(self.high))
        found: np.ndarray = outside / np.maximum(np.maximum(self.high - self.low, least), rounding)
        return found


class Furthest(NamedTuple):
    """The number of an observation that is furthest outside."""

    spans: float
    """How far, in spans of what training saw."""
    told: str
    """Which, and what it is, in words."""


def furthest(key: str, x: np.ndarray, known: Range, least: np.ndarray | np.float32 = LEAST) -> Furthest:
    """Return what is furthest outside of what training saw in an observation.

    Args:
        key: its name.
        x: numbers (B, To, *shape).
        known: what training saw.
        least: as of `Range.spans_outside`.
    """
    spans = known.spans_outside(x, least)
    place = tuple(int(i) for i in np.unravel_index(spans.argmax(), spans.shape))
    number = place[2:]
    found = float(spans[place])
    told = (
        f"number {', '.join(map(str, number))} of observation {key!r} is {x[place]:g}, training saw "
        f"{known.low[number]:g}..{known.high[number]:g}: {found:.3g} spans outside"
    )
    return Furthest(found, told)


def training_ranges(
    preprocess: Any, spec: PolicySpec, renamed: Mapping[str, str]
) -> Iterator[tuple[str, Range]]:
    """Return what training saw of every observation of numbers, as far as a checkpoint's statistics say.

    Args:
        preprocess: its pipeline of processors.
        spec: of its policy, whose observations have the robot's names.
        renamed: the robot's name of an observation -> the policy's, where they differ.
    """
    for key, shape in spec.observation_shapes.items():
        for step in getattr(preprocess, "steps", ()):
            stats = getattr(step, "_tensor_stats", {}).get(renamed.get(key, key), {})
            if is_image(key) or not stats:
                continue
            # An observation that steps before pad behind has statistics as wide as they make it.
            known = {name: value.detach().cpu().float().numpy() for name, value in stats.items()}
            known = {name: value[: shape[0]] if value.ndim else value for name, value in known.items()}
            if {"min", "max"} <= set(known):
                low, high = known["min"], known["max"]
            elif {"mean", "std"} <= set(known):
                low, high = (known["mean"] + sign * _STANDARD * known["std"] for sign in (-1, 1))
            else:
                continue
            yield key, Range(np.broadcast_to(low, shape), np.broadcast_to(high, shape))
            break
