"""ROS 2 messages of numbers as vectors; needs no ROS: messages are read by the names of their fields.

Every message is checked whole before anything of it is used; one that does not fit raises
`ObservationMismatch` with one line that says why. Pictures are read in `images`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vivace.policies.errors import ObservationMismatch
from vivace.policies.plain_data import shown

FIELDS = ("position", "velocity", "effort")
"""What a JointState says of each joint."""
_MOST_JOINTS = 4096
_UNIT = 0.01
"""A quaternion's length may differ from 1 by so much."""


def stamp_s(stamp: Any) -> float:
    """Return a `builtin_interfaces/Time` in seconds."""
    return float(stamp.sec) + float(stamp.nanosec) * 1e-9


def joints(
    message: Any, names: Sequence[str], fields: Sequence[str] = ("position",)
) -> dict[str, np.ndarray]:
    """Return what a `sensor_msgs/JointState` says of the policy's joints.

    Args:
        message: its joints may come in any order, be more than the policy's, or be a part of them.
        names: the policy's joints.
        fields: of `FIELDS`.

    Returns:
        Joint -> one number for each field, float32; empty if it says nothing of these joints.
    """
    if len(message.name) > _MOST_JOINTS:
        raise ObservationMismatch(
            f"{len(message.name)} joints in a message; at most {_MOST_JOINTS} are read: look at the driver"
        )
    found = [str(name) for name in message.name]
    if len(set(found)) != len(found):
        raise ObservationMismatch(f"joints come twice in {some(found)}; every joint needs one name")
    place = {name: index for index, name in enumerate(found)}
    order = [place[name] for name in names if name in place]
    if not order:
        return {}
    parts = []
    for field in fields:
        values = np.asarray(getattr(message, field), np.float64)
        if values.shape != (len(found),):
            raise ObservationMismatch(
                f"{values.size} numbers in {field} for {len(found)} joints; the driver must give one each"
            )
        parts.append(values[order])
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused
        table = np.stack(parts, axis=1).astype(np.float32)  # (joints, fields)
    bad = [found[order[i]] for i in np.flatnonzero(~np.isfinite(table).all(axis=1))]
    if bad:
        raise ObservationMismatch(f"joints {some(bad)} are NaN or infinite; look at the sensor")
    return {found[index]: table[i] for i, index in enumerate(order)}


def pose(message: Any, frame: str, *, needs_rotation: bool) -> np.ndarray:
    """Return a `geometry_msgs/PoseStamped` or `TransformStamped` as (7,): x, y, z, qx, qy, qz, qw, float64.

    Args:
        message: in that frame.
        frame: what its header must say.
        needs_rotation: whether its quaternion is used; it must be of unit length then.
    """
    said = str(message.header.frame_id)
    if said != frame:
        raise ObservationMismatch(
            f"a pose is in frame {shown(said)}, pose.frame says {frame!r}; set it, or transform the poses"
        )
    if hasattr(message, "transform"):
        at, turned = message.transform.translation, message.transform.rotation
    else:
        at, turned = message.pose.position, message.pose.orientation
    found = np.array([at.x, at.y, at.z, turned.x, turned.y, turned.z, turned.w], np.float64)
    used = found if needs_rotation else found[:3]
    if not np.isfinite(used).all() or np.abs(used).max() > np.finfo(np.float32).max:
        raise ObservationMismatch("a pose is NaN or infinite; look at what publishes it")
    length = float(np.linalg.norm(found[3:]))
    if not needs_rotation:
        found[3:] = 0.0, 0.0, 0.0, 1.0
    elif abs(length - 1.0) > _UNIT:
        raise ObservationMismatch(
            f"a pose's quaternion has length {length:.3g}; needed: 1, look at what publishes it"
        )
    else:
        found[3:] /= length
    return found


def array(message: Any, size: int) -> np.ndarray:
    """Return a `std_msgs/Float64MultiArray` as (size,), float32."""
    if len(message.data) != size:
        raise ObservationMismatch(f"{len(message.data)} numbers in an array; the policy needs {size}")
    values = np.asarray(message.data, np.float64).reshape(size)
    with np.errstate(over="ignore"):
        vector = values.astype(np.float32)
    if not np.isfinite(vector).all():
        raise ObservationMismatch("an array holds NaN or infinity; look at what publishes it")
    return vector


def some(names: Sequence[str], most: int = 6) -> str:
    """Names as a list that stays one line."""
    listed = ", ".join(shown(name) for name in names[:most])
    return f"[{listed}{f', … {len(names)} in all' if len(names) > most else ''}]"
