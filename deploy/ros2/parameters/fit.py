"""Whether the node's parameters fit the policy, and what its commands can say; needs no ROS."""

import math
from dataclasses import replace
from typing import Any

from vivace.deploy.loop.guard import Limits
from vivace.deploy.ros2.messages.command import TWISTS
from vivace.deploy.ros2.messages.pose import (
    OTHER,
    POSITIONS,
    ROTATIONS,
    SIZES,
    TWIST_SIZES,
    check_layout,
    size_of,
)
from vivace.deploy.ros2.parameters.settings import RosSettings
from vivace.policies.action_kinds import kinds_of_names, read_kinds, settle_kinds
from vivace.policies.arrays import is_image
from vivace.policies.errors import BadSetting, ObservationMismatch
from vivace.policies.spec import ENVIRONMENT, IMAGE, IMAGES, STATE, ActionKind, PolicySpec

_POSE_NUMBERS = 7


def fit(settings: RosSettings, spec: PolicySpec) -> PolicySpec:
    """Check the parameters that must fit the policy.

    Returns:
        The policy's spec, its actions meaning what `action_kinds`, names and bundle say.

    Raises:
        BadSetting: sizes or names do not fit, or nobody says what the actions mean.
        BadBundle: bundle and names contradict each other.
        ObservationMismatch: the policy sees what this node cannot give it.
    """
    _check_inputs(settings, spec)
    _check_length("command.names", settings.command_names or None, spec.action_dim)
    _check_length("fallback.initial_action", settings.fallback_initial_action or None, spec.action_dim)
    names = settings.command_names or tuple(map(str, range(spec.action_dim)))
    said = read_kinds(settings.action_kinds, spec.action_dim, "action_kinds")
    kinds = settle_kinds(names, spec.action_kinds, kinds_of_names(names), said, "action_kinds")
    spec = replace(spec, action_kinds=kinds)
    limits = settings.limits(spec)
    if limits.action_dim not in (None, spec.action_dim):
        raise BadSetting(f"limits have {limits.action_dim} numbers, the policy's actions {spec.action_dim}")
    if settings.command_type == "trajectory":
        _check_trajectory(settings, spec)
    if settings.command_type in (*TWISTS, "pose"):
        _check_cartesian(settings, spec)
    _check_posture(settings, spec, limits)
    settings.loop.fresh_actions(spec)
    return spec


def check_rate(settings: RosSettings, spec: PolicySpec, latencies_s: list[float]) -> None:
    """Refuse a rate at which no chunk can be there before all its actions are late.

    Args:
        settings: of the node, with their rate.
        spec: of the policy.
        latencies_s: measured on this machine, of one plan or of each plan of a ladder.

    Raises:
        BadSetting: even the quickest chunk takes longer than its actions last.
    """
    n_action_steps = settings.loop.fresh_actions(spec)
    lasts_s, quickest_s = n_action_steps / settings.control_hz, min(latencies_s)
    if not settings.loop.is_sync and quickest_s > lasts_s:
        raise BadSetting(
            f"a chunk takes {quickest_s * 1e3:.0f} ms on this machine, but its {n_action_steps} actions last "
            f"{lasts_s * 1e3:.0f} ms at {settings.control_hz:g} Hz, so none would be there in time; use a "
            "faster plan, more threads, or mode sync"
        )


def _check_length(name: str, values: tuple[Any, ...] | None, size: int) -> None:
    if values is not None and len(values) != size:
        raise BadSetting(f"{name} has {len(values)} entries, the policy's actions have {size} dimensions")


def _check_inputs(settings: RosSettings, spec: PolicySpec) -> None:
    cameras = settings.camera_topics
    for key, shape in spec.observation_shapes.items():
        if key == STATE:
            _check_state(settings, shape)
        elif key == ENVIRONMENT:
            if not settings.environment_topic:
                raise BadSetting(f"the policy needs {key}; set environment.topic")
        elif is_image(key):
            if key not in cameras:
                raise BadSetting(
                    f"the policy looks through {key}, but cameras has {list(settings.cameras)}; add "
                    f"'{key.removeprefix(IMAGES)}=<topic>'"
                )
        else:
            raise ObservationMismatch(
                f"the policy needs {key!r}; this node gives {STATE}, {ENVIRONMENT}, {IMAGE} and "
                f"{IMAGES}<camera> only"
            )
    unused = [key for key in cameras if key not in spec.observation_shapes]
    if unused:
        raise BadSetting(
            f"cameras names {', '.join(unused)}, which the policy does not look through; it sees "
            f"{', '.join(spec.observation_shapes)}"
        )


