"""The node inside the test's process: faults, simulated time, a killed inference, bad parameters."""

import os
import shutil
import signal
import subprocess
import sys
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest

rclpy = pytest.importorskip("rclpy", reason="no ROS 2 for this platform")

from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, TransformStamped, TwistStamped
from PIL import Image as Picture
from rclpy.serialization import deserialize_message, serialize_message
from ros2_bench import Bench, own_domain, tiny_bundle
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Float64MultiArray

from vivace.deploy.ros2.driver import Driver
from vivace.deploy.ros2.inputs import Frames
from vivace.deploy.ros2.lifecycle import PolicyNode
from vivace.deploy.ros2.messages.images import compressed_image, image
from vivace.deploy.ros2.messages.sensors import Sensors
from vivace.deploy.ros2.messages.vectors import joints
from vivace.deploy.ros2.outputs import Outputs
from vivace.deploy.ros2.parameters.settings import RosSettings
from vivace.deploy.ros2.sources import make_sensors, sources
from vivace.deploy.workers.process_worker import ProcessWorker
from vivace.policies.errors import BadSetting
from vivace.policies.spec import Chunk

pytestmark = pytest.mark.ros

HZ = 25.0
JOINTS = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module", autouse=True)
def domain(tmp_path_factory):
    with own_domain(tmp_path_factory.mktemp("ros")):
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def bench(domain):
    bench = Bench(Float64MultiArray)
    yield bench
    bench.close()


@pytest.fixture
def make(bench):
    """Make a node that the bench spins, from its parameters."""
    made = []

    def build(**parameters):
        overrides = [rclpy.Parameter(name.replace("__", "."), value=v) for name, v in parameters.items()]
        node = PolicyNode(context=bench.context, parameter_overrides=overrides)
        bench.executor.add_node(node)
        bench.reports.clear()
        made.append(node)
        return node

    yield build
    for node in made:
        bench.executor.remove_node(node)
        node.end()
        node.destroy_node()


@pytest.fixture
def running(tiny, bench, make):
    """An active node that gets joint states."""
    node = make(
        bundle=str(tiny),
        control_hz=HZ,
        joint_names=JOINTS,
        diagnostics_hz=20.0,
        watchdog__observation_age_s=1.0,
    )
    timer = bench.node.create_timer(1 / HZ, lambda: bench.send_joints(JOINTS, range(5)))
    assert node.trigger_configure().name == "SUCCESS", node._fault
    assert node.trigger_activate().name == "SUCCESS"
    bench.says("control loop", "running")
    yield node
    bench.node.destroy_timer(timer)


def test_chunks_of_a_wrong_shape_are_failed_inferences(running, bench, monkeypatch):
    monkeypatch.setattr(ProcessWorker, "poll", lambda self, now: Chunk(np.zeros((4, 2)), 0, now))
    bench.until(lambda: "inferences in a row failed" in running._driver.reason)
    assert running.state_name == "active"
    monkeypatch.undo()
    running._driver.reset()
    bench.says("control loop", "running")


def test_whatever_a_tick_raises_ends_at_rest(running, bench, monkeypatch):
    def fail(self):
        raise ZeroDivisionError("a fault of ours")

    stopped = []
    monkeypatch.setattr(Driver, "stop", lambda self: stopped.append(self.ticks.total()))
    monkeypatch.setattr(Driver, "tick", fail)
    level, message, _ = bench.says("control loop", "ZeroDivisionError: a fault of ours")
    assert (level, len(stopped)) == (2, 1)
    bench.until(lambda: running.state_name == "unconfigured")


def test_a_standstill_that_cannot_be_sent_does_not_keep_the_rest_from_ending(running, bench, monkeypatch):
    def fail(self):
        raise ZeroDivisionError("no way to the robot")

    pid = running._ready.worker.pid
    monkeypatch.setattr(Driver, "stop", fail)
    running.end()
    assert running.state_name == "finalized"
    assert running._ready is None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def acting(bench, make, kind, topic, **parameters):
    """What an active node sends on a topic, once it moves."""
    heard = []
    listener = bench.node.create_subscription(kind, topic, heard.append, 10)
    node = make(joint_names=JOINTS, command__topic=topic, watchdog__observation_age_s=1.0, **parameters)
    timer = bench.node.create_timer(1 / HZ, lambda: bench.send_joints(JOINTS, range(5)))
    assert node.trigger_configure().name == "SUCCESS", node._fault
    assert node.trigger_activate().name == "SUCCESS", node._fault
    bench.until(lambda: len(heard) > 5)
    node.trigger_deactivate()
    bench.spin(0.2)
    for destroy, made in ((bench.node.destroy_timer, timer), (bench.node.destroy_subscription, listener)):
        destroy(made)
    return heard


