"""A node in a process of its own, over DDS, among everything that can be sent to it; and its ways to end."""

import os
import signal
import termios

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2 for this platform")

from builtin_interfaces.msg import Time
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import SetParameters
from ros2_bench import NODE, Bench, own_domain, tiny_bundle
from ros2_mutations import TEXTS, Mutator
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import Float64MultiArray, String

pytestmark = pytest.mark.ros

JOINTS = ["a", "b", "c", "d", "e"]
HZ = 25.0


@pytest.fixture(scope="module", autouse=True)
def domain(tmp_path_factory):
    with own_domain(tmp_path_factory.mktemp("ros")):
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"), images=True)


class Rig:
    """A robot of velocities with five joints and a camera that compresses."""

    def __init__(self, bundle, folder, **options):
        self.bench = Bench(Float64MultiArray)
        self.pictures = self.bench.node.create_publisher(CompressedImage, "camera/compressed", self.bench.qos)
        stream = Mutator(0).png(np.full((64, 64, 3), 90, np.uint8))
        self.picture = CompressedImage(format="png", data=stream)
        parameters = {
            "bundle": str(bundle),
            "autostart": True,
            "control_hz": HZ,
            "joint_names": JOINTS,
            "cameras": ["front=camera/compressed"],
            "action_kinds": ["velocity"],
            "watchdog.observation_age_s": 2.0,
            "diagnostics_hz": 10.0,
            **options,
        }
        self.node = self.bench.start(folder, **parameters)
        self.bench.node.create_timer(1 / HZ, self.show)

    def stamp(self):
        return self.bench.node.get_clock().now().to_msg()

    def show(self):
        self.bench.send_joints(JOINTS, range(5))
        self.picture.header.stamp = self.stamp()
        self.pictures.publish(self.picture)

    def is_running(self):
        self.bench.reports.pop("control loop", None)
        self.bench.says("control loop", "running", 120)

    def close(self):
        self.node.kill()
        self.bench.close()


@pytest.fixture
def rig(tiny, tmp_path):
    made = []

    def build(**options):
        made.append(Rig(tiny, tmp_path, **options))
        return made[-1]

    yield build
    for one in made:
        one.close()


def message_of(kind, plain, stamp):
    """The plain object as a message, as far as ROS lets it be one."""
    made = kind()
    made.header.frame_id = plain.header.frame_id.replace("\ud800", "")
    time = plain.header.stamp
    is_odd = not (-(2**31) <= time.sec < 2**31 and 0 <= time.nanosec < 2**32) or time.sec != 1
    made.header.stamp = (
        Time(sec=max(-(2**31), min(2**31 - 1, time.sec)), nanosec=time.nanosec % 2**32) if is_odd else stamp
    )
    return made


def test_the_node_outlives_whatever_it_is_sent(rig, request):
    count = request.config.getoption("--mutations")
    robot = rig()
    bench, mutator = robot.bench, Mutator(7)
    robot.is_running()
    pid = robot.node.pid
    task = bench.node.create_publisher(String, "task", 1)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    for number in range(count):
        plain, _, _ = mutator.compressed(pixels)
        picture = message_of(CompressedImage, plain, robot.stamp())
        picture.format, picture.data = plain.format.replace("\ud800", ""), plain.data
        robot.pictures.publish(picture)
        plain = mutator.joints(JOINTS, count=number)
        state = message_of(JointState, plain, robot.stamp())
        state.name = [name.replace("\ud800", "") for name in plain.name]
        state.position, state.velocity = plain.position, [float("nan")] * (number % 3)
        bench.joints.publish(state)
        if number % 20 == 0:
            task.publish(String(data=mutator.one_of(TEXTS).replace("\ud800", "")))
        bench.spin(0.001)
    robot.pictures.publish(
        CompressedImage(format="png", data=mutator.text_bomb(), header=robot.picture.header)
    )
    task.publish(String(data="x" * 10**6))
    task.publish(String(data="open the drawer"))
    robot.is_running()
    bench.says("control loop", "open the drawer")
    values = bench.says("observations", "refused")[2]
    assert all(" 0 refused" not in line for line in values.values())
    bench.says("inference", "'restarts': '0'")
    assert (robot.node.poll(), robot.node.pid) == (None, pid)
    assert all(np.isfinite(message.data).all() for _, message in bench.commands)


