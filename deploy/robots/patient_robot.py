"""A robot whose failures are judged and told, not raised: what `vivace run` drives is wrapped in it.

Drivers raise whatever they like: lerobot's a `RuntimeError` of an overloaded motor, an `OSError` of a camera
that gave no frame. Nothing of that may take the robot away from the loop while it moves.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import numpy as np

from vivace.deploy.loop.robot import Closes, Resets, Robot, able
from vivace.policies.arrays import entered, observation_layout
from vivace.policies.errors import ObservationMismatch, VivaceError
from vivace.policies.spec import Observation, PolicySpec

_CLOSE_S = 30.0
"""How long letting go of a robot may take, which may drive to where it rests [s]."""
_KEPT = 100
"""Errors that are remembered; all are counted."""


class PatientRobot:
    """Passes everything on, and keeps the loop's thread free of the robot's errors.

    An observation that raises, is broken off or does not fit the policy did not come: the one before is
    returned with its time, which then stands still. An action that fails is noted, and the next tick tries
    again. The watchdog decides how long either may go on.

    Args:
        robot: any that `deploy.robots` describes.
        spec: of the policy that looks through it.
        within: takes seconds, a function and its arguments; breaks it off when it takes longer.
        patience_s: how long observing or acting may take [s]; 0: for ever.
    """

    def __init__(
        self,
        robot: Robot,
        spec: PolicySpec,
        within: Callable[..., Any] = lambda seconds, function, *arguments: function(*arguments),
        patience_s: float = 0.0,
    ) -> None:
        self._robot, self._spec, self._within, self._patience_s = robot, spec, within, patience_s
        self._seen: Observation | None = None
        self.last: np.ndarray | None = None
        """What it was told last (A,), whether or not that reached it; None if it was told nothing yet."""
        self.told = 0
        """Actions so far, whether or not they reached it."""
        self.has_reached = True
        """The last action was taken without an error."""
        self.failures: Counter[str] = Counter()
        """"observing", "acting", "closing" -> failures so far."""
        self.errors: deque[str] = deque(maxlen=_KEPT)
        """What the last of them were, newest last."""

    def __getattr__(self, name: str) -> Any:
        """What else the robot has: names, episodes, a film."""
        return getattr(self._robot, name)

    def begin(self, seed: int) -> None:
        """Reset a robot that has episodes; what it was told before says nothing of where it is then."""
        self.last = None
        if (robot := able(self._robot, Resets)) is not None:
            robot.reset(seed)

    def observe(self) -> Observation:
        """Return what is seen now, or what was seen last.

        Raises:
            VivaceError: nothing has been seen so far.
        """
        try:
            seen = self._within(self._patience_s, self._robot.observe)
            check_seen(seen, self._spec)
        except Exception as error:  # whatever a driver raises, the loop must go on
            self._note("observing", error)
            if self._seen is not None:
                return self._seen
            if isinstance(error, VivaceError):
                raise
            raise ObservationMismatch(
                f"the robot does not answer ({type(error).__name__}: {error}); check its cables and cameras"
            ) from error
        self._seen = seen
        return self._seen

    def act(self, action: np.ndarray) -> None:
        """Tell the robot one action (A,)."""
        self.last, self.has_reached = action, False
        self.told += 1
        try:
            self._within(self._patience_s, self._robot.act, action)
            self.has_reached = True
        except Exception as error:  # as above
            self._note("acting", error)

    def close(self) -> None:
        """Let go of the robot, if there is anything to let go of."""
        held = able(self._robot, Closes)
        if held is None:
            return
        try:
            self._within(_CLOSE_S if self._patience_s else 0.0, held.close)
        except Exception as error:  # what comes after, such as the results, must come
            self._note("closing", error)

    def _note(self, what: str, error: Exception) -> None:
        self.failures[what] += 1
        self.errors.append(f"{what}: {type(error).__name__}: {error}")


def check_seen(seen: Observation, spec: PolicySpec) -> None:
    """Check that an observation is one that a policy can use; pictures not yet rendered are left alone.

    Raises:
        ObservationMismatch: it is something else, lacks a key, or an array has another shape, another type
            or values that are not finite.
    """
    if not isinstance(seen, Observation):
        raise ObservationMismatch(
            f"the robot's observe() returned a {type(seen).__name__}; return a vivace.policies.Observation"
        )
    for key, (shape, dtype) in observation_layout(spec).items():
        if key in seen.values:
            entered(f"observation {key!r}", seen.values[key], shape[1:], dtype)
        elif not hasattr(type(seen.values), "__missing__"):  # else it is rendered when it is looked at
            raise ObservationMismatch(
                f"the robot's observation has keys {sorted(seen.values)}, but the policy needs {key!r} of "
                f"shape {shape[1:]}; map your names onto lerobot's keys"
            )
