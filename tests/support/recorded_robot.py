"""A robot that goes on with the last velocity, and writes what it is told, and when, into a file."""

import os
import threading
import time
from pathlib import Path

import numpy as np

from vivace.policies.spec import ActionKind, Observation, PolicySpec

SPEC = PolicySpec(
    type="fake",
    action_dim=2,
    horizon=4,
    n_obs_steps=1,
    n_action_steps=2,
    observation_shapes={"observation.state": (2,), "observation.images.front": (3, 4, 5)},
    action_kinds=(ActionKind.VELOCITY, ActionKind.ABSOLUTE),
    blocks=(),
)
PERIOD_S = 0.01


class Base:
    """Says in `folder`/told what it was told; files in the folder make it misbehave."""

    action_names = ("drive", "lift")
    initial_action = (0.0, 0.5)

    def __init__(self, folder):
        self.folder = Path(folder)
        self._told = os.open(self.folder / "told", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._note("made")
        self.count = 0
        self.errors = ["a wheel squeaks"]

    def _note(self, what, *numbers):
        os.write(
            self._told, (" ".join([f"{time.monotonic():.6f}", what, *map(repr, numbers)]) + "\n").encode()
        )

    def _is(self, what):
        return (self.folder / what).exists()

    def observe(self):
        while self._is("blind"):
            time.sleep(0.005)
        if self._is("broken eyes"):
            raise RuntimeError("no frame\nfor 200 ms")
        if self._is("slow"):
            time.sleep(0.03)
        self.count += 1
        values = {"observation.state": np.array([self.count, 0.5], np.float32)}
        values["observation.images.front"] = np.full((4, 5, 3), self.count % 256, np.uint8)
        return Observation(values, self.count, time.monotonic(), "go")

    def act(self, action):
        while self._is("lame"):
            time.sleep(0.005)
        if self._is("broken hands"):
            raise ConnectionError("the bus is silent")
        self._note("act", *action.tolist())

    def close(self):
        self._note("closed")


class Shared(Base):
    is_shareable = True
    action_kinds = (ActionKind.VELOCITY, ActionKind.ABSOLUTE)


class Deaf(Base):
    """Cannot be broken off, as code that is not Python."""

    def observe(self):
        is_blind = True
        while is_blind:
            try:
                time.sleep(0.005)
                is_blind = self._is("blind")
            except BaseException:
                continue
        return super().observe()


class Second(Base):
    """Has another way to its motors."""

    def standstill_connection(self):
        return SecondWay(self)


class SecondWay:
    def __init__(self, robot):
        self.robot = robot

    def act(self, action):
        self.robot._note("stand", *action.tolist())

    def close(self):
        self.robot._note("second-closed")


class Episodic(Base):
    """One whose episodes end."""

    def __init__(self, folder):
        super().__init__(folder)
        self.is_over, self.is_success = True, False
        self.thread = threading.get_ident()

    def reset(self, seed):
        assert threading.get_ident() == self.thread
        self._note("reset", seed)
        self.is_over, self.count = False, seed

    def act(self, action):
        super().act(action)
        self.is_over = self.is_success = action[0] > 1

    def film(self):
        return []


class Arm(Shared):
    """One that Meta-World's policies fit."""

    action_kinds = (*(ActionKind.DELTA,) * 3, ActionKind.ABSOLUTE)
    action_names = ("x", "y", "z", "grip")
    initial_action = (0.0, 0.0, 0.0, 0.5)

    def observe(self):
        seen = super().observe()
        return Observation({"observation.state": np.full(39, 0.1)}, seen.tick, seen.time_s)


CAMERAS = PolicySpec(
    type="fake",
    action_dim=7,
    horizon=4,
    n_obs_steps=1,
    n_action_steps=2,
    observation_shapes={
        "observation.state": (7,),
        "observation.images.front": (3, 480, 640),
        "observation.images.wrist": (3, 480, 640),
    },
    action_kinds=(ActionKind.VELOCITY,) * 7,
    blocks=(),
)


class TwoCameras:
    """As fast as a robot can be: its pictures are there."""

    def __init__(self, is_shareable=False):
        self.is_shareable = is_shareable
        random = np.random.default_rng(0)
        self.frames = random.integers(0, 256, (3, 480, 640, 3), dtype=np.uint8)
        self.count, self.told = 0, None

    def observe(self):
        self.count += 1
        values = {"observation.state": np.full(7, self.count, np.float32)}
        for number, name in enumerate(("front", "wrist")):
            values[f"observation.images.{name}"] = self.frames[(self.count + number) % 3]
        return Observation(values, self.count, time.monotonic())

    def act(self, action):
        self.told = action


class Chatty(Shared):
    """Prints more than a pipe holds, at every observation."""

    def observe(self):
        print("a driver's warning " * 4000)
        return super().observe()


class Quitter(Shared):
    def observe(self):
        raise SystemExit("the driver has had enough")


def refused(folder):
    """Made in a process that the operating system grants nothing."""
    from vivace.deploy.system import realtime

    def refuse(settings):
        raise OSError("not for you")

    realtime._freeze = lambda: refuse(None)
    return Shared(folder)


def failing(folder):
    raise ValueError("no such\nport")


def ending(folder):
    os._exit(3)


def told(folder):
    """[(time, what, numbers)]."""
    found = []
    for line in (Path(folder) / "told").read_text().splitlines():
        time_s, what, *numbers = line.split()
        found.append((float(time_s), what, [float(number) for number in numbers]))
    return found


def acts(folder):
    return [entry for entry in told(folder) if entry[1] in ("act", "stand")]
