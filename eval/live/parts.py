"""What a run on a robot is made of, and how each part is made to fit the others."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.deadman.robot_access import arm, open_robot
from vivace.deploy.loop.budget import Rung
from vivace.deploy.loop.clock import WallClock
from vivace.deploy.loop.guard import ActionGuard, Limits
from vivace.deploy.loop.ladder import measure_rungs
from vivace.deploy.loop.robot import trait
from vivace.deploy.loop.warm_up import check_rate, warm_up
from vivace.deploy.loop.watchdog import Watchdog
from vivace.deploy.robots.action_range import choose_limits
from vivace.deploy.robots.patient_robot import PatientRobot
from vivace.deploy.robots.registry import (
    action_kinds,
    action_names,
    check_robot,
    initial_action,
    robot_names,
)
from vivace.deploy.system.realtime import Grant
from vivace.deploy.telemetry.run_log import log_parts
from vivace.deploy.workers.process_worker import ProcessWorker, bundles
from vivace.envs.registry import WORLDS, world_type
from vivace.eval.live.recorder import LOG, Recorder
from vivace.eval.live.results import RESULTS
from vivace.eval.live.screen import Screen
from vivace.eval.live.settings import RunCommand
from vivace.eval.output import output_folder
from vivace.policies.errors import BadSetting, UnknownEnvironment, VivaceError
from vivace.policies.spec import PolicySpec

if TYPE_CHECKING:
    from vivace.eval.live.threads import Threads

_SIMULATION = "vivace.eval.live.sim_robot:simulation"


@dataclass
class Parts:
    """What a run is made of."""

    command: RunCommand
    bundle: Bundle
    robot: PatientRobot
    limits: Limits
    limits_from: str
    """Where they are from, in words."""
    worker: ProcessWorker
    threads: "Threads"
    """Of one inference."""
    ladder: tuple[Rung, ...]
    recorder: Recorder
    watchdog: Watchdog
    clock: WallClock
    posture: tuple[float, ...]
    """What the robot holds before the first action (A,)."""
    warmup_s: list[float]
    """How long each chunk took before the first command [s]."""
    guard: ActionGuard = field(default_factory=ActionGuard)
    """Of the present episode."""
    grants: tuple[Grant, ...] = ()
    choices: Counter[str] = field(default_factory=Counter)
    """How often each plan of the ladder was chosen."""
    episodes: list[dict[str, Any]] = field(default_factory=list)
    failures: int = 0
    """Inferences that gave no chunk."""
    signal: str = ""
    """The one that ended the run."""
    fault: BaseException | None = None
    """What ended the run though nobody asked for it."""
    is_at_rest: bool = True
    """The robot has taken its last command, a standstill."""

    @property
    def has_crashed(self) -> bool:
        """What ended it is neither bad input, which the caller tells, nor a wish such as SystemExit."""
        return isinstance(self.fault, Exception) and not isinstance(self.fault, VivaceError)


def settled_hz(command: RunCommand, spec: PolicySpec) -> float:
    """Return the rate asked for [Hz], else the policy's own; raises `BadSetting` if neither is known."""
    if command.control_hz is not None:
        return command.control_hz
    if spec.control_hz is None:
        raise BadSetting(
            f"bundle {command.bundle} does not say at which rate its policy was trained; give --control_hz, "
            "that of the demonstrations"
        )
    return spec.control_hz


def make_robot(command: RunCommand, spec: PolicySpec) -> Any:
    """Make the robot a command names, behind a dead man's switch if it wants one."""
    context = {
        "spec": spec,
        "control_hz": command.rate_hz,
        "instruction": command.instruction,
        "task": command.robot.task,
    }
    kind, options = command.robot.type, dict(command.robot.options)
    if command.viewer:
        options["viewer"] = True
    if _is_world(kind):
        kind, options = _SIMULATION, {"world": kind, **options}
    return open_robot(kind, options, context, command.deadman, command.realtime)