def test_displacements_become_twists_and_end_at_rest(tiny, bench, make):
    wanted = {
        "command__type": "twist_stamped",
        "command__layout": ["linear.x", "angular.z", "other"],
        "command__frame": "tool",
        "action_kinds": ["delta"],
    }
    rest = []
    listener = bench.node.create_subscription(Float64MultiArray, "command_rest", rest.append, 10)
    heard = acting(bench, make, TwistStamped, "servo", bundle=str(tiny), control_hz=10.0, **wanted)
    bench.node.destroy_subscription(listener)
    assert any(message.twist.linear.x for message in heard)
    assert {message.header.frame_id for message in heard} == {"tool"}
    assert all(message.twist.linear.y == message.twist.angular.x == 0 for message in heard)
    last = heard[-1].twist
    assert (last.linear.x, last.angular.z) == (0, 0)
    assert list(rest[-1].data) == [0.0]


def test_absolute_targets_become_poses(tiny, bench, make):
    wanted = {
        "command__type": "pose",
        "command__layout": ["x", "y", "yaw"],
        "command__frame": "base",
        "command__fixed": [0.0, 0.0, 0.2, 1.0, 0.0, 0.0, 0.0],
    }
    heard = acting(bench, make, PoseStamped, "target", bundle=str(tiny), control_hz=10.0, **wanted)
    first = heard[0]
    assert (first.header.frame_id, first.pose.position.z) == ("base", 0.2)
    turned = first.pose.orientation
    assert np.linalg.norm([turned.x, turned.y, turned.z, turned.w]) == pytest.approx(1.0)
    assert heard[-1].pose == heard[-2].pose, "the last target is held"


def test_a_state_of_joints_of_two_drivers_and_a_pose(tiny, bench, make):
    heard = []
    listener = bench.node.create_subscription(Float64MultiArray, "command", heard.append, 10)
    node = make(
        bundle=str(tiny),
        control_hz=10.0,
        joint_states=["joint_states", "hand_states"],
        joint_names=["a", "grip"],
        state_parts=["pose", "joints"],
        pose__topic="tool",
        pose__frame="base",
        pose__layout=["xyz"],
        watchdog__observation_age_s=1.0,
        diagnostics_hz=20.0,
    )
    hand = bench.node.create_publisher(JointState, "hand_states", bench.qos)
    tool = bench.node.create_publisher(PoseStamped, "tool", bench.qos)

    def show():
        bench.send_joints(["b", "a"], [9, 0.4])
        stamp = bench.node.get_clock().now().to_msg()
        state, pose = JointState(name=["grip"], position=[0.5]), PoseStamped()
        state.header.stamp = pose.header.stamp = stamp
        pose.header.frame_id, pose.pose.position.x, pose.pose.position.z = "base", 0.1, 0.3
        hand.publish(state)
        tool.publish(pose)

    timer = bench.node.create_timer(1 / HZ, show)
    assert node.trigger_configure().name == "SUCCESS", node._fault
    assert node.trigger_activate().name == "SUCCESS"
    bench.until(lambda: heard and node._driver.reason == "")
    value = node._ready.sensors.sensors["observation.state"].value
    assert value.tolist() == pytest.approx([0.1, 0.0, 0.3, 0.4, 0.5])
    for destroy, made in (
        (bench.node.destroy_timer, timer),
        (bench.node.destroy_subscription, listener),
        (bench.node.destroy_publisher, hand),
        (bench.node.destroy_publisher, tool),
    ):
        destroy(made)


def test_a_second_node_of_our_own_name_is_a_rival_too():
    seen = [("/arm", "vivace"), ("/arm", "vivace"), ("/", "teleop")]
    infos = [SimpleNamespace(node_namespace=space, node_name=name) for space, name in seen]
    node = SimpleNamespace(
        create_lifecycle_publisher=lambda *args, **options: SimpleNamespace(topic_name="/command"),
        get_publishers_info_by_topic=lambda topic: infos,
        get_namespace=lambda: "/arm",
        get_name=lambda: "vivace",
    )
    outputs = Outputs(node, RosSettings(), None, None)
    assert outputs.rivals() == [
        "/teleop publishes on /command too",
        "another /arm/vivace publishes on /command too",
    ]
    infos[1:] = []
    assert outputs.rivals() == []


