"""The newest good message of every sensor, its age, and what was refused; needs no ROS."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vivace.deploy.ros2_messages import stamp_s
from vivace.policies.errors import ObservationMismatch

FUTURE_S = 0.1
"""How far a stamp may lie ahead of our clock: clocks of two machines are never quite equal [s]."""


@dataclass
class Sensor:
    """One topic."""

    topic: str
    """Where its messages come from, for people."""
    read: Callable[[Any], np.ndarray]
    """Message -> value; raises `ObservationMismatch`."""
    value: np.ndarray | None = None
    """The newest good one."""
    stamp_s: float = 0.0
    """When it was seen [s]."""
    taken: int = 0
    """Good messages so far."""
    refused: int = 0
    """Refused messages so far."""
    reason: str = ""
    """Why the last refused one was."""
    unstamped: int = 0
    """Messages without a stamp, whose arrival counted instead."""
    deadline_misses: int = 0
    """How often the middleware said that the publisher was late."""


@dataclass
class Sensors:
    """All sensors of a policy.

    Args:
        sensors: lerobot key -> sensor.
        staleness_s: the oldest part of an observation may be this old [s].
    """

    sensors: Mapping[str, Sensor]
    staleness_s: float
    _reported: dict[str, int] = field(default_factory=dict)

    def take(self, key: str, message: Any, now: float) -> str:
        """Keep a message if it is good.

        Args:
            key: whose it is.
            message: with a header.
            now: time on the clock the stamps are of [s].

        Returns:
            Why it was refused; "" if it was not.
        """
        sensor = self.sensors[key]
        try:
            seen_s = self._seen(sensor, message, now)
            sensor.value = sensor.read(message)
        except ObservationMismatch as error:
            sensor.refused += 1
            sensor.reason = str(error)
            return sensor.reason
        sensor.stamp_s = seen_s
        sensor.taken += 1
        return ""

    def _seen(self, sensor: Sensor, message: Any, now: float) -> float:
        stamp = stamp_s(message.header.stamp)
        if stamp == 0.0:
            sensor.unstamped += 1
            return now
        if stamp > now + FUTURE_S:
            raise ObservationMismatch(
                f"a stamp lies {stamp - now:.2f} s in the future; synchronise the clocks, or set "
                "use_sim_time alike on both sides"
            )
        if sensor.value is not None and stamp < sensor.stamp_s <= now + FUTURE_S:
            raise ObservationMismatch(
                f"a stamp lies {sensor.stamp_s - stamp:.3f} s before that of the message taken last; "
                "is there one publisher on the topic?"
            )
        return stamp

    def why_not(self, now: float) -> str:
        """Say why there is no observation to act on; "" if there is one."""
        for key, sensor in self.sensors.items():
            if sensor.value is None:
                return f"waiting for {key} on {sensor.topic}"
            age = now - sensor.stamp_s
            if age > self.staleness_s:
                return (
                    f"{key} on {sensor.topic} is {age:.2f} s old, the limit (staleness_s) is "
                    f"{self.staleness_s:.2f} s"
                )
        return ""

    def newest(self) -> tuple[dict[str, np.ndarray], float]:
        """Return the newest complete observation, and the stamp of its oldest part [s]."""
        values = {key: sensor.value for key, sensor in self.sensors.items() if sensor.value is not None}
        return values, min(sensor.stamp_s for sensor in self.sensors.values())

    def forget(self) -> None:
        """Drop what was seen: time has jumped."""
        for sensor in self.sensors.values():
            sensor.value = None

    def news(self) -> dict[str, str]:
        """Say for each sensor that refused messages since the last call how many, and why the last one."""
        found = {}
        for key, sensor in self.sensors.items():
            count = sensor.refused - self._reported.get(key, 0)
            if count > 0:
                found[key] = f"{count} refused on {sensor.topic}: {sensor.reason}"
            self._reported[key] = sensor.refused
        return found