def _is_world(kind: str) -> bool:
    """Whether a robot's name is that of a type of world."""
    if kind in WORLDS.names():
        return True
    if kind in robot_names() or ":" in kind:
        return False
    try:
        return world_type(kind) is not None
    except UnknownEnvironment:
        return False


@contextmanager
def one_line(what: str) -> Iterator[None]:
    """Turn whatever a robot's driver raises before the run into a line."""
    try:
        yield
    except VivaceError:
        raise
    except Exception as error:
        raise BadSetting(
            f"{what} ({type(error).__name__}: {error}); check its power, cables and options"
        ) from error


def fit(
    command: RunCommand, robot: Any, bundle: Bundle, screen: Screen
) -> tuple[Bundle, tuple[float, ...], Limits, str]:
    """Check that robot, policy and limits fit; returns what depends on the robot."""
    names = action_names(robot, bundle.spec)
    kinds = action_kinds(robot, names, bundle.spec, command.robot.action_kinds)
    spec = replace(bundle.spec, action_kinds=kinds)
    may_lack = trait(robot, "is_simulated")
    limits, limits_from = choose_limits(command.limits, names, spec, may_lack=may_lack)
    if warning := arm(robot, kinds, limits):
        screen.say(warning, "yellow")
    check_robot(robot, spec)
    start = initial_action(robot, spec, command.robot.initial_action)
    make_guard(limits, spec, command.rate_hz, start)  # refuses a posture that cannot be
    return replace(bundle, spec=spec), start, limits, limits_from


def make_guard(
    limits: Limits, spec: PolicySpec, control_hz: float, posture: tuple[float, ...]
) -> ActionGuard:
    """Build a guard that knows where the robot is."""
    guard = ActionGuard(limits, spec.action_kinds, 1.0 / control_hz)
    guard.start(np.array(posture, np.float32))
    return guard


def make_worker(command: RunCommand, plans: Mapping[str, Bundle], threads: int) -> ProcessWorker:
    """Make what computes chunks with so many threads, in a process of its own that has not begun."""
    options = command.inference
    load = bundles(
        {name: bundle.reference for name, bundle in plans.items()},
        options.providers,
        threads,
        command.loop.chunking,
        command.public_key,
        options.plausible_spans,
    )
    return ProcessWorker(load, plans[command.bundle].spec, stall_s=options.stall_s)


def warm(
    command: RunCommand,
    bundle: Bundle,
    worker: ProcessWorker,
    plans: Mapping[str, Bundle],
) -> tuple[list[float], tuple[Rung, ...]]:
    """Time chunks before the robot moves; a rate that cannot be met is refused, if misses are watched."""
    options, task, seen = command.inference, command.instruction or bundle.usual_task, bundle.example
    warmup_s = warm_up(
        worker,
        bundle.spec,
        task,
        options.warmup,
        options.stall_s,
        observations=seen,
        anytime=command.loop.anytime,
    )
    names = tuple(plans) if command.loop.ladder else ()
    ladder = measure_rungs(worker, bundle.spec, names, task, observations=seen)
    if command.watchdog.misses:
        fastest_s = min([*warmup_s, *(rung.p99_s for rung in ladder)])
        check_rate(fastest_s, command.rate_hz, command.loop, bundle.spec)
    return warmup_s, ladder


def make_recorder(command: RunCommand, screen: Screen) -> Recorder:
    """Begin to record in a folder of this run's own.

    Raises:
        BadSetting: another run is in it, or it cannot be written to.
    """
    folder = output_folder("run", command.output_dir, command.job_name)
    taken = BadSetting(f"{folder} holds another run; give another --output_dir, or remove it")
    if (folder / RESULTS).exists() or log_parts(folder / LOG):
        raise taken
    try:
        return Recorder(
            folder,
            command.rate_hz,
            command.rerun,
            live=command.live,
            file_mb=command.log.file_mb,
            files=command.log.files,
            screen=screen,
        )
    except FileExistsError as error:  # it has just begun
        raise taken from error
    except OSError as error:
        raise BadSetting(
            f"{folder} cannot be written to ({error.strerror}); give another --output_dir"
        ) from error
