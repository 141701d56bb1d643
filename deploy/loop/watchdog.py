"""Watches what the loop lives on, and takes the robot away from a policy that sees or thinks nothing new.

    run    actions of chunks are executed
    hold   the fallback acts, until what was wrong is right again
    stop   the fallback acts, until somebody calls `reset`

    run → hold    the observation's time does not go on, or a sensor says bit for bit the same, or so many
                  deadlines in a row were missed or inferences failed, or a tick was late, or no action has
                  reached the robot; or somebody asks for it (`hold`)
    hold → run    none of these any more
    hold → stop   a hold lasted too long, but for one that was asked for
    any  → stop   the worker was replaced too often, or no fresh action was executed for too long
    stop → run    `reset`

The loop goes on in every state: it observes, and in a hold whose observations are trusted it also thinks.
"""

import math
import zlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vivace.policies.arrays import is_image
from vivace.policies.backports import StrEnum
from vivace.policies.errors import BadSetting
from vivace.policies.spec import Observation

_KEPT = 1000
"""Transitions that are remembered; all are counted."""
_EVERY_ROW = 4
"""A stuck picture is one whose every fourth row is the same: a living camera has noise in all of them."""


class State(StrEnum):
    """Who acts."""

    RUN = "run"
    HOLD = "hold"
    STOP = "stop"


