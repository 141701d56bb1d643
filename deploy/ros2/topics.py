"""What goes over ROS 2 topics: message types, QoS, parameter descriptors, messages from plain values."""

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus, KeyValue
from geometry_msgs.msg import Point, Pose, PoseStamped, Quaternion, TransformStamped, Twist, Vector3
from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.duration import Duration
from rclpy.qos import QoSProfile
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from vivace.deploy.ros2.diagnostics import Status
from vivace.deploy.ros2.messages.command import Trajectory
from vivace.deploy.ros2.parameters.parameters import Parameter

KINDS = {
    kind.__name__: kind
    for kind in (JointState, PoseStamped, TransformStamped, Float64MultiArray, Image, CompressedImage)
}
"""Name -> type of the messages that sensors send."""


def descriptor(parameter: Parameter) -> ParameterDescriptor:
    """Describe a parameter; numbers and lists take whole numbers too, so ROS must not fix their type."""
    is_loose = isinstance(parameter.default, list | float)
    found = ParameterDescriptor(description=parameter.description, dynamic_typing=is_loose)
    if parameter.low is None or parameter.high is None:
        return found
    if isinstance(parameter.default, float):
        found.floating_point_range = [FloatingPointRange(from_value=parameter.low, to_value=parameter.high)]
    else:
        found.integer_range = [IntegerRange(from_value=int(parameter.low), to_value=int(parameter.high))]
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


def twist_message(twist: np.ndarray) -> Twist:
    """A twist (6,) as a message."""
    x, y, z, roll, pitch, yaw = map(float, twist)
    return Twist(linear=Vector3(x=x, y=y, z=z), angular=Vector3(x=roll, y=pitch, z=yaw))


def pose_message(pose: np.ndarray) -> Pose:
    """A pose (7,) as a message."""
    x, y, z, qx, qy, qz, qw = map(float, pose)
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))


def diagnostic_message(node: str, status: Status) -> DiagnosticStatus:
    """A status as a message of a node."""
    return DiagnosticStatus(
        level=bytes([status.level]),
        name=f"{node.strip('/')}: {status.name}",
        message=status.message,
        hardware_id="vivace",
        values=[KeyValue(key=key, value=value) for key, value in status.values.items()],
    )
