"""Poses and twists as numbers in the order a policy was trained on, and back; needs no ROS.

A pose is (7,): x, y, z [m] and a unit quaternion x, y, z, w, as in `geometry_msgs/Pose`. A layout lists what
its numbers are:

    x, y, z, xyz       position
    quaternion         x, y, z, w as it is published: q and -q are the same rotation
    quaternion_wxyz    w first
    rpy                roll, pitch, yaw about the fixed axes x, y, z, as in URDF [rad]
    rotvec             axis times angle, 0 to pi [rad]
    rot6d_rows         first two rows of the rotation matrix (pytorch3d, Diffusion Policy, robomimic)
    rot6d_columns      its first two columns (Zhou et al. 2019, arXiv 1812.07035)
    yaw                angle about z [rad]; in a command it turns the fixed rotation

A twist is (6,): the linear velocity, then the angular one. Its layout lists linear, angular, or linear.x to
angular.z.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vivace.policies.errors import BadSetting

POSITIONS = {"x": 1, "y": 1, "z": 1, "xyz": 3}
ROTATIONS = {
    "quaternion": 4,
    "quaternion_wxyz": 4,
    "rpy": 3,
    "rotvec": 3,
    "rot6d_rows": 6,
    "rot6d_columns": 6,
    "yaw": 1,
}
SIZES: Mapping[str, int] = {**POSITIONS, **ROTATIONS}
"""Entry of a layout -> how many numbers it has."""
_TWIST = tuple(f"{part}.{axis}" for part in ("linear", "angular") for axis in "xyz")
TWIST_SIZES: Mapping[str, int] = {"linear": 3, "angular": 3, **dict.fromkeys(_TWIST, 1)}
OTHER = "other"
"""Entry of a command's layout: a number that is none of the pose's or twist's, such as a gripper's."""
_DEGENERATE = 0.5
"""What is shorter than this, where a unit length is meant, has no direction to be trusted."""


def check_layout(name: str, layout: Iterable[str], known: Mapping[str, int]) -> None:
    """Check a layout.

    Raises:
        BadSetting: an entry is unknown, or says what another says too.
    """
    said: list[str] = []
    for entry in layout:
        if entry == OTHER:
            continue
        if entry not in known:
            raise BadSetting(f"{name} has {entry!r}; needed: some of {', '.join([*known, OTHER])}")
        said += _axes(entry)
    if len(set(said)) < len(said):
        raise BadSetting(f"{name} {list(layout)} says something twice; every axis, and one rotation, once")


def places(layout: Sequence[str], sizes: Mapping[str, int] = SIZES) -> list[tuple[str, slice]]:
    """Each entry of a layout, and where its numbers are."""
    found, start = [], 0
    for entry in layout:
        size = sizes.get(entry, 1)
        found.append((entry, slice(start, start + size)))
        start += size
    return found


def size_of(layout: Sequence[str], sizes: Mapping[str, int] = SIZES) -> int:
    """How many numbers a layout has."""
    return sum(sizes.get(entry, 1) for entry in layout)


def numbers(pose: np.ndarray, layout: Sequence[str], fixed: Sequence[float] = ()) -> np.ndarray:
    """Return a pose (7,) as the numbers of a layout, float64; `other` is NaN. `fixed` as in `pose_of`."""
    found = np.full(size_of(layout), np.nan)
    for entry, place in places(layout):
        if entry in POSITIONS:
            found[place] = [pose["xyz".index(axis)] for axis in entry]
        elif entry in ROTATIONS:
            turned = pose[3:]
            if entry == "yaw" and fixed:
                turned = _times(turned, np.asarray(fixed[3:]) * [-1, -1, -1, 1])
            found[place] = _rotation_numbers(turned, entry)
    return found


def pose_of(values: np.ndarray, layout: Sequence[str], fixed: Sequence[float] = ()) -> np.ndarray | None:
    """Return the pose (7,) that the numbers of a layout mean.

    Args:
        values: finite, as many as the layout has.
        layout: what they are.
        fixed: pose (7,) whose position and rotation hold where the layout says none.

    Returns:
        The pose, its quaternion of unit length; None where the numbers are too far from any rotation.
    """
    pose = np.array(fixed or (0.0,) * 6 + (1.0,), np.float64)
    for entry, place in places(layout):
        if entry in POSITIONS:
            for axis, value in zip(entry, values[place], strict=True):
                pose["xyz".index(axis)] = value
        elif entry in ROTATIONS:
            rotation = _quaternion(np.asarray(values[place], np.float64), entry)
            if rotation is None:
                return None
            pose[3:] = _times(rotation, pose[3:]) if entry == "yaw" else rotation
    return pose


def twist_of(values: np.ndarray, layout: Sequence[str]) -> np.ndarray:
    """Return the twist (6,) that the numbers of a layout mean; zero where it says nothing."""
    twist = np.zeros(6)
    for entry, place in places(layout, TWIST_SIZES):
        if entry != OTHER:
            twist[[_TWIST.index(axis) for axis in _axes(entry)]] = values[place]
    return twist


def others(layout: Sequence[str], sizes: Mapping[str, int] = SIZES) -> list[int]:
    """Dimensions of a layout that are `other`."""
    return [place.start for entry, place in places(layout, sizes) if entry == OTHER]


def _axes(entry: str) -> list[str]:
    """What an entry says."""
    if entry in ROTATIONS:
        return ["rotation"]
    if entry in ("linear", "angular"):
        return [f"{entry}.{axis}" for axis in "xyz"]
    return list("xyz") if entry == "xyz" else [entry]


def _rotation_numbers(q: np.ndarray, entry: str) -> np.ndarray:
    if entry == "quaternion":
        return q
    if entry == "quaternion_wxyz":
        return q[[3, 0, 1, 2]]
    if entry == "rotvec":
        q = q if q[3] >= 0 else -q
        sine = float(np.linalg.norm(q[:3]))
        scale = 2.0 if sine < 1e-9 else 2.0 * np.arctan2(sine, q[3]) / sine
        return np.asarray(scale * q[:3])
    m = _matrix(q)
    if entry == "rot6d_rows":
        return m[:2].ravel()
    if entry == "rot6d_columns":
        return m[:, :2].T.ravel()
    yaw = np.arctan2(m[1, 0], m[0, 0])
    if entry == "yaw":
        return np.array([yaw])
    pitch = np.arctan2(-m[2, 0], np.hypot(m[0, 0], m[1, 0]))
    if np.hypot(m[0, 0], m[1, 0]) < 1e-6:  # straight up or down: roll and yaw turn about one axis
        return np.array([np.arctan2(-m[1, 2], m[1, 1]), pitch, 0.0])
    return np.array([np.arctan2(m[2, 1], m[2, 2]), pitch, yaw])


def _quaternion(values: np.ndarray, entry: str) -> np.ndarray | None:
    """A unit quaternion x, y, z, w; None if the numbers are none."""
    if entry in ("quaternion", "quaternion_wxyz"):
        q = values if entry == "quaternion" else values[[1, 2, 3, 0]]
        length = np.linalg.norm(q)
        return q / length if _DEGENERATE <= length <= 1 / _DEGENERATE else None
    if entry == "rotvec":
        angle = float(np.linalg.norm(values))
        axis = values / angle if angle > 1e-9 else np.zeros(3)
        return np.append(axis * np.sin(angle / 2), np.cos(angle / 2))
    if entry == "yaw":
        return np.array([0.0, 0.0, np.sin(values[0] / 2), np.cos(values[0] / 2)])
    if entry == "rpy":
        turns = [_axis_turn(axis, angle) for axis, angle in enumerate(values)]
        return _times(_times(turns[2], turns[1]), turns[0])
    return _from_two_axes(values[:3], values[3:], are_rows=entry == "rot6d_rows")


def _from_two_axes(first: np.ndarray, second: np.ndarray, *, are_rows: bool) -> np.ndarray | None:
    """Gram-Schmidt, as the networks that predict six numbers are read."""
    length = np.linalg.norm(first)
    if length < _DEGENERATE:
        return None
    a = first / length
    b = second - (a @ second) * a
    if np.linalg.norm(b) < _DEGENERATE:
        return None
    b = b / np.linalg.norm(b)
    m = np.stack([a, b, np.cross(a, b)])
    return _from_matrix(m if are_rows else m.T)


def _axis_turn(axis: int, angle: float) -> np.ndarray:
    q = np.zeros(4)
    q[axis], q[3] = np.sin(angle / 2), np.cos(angle / 2)
    return q


def _times(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The rotation q, then p."""
    vector = p[3] * q[:3] + q[3] * p[:3] + np.cross(p[:3], q[:3])
    return np.append(vector, p[3] * q[3] - p[:3] @ q[:3])


def _matrix(q: np.ndarray) -> np.ndarray:
    x, y, z, w = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _from_matrix(m: np.ndarray) -> np.ndarray:
    """The quaternion of a rotation matrix, by the largest of its four numbers (Shepperd's method)."""
    trace = m[0, 0] + m[1, 1] + m[2, 2]
    squares = np.array([*(1 + 2 * np.diag(m) - trace), 1 + trace])
    i = int(np.argmax(squares))
    crossed = np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
    q = np.empty(4)
    if i == 3:
        q[:3], q[3] = crossed, squares[3]
    else:
        q[:3], q[3] = m[i] + m[:, i], crossed[i]
        q[i] = squares[i]
    return np.asarray(q / np.linalg.norm(q))
