"""The ROS 2 node's parameters: defaults, what they mean, and what they make; needs no ROS."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vivace.deploy.inference.ort_graph import PROVIDERS
from vivace.deploy.loop.guard import Limits
from vivace.deploy.loop.settings import LoopSettings
from vivace.deploy.loop.watchdog import WatchdogSettings
from vivace.deploy.robots.action_range import NONE, choose_limits
from vivace.deploy.ros2.messages.command import COMMANDS
from vivace.deploy.ros2.messages.images import FITS, ORDERS
from vivace.deploy.ros2.messages.pose import SIZES, check_layout
from vivace.deploy.ros2.messages.vectors import FIELDS
from vivace.deploy.ros2.parameters.parameters import (
    Parameter,
    check,
    nested,
    number,
    one_of,
    parameters_of,
    read,
    several,
    text,
)
from vivace.policies.action_kinds import KNOWN
from vivace.policies.backports import Self
from vivace.policies.errors import BadSetting
from vivace.policies.spec import IMAGES, PolicySpec

RENAMED = {
    **{name: f"loop.{name}" for name in ("mode", "n_action_steps", "request_at", "ladder", "anytime")},
    "blend_ticks": "loop.blend_ticks",
    "fallback.ramp_ticks": "loop.ramp_ticks",
    "staleness_s": "watchdog.observation_age_s",
    "watchdog.frozen_s": "watchdog.stuck_s",
}
"""Parameter of earlier versions -> its name today."""
POSES = ("pose", "transform", "tf")
PARTS = ("joints", "pose")


@dataclass(frozen=True, kw_only=True)
class RosSettings:
    """The parameters, checked as far as that is possible without the policy; `fit` does the rest."""

    bundle: str = text("", "Folder of the exported policy (vivace export).")
    public_key: str = text(
        "",
        "PEM file of an ed25519 public key that the bundle must be signed for; empty: any bundle is taken.",
    )
    task: str = text("", "Instruction, for a policy that reads one; the topic task sets it too.", True)
    autostart: bool = text(False, "Configure and activate without being told.")
    control_hz: float = number(
        0.0,
        0,
        1000,
        "Control rate [Hz]; 0: that of the demonstrations, which the bundle says if it is known.",
    )
    loop: LoopSettings = nested(LoopSettings(), most=10_000)
    seed: int = number(0, 0, 2**31 - 1, "Names the policy's noise, with the episode and the tick.")
    provider: str = text("cpu", f"ONNX Runtime's execution provider: {', '.join(PROVIDERS)}.")
    threads: int = number(1, 1, 1024, "Threads of one inference.")
    warmup: int = number(3, 1, 1000, "Chunks computed while configuring.")
    stall_s: float = number(5.0, 0.001, 3600, "An inference that takes longer is given up [s].")
    joint_states: tuple[str, ...] = several(
        str,
        "Topics of the robot's joints (sensor_msgs/JointState). Each message may hold some of the joints, in "
        "any order; they are merged by name, and an observation is as old as its oldest joint.",
        ("joint_states",),
    )
    joint_names: tuple[str, ...] = several(str, "Joints of observation.state, in the policy's order.")
    joint_fields: tuple[str, ...] = several(str, f"What of each joint: {', '.join(FIELDS)}.", ("position",))
    state_parts: tuple[str, ...] = several(
        str, f"What observation.state is made of, in its order: {', '.join(PARTS)}.", ("joints",)
    )
    pose_topic: str = text(
        "", "Topic of the end effector's pose, if observation.state has it; tf: the frame whose pose it is."
    )
    pose_type: str = text(
        "pose",
        "pose: geometry_msgs/PoseStamped; transform: TransformStamped; tf: looked up by tf2_ros.",
    )
    pose_frame: str = text("", "Frame the poses are in (header.frame_id); others are refused.")
    pose_layout: tuple[str, ...] = several(
        str,
        "Numbers of a pose in the policy's order: x, y, z or xyz [m], and quaternion (x y z w), "
        "quaternion_wxyz, rpy, rotvec [rad], rot6d_rows, rot6d_columns or yaw.",
    )
    environment_topic: str = text(
        "", "Topic of observation.environment_state (std_msgs/Float64MultiArray, whose arrival is its time)."
    )
    cameras: tuple[str, ...] = several(
        str,
        "Camera map: 'front=camera/image_raw' is observation.images.front, 'observation.image=…' that key "
        "itself; topics that end in /compressed are of sensor_msgs/CompressedImage, others of "
        "sensor_msgs/Image.",
    )
    camera_fit: tuple[str, ...] = several(
        str,
        "Pictures larger or of another shape than the policy's, as in the demonstrations: scale (same shape "
        "only, the default), crop (the middle), pad (black) or stretch; one for all, or 'front=crop'.",
    )
    camera_unnamed_order: str = text(
        "bgr", "Colours of the encodings 8UC3 and 8UC4, which do not say: bgr, as OpenCV's arrays, or rgb."
    )
    command_type: str = text(
        "array",
        "array: std_msgs/Float64MultiArray; trajectory: JointTrajectory; twist, twist_stamped: velocities of "
        "the end effector or base, also from displacements a control period; pose: PoseStamped.",
    )
    command_topic: str = text("command", "Topic of the commands.")
    command_names: tuple[str, ...] = several(str, "Joint of each action dimension; a trajectory needs them.")
    command_horizon: int = number(0, 0, 10_000, "trajectory: most points; 0: all that may be executed.")
    command_layout: tuple[str, ...] = several(
        str,
        "twist, pose: what the action's dimensions are, in order. Of a twist: linear, angular (3 each) or "
        "linear.x to angular.z; of a pose: as pose.layout; other: none of these, such as a gripper.",
    )
    command_frame: str = text("", "twist_stamped, pose: frame the commands are in (header.frame_id).")
    command_fixed: tuple[float, ...] = several(
        float, "pose: x y z qx qy qz qw, for what command.layout leaves out."
    )
    command_rest_topic: str = text(
        "command_rest", "twist, pose: topic of the dimensions that are other (std_msgs/Float64MultiArray)."
    )
    command_exclusive: bool = text(
        False,
        "Refuse to begin while another node publishes on the topic of the commands, and stop and be silent "
        "while one does; false: say so only.",
    )
    action_kinds: tuple[str, ...] = several(
        str, "What each action dimension (or all) means: absolute, delta, velocity; empty: as exported."
    )
    limits_file: str = text(
        "",
        "Limits as YAML or URDF (vivace run's format) instead of the lists below; with neither those of the "
        "training data, as the bundle has them; none: no limits.",
    )
    limits_low: tuple[float, ...] = several(float, "Smallest value of each action dimension.")
    limits_high: tuple[float, ...] = several(float, "Largest value of each action dimension.")
    limits_max_step: tuple[float, ...] = several(float, "Largest change of each between two ticks.")
    limits_max_velocity: tuple[float, ...] = several(float, "Largest speed of what each commands [units/s].")
    limits_max_acceleration: tuple[float, ...] = several(float, "Largest change of speed [units/s^2].")
    fallback_initial_action: tuple[float, ...] = several(
        float,
        "What is held before the first action; empty: the measured joints that command.names names, and the "
        "measured pose. Where an absolute target is unknown, nothing is commanded before the first chunk.",
    )
    watchdog: WatchdogSettings = nested(
        WatchdogSettings(observation_age_s=0.2), most=10**6, live=("observation_age_s",)
    )
    deadline_sensors_s: float = number(
        0.0, 0, 3600, "QoS deadline asked of the sensors, who must offer one; 0: none [s]."
    )
    deadline_command_s: float = number(0.0, 0, 3600, "QoS deadline offered for commands; 0: none [s].")
    deadman_s: float = number(
        0.0,
        0,
        3600,
        "Another process commands the standstill after so long without a tick of the node, 5 control periods "
        "at least; 0: there is none [s].",
    )
    diagnostics_hz: float = number(1.0, 0.01, 100, "Rate of /diagnostics [Hz].")

    def __post_init__(self) -> None:
        """Check every value by itself, then those that belong together."""
        for parameter in parameters():
            if len(parameter.place) == 1:  # nested settings check themselves
                check(parameter, getattr(self, parameter.place[0]))
        one_of("command.type", self.command_type, COMMANDS)
        one_of("provider", self.provider, PROVIDERS)
        one_of("pose.type", self.pose_type, POSES)
        one_of("camera.unnamed_order", self.camera_unnamed_order, ORDERS)
        for name, values, known in (
            ("action_kinds", self.action_kinds, KNOWN),
            ("joint_fields", self.joint_fields, FIELDS),
            ("state_parts", self.state_parts, PARTS),
        ):
            for value in values:
                one_of(name, value, known)
        for name, values in (("joint_names", self.joint_names), ("state_parts", self.state_parts)):
            if len(set(values)) < len(values):
                raise BadSetting(f"{name} {list(values)} says something twice; say it once")
        check_layout("pose.layout", self.pose_layout, SIZES)
        self.camera_topics  # noqa: B018 - it checks the map
        self.camera_fits  # noqa: B018 - likewise

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Make settings of parameter names and values.

        Raises:
            BadSetting: a name is unknown, a value is outside its range or of another type, or several
                contradict each other.
        """
        return cls(**read(cls, given))

    def for_policy(self, spec: PolicySpec) -> Self:
        """Return these settings with a policy's control rate and mode, unless they were given.

        Raises:
            BadSetting: no control rate is known.
        """
        if not self.control_hz and not spec.control_hz:
            raise BadSetting(
                "the bundle does not say at which rate its policy was trained; set control_hz to that of the "
                "demonstrations [Hz]"
            )
        hz = self.control_hz or float(spec.control_hz or 0.0)
        return replace(self, control_hz=hz, loop=self.loop.settled(spec.mode))

    @property
    def camera_topics(self) -> dict[str, str]:
        """Key of an observation -> topic of its camera."""
        found: dict[str, str] = {}
        for entry in self.cameras:
            name, equals, topic = (part.strip() for part in entry.partition("="))
            if not (name and equals and topic):
                raise BadSetting(
                    f"cameras has {entry!r}; needed: 'front=camera/image_raw', one for each camera"
                )
            found[_camera_key(name)] = topic
        if len(found) < len(self.cameras):
            raise BadSetting(f"cameras {list(self.cameras)} names one camera twice; give each its own topic")
        return found

    @property
    def camera_fits(self) -> dict[str, str]:
        """Key of an observation -> how its pictures are made to fit."""
        found = dict.fromkeys(self.camera_topics, "scale")
        for entry in self.camera_fit:
            name, equals, fit = (part.strip() for part in entry.rpartition("="))
            keys = [_camera_key(name)] if equals else list(found)
            if unknown := [key for key in keys if key not in found]:
                raise BadSetting(
                    f"camera.fit has {entry!r}, but cameras has no {unknown[0]!r}; {_some(found)}"
                )
            one_of("camera.fit", fit, FITS)
            found |= dict.fromkeys(keys, fit)
        return found

    def limits(self, spec: PolicySpec) -> Limits:
        """What the guard allows of a policy's actions."""
        names = ("low", "high", "max_step", "max_velocity", "max_acceleration")
        given = {name: getattr(self, f"limits_{name}") or None for name in names}
        if any(given.values()) and not self.limits_file:
            return Limits(**given)
        needs_names = self.limits_file not in ("", NONE) and not self.command_names
        if any(given.values()) or needs_names:
            raise BadSetting(
                f"limits.file={self.limits_file!r} needs command.names, and no limits besides it; "
                "put them into the file"
            )
        return choose_limits(self.limits_file, self.command_names, spec)[0]

    @property
    def sees_commanded_pose(self) -> bool:
        """Whether the pose that is commanded is measured, in the same frame."""
        is_seen = "pose" in self.state_parts and bool(self.pose_topic)
        return self.command_type == "pose" and is_seen and self.pose_frame == self.command_frame


def parameters() -> tuple[Parameter, ...]:
    """Return every parameter, for declaring them."""
    return parameters_of(RosSettings)


def _camera_key(name: str) -> str:
    return name if name.startswith("observation.") else IMAGES + name


def _some(known: Mapping[str, Any]) -> str:
    return f"it has {', '.join(known) or 'none'}"
