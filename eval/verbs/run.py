"""`vivace run`: a robot, or a simulation, in wall-clock time with an exported policy."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.deadman.robot_access import arm, open_robot
from vivace.deploy.loop.budget import LatencyBudget, Rung
from vivace.deploy.loop.clock import WallClock
from vivace.deploy.loop.guard import ActionGuard, Limits
from vivace.deploy.loop.loop import ControlLoop, executed_actions, make_queue
from vivace.deploy.loop.rungs import load_plans, measure_rungs
from vivace.deploy.loop.settings import LoopSettings, Mode
from vivace.deploy.loop.warm_up import check_rate, warm_up
from vivace.deploy.loop.watchdog import State, Watchdog
from vivace.deploy.robots.action_range import choose_limits
from vivace.deploy.robots.patient_robot import PatientRobot
from vivace.deploy.robots.registry import action_kinds, action_names, check_robot, initial_action
from vivace.deploy.robots.standstill import Standstill
from vivace.deploy.system.interrupts import Interrupts
from vivace.deploy.system.realtime import Grant, realtime
from vivace.deploy.telemetry.run_log import log_parts
from vivace.deploy.workers.process_worker import ProcessWorker, bundles
from vivace.eval.live.cpu_load import cpu_load
from vivace.eval.live.news import News
from vivace.eval.live.recorder import LOG, Recorder
from vivace.eval.live.results import RESULTS, draw, results, summary, tell_ending, write
from vivace.eval.live.settings import RunCommand
from vivace.eval.output import output_folder
from vivace.eval.requirements import are_met, read_requirements
from vivace.eval.terminal import console
from vivace.policies.errors import BadSetting, VivaceError
from vivace.policies.spec import PolicySpec

REQUIRED = ("effective_hz", "fresh_share", "decided")
_PAUSE_S = 0.002
_PATIENCE_S = 60.0
"""How long a new process may load between two episodes [s]."""


@dataclass
class Parts:
    """What a run is made of."""

    command: RunCommand
    bundle: Bundle
    robot: PatientRobot
    settings: LoopSettings
    limits: Limits
    limits_from: str
    """Where they are from, in words."""
    worker: ProcessWorker
    ladder: tuple[Rung, ...]
    recorder: Recorder
    watchdog: Watchdog
    clock: WallClock
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


def run(command: RunCommand) -> tuple[dict[str, Any], bool]:
    """Drive the robot until the run is over; write results.json, and draw if asked to.

    However a run ends, the robot is brought to rest, then it and the worker are closed, and only then is
    anything written, with all signals held back until that is done.

    Raises:
        VivaceError: something does not fit, or ended the run; what was measured until then is written.
        KeyboardInterrupt: a signal came before the robot was told anything.
    """
    requirements = read_requirements(command.require, ("run",), REQUIRED)
    plans = load_plans(command.bundle, command.loop.ladder, command.loop.mode, command.public_key)
    command = replace(command, control_hz=_control_hz(command, plans[command.bundle].spec))
    with Interrupts() as interrupts:
        parts = _driven(command, plans, interrupts)
        found, folder = results(parts), parts.recorder.folder
        write(folder, found)
        is_good = parts.fault is None and parts.is_at_rest and parts.watchdog.state != State.STOP
        interrupts.wants_end = False
        with suppress(KeyboardInterrupt), interrupts.let_through():  # telling and drawing may be broken off
            is_good &= are_met(requirements, {"run": {name: found["run"][name] for name in REQUIRED}})
            if command.draw:
                draw(folder, found, parts)
            tell_ending(parts, folder)
        told = summary(found, folder)
    if parts.fault is not None and not parts.has_crashed:
        raise parts.fault
    return told, is_good


def _driven(command: RunCommand, plans: Mapping[str, Bundle], interrupts: Interrupts) -> Parts:
    """Make everything and drive; returns once the robot is at rest and closed, and the log is."""
    bundle = plans[command.bundle]
    settings = _loop_settings(command, bundle.spec)
    with ExitStack() as shown, ExitStack() as stack:
        worker = _worker(command, plans)
        stack.callback(worker.close)
        with _one_line(f"robot {command.robot.type!r} cannot be used"):
            bare = _robot(command, bundle.spec)
            robot = PatientRobot(bare, bundle.spec, interrupts.within, command.robot.patience_s)
            stack.callback(robot.close)
            bundle, settings, limits, limits_from = _fit(command, bare, bundle, settings)
            robot.observe()  # one that does not answer later is shown what it saw now
        worker.start()
        warmup_s, ladder = _warm(command, bundle, worker, plans, settings)
        interrupts.hold_back()
        recorder = _recorder(command)
        shown.enter_context(recorder.screen.captured())  # as long as the robot may print
        parts = Parts(
            command=command,
            bundle=bundle,
            robot=robot,
            settings=settings,
            limits=limits,
            limits_from=limits_from,
            worker=worker,
            ladder=ladder,
            recorder=recorder,
            watchdog=Watchdog(command.watchdog, recorder.changed),
            clock=WallClock(command.realtime.spin_s),
            warmup_s=warmup_s,
        )
        _caught(parts, partial(_drive, parts, interrupts))
        parts.signal = interrupts.name
        parts.is_at_rest = bool(_caught(parts, partial(_bring_to_rest, parts)))
    recorder.close()
    return parts


def _caught(parts: Parts, step: Callable[[], Any]) -> Any:
    """Return what a step does; keep whatever ends it for later, because the robot comes first."""
    try:
        return step()
    except BaseException as error:  # SystemExit and the like too
        parts.fault = parts.fault or error
        return None


@contextmanager
def _one_line(what: str) -> Iterator[None]:
    """Turn whatever a robot's driver raises before the run into a line."""
    try:
        yield
    except VivaceError:
        raise
    except Exception as error:
        raise BadSetting(
            f"{what} ({type(error).__name__}: {error}); check its power, cables and options"
        ) from error


