"""Poses as numbers and back, against scipy."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from vivace.deploy.ros2.messages.pose import ROTATIONS, numbers, others, pose_of, twist_of

QUATERNIONS = np.concatenate(
    [
        Rotation.random(200, rng=0).as_quat(),
        [[0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, np.sqrt(0.5), 0, np.sqrt(0.5)]],
    ]
)
TRUTH = {
    "quaternion": lambda r, q: q,
    "quaternion_wxyz": lambda r, q: q[[3, 0, 1, 2]],
    "rpy": lambda r, q: r.as_euler("xyz"),
    "rotvec": lambda r, q: r.as_rotvec(),
    "rot6d_rows": lambda r, q: r.as_matrix()[:2].ravel(),
    "rot6d_columns": lambda r, q: r.as_matrix()[:, :2].T.ravel(),
}


@pytest.mark.parametrize("entry", TRUTH)
@pytest.mark.filterwarnings("ignore:Gimbal")
def test_a_rotation_is_as_in_scipy(entry):
    for q in QUATERNIONS[:200]:
        found = numbers(np.array([1.0, 2, 3, *q]), [entry])
        np.testing.assert_allclose(found, TRUTH[entry](Rotation.from_quat(q), q), atol=1e-9)


@pytest.mark.parametrize("entry", TRUTH)
def test_numbers_mean_the_pose_they_are_of(entry):
    layout = ["z", entry, "x", "y"]
    for q in QUATERNIONS:
        pose = np.array([1.0, 2, 3, *q])
        back = pose_of(numbers(pose, layout), layout)
        np.testing.assert_allclose(back[:3], pose[:3])
        assert abs(back[3:] @ q) == pytest.approx(1.0, abs=1e-9)


def test_yaw_turns_the_fixed_rotation():
    down = (0.0, 0.0, 0.2, 1.0, 0.0, 0.0, 0.0)  # a gripper that points down
    pose = pose_of(np.array([0.1, 0.3]), ["x", "yaw"], down)
    wanted = Rotation.from_euler("z", 0.3) * Rotation.from_quat(down[3:])
    np.testing.assert_allclose(pose[:3], [0.1, 0, 0.2])
    assert abs(pose[3:] @ wanted.as_quat()) == pytest.approx(1.0)
    np.testing.assert_allclose(numbers(pose, ["x", "yaw"], down), [0.1, 0.3])
    assert numbers(np.array([0, 0, 0, 0, 0, np.sin(0.2), np.cos(0.2)]), ["yaw"]) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("entry", "values"),
    [
        ("quaternion", [0, 0, 0, 0]),
        ("quaternion", [0, 0, 0, 5]),
        ("quaternion_wxyz", [0.1, 0, 0, 0]),
        ("rot6d_rows", [0, 0, 0, 0, 1, 0]),
        ("rot6d_columns", [1, 0, 0, 1, 0.1, 0]),
    ],
)
def test_numbers_that_are_no_rotation_are_no_pose(entry, values):
    assert pose_of(np.array(values, float), [entry]) is None
    assert len(values) == ROTATIONS[entry]


def test_numbers_that_are_nearly_a_rotation_are_made_one():
    assert pose_of(np.array([0, 0, 1.0, 1.2]), ["quaternion"])[3:] @ [0, 0, 1.0, 1.2] == pytest.approx(
        np.hypot(1, 1.2)
    )
    q = pose_of(np.array([1.1, 0, 0, 0.1, 0.9, 0]), ["rot6d_rows"])[3:]
    assert q.tolist() == pytest.approx([0, 0, 0, 1])


def test_a_twist_is_six_numbers():
    assert twist_of(
        np.array([1.0, 2, 9, 3, 4, 5]),
        ["linear.x", "angular.z", "other", "angular.x", "linear.z", "linear.y"],
    ).tolist() == [1, 5, 4, 3, 0, 2]
    assert twist_of(np.arange(6.0), ["angular", "linear"]).tolist() == [3, 4, 5, 0, 1, 2]
    assert others(["xyz", "other", "rpy", "other"]) == [3, 7]
