"""Runs the control loop, held while there is nothing to act on; needs no ROS.

A hold, whoever asks for it, is the watchdog's: the loop goes on, and its fallback acts. After it the loop
begins anew: observations from before a gap are not the steps before those after it, and the rest of an old
chunk is not executed.
"""

import copy
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from vivace.deploy.loop.budget import Rung
from vivace.deploy.loop.guard import ActionGuard
from vivace.deploy.loop.loop import ControlLoop, build_loop
from vivace.deploy.loop.standstill import rest_action
from vivace.deploy.loop.watchdog import State, Watchdog
from vivace.deploy.ros2.messages.command import Command, Intent
from vivace.deploy.ros2.messages.pose import numbers
from vivace.deploy.ros2.messages.sensors import POSE, Sensors, joint_part
from vivace.deploy.ros2.parameters.settings import RosSettings
from vivace.deploy.ros2.robot import RetimedWorker, RosRobot, TimerClock
from vivace.policies.spec import STATE, ActionKind, PolicySpec

HOLD = "hold"
"""Counted beside the loop's `Source`s: ticks in which it was held for want of an observation, or as asked."""


@dataclass(frozen=True)
class _Episode:
    loop: ControlLoop
    robot: RosRobot


class Driver:
    """The life of an active node, one tick after the other.

    Args:
        settings: of the node.
        spec: of the policy, its actions meaning what the settings say.
        worker: computes chunks.
        sensors: what is seen.
        command: where actions go.
        now: time on the clock that stamps are of [s].
        pace: time on the clock that the timer follows, which never goes back [s].
        ladder: plans to choose among, best first; empty if there is but one.
    """

    def __init__(
        self,
        settings: RosSettings,
        spec: PolicySpec,
        worker: RetimedWorker,
        sensors: Sensors,
        command: Command,
        now: Callable[[], float],
        pace: Callable[[], float],
        ladder: tuple[Rung, ...] = (),
    ) -> None:
        self._settings, self._spec, self._worker, self._sensors = settings, spec, worker, sensors
        self._command, self._now, self._clock = command, now, TimerClock(pace)
        self._period_s, self._ladder = 1.0 / settings.control_hz, ladder
        self._guard = self._new_guard()
        self._watchdog = Watchdog(
            replace(settings.watchdog, observation_age_s=0.0)
        )  # the sensors know stamps
        self._episode: _Episode | None = None
        self._last: np.ndarray | None = None
        """What was executed last, None if that is unknown."""
        self._has_held = False
        """The present loop was held."""
        self._ended_misses = self._ended_chunks = self._ended_interventions = 0
        self._ended_choices: Counter[str] = Counter()
        self.task = settings.task
        self.is_held = False
        """Somebody asked for a hold."""
        self.rival = ""
        """Who else commands the robot, if we are to be silent then."""
        self._is_silent = False
        self.reason = "not begun"
        """Why the robot is held; "" while the policy acts."""
        self.episode = -1
        """Number of the last loop that was not held from its beginning."""
        self.ticks: Counter[str] = Counter()
        """Ticks by what they executed: chunk, stale, fallback, hold."""
        self.late_commands = 0
        """Commands that came later than the QoS deadline offered."""
        self.skipped = 0
        """Control periods that passed without a tick."""
        self.reactions_s: deque[float] = deque(maxlen=4096)
        """From the observation's stamp to the first command of its chunk [s]."""

    def tick(self) -> None:
        """Run one control period."""
        if self.rival:
            self._yield()
            return
        self._is_silent = False
        lacks = self._sensors.why_not(self._now())
        why = "asked to hold" if self.is_held else lacks
        if self._has_held and not why:
            self._drop()
        if not lacks and self._last is None and (why or self._episode is None) and self._find_posture():
            self._drop()
        self._watchdog.hold(why)
        episode = self._episode or self._begin(is_held=bool(why))
        self._has_held |= bool(why)
        record = episode.loop.tick()
        self.ticks[HOLD if why else record.source.value] += 1
        self.skipped += record.beat.skipped
        self.reason = why
        if not why and record.state != State.RUN:
            self.reason = self._watchdog.why
            if record.state == State.STOP:
                self.reason += "; stopped until reset"
        if record.has_accepted and record.age_ticks is not None:
            self.reactions_s.append(self._now() - episode.robot.stamp_of(record.tick - record.age_ticks))

    def reset(self) -> None:
        """Begin a new episode; a robot that the watchdog stopped may run again."""
        self._drop()
        self._watchdog.reset(self._clock.now())

    def instruct(self, task: str) -> None:
        """Take a new instruction; actions meant for the one before are not executed any more."""
        if task != self.task:
            self.task = task
            self._drop()

    def stop(self) -> None:
        """Command a standstill now, whatever the rates allowed: the last command before silence."""
        self._drop()
        if self._last is not None:
            self._last = rest_action(self._last, self._spec.action_kinds)
            self._send(self._last)

    @property
    def misses(self) -> int:
        """Deadlines missed so far."""
        return self._ended_misses + (0 if self._episode is None else self._episode.loop.budget.misses)

    @property
    def chunks(self) -> int:
        """Chunks taken so far."""
        return self._ended_chunks + (0 if self._episode is None else self._episode.loop.queue.accepted)

    @property
    def choices(self) -> Counter[str]:
        """How often each plan of the ladder was chosen so far."""
        now: Counter[str] = Counter() if self._episode is None else self._episode.loop.budget.choices
        return self._ended_choices + now

    @property
    def interventions(self) -> int:
        """Actions the guard refused or changed so far."""
        return self._ended_interventions + self._guard.interventions

    def _drop(self) -> None:
        """Forget the chunk, the observations before now and the request in flight."""
        if self._episode is not None:
            self._ended_misses += self._episode.loop.budget.misses
            self._ended_chunks += self._episode.loop.queue.accepted
            self._ended_choices += self._episode.loop.budget.choices
        self._episode, self._has_held = None, False
        self._worker.forget()

    def _begin(self, *, is_held: bool) -> _Episode:
        """Begin an episode from where the robot is."""
        settings = self._settings
        self.episode += not is_held
        if self._watchdog.state != State.STOP:
            self._watchdog.reset(self._clock.now())  # the time of a hold does not count
        robot = RosRobot(self._sensors, lambda: self.task, lambda: loop.tick_count, self._act)
        loop = build_loop(
            robot,
            self._worker,
            self._guard,
            self._clock,
            settings.loop,
            self._spec,
            control_hz=settings.control_hz,
            ladder=self._ladder,
            posture=None if self._last is None else tuple(float(x) for x in self._last),
            episode_seed=settings.seed + self.episode,
            watchdog=self._watchdog,
        )
        self._episode = _Episode(loop, robot)
        return self._episode

    def _find_posture(self) -> bool:
        """Take what was given or is measured for what is held, if every absolute target is known then."""
        given = self._settings.fallback_initial_action
        is_absolute = np.array([kind == ActionKind.ABSOLUTE for kind in self._spec.action_kinds])
        measured = measured_positions(self._settings, self._sensors, self._spec.action_dim)
        posture = np.array(given) if given else np.where(is_absolute, measured, 0.0)
        if not np.isfinite(posture).all():
            return False
        self._last = posture.astype(np.float32)
        self._guard.start(self._last)
        return True

    def _act(self, action: np.ndarray) -> None:
        """Send what the loop acts, and what it means to do after it."""
        if self._episode is None:
            return
        loop, robot = self._episode.loop, self._episode.robot
        queue, tick = loop.queue, loop.tick_count
        observed = queue.observed_tick if self._watchdog.state == State.RUN else None
        if observed is None and self._last is None:
            return  # no chunk was there yet, and an absolute target to hold is not known
        self._last = action
        if observed is None or queue.remaining(tick) == 0:
            self._send(action)
            return
        ahead = self._preview(queue.ahead(tick + 1), queue.remaining(tick + 1))
        chunk = self._ended_chunks + queue.accepted
        self._command(Intent(action, ahead, chunk, robot.stamp_of(observed), tick - observed))

    def _preview(self, actions: np.ndarray | None, most: int) -> np.ndarray:
        """Actions (m, A) as the guard would let them pass one after the other, up to one it refuses."""
        guard, passed = copy.deepcopy(self._guard), []
        for action in [] if actions is None else actions[:most]:
            allowed = guard.check(action)
            if allowed is None:
                break
            passed.append(allowed)
        return np.array(passed, np.float32).reshape(len(passed), self._spec.action_dim)

    def _yield(self) -> None:
        """Stop, be silent, and forget where the robot was: another moves it now."""
        self.reason = f"{self.rival}, and command.exclusive is set"
        self.ticks[HOLD] += 1
        if self._is_silent:
            return
        self.stop()
        self._is_silent, self._last = True, None
        self._ended_interventions += self._guard.interventions
        self._guard = self._new_guard()

    def _new_guard(self) -> ActionGuard:
        return ActionGuard(self._settings.limits(self._spec), self._spec.action_kinds, self._period_s)

    def _send(self, action: np.ndarray) -> None:
        """Send an action that is of no chunk."""
        none = np.empty((0, self._spec.action_dim), np.float32)
        self._command(Intent(action, none, None, self._now(), 0))


def measured_positions(settings: RosSettings, sensors: Sensors, size: int) -> np.ndarray:
    """Return the newest measured value of each action dimension (A,), NaN where unknown.

    Of a dimension that command.names names, its joint's position; of a commanded pose, the measured one.
    """
    found = np.full(size, np.nan)
    seen = sensors.sensors[STATE].seen if STATE in sensors.sensors else {}
    if "position" in settings.joint_fields:
        index = settings.joint_fields.index("position")
        for i, name in enumerate(settings.command_names):
            if (part := joint_part(name)) in seen:
                found[i] = seen[part][index]
    if settings.sees_commanded_pose and POSE in seen:
        at = numbers(seen[POSE], settings.command_layout, settings.command_fixed)
        return np.where(np.isnan(at), found, at)
    return found