@dataclass(frozen=True, kw_only=True)
class WatchdogSettings:
    """What is watched; 0: not at all."""

    observation_age_s: float = 0.5
    """Longest time in which the observation's time may not go on [s]: it stands still, goes back or is no
    number. So long is a robot waited for that does not answer. A ROS node goes by the stamps of messages."""
    stuck_s: float = 0.0
    """Longest time a picture may be bit for bit the same [s], or a robot's state if it has no cameras. Real
    cameras have noise, so a picture that stays the same is an old one; simulated ones need not."""
    misses: int = 20
    """Deadlines missed in a row; not watched in sync mode, where every one is."""
    failures: int = 3
    """Inferences in a row that gave no chunk."""
    late_s: float = 0.5
    """Longest time a tick may act after its control period is over [s], as after a robot's call that blocks;
    the hold lasts until ticks have been on time for as long."""
    act_s: float = 0.5
    """Longest time in which no action reaches the robot [s]: every one failed. It is told on."""
    hold_s: float = 3.0
    """Longest hold [s]; after it the robot is stopped."""
    starved_s: float = 10.0
    """Longest time without a fresh action [s], in sync mode without one of a chunk; then the robot stops."""
    restarts: int = 3
    """Replacements of the worker within `window_s`; more stop the robot."""
    window_s: float = 60.0
    """Time in which replacements are counted [s]."""

    def __post_init__(self) -> None:
        """Times and counts must be finite and not negative."""
        for name, value in vars(self).items():
            if not 0 <= value < float("inf"):
                raise BadSetting(f"watchdog: {name}={value}; a finite number, 0 or more, is needed")


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of state."""

    time_s: float
    before: State
    after: State
    why: str


class Watchdog:
    """Judges every tick; the loop tells it what happened.

    Args:
        settings: what is watched.
        on_change: told every transition, in the loop's thread.
    """

    def __init__(
        self,
        settings: WatchdogSettings | None = None,
        on_change: Callable[[Transition], None] = lambda transition: None,
    ) -> None:
        self.settings, self._on_change = settings or WatchdogSettings(), on_change
        self.state = State.RUN
        self.why = ""
        """What is wrong, empty while running."""
        self.counts: Counter[State] = Counter()
        """State -> times it was entered."""
        self.transitions: deque[Transition] = deque(maxlen=_KEPT)
        """The newest last."""
        self._sensors: dict[str, tuple[object, float]] = {}
        self._asked = self._unseen = ""
        self._newest_s = -math.inf
        self._newer_s: float | None = None
        self._missed = self._row = 0
        self._is_late = False
        self._failed = self._failed_row = 0
        self._late_s = self._delay_s = 0.0
        self._unheard_s: float | None = None
        self._replaced: deque[float] = deque(maxlen=_KEPT)
        self._restarts = 0
        self._held_s = 0.0
        self._fresh_s: float | None = None

    @property
    def is_trusted(self) -> bool:
        """Whether what is seen may be thought about: it is fresh, and the robot is not stopped."""
        return not (self._asked or self._unseen) and self.state != State.STOP

    def hold(self, why: str) -> None:
        """Hold from the next tick on, for as long as it takes; "" ends it.

        What is seen meanwhile is not thought about, and its time counts neither as a hold that lasts too long
        nor as one without fresh actions.
        """
        self._asked = why

    def look(self, observation: Observation, now: float) -> None:
        """Take the observation of a tick."""
        self._unseen = ""
        limits = self.settings
        if (
            limits.observation_age_s
            and (still_s := self._still_for(observation.time_s, now)) > limits.observation_age_s
        ):
            self._unseen = f"the observation's time has not gone on for {still_s:.2f} s"
        if not limits.stuck_s:
            return
        keys = [key for key in observation.values if is_image(key)]
        for key in keys or observation.values:
            still_s = self._same_for(key, _digest(np.asarray(observation.values[key])), now)
            if still_s > limits.stuck_s:
                self._unseen = f"{key} has been the same for {still_s:.2f} s"

    def judge(
        self,
        now: float,
        misses: int,
        restarts: int,
        *,
        has_accepted: bool,
        failures: int = 0,
        late_s: float = 0.0,
    ) -> State:
        """Return who acts at this tick.

        Args:
            now: time [s].
            misses: deadlines missed so far.
            restarts: replacements of the worker so far.
            has_accepted: a chunk was there for the first time.
            failures: inferences that gave no chunk so far.
            late_s: time since this tick's control period was over [s]; not above 0 if it is on time.
        """
        self._count_misses(misses, has_accepted)
        self._count_failures(failures, has_accepted)
        if self.settings.late_s and late_s > self.settings.late_s:
            self._late_s, self._delay_s = now, late_s
        self._replaced.extend([now] * min(restarts - self._restarts, _KEPT))
        self._restarts = restarts
        if self.state == State.STOP:
            return self.state
        if why := self._broken(now):
            self._enter(State.STOP, why, now)
        elif (
            why := self._asked
            or self._unseen
            or self._too_slow()
            or self._too_late(now)
            or self._unheard(now)
        ):
            if self.state == State.RUN:
                self._held_s = now
                self._enter(State.HOLD, why, now)
            elif self._asked:
                self._held_s = now
            elif self.settings.hold_s and now - self._held_s > self.settings.hold_s:
                self._enter(State.STOP, why, now)
        elif self.state == State.HOLD:
            self._enter(State.RUN, "", now)
        return self.state

    def acted(self, now: float, *, is_fresh: bool, has_reached: bool = True) -> None:
        """Note whether a tick executed a fresh action, and whether the robot took it."""
        if is_fresh or self._asked or self._fresh_s is None or now < self._fresh_s:
            self._fresh_s = now
        if has_reached:
            self._unheard_s = None
        elif self._unheard_s is None or now < self._unheard_s:
            self._unheard_s = now

    def stop(self, why: str, now: float) -> None:
        """Stop the robot until `reset`."""
        if self.state != State.STOP:
            self._enter(State.STOP, why, now)

    def begin(self) -> None:
        """An episode begins: its times are others than those of the one before; a stop stays."""
        self._row, self._is_late, self._fresh_s, self._unheard_s = 0, False, None, None
        self._failed_row, self._delay_s, self._newer_s = 0, 0.0, None
        self._sensors.clear()

    def reset(self, now: float) -> None:
        """Let a stopped robot run again; what was missed or replaced before does not count any more."""
        self.begin()
        self._replaced.clear()
        if self.state == State.STOP:
            self._enter(State.RUN, "reset", now)

    def _same_for(self, sensor: str, value: object, now: float) -> float:
        """Seconds for which a sensor has said the same."""
        before, since_s = self._sensors.get(sensor, (None, now))
        if before != value or now < since_s:
            self._sensors[sensor] = (value, now)
            return 0.0
        return now - since_s

    def _still_for(self, time_s: float, now: float) -> float:
        """Seconds since the observation's time was newer than ever before."""
        is_newer = self._newest_s < time_s < math.inf
        if is_newer or self._newer_s is None or now < self._newer_s:
            self._newest_s = time_s if math.isfinite(time_s) else -math.inf
            self._newer_s = now
        return now - self._newer_s

    def _count_failures(self, failures: int, has_accepted: bool) -> None:
        """Count inferences that failed in a row: a chunk ends it."""
        new = max(0, failures - self._failed)  # another loop counts from 0
        self._failed_row = new + (0 if has_accepted else self._failed_row)
        self._failed = failures

    def _count_misses(self, misses: int, has_accepted: bool) -> None:
        """Count deadlines missed in a row: a chunk in time ends the row, one that comes late does not."""
        if misses > self._missed:
            self._row += misses - self._missed
            self._is_late = True
        elif has_accepted:
            self._row = self._row if self._is_late else 0
            self._is_late = False
        self._missed = misses

    def _too_slow(self) -> str:
        if self.settings.misses and self._row >= self.settings.misses:
            return f"{self._row} deadlines in a row were missed"
        if self.settings.failures and self._failed_row >= self.settings.failures:
            return f"{self._failed_row} inferences in a row failed"
        return ""

    def _too_late(self, now: float) -> str:
        if self._delay_s and 0 <= now - self._late_s <= self.settings.late_s:
            return f"a tick acted {self._delay_s:.2f} s late"
        self._delay_s = 0.0
        return ""

    def _unheard(self, now: float) -> str:
        if self._unheard_s is not None and 0 < self.settings.act_s < now - self._unheard_s:
            return f"no action has reached the robot for {now - self._unheard_s:.2f} s"
        return ""

    def _broken(self, now: float) -> str:
        limits = self.settings
        while self._replaced and not 0 <= now - self._replaced[0] <= limits.window_s:
            self._replaced.popleft()
        if limits.restarts and len(self._replaced) > limits.restarts:
            return f"the worker was replaced {len(self._replaced)} times within {limits.window_s:g} s"
        if limits.starved_s and self._fresh_s is not None and now - self._fresh_s > limits.starved_s:
            return f"no fresh action for {now - self._fresh_s:.2f} s"
        return ""

    def _enter(self, state: State, why: str, now: float) -> None:
        transition = Transition(now, self.state, state, why)
        self.state, self.why = state, "" if state == State.RUN else why
        self.counts[state] += 1
        self.transitions.append(transition)
        self._on_change(transition)


def _digest(value: np.ndarray) -> tuple[int, ...]:
    """A number that tells whether a reading changed."""
    part = value[::_EVERY_ROW] if value.ndim >= 2 else value
    return (*value.shape, zlib.crc32(np.ascontiguousarray(part).tobytes()))
