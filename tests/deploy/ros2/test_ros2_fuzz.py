"""Thousands of mutated messages and parameters: read rightly or refused, nothing else; needs no ROS."""

import signal
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace as Message

import cv2
import numpy as np
import pytest
from ros2_mutations import STRIDES, Mutator
from ros2_policy import SPEC as TWO_JOINTS

from vivace.deploy.loop.clock import VirtualClock
from vivace.deploy.loop.watchdog import WatchdogSettings
from vivace.deploy.ros2.driver import Driver
from vivace.deploy.ros2.messages.command import ArrayCommand
from vivace.deploy.ros2.messages.images import compressed_image, image
from vivace.deploy.ros2.messages.sensors import FUTURE_S, Sensors
from vivace.deploy.ros2.messages.vectors import pose
from vivace.deploy.ros2.parameters.fit import fit
from vivace.deploy.ros2.parameters.settings import RosSettings, parameters
from vivace.deploy.ros2.robot import RetimedWorker
from vivace.deploy.ros2.sources import make_sensors, sources
from vivace.deploy.workers.worker import BatchedInference, SimulatedWorker
from vivace.policies.errors import VivaceError

HANG_S = 120
"""No message takes so long on any machine that is alive."""
STATE = "observation.state"
SPEC = replace(TWO_JOINTS, n_action_steps=1)


@pytest.fixture
def count(request):
    return request.config.getoption("--mutations")


def attempt(what, call):
    """What a call returns and "", or None and why it was refused; other errors and hangs are faults."""
    with no_hang(what):
        try:
            return call(), ""
        except VivaceError as error:
            assert len(str(error)) < 20_000  # noqa: PT017
            return None, str(error)


