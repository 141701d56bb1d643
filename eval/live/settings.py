"""The options of `vivace run`."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from vivace.deploy.deadman.deadman import DeadmanSettings
from vivace.deploy.loop.settings import LoopSettings, Mode
from vivace.deploy.loop.watchdog import WatchdogSettings
from vivace.deploy.system.realtime import RealtimeSettings
from vivace.envs.registry import DEFAULT_TYPE
from vivace.policies.errors import BadSetting
from vivace.policies.training_range import PLAUSIBLE_SPANS


@dataclass(kw_only=True)
class RobotOptions:
    """Which robot."""

    type: str = DEFAULT_TYPE
    """A simulated world, as of --env.type of the other verbs; dataset, which plays recorded episodes back;
    lerobot; one that an installed package offers (entry point group vivace.robots), or
    package.module:function."""
    task: str = ""
    """Of a simulation, e.g. reach-v3; its first one when not given."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the robot, e.g. '{robot: so101_follower, port: /dev/ttyACM0}' for lerobot, '{repo: DATASET}' or
    '{file: obs.npz}' with episodes: [3] for dataset; of a simulation what are flags --env.… of the other
    verbs."""
    action_kinds: list[str] = field(default_factory=list)
    """What each dimension of its actions means, or all of them: absolute, delta, velocity. Robot and bundle
    say it where they can."""
    initial_action: tuple[float, ...] = ()
    """What to hold before the first action; the robot's own when not given."""
    patience_s: float = 2.0
    """How long one call of the robot may take before it is broken off [s]; 0: for ever. Not on Windows."""


@dataclass(frozen=True, kw_only=True)
class RunLoop(LoopSettings):
    """On a robot the policy thinks while it acts, unless it is told otherwise."""

    USUAL: ClassVar[Mode] = Mode.ASYNC

    mode: Mode | None = None
    """sync: act, then think; async: think while acting; rtc: async, and a chunk continues the one before.
    When not given as the bundle's plan says, else async."""


@dataclass(kw_only=True)
class InferenceOptions:
    """The process that computes chunks."""

    providers: list[str] = field(default_factory=lambda: ["cpu"])
    """ONNX Runtime's: cpu, cuda, tensorrt, openvino."""
    threads: int | None = None
    """Of one inference; when not given as many as are measured to be fastest, before the robot is there."""
    stall_s: float = 5.0
    """An inference that takes longer is given up and its process replaced [s]."""
    plausible_spans: float = PLAUSIBLE_SPANS
    """An observation with a number further outside of what training saw is refused, in spans of that."""
    warmup: int = 5
    """Chunks computed and timed before the first command."""

    def __post_init__(self) -> None:
        """Counts and times must be above 0."""
        if self.warmup < 1:
            raise BadSetting(f"inference.warmup={self.warmup}; at least 1 chunk is needed")
        if self.threads is not None and self.threads < 1:
            raise BadSetting(f"inference.threads={self.threads}; at least 1 thread is needed")
        if not 0 < self.stall_s < math.inf:
            raise BadSetting(f"inference.stall_s={self.stall_s}; seconds above 0 are needed")


@dataclass(kw_only=True)
class LogOptions:
    """How much of run.jsonl is kept: at 100 Hz and 7 actions about 40 kB a second."""

    file_mb: float = 32.0
    """Size at which a new file begins; the one before becomes run.jsonl.1 [MB]."""
    files: int = 8
    """Files that are kept, the newest."""

    def __post_init__(self) -> None:
        """There must be something to write to."""
        if not 0 < self.file_mb < math.inf or self.files < 1:
            raise BadSetting(
                f"log: file_mb={self.file_mb}, files={self.files}; needed: above 0, and 1 or more"
            )


@dataclass(kw_only=True)
class RunCommand:
    """Drive a robot, or a simulation, in wall-clock time with an exported policy.

    Example: vivace run --bundle=outputs/bundles/reach --robot.task=reach-moving
    --control_hz=50
    """

    bundle: str = ""
    """Folder that vivace export wrote."""
    robot: RobotOptions = field(default_factory=RobotOptions)
    control_hz: float | None = None
    """Control rate [Hz]; the one the policy was trained at when not given, if its bundle says it."""
    duration_s: float = 0.0
    """End after so long [s]; 0: when the episodes are over, or at Ctrl-C."""
    n_episodes: int = 1
    """Of a simulation; 0: any number."""
    loop: RunLoop = field(default_factory=RunLoop)
    inference: InferenceOptions = field(default_factory=InferenceOptions)
    instruction: str = ""
    """What a language-conditioned policy is told."""
    public_key: str = ""
    """PEM file: bundles must be signed with the private key that belongs to it (vivace export
    --export.sign_key)."""
    limits: str = ""
    """YAML file or URDF with the limits of the action's dimensions; when not given the range and largest step
    of the training data, as the bundle has them; none: no limits."""
    watchdog: WatchdogSettings = field(default_factory=WatchdogSettings)
    deadman: DeadmanSettings = field(default_factory=DeadmanSettings)
    realtime: RealtimeSettings = field(default_factory=RealtimeSettings)
    log: LogOptions = field(default_factory=LogOptions)
    viewer: bool = False
    """Show a simulation in a window."""
    draw: bool = False
    """Draw the report and the trace at the end, and a simulation's film; vivace report draws the first two
    later, on any computer, from what is written."""
    video: bool = True
    """With draw: film the last seconds of a simulation."""
    rerun: str = ""
    """Stream to rerun: "viewer", or a file to write such as run.rrd."""
    live: bool = True
    """Show figures in the terminal while it runs."""
    cpu_load: int = 0
    """Processes that burn the CPU beside, to see what the loop does then."""
    seed: int = 0
    """Episode i is reset with seed + i; names the noise too."""
    output_dir: str | None = None
    """Folder of the results; outputs/run/<date>/<time>_<job> when not given."""
    job_name: str = ""
    """Ends the name of the folder when --output_dir is not given."""
    require: list[str] = field(default_factory=list)
    """Targets such as run.effective_hz>=45 or run.decided>=1; exit code 1 when one is missed."""

    RENAMED = {
        "loop.providers": "inference.providers",
        "loop.threads": "inference.threads",
        "loop.stall_s": "inference.stall_s",
        "loop.plausible_spans": "inference.plausible_spans",
        "loop.warmup": "inference.warmup",
        "loop.rtc.max_guidance": "loop.rtc.max_guidance_weight",
        "watchdog.stale_s": "watchdog.observation_age_s",
        "watchdog.frozen_s": "watchdog.stuck_s",
    }
    """Flag or setting of earlier versions -> its name today."""

    @property
    def rate_hz(self) -> float:
        """The control rate [Hz], once `run` has settled it."""
        if self.control_hz is None:
            raise BadSetting("no control rate was given or found; give --control_hz")
        return self.control_hz

    def __post_init__(self) -> None:
        """Rates, times and counts must make sense."""
        if not self.bundle:
            raise BadSetting("vivace run needs --bundle: a folder that vivace export wrote")
        if self.control_hz is not None and not 0 < self.control_hz < math.inf:
            raise BadSetting(f"control_hz={self.control_hz}; a rate above 0 Hz is needed")
        for name in ("duration_s", "n_episodes", "cpu_load", "seed"):
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise BadSetting(f"{name}={value}; a finite number, 0 or more, is needed")
        if not 0 <= self.robot.patience_s < math.inf:
            raise BadSetting(f"robot.patience_s={self.robot.patience_s}; seconds, 0 or more, are needed")