def test_a_pose_may_be_looked_up(monkeypatch):
    """`tf2_ros` is not on PyPI: what is asked of it is checked, not that it answers."""
    stamp, known = Time(sec=10), {}

    class Buffer:
        def lookup_transform(self, target, source, when):
            assert when.nanoseconds == 0, "the newest"
            return known[target, source]

    fake = SimpleNamespace(Buffer=Buffer, TransformListener=lambda buffer, node: SimpleNamespace())
    monkeypatch.setitem(sys.modules, "tf2_ros", fake)
    settings = RosSettings(
        state_parts=("pose",), pose_type="tf", pose_topic="tool0", pose_frame="base", pose_layout=("z",)
    )
    spec = SimpleNamespace(observation_shapes={"observation.state": (1,)})
    given = sources(settings, spec)
    sensors = Sensors(make_sensors(settings, spec, given, str.upper), 0.2)
    frames = Frames(None, given[0], "base", sensors, lambda: 10.0)
    frames.look()
    assert "1 refused on tool0 (tf)" in sensors.news()["observation.state"]
    assert sensors.why_not(10.0) == "waiting for observation.state on tool0 (tf)"
    found = TransformStamped()
    found.header.stamp, found.header.frame_id, found.transform.translation.z = stamp, "base", 0.5
    known["base", "tool0"] = found
    frames.look()
    assert sensors.newest()[0]["observation.state"].tolist() == [0.5]
    assert "is 0.30 s old" in sensors.why_not(10.3), "an old transform ages"
    monkeypatch.setitem(sys.modules, "tf2_ros", None)
    with pytest.raises(BadSetting, match="needs the package tf2_ros"):
        Frames(None, given[0], "base", sensors, lambda: 10.0)


def test_an_inference_process_that_is_killed_is_replaced(running, bench):
    os.kill(running._ready.worker.pid, signal.SIGKILL)
    bench.says("inference", "the inference process was replaced: it died")
    bench.says("inference", "'restarts': '1'")
    chunks = running._driver.chunks
    bench.says("inference", "ready")
    bench.until(lambda: running._driver.chunks > chunks + 2)


def test_commands_that_come_late_are_counted(tiny, bench, make):
    node = make(
        bundle=str(tiny),
        control_hz=20.0,
        joint_names=JOINTS,
        deadline__command_s=0.01,
        diagnostics_hz=20.0,
        autostart=True,
    )
    timer = bench.node.create_timer(1 / HZ, lambda: bench.send_joints(JOINTS, range(5)))
    bench.until(
        lambda: int(bench.reports.get("control loop", (0, "", {}))[2].get("QoS deadline misses", 0)) > 2
    )
    bench.node.destroy_timer(timer)
    assert node._driver.late_commands > 2


def test_simulated_time_drives_the_loop_and_may_jump_back(tiny, bench, make):
    node = make(
        bundle=str(tiny),
        control_hz=10.0,
        joint_names=JOINTS,
        use_sim_time=True,
        watchdog__observation_age_s=0.5,
        autostart=True,
    )
    clock = bench.node.create_publisher(Clock, "/clock", 1)
    bench.until(lambda: node._state_machine.current_state[1] == "active")
    bench.until(clock.get_subscription_count)

    def advance(time_s):
        """Say the time until the node has heard it, then send joints stamped with it."""
        stamp = Time(sec=int(time_s), nanosec=round(time_s % 1 * 1e9))

        def is_heard():
            clock.publish(Clock(clock=stamp))
            return abs(node._now() - time_s) < 1e-6

        bench.until(is_heard)
        message = JointState(name=JOINTS, position=[0.0] * 5)
        message.header.stamp = stamp
        taken = node._ready.sensors.sensors["observation.state"].taken
        bench.joints.publish(message)
        bench.until(lambda: node._ready.sensors.sensors["observation.state"].taken > taken)

    bench.spin(0.3)
    assert sum(node._driver.ticks.values()) == 0, "no time, no tick"
    for i in range(12):
        advance(100.0 + 0.1 * i)
    bench.until(lambda: node._driver.reason == "")
    ticks = sum(node._driver.ticks.values())
    assert 10 <= ticks <= 13, "one tick a period of simulated time"
    advance(3.0)
    assert node._ready.sensors.sensors["observation.state"].stamp_s == 3.0
    episode = node._driver.episode
    advance(3.15)
    bench.until(lambda: node._driver.episode == episode + 1)
    bench.node.destroy_publisher(clock)


