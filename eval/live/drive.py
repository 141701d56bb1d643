"""Drives a robot in wall-clock time, from the first connection to the standstill; `vivace run`'s body."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.loop.clock import WallClock
from vivace.deploy.loop.loop import build_loop
from vivace.deploy.loop.robot import Ends, Judges, Resets, able
from vivace.deploy.loop.standstill import Standstill
from vivace.deploy.loop.watchdog import State, Watchdog
from vivace.deploy.robots.patient_robot import PatientRobot
from vivace.deploy.system.interrupts import Interrupts
from vivace.deploy.system.realtime import realtime
from vivace.eval.live.cpu_load import cpu_load
from vivace.eval.live.news import News
from vivace.eval.live.parts import (
    Parts,
    fit,
    make_guard,
    make_recorder,
    make_robot,
    make_worker,
    one_line,
    warm,
)
from vivace.eval.live.screen import Screen
from vivace.eval.live.settings import RunCommand
from vivace.eval.live.threads import choose_threads
from vivace.policies.errors import BadSetting

_PAUSE_S = 0.002
_PATIENCE_S = 60.0
"""How long a new process may load between two episodes [s]."""


def drive(command: RunCommand, plans: Mapping[str, Bundle], interrupts: Interrupts) -> Parts:
    """Make everything and drive; returns once the robot is at rest and closed, and the log is."""
    bundle = plans[command.bundle]
    command.loop.fresh_actions(bundle.spec)  # refuses what does not fit before a process is begun
    with ExitStack() as shown, ExitStack() as stack:
        screen = Screen()  # from here on nobody waits for a terminal
        shown.callback(screen.close)
        threads = choose_threads(command, plans)
        screen.say(f"ONNX Runtime threads: {threads.n}, {threads.told}")
        worker = make_worker(command, plans, threads.n)
        stack.callback(worker.close)
        with one_line(f"robot {command.robot.type!r} cannot be used"):
            bare = make_robot(command, bundle.spec)
            robot = PatientRobot(bare, bundle.spec, interrupts.within, command.robot.patience_s)
            stack.callback(robot.close)
            bundle, posture, limits, limits_from = fit(command, bare, bundle, screen)
            robot.observe()  # one that does not answer later is shown what it saw now
        worker.start()
        warmup_s, ladder = warm(command, bundle, worker, plans)
        interrupts.hold_back()
        recorder = make_recorder(command, screen)
        shown.enter_context(screen.captured())  # as long as the robot may print
        parts = Parts(
            command=command,
            bundle=bundle,
            robot=robot,
            limits=limits,
            limits_from=limits_from,
            worker=worker,
            threads=threads,
            ladder=ladder,
            recorder=recorder,
            watchdog=Watchdog(command.watchdog, recorder.changed),
            clock=WallClock(command.realtime.spin_s),
            posture=posture,
            warmup_s=warmup_s,
        )
        _caught(parts, partial(_run_episodes, parts, interrupts))
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


def _run_episodes(parts: Parts, interrupts: Interrupts) -> None:
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
            if command.n_episodes and number >= command.n_episodes and able(parts.robot, Resets) is not None:
                break
            _episode(parts, command.seed + number, end_s, interrupts)
            number += 1
            if able(parts.robot, Ends) is None:
                break  # a robot without episodes has run until the end


def _episode(parts: Parts, seed: int, end_s: float, interrupts: Interrupts) -> None:
    """Run until the episode or the run is over."""
    robot, recorder = parts.robot, parts.recorder
    _await_worker(parts, interrupts)
    if able(robot, Resets) is not None:
        with (
            suppress(KeyboardInterrupt),
            interrupts.let_through(),
        ):  # somebody may have to set the scene first
            robot.begin(seed)
    spec, hz = parts.bundle.spec, parts.command.rate_hz
    parts.guard = make_guard(parts.limits, spec, hz, parts.posture)
    loop = build_loop(
        robot,
        parts.worker,
        parts.guard,
        parts.clock,
        parts.command.loop,
        spec,
        control_hz=hz,
        ladder=parts.ladder,
        posture=parts.posture,
        episode_seed=seed,
        watchdog=parts.watchdog,
    )
    parts.watchdog.begin()
    news, ticks, ends = News(parts, loop), 0, able(robot, Ends)
    while not interrupts.wants_end and (ends is None or not ends.is_over) and time.monotonic() < end_s:
        recorder.tick(loop.tick())
        ticks += 1
        news.tell()
        if parts.watchdog.state == State.STOP and interrupts.release_wanted():
            parts.watchdog.reset(parts.clock.now())
    parts.choices.update(loop.budget.choices)
    if ends is not None:
        judge = able(robot, Judges)
        success = judge is not None and bool(judge.is_success)
        parts.episodes.append({"seed": seed, "ticks": ticks, "success": success})
        _bring_to_rest(parts)


def _await_worker(parts: Parts, interrupts: Interrupts) -> None:
    """Wait until the worker has finished what an earlier episode asked for; the robot is at rest.

    Raises:
        BadSetting: it does not come back.
    """
    end_s = time.monotonic() + parts.command.inference.stall_s + _PATIENCE_S
    while parts.worker.is_busy and not interrupts.wants_end:
        if time.monotonic() > end_s:
            raise BadSetting(f"the inference process does not come back: {parts.worker.errors[-1:]}")
        parts.worker.poll(time.monotonic())
        time.sleep(_PAUSE_S)


def _bring_to_rest(parts: Parts) -> bool:
    """Command a standstill: a robot goes on with the last velocity it was told."""
    period_s, ramp_ticks = 1.0 / parts.command.rate_hz, parts.command.loop.ramp_ticks
    standstill = Standstill(parts.robot, parts.bundle.spec, parts.clock, period_s, ramp_ticks)
    told = parts.robot.told
    is_at_rest = standstill.command(parts.guard)
    parts.recorder.rested(parts.robot.told - told, is_at_rest=is_at_rest)
    return is_at_rest