def _warm(
    command: RunCommand,
    bundle: Bundle,
    worker: ProcessWorker,
    plans: Mapping[str, Bundle],
    settings: LoopSettings,
) -> tuple[list[float], tuple[Rung, ...]]:
    """Time chunks before the robot moves; a rate that cannot be met is refused, if misses are watched."""
    options, task = command.loop, command.instruction or bundle.usual_task
    anytime = options.anytime
    seen = bundle.example
    warmup_s = warm_up(
        worker, bundle.spec, task, options.warmup, options.stall_s, observations=seen, anytime=anytime
    )
    names = tuple(plans) if options.ladder else ()
    ladder = measure_rungs(worker, bundle.spec, names, task, observations=seen)
    if command.watchdog.misses:
        fastest_s = min([*warmup_s, *(rung.p99_s for rung in ladder)])
        check_rate(fastest_s, command.rate_hz, settings, bundle.spec)
    return warmup_s, ladder


def _control_hz(command: RunCommand, spec: PolicySpec) -> float:
    """Return the rate asked for [Hz], else the policy's own; raises `BadSetting` if neither is known."""
    if command.control_hz is not None:
        return command.control_hz
    if spec.control_hz is None:
        raise BadSetting(
            f"bundle {command.bundle} does not say at which rate its policy was trained; give --control_hz, "
            "that of the demonstrations"
        )
    return spec.control_hz


def _robot(command: RunCommand, spec: PolicySpec) -> Any:
    """Make the robot."""
    context = {
        "spec": spec,
        "control_hz": command.rate_hz,
        "instruction": command.instruction,
        "task": command.robot.task,
    }
    options = dict(command.robot.options)
    if command.viewer:
        options["viewer"] = True
    return open_robot(command.robot.type, options, context, command.deadman, command.realtime)


def _fit(
    command: RunCommand, robot: Any, bundle: Bundle, settings: LoopSettings
) -> tuple[Bundle, LoopSettings, Limits, str]:
    """Check that robot, policy and limits fit; returns what depends on the robot."""
    names = action_names(robot, bundle.spec)
    kinds = action_kinds(robot, names, bundle.spec, command.robot.action_kinds)
    spec = replace(bundle.spec, action_kinds=kinds)
    is_simulated = getattr(robot, "is_simulated", False)
    limits, limits_from = choose_limits(command.limits, names, spec, may_lack=is_simulated)
    if warning := arm(robot, kinds, limits):
        console.print(warning, style="yellow", highlight=False)
    check_robot(robot, spec)
    start = initial_action(robot, spec, command.robot.initial_action)
    _guard(limits, spec, command.rate_hz, start)  # refuses a posture that cannot be
    return replace(bundle, spec=spec), replace(settings, initial_action=start), limits, limits_from


def _guard(
    limits: Limits, spec: PolicySpec, control_hz: float, posture: tuple[float, ...] | None
) -> ActionGuard:
    """Build a guard that knows where the robot is."""
    guard = ActionGuard(limits, spec.action_kinds, 1.0 / control_hz)
    guard.start(np.array(posture, np.float32))
    return guard


def _loop_settings(command: RunCommand, spec: PolicySpec) -> LoopSettings:
    return LoopSettings(
        mode=Mode(command.loop.mode),
        n_action_steps=executed_actions(command.loop.n_action_steps, spec),
        request_at=command.loop.request_at,
        blend_ticks=command.loop.blend_ticks,
        anytime=command.loop.anytime,
    )


