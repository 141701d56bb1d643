"""What goes over ROS 2 topics: message types, QoS, parameter descriptors, messages from plain values."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.duration import Duration
from rclpy.qos import QoSProfile
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image, JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vivace.deploy import ros2_messages as messages
from vivace.deploy.ros2_command import Trajectory
from vivace.deploy.ros2_diagnostics import Status
from vivace.deploy.ros2_sensors import Sensor
from vivace.deploy.ros2_settings import STATE, Parameter, RosSettings
from vivace.policies.types import PolicySpec


def topic_of(settings: RosSettings, key: str) -> tuple[type, str]:
    """Message type and topic of an observation's key."""
    if key == STATE:
        return JointState, settings.joint_states
    topic = settings.camera_topics[key]
    return (CompressedImage if topic.endswith("/compressed") else Image), topic


def make_sensors(settings: RosSettings, spec: PolicySpec, resolve: Callable[[str], str]) -> dict[str, Sensor]:
    """Make what reads each of the policy's inputs.

    Args:
        settings: of the node.
        spec: of the policy.
        resolve: topic -> its full name, remapped.
    """
    found = {}
    for key, shape in spec.observation_shapes.items():
        kind, topic = topic_of(settings, key)
        read: Callable[[Any], np.ndarray]
        if kind is JointState:
            read = partial(messages.joints, names=settings.joint_names, fields=settings.joint_fields)
        else:
            convert = messages.image if kind is Image else messages.compressed_image
            read = partial(convert, shape=shape)
        found[key] = Sensor(f"{resolve(topic)} ({kind.__name__})", read)
    return found


def descriptor(parameter: Parameter) -> ParameterDescriptor:
    """Describe a parameter; numbers and lists take whole numbers too, so ROS must not fix their type."""
    is_loose = isinstance(parameter.default, list | float)
    found = ParameterDescriptor(description=parameter.description, dynamic_typing=is_loose)
    if isinstance(parameter.default, float):
        found.floating_point_range = [FloatingPointRange(from_value=parameter.low, to_value=parameter.high)]
    elif parameter.low is not None:
        found.integer_range = [IntegerRange(from_value=int(parameter.low), to_value=int(parameter.high or 0))]
    return found


def with_deadline(profile: QoSProfile, deadline_s: float) -> QoSProfile:
    """Give a profile a deadline [s]; 0: none."""
    if deadline_s > 0:
        profile.deadline = Duration(seconds=deadline_s)
    return profile


def trajectory_message(trajectory: Trajectory) -> JointTrajectory:
    """A trajectory as a message."""
    message = JointTrajectory(joint_names=list(trajectory.names))
    message.header.stamp = Time(nanoseconds=round(trajectory.stamp_s * 1e9)).to_msg()
    for i, time_s in enumerate(trajectory.times_s):
        point = JointTrajectoryPoint(time_from_start=Duration(seconds=time_s).to_msg())
        if trajectory.positions is not None:
            point.positions = trajectory.positions[i].tolist()
        if trajectory.velocities is not None:
            point.velocities = trajectory.velocities[i].tolist()
        message.points.append(point)
    return message


def diagnostic_message(node: str, status: Status) -> DiagnosticStatus:
    """A status as a message of a node."""
    return DiagnosticStatus(
        level=bytes([status.level]),
        name=f"{node.strip('/')}: {status.name}",
        message=status.message,
        hardware_id="vivace",
        values=[KeyValue(key=key, value=value) for key, value in status.values.items()],
    )
