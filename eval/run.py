"""`vivace run`: a robot, or a simulation, in wall-clock time with an exported policy."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vivace.deploy.action_range import choose_limits
from vivace.deploy.budget import LatencyBudget, Rung
from vivace.deploy.bundle import Bundle
from vivace.deploy.clock import WallClock
from vivace.deploy.guard import ActionGuard, Limits
from vivace.deploy.loop import ControlLoop, LoopSettings, Mode, executed_actions, make_queue
from vivace.deploy.process_worker import ProcessWorker, bundles
from vivace.deploy.realtime import Grant, realtime
from vivace.deploy.robots import action_kinds, action_names, check_robot, initial_action, make_robot
from vivace.deploy.rungs import load_plans, measure_rungs
from vivace.deploy.watchdog import State, Watchdog
from vivace.eval.cpu_load import cpu_load
from vivace.eval.interrupts import Interrupts
from vivace.eval.output import output_folder
from vivace.eval.recorder import Recorder
from vivace.eval.requirements import are_met, read_requirements
from vivace.eval.run_results import results, summary, write
from vivace.eval.run_settings import RunCommand
from vivace.eval.terminal import console
from vivace.policies.errors import BadSetting
from vivace.policies.types import ActionKind, PolicySpec

REQUIRED = ("effective_hz", "fresh_share", "decided")
_PAUSE_S = 0.002
_PATIENCE_S = 60.0
"""How long a new process may load between two episodes [s]."""


@dataclass
class Parts:
    """What a run is made of."""

    command: RunCommand
    bundle: Bundle
    robot: Any
    settings: LoopSettings
    limits: Limits
    limits_from: str
    """Where they are from, in words."""
    worker: ProcessWorker
    ladder: tuple[Rung, ...]
    recorder: Recorder
    watchdog: Watchdog
    clock: WallClock
    grants: tuple[Grant, ...] = ()
    choices: Counter[str] = field(default_factory=Counter)
    """How often each plan of the ladder was chosen."""
    episodes: list[dict[str, Any]] = field(default_factory=list)
    was_interrupted: bool = False


def run(command: RunCommand) -> tuple[dict[str, Any], bool]:
    """Drive the robot until the run is over; write results.json, the report, the trace and the film."""
    requirements = read_requirements(command.require, ("run",), REQUIRED)
    plans = load_plans(command.bundle, command.loop.ladder, command.loop.mode, command.public_key)
    bundle = plans[command.bundle]
    command = replace(command, control_hz=_control_hz(command, bundle.spec))
    settings = _loop_settings(command, bundle.spec)
    with ExitStack() as stack:
        robot = _robot(command, bundle.spec, stack)
        bundle, settings, limits, limits_from = _fit(command, robot, bundle, settings)
        worker = _worker(command, plans)
        stack.callback(worker.close)
        worker.start()
        names = tuple(plans) if command.loop.ladder else ()
        task = command.instruction or bundle.usual_task
        ladder = measure_rungs(worker, bundle.spec, names, task, observations=bundle.example)
        folder = output_folder("run", command.output_dir, command.job_name)
        with _recorder(command, folder) as recorder:
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
            )
            _drive(parts)
        found = results(parts)
        write(folder, found, parts)
    told = summary(found, folder)
    return told, are_met(requirements, {"run": {name: found["run"][name] for name in REQUIRED}})


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


def _robot(command: RunCommand, spec: PolicySpec, stack: ExitStack) -> Any:
    """Make the robot; it is closed when the stack is."""
    context = {
        "spec": spec,
        "control_hz": command.rate_hz,
        "instruction": command.instruction,
        "task": command.robot.task,
    }
    options = dict(command.robot.options)
    if command.viewer:
        options["viewer"] = True
    robot = make_robot(command.robot.type, options, context)
    if callable(getattr(robot, "close", None)):
        stack.callback(robot.close)  # type: ignore[attr-defined]
    return robot


def _fit(
    command: RunCommand, robot: Any, bundle: Bundle, settings: LoopSettings
) -> tuple[Bundle, LoopSettings, Limits, str]:
    """Check that robot, policy and limits fit; returns what depends on the robot."""
    names = action_names(robot, bundle.spec)
    kinds = action_kinds(robot, names, bundle.spec, command.robot.action_kinds)
    spec = replace(bundle.spec, action_kinds=kinds)
    is_simulated = getattr(robot, "is_simulated", False)
    limits, limits_from = choose_limits(command.limits, names, spec, may_lack=is_simulated)
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


@contextmanager
def _recorder(command: RunCommand, folder: Path) -> Iterator[Recorder]:
    recorder = Recorder(folder, command.rate_hz, command.rerun, live=command.live)
    try:
        yield recorder
    finally:
        recorder.close()


def _drive(parts: Parts) -> None:
    """Run episodes until there are enough, the time is over, or somebody ends it."""
    command = parts.command
    with cpu_load(command.cpu_load), Interrupts() as interrupts, realtime(command.realtime) as parts.grants:
        for grant in parts.grants:
            outcome = "granted" if grant.is_granted else f"refused: {grant.why}"
            parts.recorder.event("real time", asked=grant.what, outcome=outcome)
            if not grant.is_granted:
                console.print(f"{grant.what} was refused: {grant.why}", style="yellow", highlight=False)
        end_s = time.monotonic() + (command.duration_s or float("inf"))
        number = 0
        while time.monotonic() < end_s and not interrupts.wants_end:
            if command.n_episodes and number >= command.n_episodes and hasattr(parts.robot, "reset"):
                break
            _episode(parts, command.seed + number, end_s, interrupts)
            number += 1
            if not hasattr(parts.robot, "is_over"):
                break  # a robot without episodes has run until the end
        parts.was_interrupted = interrupts.wants_end


def _episode(parts: Parts, seed: int, end_s: float, interrupts: Interrupts) -> None:
    """Run until the episode or the run is over."""
    robot, recorder = parts.robot, parts.recorder
    _await_worker(parts, interrupts)
    if hasattr(robot, "reset"):
        robot.reset(seed)
    loop = _loop(parts, seed)
    restarts, errors = parts.worker.restarts, len(parts.worker.errors)
    ticks = 0
    while not interrupts.wants_end and not getattr(robot, "is_over", False) and time.monotonic() < end_s:
        recorder.tick(loop.tick())
        ticks += 1
        if parts.worker.restarts != restarts or len(parts.worker.errors) > errors:
            restarts, errors = parts.worker.restarts, len(parts.worker.errors)
            recorder.event("worker", restarts=restarts, why=parts.worker.errors[-1])
        if parts.watchdog.state == State.STOP and interrupts.release_wanted():
            parts.watchdog.reset(parts.clock.now())
    _bring_to_rest(parts, loop)
    parts.choices.update(loop.budget.choices)
    if hasattr(robot, "is_over"):
        success = bool(getattr(robot, "is_success", False))
        parts.episodes.append({"seed": seed, "ticks": ticks, "success": success})


def _loop(parts: Parts, seed: int) -> ControlLoop:
    """Build the loop of one episode."""
    spec, settings = parts.bundle.spec, parts.settings
    return ControlLoop(
        parts.robot,
        parts.worker,
        make_queue(settings),
        _guard(parts.limits, spec, parts.command.rate_hz, settings.initial_action),
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


def _bring_to_rest(parts: Parts, loop: ControlLoop) -> None:
    """Ramp commanded velocities to zero: a robot goes on with the last one."""
    if ActionKind.VELOCITY not in parts.bundle.spec.action_kinds:
        return
    why, state = "the run ends", parts.watchdog.state
    parts.watchdog.stop(why, parts.clock.now())
    for _ in range(parts.settings.ramp_ticks):
        parts.recorder.tick(loop.tick())
    if state != State.STOP:
        parts.watchdog.reset(parts.clock.now())