def test_a_node_with_a_ladder_times_its_plans_and_says_which_it_chose(tiny, bench, make, tmp_path):
    fast = str(shutil.copytree(tiny, tmp_path / "fast"))
    wanted = {
        "joint_names": JOINTS,
        "diagnostics_hz": 20.0,
        "watchdog__observation_age_s": 1.0,
        "control_hz": HZ,
    }
    node = make(bundle=str(tiny), loop__ladder=[fast], loop__mode="async", loop__anytime=True, **wanted)
    timer = bench.node.create_timer(1 / HZ, lambda: bench.send_joints(JOINTS, range(5)))
    assert node.trigger_configure().name == "SUCCESS", node._fault
    assert [rung.name for rung in node._ready.ladder] == [str(tiny), fast]
    assert node.trigger_activate().name == "SUCCESS"
    bench.says("control loop", "chosen ")
    bench.node.destroy_timer(timer)
    for options, why in (
        ({"loop__mode": "sync"}, "needs time to choose by"),
        ({"loop__ladder": [str(tiny)]}, "once"),
    ):
        refused = make(
            bundle=str(tiny), **{"loop__ladder": [fast], "loop__mode": "async", **wanted, **options}
        )
        assert refused.trigger_configure().name == "FAILURE"
        assert why in refused._fault


def test_a_node_that_cannot_be_configured_says_why(tiny, bench, make):
    node = make(autostart=True, diagnostics_hz=20.0)
    level, message, _ = bench.says("control loop", "the parameter bundle is empty")
    assert (level, node._state_machine.current_state[1]) == (2, "unconfigured")
    for name, value, reason in [
        ("bundle", "/nowhere", "no manifest.json in /nowhere"),
        ("public_key", "/nowhere.pem", "no manifest.json in /nowhere"),
        ("bundle", str(tiny), "/nowhere.pem"),
        ("public_key", "", "does not say at which rate its policy was trained; set control_hz"),
        ("control_hz", 20.0, "joint_names has 0 joints"),
        ("joint_names", JOINTS, None),
    ]:
        assert node.set_parameters([rclpy.Parameter(name, value=value)])[0].successful
        assert (node.trigger_configure().name == "SUCCESS") == (reason is None), node._fault
        assert (reason or "") in node._fault
    refused = node.set_parameters([rclpy.Parameter("loop.mode", value="async")])[0]
    assert refused.reason == "loop.mode is read when the node is configured; clean it up first"
    assert node.trigger_cleanup().name == "SUCCESS"
    assert node.set_parameters([rclpy.Parameter("loop.mode", value="async")])[0].successful


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["-p", "control_hz:=-1.0"], "control_hz"),
        (["-p", "joint_names:=a"], "joint_names='a'; a list is needed"),
        (
            ["-p", "limits.max_velocty:=[1.0]"],
            "limits.max_velocty is not known (the nearest is limits.max_velocity)",
        ),
        (["-p", "use_sim_tim:=true"], "use_sim_tim is not known (the nearest is use_sim_time)"),
        (["--params-file", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_cannot_start_ends_in_one_line_and_code_2(arguments, reason):
    command = [sys.executable, "-m", "vivace.deploy.ros2.node", "--ros-args", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("vivace-ros: ")
    assert reason in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_messages_that_went_over_the_wire_are_read():
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    stream = BytesIO()
    Picture.fromarray(pixels).save(stream, "png")
    raw = Image(encoding="rgb8", height=2, width=3, step=9, data=pixels.tobytes())
    packed = CompressedImage(format="png", data=stream.getvalue())
    state = JointState(name=["b", "a"], position=[2.0, 1.0])
    raw, packed, state = (deserialize_message(serialize_message(m), type(m)) for m in (raw, packed, state))
    assert np.array_equal(image(raw, (3, 2, 3)), pixels)
    assert np.array_equal(compressed_image(packed, (3, 2, 3)), pixels)
    assert joints(state, ["a", "b"]) == {"a": 1, "b": 2}
