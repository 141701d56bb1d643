"""The ROS 2 node's parameters: names, defaults, what they mean, and what is checked; needs no ROS."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from vivace.deploy.action_range import NONE, choose_limits
from vivace.deploy.guard import Limits
from vivace.deploy.loop import LoopSettings, Mode, executed_actions
from vivace.deploy.ort_graph import PROVIDERS
from vivace.deploy.ros2_messages import FIELDS
from vivace.deploy.watchdog import WatchdogSettings
from vivace.policies.action_kinds import KNOWN, kinds_of_names, read_kinds, settle_kinds
from vivace.policies.chunking import RealTimeChunking
from vivace.policies.errors import BadSetting, ObservationMismatch
from vivace.policies.types import ActionKind, PolicySpec

STATE, IMAGES = "observation.state", "observation.images."
COMMANDS = ("array", "trajectory")
_GROUPS = ("command", "limits", "fallback", "watchdog", "deadline")
"""Parameters whose names begin so have a dot after it."""


@dataclass(frozen=True)
class Parameter:
    """One parameter as ROS knows it."""

    name: str
    default: Any
    """A list where the field holds a tuple."""
    description: str
    low: float | None = None
    """Smallest value."""
    high: float | None = None
    """Largest value."""
    is_live: bool = False
    """May be set while the node is configured; the others are read when it is configured."""


def _number(default: float, low: float, high: float, description: str, is_live: bool = False) -> Any:
    is_whole = isinstance(default, int)
    low, high = (int(low), int(high)) if is_whole else (float(low), float(high))
    meta = {"description": description, "low": low, "high": high, "is_live": is_live}
    return field(default=default, metadata=meta)


def _text(default: str | bool, description: str, is_live: bool = False) -> Any:
    return field(default=default, metadata={"description": description, "is_live": is_live})


def _list(of: type, description: str, default: tuple[Any, ...] = ()) -> Any:
    return field(default=default, metadata={"description": description, "of": of})


@dataclass(frozen=True, kw_only=True)
class RosSettings:
    """The parameters, checked as far as that is possible without the policy; see `for_policy`."""

    bundle: str = _text("", "Folder of the exported policy (vivace export).")
    task: str = _text("", "Instruction, for a policy that reads one; the topic task sets it too.", True)
    autostart: bool = _text(False, "Configure and activate without being told.")
    control_hz: float = _number(20.0, 0.1, 1000, "Control rate [Hz], that of the demonstrations.")
    mode: str = _text(
        "sync", "sync: act, then think; async: think while acting; rtc: and continue the chunk."
    )
    n_action_steps: int = _number(0, 0, 10_000, "Actions of a chunk that are fresh; 0: as trained.")
    request_at: int = _number(-1, -1, 10_000, "async, rtc: ask when so many are left; -1: by the latency.")
    ladder: tuple[str, ...] = _list(
        str,
        "async, rtc: folders of faster bundles of the same policy, best first; before every chunk the best "
        "plan is chosen that will be there in time.",
    )
    anytime: bool = _text(False, "async, rtc: cut a chunk short between two steps rather than be late.")
    blend_ticks: int = _number(0, 0, 1000, "async, rtc: ticks in which a newer chunk is blended in.")
    seed: int = _number(0, 0, 2**31 - 1, "Names the policy's noise, with the episode and the tick.")
    provider: str = _text("cpu", f"ONNX Runtime's execution provider: {', '.join(PROVIDERS)}.")
    threads: int = _number(1, 1, 1024, "Threads of one inference.")
    warmup: int = _number(3, 1, 1000, "Chunks computed while configuring.")
    stall_s: float = _number(5.0, 0.001, 3600, "An inference that takes longer is given up [s].")
    staleness_s: float = _number(
        0.2, 0.001, 3600, "The robot holds while a sensor's newest stamp is older than this [s].", True
    )
    joint_states: str = _text("joint_states", "Topic of the robot's state (sensor_msgs/JointState).")
    joint_names: tuple[str, ...] = _list(str, "Joints of observation.state, in the policy's order.")
    joint_fields: tuple[str, ...] = _list(str, f"What of each joint: {', '.join(FIELDS)}.", ("position",))
    cameras: tuple[str, ...] = _list(
        str,
        "Camera map: 'front=camera/image_raw' is observation.images.front; a topic that ends in /compressed "
        "is sensor_msgs/CompressedImage, any other sensor_msgs/Image.",
    )
    command_type: str = _text("array", "array: std_msgs/Float64MultiArray; trajectory: JointTrajectory.")
    command_topic: str = _text("command", "Topic of the commands.")
    command_names: tuple[str, ...] = _list(str, "Joint of each action dimension; a trajectory needs them.")
    command_horizon: int = _number(0, 0, 10_000, "trajectory: most points; 0: all that may be executed.")
    action_kinds: tuple[str, ...] = _list(
        str, "What each action dimension (or all) means: absolute, delta, velocity; empty: as exported."
    )
    limits_file: str = _text(
        "",
        "Limits as YAML or URDF (vivace run's format) instead of the lists below; with neither those of the "
        "training data, as the bundle has them; none: no limits.",
    )
    limits_low: tuple[float, ...] = _list(float, "Smallest value of each action dimension.")
    limits_high: tuple[float, ...] = _list(float, "Largest value of each action dimension.")
    limits_max_step: tuple[float, ...] = _list(float, "Largest change of each between two ticks.")
    limits_max_velocity: tuple[float, ...] = _list(float, "Largest speed of what each commands [units/s].")
    limits_max_acceleration: tuple[float, ...] = _list(float, "Largest change of speed [units/s^2].")
    fallback_ramp_ticks: int = _number(5, 1, 10_000, "Ticks in which the fallback stops velocities.")
    fallback_initial_action: tuple[float, ...] = _list(
        float,
        "What is held before the first action; empty: the measured joints that command.names names. Where an "
        "absolute target is unknown, nothing is commanded before the first chunk.",
    )
    watchdog_frozen_s: float = _number(0.0, 0, 3600, "Hold if a picture is bit for bit the same; 0: never.")
    watchdog_misses: int = _number(20, 0, 10**6, "async, rtc: hold after so many missed deadlines in a row.")
    watchdog_hold_s: float = _number(3.0, 0, 3600, "Stop after a hold by the watchdog of so long [s].")
    watchdog_starved_s: float = _number(10.0, 0, 3600, "Stop after so long without fresh actions; 0: never.")
    watchdog_restarts: int = _number(3, 0, 10**6, "Stop after more replacements of the process in a minute.")
    deadline_sensors_s: float = _number(
        0.0, 0, 3600, "QoS deadline asked of the sensors, who must offer one; 0: none [s]."
    )
    deadline_command_s: float = _number(0.0, 0, 3600, "QoS deadline offered for commands; 0: none [s].")
    diagnostics_hz: float = _number(1.0, 0.01, 100, "Rate of /diagnostics [Hz].")

    def __post_init__(self) -> None:
        """Check every value by itself, then those that belong together."""
        for parameter in parameters():
            check(parameter, getattr(self, _field(parameter.name)))
        _one_of("mode", self.mode, tuple(mode.value for mode in Mode))
        _one_of("command.type", self.command_type, COMMANDS)
        _one_of("provider", self.provider, tuple(PROVIDERS))
        for kind in self.action_kinds:
            _one_of("action_kinds", kind, KNOWN)
        for name in self.joint_fields:
            _one_of("joint_fields", name, FIELDS)
        self.camera_topics  # noqa: B018 - it checks the map

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Self:
        """Make settings of parameter names and values.

        Raises:
            BadSetting: a value is outside its range or of another type, or several contradict each other.
        """
        known: dict[str, Any] = {p.name: p for p in parameters()}
        values = {}
        for name, value in given.items():
            check(known[name], value)
            values[_field(name)] = _plain(known[name], value)
        return cls(**values)

    @property
    def camera_topics(self) -> dict[str, str]:
        """Key of an observation -> topic of its camera."""
        found: dict[str, str] = {}
        for entry in self.cameras:
            name, equals, topic = entry.partition("=")
            if not (name.strip() and equals and topic.strip()):
                raise BadSetting(
                    f"cameras has {entry!r}; needed: 'front=camera/image_raw', one for each camera"
                )
            found[IMAGES + name.strip()] = topic.strip()
        if len(found) < len(self.cameras):
            raise BadSetting(f"cameras {list(self.cameras)} names one camera twice; give each its own topic")
        return found

    def for_policy(self, spec: PolicySpec) -> PolicySpec:
        """Check the parameters that must fit the policy.

        Returns:
            The policy's spec, its actions meaning what `action_kinds`, names and bundle say.

        Raises:
            BadSetting: sizes or names do not fit, or nobody says what the actions mean.
            BadBundle: bundle and names contradict each other.
            ObservationMismatch: the policy sees what this node cannot give it.
        """
        _check_inputs(self, spec)
        for name in ("command_names", "fallback_initial_action"):
            if getattr(self, name):
                _check_length(_ros(name), getattr(self, name), spec.action_dim)
        names = self.command_names or tuple(map(str, range(spec.action_dim)))
        said = read_kinds(self.action_kinds, spec.action_dim, "action_kinds")
        kinds = settle_kinds(names, spec.action_kinds, kinds_of_names(names), said, "action_kinds")
        spec = replace(spec, action_kinds=kinds)
        limits = self.limits(spec)
        if limits.action_dim not in (None, spec.action_dim):
            raise BadSetting(
                f"limits have {limits.action_dim} numbers, the policy's actions {spec.action_dim}"
            )
        _check_posture(self, spec, limits)
        if self.command_type == "trajectory":
            _check_trajectory(self, spec)
        self.loop(spec)
        return spec

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
    return tuple(
        Parameter(
            _ros(f.name),
            list(f.default) if isinstance(f.default, tuple) else f.default,
            f.metadata["description"],
            f.metadata.get("low"),
            f.metadata.get("high"),
            f.metadata.get("is_live", False),
        )
        for f in fields(RosSettings)
    )


def check(parameter: Parameter, value: Any) -> None:
    """Check one value by itself; whole numbers pass for others.

    Raises:
        BadSetting: it is of another type or outside its range.
    """
    wanted = _element(parameter)
    is_list = isinstance(parameter.default, list)
    if is_list and (isinstance(value, str | bytes) or not hasattr(value, "__iter__")):
        raise BadSetting(f"{parameter.name}={value!r}; a list is needed: {parameter.description}")
    for element in value if is_list else [value]:
        is_number = wanted is float and isinstance(element, int | float) and not isinstance(element, bool)
        if not is_number and type(element) is not wanted:
            needed = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}[wanted]
            raise BadSetting(f"{parameter.name} has {element!r}; {needed} is needed: {parameter.description}")
        if wanted is float and not math.isfinite(element) and not parameter.name.startswith("limits."):
            raise BadSetting(f"{parameter.name} has {element}; a finite number is needed")
        if parameter.low is not None and not parameter.low <= element <= (parameter.high or 0.0):
            raise BadSetting(
                f"{parameter.name}={element}; needed: {parameter.low:g} to {parameter.high:g}. "
                f"{parameter.description}"
            )


def _element(parameter: Parameter) -> type:
    """Type of a value, or of what a list holds."""
    if not isinstance(parameter.default, list):
        return type(parameter.default)
    of = next(f.metadata["of"] for f in fields(RosSettings) if _ros(f.name) == parameter.name)
    return of if isinstance(of, type) else str


def _plain(parameter: Parameter, value: Any) -> Any:
    wanted = _element(parameter)
    return tuple(map(wanted, value)) if isinstance(parameter.default, list) else wanted(value)


def _ros(name: str) -> str:
    """Name of a field as a parameter."""
    group, _, rest = name.partition("_")
    return f"{group}.{rest}" if group in _GROUPS else name


def _field(name: str) -> str:
    return name.replace(".", "_")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise BadSetting(f"{name}={value!r} is unknown; needed: {', '.join(known)}")


def _check_length(name: str, values: tuple[Any, ...], size: int) -> None:
    if len(values) != size:
        raise BadSetting(f"{name} has {len(values)} entries, the policy's actions have {size} dimensions")


def _check_inputs(settings: RosSettings, spec: PolicySpec) -> None:
    cameras = settings.camera_topics
    for key, shape in spec.observation_shapes.items():
        if key == STATE:
            found = len(settings.joint_names) * len(settings.joint_fields)
            if found != shape[0]:
                raise BadSetting(
                    f"joint_names has {len(settings.joint_names)} joints with {len(settings.joint_fields)} "
                    f"fields, the policy's {STATE} has {shape[0]} numbers; name them in its order"
                )
        elif key.startswith(IMAGES):
            if key not in cameras:
                raise BadSetting(
                    f"the policy looks through {key}, but cameras has {list(settings.cameras)}; add "
                    f"'{key.removeprefix(IMAGES)}=<topic>'"
                )
        else:
            raise ObservationMismatch(
                f"the policy needs {key!r}; this node gives {STATE} and {IMAGES}<camera> only"
            )
    unused = [key for key in cameras if key not in spec.observation_shapes]
    if unused:
        raise BadSetting(
            f"cameras names {', '.join(unused)}, which the policy does not look through; it sees "
            f"{', '.join(spec.observation_shapes)}"
        )


def _check_posture(settings: RosSettings, spec: PolicySpec, limits: Limits) -> None:
    """Limits of change need to know what the first change is measured from."""
    is_learned = limits.max_step and not (settings.limits_max_step or settings.limits_file)
    if settings.fallback_initial_action or is_learned or not (limits.max_step or limits.has_rates):
        return
    known = settings.joint_names if "position" in settings.joint_fields else ()
    names = settings.command_names or ("",) * spec.action_dim
    if any(
        k == ActionKind.ABSOLUTE and n not in known for n, k in zip(names, spec.action_kinds, strict=True)
    ):
        raise BadSetting(
            "limits of step, speed or acceleration of absolute targets need to know where the robot is; name "
            "its joints in command.names and joint_names, or give fallback.initial_action"
        )


def _check_trajectory(settings: RosSettings, spec: PolicySpec) -> None:
    kinds = set(spec.action_kinds)
    if not settings.command_names:
        raise BadSetting("command.type=trajectory needs command.names: the joint of each action dimension")
    if ActionKind.VELOCITY in kinds and len(kinds) > 1:
        raise BadSetting(
            f"a trajectory holds positions or velocities, but the actions are {', '.join(sorted(kinds))}; "
            "use command.type=array"
        )
    unknown = [
        name
        for name, kind in zip(settings.command_names, spec.action_kinds, strict=True)
        if kind == ActionKind.DELTA and name not in settings.joint_names
    ]
    if unknown or (ActionKind.DELTA in kinds and "position" not in settings.joint_fields):
        raise BadSetting(
            f"displacements of {', '.join(unknown or settings.command_names)} need the measured positions to "
            "start from; add them to joint_names, or use command.type=array"
        )