def _worker(command: RunCommand, plans: Mapping[str, Bundle]) -> ProcessWorker:
    options = command.loop
    chunking = options.rtc if options.mode == Mode.RTC else None
    folders = {name: bundle.reference for name, bundle in plans.items()}
    load = bundles(
        folders, options.providers, options.threads, chunking, command.public_key, options.plausible_spans
    )
    return ProcessWorker(load, plans[command.bundle].spec, stall_s=options.stall_s)


def _recorder(command: RunCommand) -> Recorder:
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
        )
    except FileExistsError as error:  # it has just begun
        raise taken from error
    except OSError as error:
        raise BadSetting(
            f"{folder} cannot be written to ({error.strerror}); give another --output_dir"
        ) from error


def _drive(parts: Parts, interrupts: Interrupts) -> None:
    """Run episodes until there are enough, the time is over, or somebody ends it."""
    command, recorder = parts.command, parts.recorder
    with cpu_load(command.cpu_load), realtime(command.realtime) as parts.grants:
        for grant in parts.grants:
            outcome = "granted" if grant.is_granted else f"refused: {grant.why}"
            recorder.event("real time", asked=grant.what, outcome=outcome)
            if not grant.is_granted:
                recorder.screen.say(f"{grant.what} was refused: {grant.why}", "yellow")
        end_s = time.monotonic() + (command.duration_s or float("inf"))
        number = 0
        while time.monotonic() < end_s and not interrupts.wants_end:
            if command.n_episodes and number >= command.n_episodes and hasattr(parts.robot, "reset"):
                break
            _episode(parts, command.seed + number, end_s, interrupts)
            number += 1
            if not hasattr(parts.robot, "is_over"):
                break  # a robot without episodes has run until the end


def _episode(parts: Parts, seed: int, end_s: float, interrupts: Interrupts) -> None:
    """Run until the episode or the run is over."""
    robot, recorder = parts.robot, parts.recorder
    _await_worker(parts, interrupts)
    if hasattr(robot, "reset"):
        with (
            suppress(KeyboardInterrupt),
            interrupts.let_through(),
        ):  # somebody may have to set the scene first
            robot.begin(seed)
    loop = _loop(parts, seed)
    parts.watchdog.begin()
    news, ticks = News(parts, loop), 0
    while not interrupts.wants_end and not getattr(robot, "is_over", False) and time.monotonic() < end_s:
        recorder.tick(loop.tick())
        ticks += 1
        news.tell()
        if parts.watchdog.state == State.STOP and interrupts.release_wanted():
            parts.watchdog.reset(parts.clock.now())
    parts.choices.update(loop.budget.choices)
    if hasattr(robot, "is_over"):
        success = bool(getattr(robot, "is_success", False))
        parts.episodes.append({"seed": seed, "ticks": ticks, "success": success})
        _bring_to_rest(parts)


def _loop(parts: Parts, seed: int) -> ControlLoop:
    """Build the loop of one episode; its guard knows where the robot is."""
    spec, settings = parts.bundle.spec, parts.settings
    parts.guard = _guard(parts.limits, spec, parts.command.rate_hz, settings.initial_action)
    return ControlLoop(
        parts.robot,
        parts.worker,
        make_queue(settings),
        parts.guard,
        LatencyBudget(parts.command.rate_hz, parts.ladder),
        parts.clock,
        settings,
        spec=spec,
        episode_seed=seed,
        watchdog=parts.watchdog,
    )


def _await_worker(parts: Parts, interrupts: Interrupts) -> None:
    """Wait until the worker has finished what an earlier episode asked for; the robot is at rest.

    Raises:
        BadSetting: it does not come back.
    """
    end_s = time.monotonic() + parts.command.loop.stall_s + _PATIENCE_S
    while parts.worker.is_busy and not interrupts.wants_end:
        if time.monotonic() > end_s:
            raise BadSetting(f"the inference process does not come back: {parts.worker.errors[-1:]}")
        parts.worker.poll(time.monotonic())
        time.sleep(_PAUSE_S)


def _bring_to_rest(parts: Parts) -> bool:
    """Command a standstill: a robot goes on with the last velocity it was told."""
    period_s, ramp_ticks = 1.0 / parts.command.rate_hz, parts.settings.ramp_ticks
    standstill = Standstill(parts.robot, parts.bundle.spec, parts.clock, period_s, ramp_ticks)
    told = parts.robot.told
    is_at_rest = standstill.command(parts.guard)
    parts.recorder.rested(parts.robot.told - told, is_at_rest=is_at_rest)
    return is_at_rest
