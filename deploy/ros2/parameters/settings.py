"""The ROS 2 node's parameters: defaults, what they mean, and what they make; needs no ROS."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vivace.deploy.inference.ort_graph import PROVIDERS
from vivace.deploy.loop.guard import Limits
from vivace.deploy.loop.loop import LoopSettings, Mode, executed_actions
from vivace.deploy.loop.watchdog import WatchdogSettings
from vivace.deploy.robots.action_range import NONE, choose_limits
from vivace.deploy.ros2.messages.command import COMMANDS
from vivace.deploy.ros2.messages.images import FITS, ORDERS
from vivace.deploy.ros2.messages.messages import FIELDS
from vivace.deploy.ros2.messages.pose import SIZES, check_layout
from vivace.deploy.ros2.parameters.parameters import (
    Parameter,
    check,
    field_name,
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
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.spec import PolicySpec

IMAGES = "observation.images."
POSES = ("pose", "transform", "tf")
PARTS = ("joints", "pose")


@dataclass(frozen=True, kw_only=True)
class RosSettings:
    """The parameters, checked as far as that is possible without the policy; `ros2_fit` does the rest."""

    bundle: str = text("", "Folder of the exported policy (vivace export).")
    task: str = text("", "Instruction, for a policy that reads one; the topic task sets it too.", True)
    autostart: bool = text(False, "Configure and activate without being told.")
    control_hz: float = number(
        0.0,
        0,
        1000,
        "Control rate [Hz]; 0: that of the demonstrations, which the bundle says if it is known.",
    )
    mode: str = text("sync", "sync: act, then think; async: think while acting; rtc: and continue the chunk.")
    n_action_steps: int = number(0, 0, 10_000, "Actions of a chunk that are fresh; 0: as trained.")
    request_at: int = number(-1, -1, 10_000, "async, rtc: ask when so many are left; -1: by the latency.")
    ladder: tuple[str, ...] = several(
        str,
        "async, rtc: folders of faster bundles of the same policy, best first; before every chunk the best "
        "plan is chosen that will be there in time.",
    )
    anytime: bool = text(False, "async, rtc: cut a chunk short between two steps rather than be late.")
    blend_ticks: int = number(0, 0, 1000, "async, rtc: ticks in which a newer chunk is blended in.")
    seed: int = number(0, 0, 2**31 - 1, "Names the policy's noise, with the episode and the tick.")
    provider: str = text("cpu", f"ONNX Runtime's execution provider: {', '.join(PROVIDERS)}.")
    threads: int = number(1, 1, 1024, "Threads of one inference.")
    warmup: int = number(3, 1, 1000, "Chunks computed while configuring.")
    stall_s: float = number(5.0, 0.001, 3600, "An inference that takes longer is given up [s].")
    staleness_s: float = number(
        0.2, 0.001, 3600, "The robot holds while a sensor's newest stamp is older than this [s].", True
    )
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
    fallback_ramp_ticks: int = number(5, 1, 10_000, "Ticks in which the fallback stops velocities.")
    fallback_initial_action: tuple[float, ...] = several(
        float,
        "What is held before the first action; empty: the measured joints that command.names names, and the "
        "measured pose. Where an absolute target is unknown, nothing is commanded before the first chunk.",
    )
    watchdog_frozen_s: float = number(0.0, 0, 3600, "Hold if a picture is bit for bit the same; 0: never.")
    watchdog_misses: int = number(20, 0, 10**6, "async, rtc: hold after so many missed deadlines in a row.")
    watchdog_hold_s: float = number(3.0, 0, 3600, "Stop after a hold by the watchdog of so long [s].")
    watchdog_starved_s: float = number(10.0, 0, 3600, "Stop after so long without fresh actions; 0: never.")
    watchdog_restarts: int = number(3, 0, 10**6, "Stop after more replacements of the process in a minute.")
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
            check(parameter, getattr(self, field_name(parameter.name)))
        one_of("mode", self.mode, (mode.value for mode in Mode))
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
        return cls(**read(parameters(), given))

    def at_rate_of(self, spec: PolicySpec) -> Self:
        """Return these settings with the control rate of a policy's demonstrations, unless one was given.

        Raises:
            BadSetting: neither is known.
        """
        if self.control_hz:
            return self
        if not spec.control_hz:
            raise BadSetting(
                "the bundle does not say at which rate its policy was trained; set control_hz to that of the "
                "demonstrations [Hz]"
            )
        return replace(self, control_hz=float(spec.control_hz))

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

    @property
    def chunking(self) -> RealTimeChunking | None:
        """How a chunk continues the one before."""
        return RealTimeChunking() if self.mode == Mode.RTC else None

    @property
    def watchdog(self) -> WatchdogSettings:
        """What is watched besides the age of the observation."""
        return WatchdogSettings(
            stale_s=0.0,  # the driver goes by stamps
            frozen_s=self.watchdog_frozen_s,
            misses=self.watchdog_misses,
            hold_s=self.watchdog_hold_s,
            starved_s=self.watchdog_starved_s,
            restarts=self.watchdog_restarts,
        )

    def loop(self, spec: PolicySpec, initial: tuple[float, ...] | None = None) -> LoopSettings:
        """How the loop executes chunks of a policy, beginning with an action that is held."""
        return LoopSettings(
            mode=Mode(self.mode),
            n_action_steps=executed_actions(self.n_action_steps or None, spec),
            request_at=None if self.request_at < 0 else self.request_at,
            blend_ticks=self.blend_ticks,
            anytime=self.anytime,
            ramp_ticks=self.fallback_ramp_ticks,
            initial_action=initial,
        )


def parameters() -> tuple[Parameter, ...]:
    """Return every parameter, for declaring them."""
    return parameters_of(RosSettings)


def _camera_key(name: str) -> str:
    return name if name.startswith("observation.") else IMAGES + name


def _some(known: Mapping[str, Any]) -> str:
    return f"it has {', '.join(known) or 'none'}"
