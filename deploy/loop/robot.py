"""The robot as the control loop sees it, and what else one may have.

A robot is any object with `observe()` and `act(action)`. All other protocols here are optional, each by
itself: a robot has an ability if it has the members of that name, whoever wraps it.
"""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar, cast

import numpy as np

from vivace.policies.spec import Observation

_Ability = TypeVar("_Ability")


class Acts(Protocol):
    """Anything that can be told an action."""

    def act(self, action: np.ndarray) -> None:
        """Execute one action (A,) in the robot's units."""


class Robot(Acts, Protocol):
    """Anything that can be observed and acted on, once a control period."""

    def observe(self) -> Observation:
        """Return what is seen now."""


class Traits(Protocol):
    """What a robot may say of itself; each is read by `trait`."""

    action_names: Sequence[str] | None
    """Names of the action's dimensions, in order; limits files use them."""
    action_kinds: Sequence[str] | None
    """What each dimension means: absolute, delta, velocity, unknown; else the names may say it."""
    initial_action: Sequence[float] | None
    """What to hold before the first action, such as the present posture."""
    is_simulated: bool
    """Nothing moves in the world, so that it may do without limits."""
    is_shareable: bool
    """`act` may be called by one thread while another is in `observe`."""


_UNSAID = {"action_names": None, "action_kinds": None, "initial_action": None}
"""What a robot that is silent means; of the others: False."""


class Resets(Protocol):
    """It is told when an episode begins."""

    def reset(self, seed: int) -> None:
        """Begin the episode that a seed decides."""


class Ends(Protocol):
    """Its episodes end by themselves."""

    is_over: bool
    """The episode has ended."""


class Judges(Protocol):
    """It knows how an episode went."""

    is_success: bool
    """The task is done."""


class Closes(Protocol):
    """It is let go of at the end, whatever happened."""

    def close(self) -> None:
        """Let go."""


class Listens(Protocol):
    """It knows whether what it was told last arrived."""

    has_reached: bool
    """The last action was taken."""


class Told(Acts, Listens, Protocol):
    """It knows what it was told, as `PatientRobot` does."""

    last: np.ndarray | None
    """What it was told last (A,), None if nothing."""


class HasSecondWay(Protocol):
    """Its motors can be reached in another way too, which the dead man's switch takes."""

    def standstill_connection(self) -> Acts | None:
        """Connect; what is returned may have `close` too."""


class Films(Protocol):
    """It can draw what happened."""

    film_fps: float
    """Frames a second that play it as fast as it happened."""

    def film(self) -> list[tuple[int, np.ndarray]]:
        """Return (number of the action that follows, frame (H, W, 3) uint8) of the last seconds."""


class Measures(Protocol):
    """It measures something of what it is told."""

    measured: dict[str, Any]
    """What, as plain data."""


class Guarded(Protocol):
    """It has a dead man's switch."""

    deadman: dict[str, Any]
    """What the switch was and did, as plain data."""


def able(robot: object, ability: type[_Ability]) -> _Ability | None:
    """Return a robot as one that has an ability, None if it lacks a member of it."""
    declared = [name for kind in ability.__mro__ for name in (*vars(kind), *inspect.get_annotations(kind))]
    names = {name for name in declared if not name.startswith("_")}
    return cast(_Ability, robot) if all(hasattr(robot, name) for name in names) else None


def trait(robot: object, name: str) -> Any:
    """Return what a robot says of itself, a member of `Traits`; what its silence means if it does not."""
    return getattr(robot, name, _UNSAID.get(name, False))
