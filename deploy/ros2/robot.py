"""The robot behind ROS 2 topics, its time and its worker, as the control loop sees them; needs no ROS."""

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from vivace.deploy.ros2.messages.sensors import Sensors
from vivace.deploy.workers.worker import Request, Worker
from vivace.policies.spec import Chunk, Observation

_KEPT = 4096
"""Stamps and latencies that are remembered."""


class RosRobot:
    """Observed through the newest messages, acted on by publishing; of one episode.

    Args:
        sensors: what is seen.
        task: returns the present instruction.
        tick: returns the number of the loop's tick.
        send: takes the action of a tick (A,).
    """

    def __init__(
        self,
        sensors: Sensors,
        task: Callable[[], str],
        tick: Callable[[], int],
        send: Callable[[np.ndarray], None],
    ) -> None:
        self._sensors, self._task, self._tick, self._send = sensors, task, tick, send
        self._stamps: deque[tuple[int, float]] = deque(maxlen=_KEPT)

    def observe(self) -> Observation:
        """Return the newest message of every sensor, and the stamp of the oldest of them.

        Nothing, seen at no time, before all have been seen: only a loop that is held observes then.
        """
        tick = self._tick()
        if not self._sensors.are_complete:
            return Observation({}, tick, math.nan, self._task())
        values, stamp_s = self._sensors.newest()
        self._stamps.append((tick, stamp_s))
        return Observation(values, tick, stamp_s, self._task())

    def act(self, action: np.ndarray) -> None:
        """Publish one action."""
        self._send(action)

    def stamp_of(self, tick: int) -> float:
        """Stamp of the observation of a tick [s]; of the oldest that is remembered if it is older."""
        found = (stamp_s for number, stamp_s in reversed(self._stamps) if number <= tick)
        return next(found, self._stamps[0][1])


class TimerClock:
    """A clock for a loop whose pace a timer keeps: nobody sleeps in the executor.

    Args:
        now: returns the time [s].
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now

    def now(self) -> float:
        """Return the time [s]."""
        return self._now()

    def sleep_until(self, when: float) -> None:
        """Return at once: the timer has waited."""


class RetimedWorker:
    """A worker told in the loop's time (which may be simulated) though it runs in wall time.

    Args:
        worker: runs in monotonic wall time.
        wall: returns monotonic wall time [s].
    """

    def __init__(self, worker: Worker, wall: Callable[[], float] = time.monotonic) -> None:
        self._worker, self._wall = worker, wall
        self._asked_s = 0.0
        self._is_forgotten = False
        self.latencies_s: deque[float] = deque(maxlen=_KEPT)
        """Of the last chunks, in wall time."""
        self._asked_wall_s = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether a request is in flight."""
        return self._worker.is_busy

    @property
    def restarts(self) -> int:
        """How often the worker's process was replaced."""
        return self._worker.restarts

    def submit(self, request: Request) -> None:
        """Start an inference."""
        self._asked_s, self._asked_wall_s = request.time_s, self._wall()
        left_s = None if request.deadline_s is None else request.deadline_s - request.time_s
        deadline_s = None if left_s is None else self._asked_wall_s + left_s
        self._worker.submit(replace(request, time_s=self._asked_wall_s, deadline_s=deadline_s))

    def poll(self, now: float) -> Chunk | None:
        """Return the chunk if it is there and still wanted; at most once."""
        wall = self._wall()
        chunk = self._worker.poll(wall)
        if self._is_forgotten:
            self._is_forgotten = self._worker.is_busy
            return None
        if chunk is None:
            return None
        self.latencies_s.append(chunk.ready_s - self._asked_wall_s)
        return replace(chunk, ready_s=max(self._asked_s, now - (wall - chunk.ready_s)))

    def forget(self) -> None:
        """Drop the request in flight: its chunk is not handed out."""
        self._is_forgotten = self._worker.is_busy
