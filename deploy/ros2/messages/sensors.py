"""The newest good messages of every sensor, their age, and what was refused; needs no ROS."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vivace.deploy.ros2.messages.vectors import some, stamp_s
from vivace.policies.errors import ObservationMismatch

FUTURE_S = 0.1
"""How far a stamp may lie ahead of our clock: clocks of two machines are never quite equal [s]."""
WHOLE = ""
"""Name of the part of what has no parts."""
POSE = "pose"
_LONGEST_REASON = 300

Read = Callable[[Any], Mapping[str, np.ndarray]]
"""Message -> part -> value; raises `ObservationMismatch`. Empty: it says nothing of what is asked."""


def joint_part(name: str) -> str:
    """Name of the part that is a joint."""
    return f"joint {name}"


@dataclass
class Sensor:
    """What gives one input of the policy: a topic, or several that give a part each."""

    topic: str
    """Where its messages come from, for people."""
    parts: tuple[str, ...] = (WHOLE,)
    """What must have been seen."""
    join: Callable[[Mapping[str, np.ndarray]], np.ndarray] = lambda seen: seen[WHOLE]
    """Parts -> value."""
    seen: dict[str, np.ndarray] = field(default_factory=dict)
    """Part -> the newest good one."""
    stamps_s: dict[str, float] = field(default_factory=dict)
    """Part -> when it was seen [s]."""
    taken: int = 0
    """Good messages so far."""
    refused: int = 0
    """Refused messages so far."""
    reason: str = ""
    """Why the last refused one was."""
    foreign: int = 0
    """Messages that said nothing of what is asked, such as those of another driver's joints."""
    unstamped: int = 0
    """Messages without a stamp, whose arrival counted instead."""
    deadline_misses: int = 0
    """How often the middleware said that the publisher was late."""

    @property
    def missing(self) -> list[str]:
        """Parts that were never seen."""
        return [part for part in self.parts if part not in self.seen]

    @property
    def value(self) -> np.ndarray | None:
        """The newest complete value, None before there is one."""
        return None if self.missing else self.join(self.seen)

    @property
    def oldest(self) -> str:
        """The part that was seen longest ago, of those that were seen."""
        return min(self.stamps_s, key=self.stamps_s.__getitem__)

    @property
    def stamp_s(self) -> float:
        """When its oldest part was seen [s]."""
        return self.stamps_s[self.oldest]


@dataclass
class Sensors:
    """All sensors of a policy.

    Args:
        sensors: lerobot key -> sensor.
        oldest_s: the oldest part of an observation may be this old [s]; 0: any age.
    """

    sensors: Mapping[str, Sensor]
    oldest_s: float
    _reported: dict[str, int] = field(default_factory=dict)

    def take(self, key: str, message: Any, now: float, read: Read) -> str:
        """Keep a message if it is good.

        Args:
            key: whose it is.
            message: with a header, or without: its arrival counts then.
            now: time on the clock the stamps are of [s].
            read: reads it.

        Returns:
            Why it was refused; "" if it was not. Whatever a message holds, it cannot do more than be refused.
        """
        sensor = self.sensors[key]
        try:
            found = read(message)
            stamp = self._seen_s(sensor, message, now, found)
        except ObservationMismatch as error:
            reason = str(error)
        except Exception as error:  # the outermost frame of what others send
            reason = f"it cannot be read ({type(error).__name__}: {error})"
        else:
            if not found:
                sensor.foreign += 1
                return ""
            sensor.seen.update(found)
            sensor.stamps_s.update(dict.fromkeys(found, stamp))
            sensor.taken += 1
            return ""
        return self.refuse(key, reason)

    def refuse(self, key: str, reason: str) -> str:
        """Count what could not be taken; return why, as one short line."""
        sensor = self.sensors[key]
        sensor.refused += 1
        sensor.reason = " ".join(reason.split())[:_LONGEST_REASON]
        return sensor.reason

    def _seen_s(self, sensor: Sensor, message: Any, now: float, found: Mapping[str, np.ndarray]) -> float:
        if not found:
            return now
        stamp = message.header.stamp if hasattr(message, "header") else None
        if stamp is None or stamp_s(stamp) == 0.0:
            sensor.unstamped += 1
            return now
        if not 0 <= stamp.nanosec < 10**9 or stamp.sec < 0:
            raise ObservationMismatch(f"a stamp of {stamp.sec} s and {stamp.nanosec} ns is no time")
        seen_s = stamp_s(stamp)
        if seen_s > now + FUTURE_S:
            raise ObservationMismatch(
                f"a stamp lies {seen_s - now:.2f} s in the future; synchronise the clocks, or set "
                "use_sim_time alike on both sides"
            )
        newest = max((sensor.stamps_s.get(part, 0.0) for part in found), default=0.0)
        if seen_s < newest <= now + FUTURE_S:
            raise ObservationMismatch(
                f"a stamp lies {newest - seen_s:.3f} s before that of the message taken last; "
                "is there one publisher on the topic?"
            )
        return seen_s

    def why_not(self, now: float) -> str:
        """Say why there is no observation to act on; "" if there is one."""
        for key, sensor in self.sensors.items():
            if missing := sensor.missing:
                which = f", {some(missing)} of it" if sensor.seen else ""
                which += f"; {sensor.foreign} messages were of other joints" if sensor.foreign else ""
                return f"waiting for {key} on {sensor.topic}{which}"
            age = now - sensor.stamp_s
            if 0 < self.oldest_s < age:
                which = f" ({sensor.oldest})" if len(set(sensor.stamps_s.values())) > 1 else ""
                return (
                    f"{key} on {sensor.topic} is {age:.2f} s old{which}, the limit "
                    f"(watchdog.observation_age_s) is {self.oldest_s:.2f} s"
                )
        return ""

    @property
    def are_complete(self) -> bool:
        """Whether all have been seen, however long ago."""
        return not any(sensor.missing for sensor in self.sensors.values())

    def newest(self) -> tuple[dict[str, np.ndarray], float]:
        """Return the newest complete observation, and the stamp of its oldest part [s]."""
        values = {key: sensor.value for key, sensor in self.sensors.items()}
        complete = {key: value for key, value in values.items() if value is not None}
        return complete, min(sensor.stamp_s for sensor in self.sensors.values())

    def forget(self) -> None:
        """Drop what was seen: time has jumped."""
        for sensor in self.sensors.values():
            sensor.seen.clear()
            sensor.stamps_s.clear()

    def news(self) -> dict[str, str]:
        """Say for each sensor that refused messages since the last call how many, and why the last one."""
        found = {}
        for key, sensor in self.sensors.items():
            count = sensor.refused - self._reported.get(key, 0)
            if count > 0:
                found[key] = f"{count} refused on {sensor.topic}: {sensor.reason}"
            self._reported[key] = sensor.refused
        return found