def test_the_node_outlives_requests_that_are_none(rig):
    robot = rig()
    bench = robot.bench
    robot.is_running()
    setter = bench.node.create_client(SetParameters, f"{NODE}/set_parameters")
    changer = bench.node.create_client(ChangeState, f"{NODE}/change_state")
    bench.until(lambda: setter.service_is_ready() and changer.service_is_ready())
    for name, kind in (
        ("watchdog.observation_age_s", 99),
        ("", 3),
        ("a" * 10**5, 4),
        ("limits.max_velocty", 3),
        ("task", 9),
    ):
        value = ParameterValue(type=kind, double_value=1.0, string_value="x")
        setter.call_async(SetParameters.Request(parameters=[Parameter(name=name, value=value)]))
        bench.spin(0.1)
    for number in (0, 5, 99, 255):
        request = ChangeState.Request()
        request.transition.id, request.transition.label = number, "no such transition"
        changer.call_async(request)
        bench.spin(0.1)
    robot.is_running()
    assert robot.node.poll() is None


@pytest.mark.parametrize(
    "signals",
    [
        pytest.param(signals, id="-".join(signals), marks=pytest.mark.long if is_long else [])
        for signals, is_long in (
            (["SIGINT"] * 10, True),
            (["SIGHUP"], True),
            (["SIGQUIT", "SIGTERM", "SIGINT"], False),
            (["SIGTSTP", "SIGTERM"], True),
        )
    ],
)
def test_every_signal_ends_at_rest(rig, signals):
    robot = rig()
    robot.is_running()
    bench = robot.bench
    bench.until(lambda: len(bench.commands) > 5 and any(bench.commands[-1][1].data))
    for name in signals:
        robot.node.send_signal(getattr(signal, name))
        bench.spin(0.02)
    bench.until(lambda: robot.node.poll() is not None, 60)
    assert robot.node.returncode == 0
    bench.spin(0.3)
    assert list(bench.commands[-1][1].data) == [0.0] * 3, "the last command is a standstill"


@pytest.mark.long
def test_a_stopped_terminal_stops_neither_the_loop_nor_its_end(tiny, tmp_path):
    ours, theirs = os.openpty()
    termios.tcflow(theirs, termios.TCOOFF)
    robot = Rig(tiny, tmp_path, terminal=theirs)
    try:
        robot.is_running()
        bench = robot.bench
        count = len(bench.commands)
        for number in range(300):  # each refusal may be a line of the log
            bench.joints.publish(JointState(name=[f"{number}"] * 2, position=[0.0] * 2))
            bench.spin(0.005)
        robot.is_running()
        assert len(bench.commands) > count
        robot.node.send_signal(signal.SIGTERM)
        bench.until(lambda: robot.node.poll() is not None, 60)
        bench.spin(0.3)
        assert list(bench.commands[-1][1].data) == [0.0] * 3
    finally:
        robot.close()
        os.close(ours)
        os.close(theirs)


def test_a_second_publisher_of_commands_is_named_and_given_way_to_if_wanted(rig):
    robot = rig(command={"exclusive": True})
    bench = robot.bench
    robot.is_running()
    assert bench.says("commands", "nobody else publishes where commands go")[0] == 0
    rival = bench.node.create_publisher(Float64MultiArray, "command", 1)
    line = "/bench publishes on /command too"
    assert bench.says("commands", line)[0] == 1
    bench.says("control loop", f"holding: {line}, and command.exclusive is set")
    bench.spin(0.2)
    assert list(bench.commands[-1][1].data) == [0.0] * 3
    count = len(bench.commands)
    bench.spin(0.4)
    assert len(bench.commands) == count, "silent"
    assert bench.change("deactivate") == "inactive"
    assert bench.change("activate") == "inactive"
    assert bench.says("control loop", "end it first")[0] == 2
    bench.node.destroy_publisher(rival)
    bench.says("commands", "nobody else")
    assert bench.change("activate") == "active"
    robot.is_running()
