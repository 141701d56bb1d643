"""From the robot's units to the policy's and back, without torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vivace.policies.backports import Self


@dataclass(frozen=True)
class Normalization:
    """y = gain (x - low) / span + shift, and its inverse; lerobot's four modes are of this form.

    All four broadcast against one observation or action.
    """

    low: np.ndarray
    span: np.ndarray
    gain: float
    shift: float

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Restore from plain data."""
        low, span = (np.asarray(data[name], np.float32) for name in ("low", "span"))
        return cls(low, span, float(data["gain"]), float(data["shift"]))

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` restores it."""
        return {
            "low": self.low.tolist(),
            "span": self.span.tolist(),
            "gain": self.gain,
            "shift": self.shift,
        }

    def normalize(self, x: np.ndarray) -> np.ndarray:
        """Bring a value in the robot's units to the policy's."""
        y: np.ndarray = (self.gain * (x - self.low) / self.span + self.shift).astype(np.float32)
        return y

    def restore(self, y: np.ndarray) -> np.ndarray:
        """Bring a value in the policy's units back to the robot's."""
        x: np.ndarray = ((y - self.shift) / self.gain * self.span + self.low).astype(np.float32)
        return x
