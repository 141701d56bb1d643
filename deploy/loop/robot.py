"""The robot as the control loop sees it."""

from typing import Protocol

import numpy as np

from vivace.policies.spec import Observation


class Robot(Protocol):
    """Anything that can be observed and acted on, once a control period."""

    def observe(self) -> Observation:
        """Return what is seen now."""

    def act(self, action: np.ndarray) -> None:
        """Execute one action (A,) in the robot's units."""
