"""Robots by name: what `vivace run` drives.

What a robot is, and what it may have besides, is in `deploy.loop.robot`.

A package offers robots as entry points of the group "vivace.robots": name -> a function that takes keyword
options and returns a robot. Of `spec` (a `PolicySpec`), `control_hz`, `instruction` and `task` it is given
those that it names among its parameters.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from vivace.deploy.loop.robot import Robot, trait
from vivace.policies.action_kinds import kinds_of_names, read_kinds, settle_kinds
from vivace.policies.arrays import enter_observations, observation_layout
from vivace.policies.errors import BadBundle, BadSetting, ObservationMismatch
from vivace.policies.extras import how_to_install
from vivace.policies.spec import ActionKind, Observation, PolicySpec

GROUP = "vivace.robots"


def robot_names() -> tuple[str, ...]:
    """Names of the robots that installed packages offer."""
    return tuple(sorted({point.name for point in entry_points(group=GROUP)}))


def make_robot(kind: str, options: Mapping[str, Any], context: Mapping[str, Any]) -> Robot:
    """Make a robot.

    Args:
        kind: one of `robot_names()`, or "package.module:function".
        options: what the user asked for; the function must know every one.
        context: what the run knows, such as "spec"; the function is given what it names.

    Raises:
        BadSetting: there is no such robot, it cannot be imported, or it does not take an option.
    """
    factory = _factory(kind)
    parameters = inspect.signature(factory).parameters
    known = {name: value for name, value in context.items() if name in parameters}
    try:
        inspect.signature(factory).bind(**(known | dict(options)))
    except TypeError as error:
        takes = ", ".join(name for name in parameters if name not in context) or "no options"
        raise BadSetting(f"robot {kind!r}: {error}; it takes {takes}") from error
    robot: Robot = factory(**(known | dict(options)))
    missing = [name for name in ("observe", "act") if not callable(getattr(robot, name, None))]
    if missing:
        raise BadSetting(
            f"robot {kind!r} is a {type(robot).__name__} without {' and '.join(missing)}; a robot has "
            "observe() and act(action)"
        )
    return robot


def is_simulated(kind: str) -> bool:
    """Whether a robot stands still when nobody steps it: the class says so that its function returns.

    Raises:
        BadSetting: as of `make_robot`.
    """
    made = inspect.signature(_factory(kind)).return_annotation
    return getattr(made, "is_simulated", False) is True


def _factory(kind: str) -> Callable[..., Any]:
    if ":" in kind:
        place = kind
    else:
        places = {point.name: point.value for point in entry_points(group=GROUP)}
        if kind not in places:
            raise BadSetting(
                f"robot {kind!r} is not known; known: {', '.join(sorted(places)) or 'none'}, or give "
                "package.module:function (a package just installed offers its robots after pip install)"
            )
        place = places[kind]
    module, _, name = place.partition(":")
    try:
        factory: Callable[..., Any] = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        needs = how_to_install(error) if isinstance(error, ImportError) else ""
        raise BadSetting(
            f"robot {kind!r} cannot be imported from {place} ({error}); {needs or 'install it'}"
        ) from error
    return factory


def action_names(robot: Robot, spec: PolicySpec) -> tuple[str, ...]:
    """Names of the action's dimensions: the robot's, else "0", "1", "2" and so on.

    Raises:
        BadBundle: the robot has another number of dimensions than the policy.
        BadSetting: it has a name twice.
    """
    names = trait(robot, "action_names")
    if names is None:
        return tuple(str(i) for i in range(spec.action_dim))
    if len(names) != spec.action_dim:
        raise BadBundle(
            f"the robot's actions have {len(names)} dimensions ({', '.join(names)}), the bundle's "
            f"{spec.action_dim}; take a bundle of a policy that was trained for this robot"
        )
    if len(set(names)) < len(names):
        raise BadSetting(f"the robot's action_names are {', '.join(names)}; each may be there once")
    return tuple(names)


def action_kinds(
    robot: Robot, names: Sequence[str], spec: PolicySpec, given: Sequence[str] = ()
) -> tuple[ActionKind, ...]:
    """What the dimensions of a robot's actions mean, from the user, the robot and the bundle.

    Raises:
        BadSetting: nobody says it of all dimensions, or the user contradicts the robot.
        BadBundle: bundle and robot contradict each other.
    """
    said = read_kinds(given, spec.action_dim, "--robot.action_kinds")
    own = trait(robot, "action_kinds")
    its = kinds_of_names(names)
    if own is not None:
        its = read_kinds(tuple(own), spec.action_dim, "the robot's action_kinds", (ActionKind.UNKNOWN,))
    return settle_kinds(names, spec.action_kinds, its, said)


def initial_action(robot: Robot, spec: PolicySpec, given: tuple[float, ...] = ()) -> tuple[float, ...]:
    """What is held before the first action: given, else the robot's targets, else zeros where these are safe.

    Raises:
        BadSetting: nobody says it and some dimensions are absolute targets, or it has another size.
    """
    found = given or trait(robot, "initial_action")
    if found is None:
        if ActionKind.ABSOLUTE in spec.action_kinds:
            raise BadSetting(
                "the robot does not say what to hold before the first action, and zeros would move it: give "
                "it an attribute initial_action, or --robot.initial_action='[…]'"
            )
        return (0.0,) * spec.action_dim
    action = tuple(float(value) for value in found)
    if not given and len(action) == spec.action_dim:  # a speed that is measured is none to hold
        is_held = (kind == ActionKind.ABSOLUTE for kind in spec.action_kinds)
        action = tuple(value * held for value, held in zip(action, is_held, strict=True))
    if len(action) != spec.action_dim or not np.isfinite(action).all():
        raise BadSetting(
            f"initial_action {list(action)} has {len(action)} numbers; {spec.action_dim} finite ones are "
            "needed"
        )
    return action


def check_robot(robot: Robot, spec: PolicySpec) -> None:
    """Observe once, and check that a policy can use what is seen.

    Raises:
        ObservationMismatch: a key is missing, a shape differs or a value is not finite.
    """
    seen = robot.observe()
    if not isinstance(seen, Observation):
        raise ObservationMismatch(
            f"the robot's observe() returned a {type(seen).__name__}; return a vivace.policies.Observation"
        )
    layout = {key: (shape[1:], dtype) for key, (shape, dtype) in observation_layout(spec).items()}
    enter_observations(seen.values, layout)