@contextmanager
def no_hang(what):
    """Raise where the time goes if it does not come back."""

    def fail(number, frame):
        raise AssertionError(f"hangs at {what}")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(HANG_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


RGB = {
    "rgb8": None, "bgr8": cv2.COLOR_BGR2RGB, "rgba8": cv2.COLOR_RGBA2RGB, "bgra8": cv2.COLOR_BGRA2RGB,
    "mono8": cv2.COLOR_GRAY2RGB, "8UC1": cv2.COLOR_GRAY2RGB, "8UC3": cv2.COLOR_BGR2RGB,
    "8UC4": cv2.COLOR_BGRA2RGB,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY, "yuv422": cv2.COLOR_YUV2RGB_UYVY, "yuyv": cv2.COLOR_YUV2RGB_YUY2,
    "yuv422_yuy2": cv2.COLOR_YUV2RGB_YUY2, "nv12": cv2.COLOR_YUV2RGB_NV12, "nv21": cv2.COLOR_YUV2RGB_NV21,
}  # fmt: skip


def opencv(message):
    """What the fields of a picture mean, read by OpenCV."""
    stride = STRIDES[message.encoding]
    lines = np.frombuffer(message.data, np.uint8).reshape(-1, message.step)[:, : message.width * stride]
    rows = message.height * 3 // 2 if message.encoding.startswith("nv") else message.height
    pixels = np.ascontiguousarray(lines).reshape(rows, message.width, *([stride] if stride > 1 else []))
    code = RGB[message.encoding]
    return pixels if code is None else cv2.cvtColor(pixels, code)


def test_raw_pictures(count):
    mutator, taken = Mutator(1), 0
    for number in range(count):
        message = mutator.image()
        shape = mutator.one_of([(3, 6, 8), (3, 3, 4), (1, 6, 8), (3, 12, 16)])
        how = mutator.one_of(["scale", "stretch", "crop", "pad"])
        found, _ = attempt(number, lambda: image(message, shape, fit=how))  # noqa: B023
        if found is None:
            continue
        taken += 1
        assert (found.shape, found.dtype) == ((*shape[1:], shape[0]), np.uint8)
        if shape == (3, message.height, message.width):
            assert np.abs(found.astype(int) - opencv(message)).max() <= 1, message
    assert 0.1 * count < taken < 0.9 * count


def test_compressed_pictures(count):
    mutator, taken = Mutator(2), 0
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    for number in range(count):
        message, kind, mode = mutator.compressed(pixels)
        found, _ = attempt(number, lambda: compressed_image(message, (3, 12, 16), fit="stretch"))  # noqa: B023
        if found is None:
            continue
        taken += 1
        assert (found.shape, found.dtype) == ((12, 16, 3), np.uint8)
        if kind == "png" and mode in ("RGB", "RGBA"):
            assert np.array_equal(found, pixels), f"{number}: JPEG cannot tell, PNG can"
    assert 0.1 * count < taken < 0.9 * count


def test_poses(count):
    mutator, taken = Mutator(3), 0
    for number in range(count):
        message = mutator.pose()
        at, turned = message.pose.position, message.pose.orientation
        numbers = np.array([at.x, at.y, at.z, turned.x, turned.y, turned.z, turned.w])
        is_good = (
            message.header.frame_id == "base"
            and np.abs(numbers).max() < 1e38
            and abs(np.linalg.norm(numbers[3:]) - 1) < 0.01
        )
        found, reason = attempt(number, lambda: pose(message, "base", needs_rotation=True))  # noqa: B023
        assert (found is not None) == is_good, reason
        if found is None:
            continue
        taken += 1
        np.testing.assert_allclose(found, numbers, rtol=0.011, atol=1e-12)
    assert 0.1 * count < taken < 0.9 * count


class Echo:
    """A policy whose actions are the joints it sees, driven by mutated messages in virtual time."""

    def __init__(self, mutator):
        self.mutator, self.clock, self.sent, self.number = mutator, VirtualClock(), [], 0
        settings = RosSettings(
            control_hz=10.0, joint_names=("a", "b"), watchdog=WatchdogSettings(observation_age_s=0.5)
        )
        spec = fit(settings, SPEC)
        self.clock.sleep_until(100.0)
        self.source = sources(settings, spec)[0]
        self.sensors = Sensors(
            make_sensors(settings, spec, [self.source], str), settings.watchdog.observation_age_s
        )

        def predict(observations, keys):
            return np.repeat(observations[STATE][:, -1:], 6, axis=1)

        worker = SimulatedWorker(BatchedInference(predict), lambda n, request: 0.0)
        command = ArrayCommand(lambda action: self.sent.append(action.tolist()))
        now = self.clock.now
        self.driver = Driver(settings, spec, RetimedWorker(worker, now), self.sensors, command, now, now)
        self.good = {"a": set(), "b": set()}
        self.stamps = {"a": 0.0, "b": 0.0}

    def step(self):
        now, self.number = self.clock.now(), self.number + 1
        message = self.mutator.joints(["a", "b"], now, self.number)
        wanted = self.truth(message, now)
        refusals = self.sensors.sensors[STATE].refused
        self.sensors.take(STATE, message, now, self.source.read)
        assert (self.sensors.sensors[STATE].refused > refusals) == (wanted is None), message
        for name, value in (wanted or {}).items():
            self.good[name].add(float(np.float32(value)))
            self.stamps[name] = now if message.header.stamp.sec == 0 else self.time(message)
        self.driver.tick()
        self.clock.sleep_until(now + 0.1)

    @staticmethod
    def time(message):
        return message.header.stamp.sec + message.header.stamp.nanosec * 1e-9

    def truth(self, message, now):
        """What a message says of our joints, None if it must be refused; {} if it says nothing of them."""
        names, values, stamp = message.name, message.position, message.header.stamp
        if len(set(names)) < len(names):
            return None
        mine = [name for name in names if name in ("a", "b")]
        if not mine:
            return {}
        if len(names) != len(values) or len(names) > 4096:
            return None
        found = {name: values[names.index(name)] for name in mine}
        if not all(abs(value) < 3e38 for value in found.values()):
            return None
        seen = self.time(message)
        if seen and not (stamp.sec >= 0 and stamp.nanosec < 10**9 and seen <= now + FUTURE_S):
            return None
        if seen and any(seen < self.stamps[name] for name in mine):
            return None
        return found


def test_joints_and_what_the_robot_is_told(count):
    echo = Echo(Mutator(4))
    for number in range(count):
        with no_hang(number):
            echo.step()
    assert len(echo.sent) > count / 10
    wrong = [s for s in echo.sent if s[0] not in echo.good["a"] or s[1] not in echo.good["b"]]
    assert wrong == [], "every action is of joints that were rightly seen"
    assert echo.driver.ticks["hold"] > 0


def test_parameters(count):
    mutator, taken = Mutator(5), 0
    known = {p.name: p.default for p in parameters() if p.name != "limits.file"}
    good = {"control_hz": 10.0, "joint_names": ["a", "b"]}
    for number in range(count):
        given = mutator.parameters(known, good)
        spec, reason = attempt(number, lambda: fit(RosSettings.read(given), SPEC))  # noqa: B023
        assert "\n" not in reason
        if spec is None:
            continue
        taken += 1
        assert set(given) <= set(known)
    assert 0 < taken < count


def test_messages_that_are_no_messages():
    echo = Echo(Mutator(6))
    for message in (None, 7, "text", Message(), Message(header=None, name=["a"], position=[1.0]), object()):
        assert echo.sensors.take(STATE, message, 100.0, echo.source.read)
    assert echo.sensors.sensors[STATE].taken == 0
