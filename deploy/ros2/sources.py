"""Which topics give a policy's inputs, and how messages become them; needs no ROS."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vivace.deploy.ros2.messages import vectors
from vivace.deploy.ros2.messages.images import compressed_image, image
from vivace.deploy.ros2.messages.pose import ROTATIONS, numbers
from vivace.deploy.ros2.messages.sensors import POSE, WHOLE, Read, Sensor, joint_part
from vivace.deploy.ros2.parameters.settings import RosSettings
from vivace.policies.spec import ENVIRONMENT, STATE, PolicySpec

TF = "tf"
"""Kind of a source that is looked up: its topic is a frame."""


@dataclass(frozen=True)
class Source:
    """A topic that gives an input of the policy, or a part of one."""

    key: str
    """lerobot's name of the input."""
    kind: str
    """Of the messages, such as JointState."""
    topic: str
    read: Read


def sources(settings: RosSettings, spec: PolicySpec) -> list[Source]:
    """Return the topics that give a policy's inputs."""
    found = []
    for key, shape in spec.observation_shapes.items():
        if key == STATE:
            found += _state_sources(settings)
        elif key == ENVIRONMENT:
            read = _whole(partial(vectors.array, size=shape[0]))
            found.append(Source(key, "Float64MultiArray", settings.environment_topic, read))
        else:
            topic = settings.camera_topics[key]
            options: dict[str, Any] = {"shape": shape, "fit": settings.camera_fits[key]}
            if topic.endswith("/compressed"):
                found.append(
                    Source(key, "CompressedImage", topic, _whole(partial(compressed_image, **options)))
                )
            else:
                read = _whole(partial(image, order=settings.camera_unnamed_order, **options))
                found.append(Source(key, "Image", topic, read))
    return found


def make_sensors(
    settings: RosSettings, spec: PolicySpec, given: Sequence[Source], resolve: Callable[[str], str]
) -> dict[str, Sensor]:
    """Make what keeps each of the policy's inputs.

    Args:
        settings: of the node.
        spec: of the policy.
        given: its sources.
        resolve: topic -> its full name, remapped.
    """
    found = {}
    for key in spec.observation_shapes:
        mine = [source for source in given if source.key == key]
        name = " and ".join(f"{_place(source, resolve)} ({source.kind})" for source in mine)
        if key == STATE:
            parts = {"joints": tuple(map(joint_part, settings.joint_names)), "pose": (POSE,)}
            needed = tuple(part for group in settings.state_parts for part in parts[group])
            found[key] = Sensor(name, needed, partial(join_state, settings))
        else:
            found[key] = Sensor(name)
    return found


def _place(source: Source, resolve: Callable[[str], str]) -> str:
    return source.topic if source.kind == TF else resolve(source.topic)


def join_state(settings: RosSettings, seen: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return observation.state of its parts (n,), float32: first all positions, then all velocities."""
    found = {}
    if "joints" in settings.state_parts:
        table = np.stack([seen[joint_part(name)] for name in settings.joint_names])  # (joints, fields)
        found["joints"] = table.T.ravel()
    if "pose" in settings.state_parts:
        found["pose"] = numbers(seen[POSE], settings.pose_layout)
    whole: np.ndarray = np.concatenate([found[part] for part in settings.state_parts])
    return whole.astype(np.float32)


def _state_sources(settings: RosSettings) -> list[Source]:
    found = []
    if "joints" in settings.state_parts:
        joints = partial(vectors.joints, names=settings.joint_names, fields=settings.joint_fields)
        for topic in settings.joint_states:
            found.append(Source(STATE, "JointState", topic, lambda m: _named(joints(m))))
    if "pose" in settings.state_parts:
        needs_rotation = settings.sees_commanded_pose or any(e in ROTATIONS for e in settings.pose_layout)
        pose = partial(vectors.pose, frame=settings.pose_frame, needs_rotation=needs_rotation)
        kind = {"pose": "PoseStamped", "transform": "TransformStamped", "tf": TF}[settings.pose_type]
        found.append(Source(STATE, kind, settings.pose_topic, lambda m: {POSE: pose(m)}))
    return found


def _named(joints: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {joint_part(name): values for name, values in joints.items()}


def _whole(read: Callable[[Any], np.ndarray]) -> Read:
    return lambda message: {WHOLE: read(message)}
