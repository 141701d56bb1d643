"""A parameter file to start from: every parameter with its meaning and range; needs no ROS."""

import json
import textwrap

from vivace.deploy.ros2.parameters.parameters import Parameter
from vivace.deploy.ros2.parameters.settings import parameters

ARM = {
    "bundle": "/opt/policies/pick",
    "loop.mode": "async",
    "threads": 2,
    "joint_names": ["shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "gripper"],
    "cameras": ["front=camera/front/image_raw", "wrist=camera/wrist/image_raw/compressed"],
    "command.type": "trajectory",
    "command.topic": "joint_trajectory_controller/joint_trajectory",
    "command.names": ["shoulder_pan", "shoulder_lift", "elbow", "wrist_1", "wrist_2", "gripper"],
    "action_kinds": ["absolute"],
    "limits.low": [-3.1, -3.1, -3.1, -3.1, -3.1, 0.0],
    "limits.high": [3.1, 3.1, 3.1, 3.1, 3.1, 0.08],
    "limits.max_velocity": [1.5, 1.5, 1.5, 2.0, 2.0, 0.2],
}
"""What a six-joint arm with two cameras, commanded by trajectories, sets."""
_HEAD = """# Parameters of the policy node, for a six-joint arm with two cameras, commanded by trajectories.
#   vivace-ros --ros-args --params-file robot.yaml
# Every parameter is here; those behind '#=' are left at their defaults. Others are refused by name.
/**:
  ros__parameters:"""
_WIDTH = 110


def example() -> str:
    """Return the file."""
    lines, group = [_HEAD], ""
    for parameter in sorted(parameters(), key=lambda p: "." in p.name):  # a group's parameters stand together
        head, dot, name = parameter.name.rpartition(".")
        if dot and head != group:
            is_set = any(known.startswith(f"{head}.") for known in ARM)
            lines.append(f"    {'' if is_set else '#= '}{head}:")
        group, indent = head, "      " if dot else "    "
        lines += _comment(parameter, indent)
        is_default = parameter.name not in ARM
        value = json.dumps(ARM.get(parameter.name, parameter.default))
        lines.append(f"{indent}{'#= ' if is_default else ''}{name}: {value}")
    return "\n".join(lines) + "\n"


def _comment(parameter: Parameter, indent: str) -> list[str]:
    mark = indent + "# "
    return textwrap.wrap(parameter.meaning, _WIDTH, initial_indent=mark, subsequent_indent=mark)
