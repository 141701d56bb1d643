"""Which topics give a policy's inputs, and what becomes of messages; plain objects stand for them."""

from dataclasses import replace
from types import SimpleNamespace as Message

import numpy as np
import pytest
from ros2_policy import SPEC as TWO_JOINTS
from ros2_policy import wide

from vivace.deploy.ros2.driver import measured_positions
from vivace.deploy.ros2.messages.sensors import Sensors
from vivace.deploy.ros2.parameters.fit import fit
from vivace.deploy.ros2.parameters.settings import RosSettings
from vivace.deploy.ros2.sources import make_sensors, sources
from vivace.policies.spec import ActionKind

STATE, ENVIRONMENT, IMAGE = "observation.state", "observation.environment_state", "observation.image"
SPEC = replace(
    TWO_JOINTS,
    action_dim=8,
    observation_shapes={STATE: (11,), IMAGE: (3, 2, 4), ENVIRONMENT: (2,)},
    action_kinds=(ActionKind.ABSOLUTE,) * 8,
    action_range=wide(8),
)
SETTINGS = RosSettings(
    control_hz=10.0,
    joint_states=("arm/joint_states", "hand/joint_states"),
    joint_names=("b", "a"),
    joint_fields=("velocity", "position"),
    state_parts=("pose", "joints"),
    pose_topic="tool",
    pose_frame="base",
    pose_layout=("xyz", "quaternion_wxyz"),
    environment_topic="keypoints",
    cameras=("observation.image=top",),
    camera_fit=("stretch",),
    command_type="pose",
    command_layout=("xyz", "quaternion", "other"),
    command_frame="base",
    command_names=("", "", "", "", "", "", "", "b"),
)


def stamped(second, **fields):
    stamp = Message(sec=int(second), nanosec=round(second % 1 * 1e9))
    return Message(header=Message(stamp=stamp, frame_id="base"), **fields)


def joints(second, name, position, velocity):
    return stamped(second, name=[name], position=[position], velocity=[velocity], effort=[])


def posed(second):
    at, turned = Message(x=1.0, y=2.0, z=3.0), Message(x=0.6, y=0.0, z=0.0, w=0.8)
    return stamped(second, pose=Message(position=at, orientation=turned))


def test_every_input_has_its_topics():
    found = [(s.key, s.kind, s.topic) for s in sources(SETTINGS, SPEC)]
    assert found == [
        (STATE, "JointState", "arm/joint_states"),
        (STATE, "JointState", "hand/joint_states"),
        (STATE, "PoseStamped", "tool"),
        (IMAGE, "Image", "top"),
        (ENVIRONMENT, "Float64MultiArray", "keypoints"),
    ]
    others = replace(SETTINGS, pose_type="transform", cameras=("observation.image=top/compressed",))
    assert {s.kind for s in sources(others, SPEC)} >= {"TransformStamped", "CompressedImage"}


def test_an_observation_is_put_together_of_all_topics():
    spec = fit(SETTINGS, SPEC)
    given = sources(SETTINGS, spec)
    sensors = Sensors(make_sensors(SETTINGS, spec, given, lambda topic: f"/{topic}"), 0.2)
    assert sensors.why_not(10).startswith(
        f"waiting for {STATE} on /arm/joint_states (JointState) and /hand/joint_states (JointState) and /tool"
    )
    arm, hand, tool, top, keypoints = given
    picture = stamped(10.0, encoding="rgb8", width=8, height=2, step=24, data=bytes(range(48)))
    for source, message in (
        (arm, joints(9.99, "a", 1.0, 10.0)),
        (hand, joints(9.98, "b", 2.0, 20.0)),
        (tool, posed(9.97)),
        (top, picture),
        (keypoints, Message(data=[5.0, 6.0])),
    ):
        assert sensors.take(source.key, message, 10.0, source.read) == ""
    assert sensors.why_not(10.0) == ""
    values, stamp = sensors.newest()
    assert stamp == pytest.approx(9.97)
    assert values[STATE].tolist() == pytest.approx([1, 2, 3, 0.8, 0.6, 0, 0, 20, 10, 2, 1])
    assert values[STATE].dtype == np.float32
    assert values[IMAGE].shape == (2, 4, 3)
    assert values[ENVIRONMENT].tolist() == [5, 6]
    posture = measured_positions(SETTINGS, sensors, 8)
    assert posture.tolist() == pytest.approx([1, 2, 3, 0.6, 0, 0, 0.8, 2]), "in the order of the command"
    wrong = stamped(10.0, name=["a"], position=[1.0], velocity=[], effort=[])
    assert sensors.take(STATE, wrong, 10.0, arm.read).startswith("0 numbers in velocity for 1 joints")