def _check_state(settings: RosSettings, shape: tuple[int, ...]) -> None:
    sizes = {
        "joints": len(settings.joint_names) * len(settings.joint_fields),
        "pose": size_of(settings.pose_layout),
    }
    if "pose" in settings.state_parts and not (settings.pose_topic and settings.pose_layout):
        raise BadSetting("state_parts has pose, which needs pose.topic, pose.layout and pose.frame")
    if OTHER in settings.pose_layout:
        raise BadSetting("pose.layout has 'other', which a pose has not; put joints into state_parts")
    if sum(sizes[part] for part in settings.state_parts) == shape[0]:
        return
    said = f"joint_names has {len(settings.joint_names)} joints with {len(settings.joint_fields)} fields"
    if "pose" in settings.state_parts:
        said += f", pose.layout {sizes['pose']} numbers"
    raise BadSetting(f"{said}, the policy's {STATE} has {shape[0]} numbers; name them in its order")


def _check_posture(settings: RosSettings, spec: PolicySpec, limits: Limits) -> None:
    """Limits of change need to know what the first change is measured from."""
    is_learned = limits.max_step and not (settings.limits_max_step or settings.limits_file)
    if settings.fallback_initial_action or is_learned or not (limits.max_step or limits.has_rates):
        return
    known = _measured(settings, spec)
    if any(k == ActionKind.ABSOLUTE and not m for m, k in zip(known, spec.action_kinds, strict=True)):
        raise BadSetting(
            "limits of step, speed or acceleration of absolute targets need to know where the robot is; name "
            "its joints in command.names and joint_names, or give fallback.initial_action"
        )


def _measured(settings: RosSettings, spec: PolicySpec) -> list[bool]:
    """Whether each action dimension's present value can be seen."""
    joints = settings.joint_names if STATE in spec.observation_shapes else ()
    joints = joints if "joints" in settings.state_parts and "position" in settings.joint_fields else ()
    found = [name in joints for name in settings.command_names or ("",) * spec.action_dim]
    if settings.sees_commanded_pose:
        at = [entry != OTHER for entry in settings.command_layout for _ in range(SIZES.get(entry, 1))]
        found = [a or b for a, b in zip(at, found, strict=True)]
    return found


def _check_trajectory(settings: RosSettings, spec: PolicySpec) -> None:
    kinds = set(spec.action_kinds)
    if not settings.command_names:
        raise BadSetting("command.type=trajectory needs command.names: the joint of each action dimension")
    if ActionKind.VELOCITY in kinds and len(kinds) > 1:
        raise BadSetting(
            f"a trajectory holds positions or velocities, but the actions are {', '.join(sorted(kinds))}; "
            "use command.type=array"
        )
    unknown = [
        name
        for name, kind in zip(settings.command_names, spec.action_kinds, strict=True)
        if kind == ActionKind.DELTA and name not in settings.joint_names
    ]
    if unknown or (ActionKind.DELTA in kinds and "position" not in settings.joint_fields):
        raise BadSetting(
            f"displacements of {', '.join(unknown or settings.command_names)} need the measured positions to "
            "start from; add them to joint_names, or use command.type=array"
        )


def _check_cartesian(settings: RosSettings, spec: PolicySpec) -> None:
    """A twist or a pose must say what each dimension is, and the kinds must be its own."""
    layout, is_pose = settings.command_layout, settings.command_type == "pose"
    sizes = SIZES if is_pose else TWIST_SIZES
    check_layout("command.layout", layout, sizes)
    if size_of(layout, sizes) != spec.action_dim:
        raise BadSetting(
            f"command.layout {list(layout)} has {size_of(layout, sizes)} numbers, the policy's actions "
            f"{spec.action_dim}; name them in its order"
        )
    if settings.command_type != "twist" and not settings.command_frame:
        raise BadSetting(f"command.type={settings.command_type} needs command.frame")
    entries = [entry for entry in layout for _ in range(sizes.get(entry, 1))]
    for entry, kind in zip(entries, spec.action_kinds, strict=True):
        if entry == OTHER or (kind == ActionKind.ABSOLUTE) == is_pose:
            continue
        raise BadSetting(
            f"{entry} of command.layout is {kind} by action_kinds; a pose is made of absolute targets, a "
            f"twist of velocities or displacements: use command.type={'twist' if is_pose else 'pose'}"
        )
    if not is_pose:
        return
    said = {axis for entry in layout if entry in POSITIONS for axis in entry}
    is_whole = said == set("xyz") and any(entry in ROTATIONS and entry != "yaw" for entry in layout)
    fixed = settings.command_fixed
    if (fixed or not is_whole) and (len(fixed) != _POSE_NUMBERS or abs(math.hypot(*fixed[3:]) - 1.0) > 0.01):
        raise BadSetting(
            f"command.fixed is {list(fixed)}, and command.layout {list(layout)}; what a layout leaves open "
            "of a pose is given there: x y z [m], and a unit quaternion qx qy qz qw"
        )
