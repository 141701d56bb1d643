"""From the robot's units to the policy's and back, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np

from vivace.policies.plain_data import SELDOM, Between, Longest


@dataclass(frozen=True)
class Normalization:
    """y = gain (x - low) / span + shift, and its inverse; lerobot's four modes are of this form.

    All four broadcast against one observation or action.
    """

    low: np.ndarray
    span: np.ndarray
    gain: Annotated[float, Between(1e-6, 1e6)]
    shift: Annotated[float, Between(-1e6, 1e6)]
    clips: bool = field(default=False, metadata=SELDOM)
    """What the policy reads or says is cut to [-1, 1], as groot's processors do."""

    def normalize(self, x: np.ndarray) -> np.ndarray:
        """Bring a value in the robot's units to the policy's."""
        y: np.ndarray = (self.gain * (x - self.low) / self.span + self.shift).astype(np.float32)
        return y.clip(-1, 1) if self.clips else y

    def restore(self, y: np.ndarray) -> np.ndarray:
        """Bring a value in the policy's units back to the robot's."""
        y = y.clip(-1, 1) if self.clips else y
        x: np.ndarray = ((y - self.shift) / self.gain * self.span + self.low).astype(np.float32)
        return x


@dataclass(frozen=True)
class Relative:
    """Actions that are offsets to the state they were predicted from, as lerobot's relative actions are."""

    state: Annotated[str, Longest(500)]
    """The robot's name of the state."""
    dimensions: Annotated[tuple[bool, ...], Longest(4096)]
    """Whether each number of an action is an offset to the state's of the same place."""

    def base(self, observations: Mapping[str, np.ndarray]) -> np.ndarray:
        """What is added to actions (B, H, A) of observations {key: (B, To, ...)}: (B, 1, A)."""
        newest = observations[self.state][:, -1:, : len(self.dimensions)]
        found: np.ndarray = np.where(self.dimensions, newest, np.float32(0))
        return found
