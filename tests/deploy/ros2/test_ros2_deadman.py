"""The policy node's dead man's switch over DDS: silent while the node ticks, at rest when it is killed."""

import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2 for this platform")

from geometry_msgs.msg import PoseStamped, Twist, TwistStamped
from rclpy.time import Time
from ros2_bench import Bench, own_domain, tiny_bundle
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from vivace.deploy.ros2.deadman import StandstillTopic, check_switchable, standstill_command
from vivace.deploy.ros2.parameters.settings import RosSettings
from vivace.policies.errors import BadSetting, RobotFailed
from vivace.policies.spec import ActionKind

pytestmark = pytest.mark.ros


@pytest.fixture(scope="module", autouse=True)
def domain(tmp_path_factory):
    with own_domain(tmp_path_factory.mktemp("ros")):
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_bundle(tmp_path_factory.mktemp("tiny"))


def test_a_killed_nodes_robot_comes_to_rest_and_one_that_ends_is_left_alone(tiny, tmp_path):
    bench = Bench(Float64MultiArray)
    names = [f"j{i}" for i in range(5)]
    bench.node.create_timer(0.02, lambda: bench.send_joints(names, np.zeros(5)))
    options = {
        "bundle": str(tiny), "autostart": True, "control_hz": 20.0, "joint_names": names,
        "action_kinds": ["velocity", "velocity", "delta"], "watchdog.observation_age_s": 5, "deadman_s": 3.0,
    }  # fmt: skip
    node = bench.start(tmp_path, **options)
    try:
        bench.until(lambda: len(bench.commands) > 20, 120, "commands")
        moving = np.array(bench.commands[-1][1].data)
        assert np.abs(moving).max() > 0
        os.kill(node.pid, signal.SIGKILL)
        node.wait()
        bench.until(lambda: not np.any(bench.commands[-1][1].data), 60, "standstill")
        bench.spin(1.0)
        last = [message.data.tolist() for _, message in bench.commands[-5:]]
        assert last == [[0.0] * 3] * 5
        seen = len(bench.commands)
        bench.spin(1.0)
        assert len(bench.commands) == seen, "then its process ends"
        node = bench.start(tmp_path, **options)
        bench.until(lambda: np.any(bench.commands[-1][1].data), 120, "commands of the second node")
        node.send_signal(signal.SIGINT)
        assert node.wait(60) == 0
        bench.spin(1.0)
        assert not np.any(bench.commands[-1][1].data)
        assert "dead man" not in bench.log.read_text()
    finally:
        bench.close()


class Node:
    def __init__(self):
        self.sent, self.listeners = [], 1

    def create_publisher(self, kind, topic, depth):
        return SimpleNamespace(
            publish=lambda message: self.sent.append((kind, topic, message)),
            get_subscription_count=lambda: self.listeners,
        )

    def get_clock(self):
        return SimpleNamespace(now=lambda: Time(seconds=12))


def switch(node, kinds, rest_topic="", **settings):
    """What commands the standstill of a node with these settings."""
    made = standstill_command(RosSettings(control_hz=20.0, **settings), "/go", rest_topic, kinds, node)
    return StandstillTopic(*made)


def test_a_standstill_has_the_form_of_the_nodes_commands():
    node = Node()
    kinds = [ActionKind.VELOCITY] * 2
    standstill = switch(node, kinds, command_type="trajectory", command_names=("a", "b"))
    for speed in (0.5, 0.0, 0.0):
        standstill.act(np.array([speed, 0.0], np.float32))
    points = [message.points for _, _, message in node.sent]
    assert [[list(point.velocities) for point in each] for each in points] == [[[0.5, 0.0]], [[0.0, 0.0]]]
    assert (node.sent[0][0], node.sent[0][1]) == (JointTrajectory, "/go")
    stamp = node.sent[0][2].header.stamp
    assert (stamp.sec, stamp.nanosec) == (0, 0), "begin at once"
    hold = switch(node, [ActionKind.ABSOLUTE], command_type="trajectory", command_names=("a",))
    hold.act(np.array([0.25], np.float32))
    assert list(node.sent[-1][2].points[0].positions) == [0.25]


@pytest.mark.parametrize("form", ["twist", "twist_stamped"])
def test_a_base_or_an_end_effector_comes_to_rest_by_twists(form):
    """D1 over ROS: a base goes on with its last velocity; the gripper's topic holds its target."""
    node, kinds = Node(), [*[ActionKind.VELOCITY] * 2, ActionKind.ABSOLUTE]
    layout, frame = ("linear.x", "angular.z", "other"), {"command_frame": "base"} if "_" in form else {}
    standstill = switch(node, kinds, "/grip", command_type=form, command_layout=layout, **frame)
    for speed in (0.3, 0.0):
        standstill.act(np.array([speed, 2 * speed, 0.7], np.float32))
    twists, grips = node.sent[::2], node.sent[1::2]
    assert {(kind, topic) for kind, topic, _ in twists} == {
        (Twist if form == "twist" else TwistStamped, "/go")
    }
    plain = [message if form == "twist" else message.twist for _, _, message in twists]
    assert [(it.linear.x, it.angular.z) for it in plain] == [pytest.approx((0.3, 0.6)), (0.0, 0.0)]
    assert [(kind, topic, list(message.data)) for kind, topic, message in grips] == [
        (Float64MultiArray, "/grip", [pytest.approx(0.7)])
    ] * 2
    if form == "twist_stamped":
        header = twists[-1][2].header
        assert (header.frame_id, header.stamp.sec) == ("base", 12)


def test_an_end_effector_is_held_by_its_last_pose():
    node = Node()
    standstill = switch(
        node,
        [ActionKind.ABSOLUTE] * 3,
        command_type="pose",
        command_layout=("xyz",),
        command_frame="base",
        command_fixed=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
    )
    standstill.act(np.array([0.1, 0.2, 0.3], np.float32))
    ((kind, topic, message),) = node.sent
    assert (kind, topic, message.header.frame_id) == (PoseStamped, "/go", "base")
    place = message.pose.position
    assert (place.x, place.y, place.z) == pytest.approx((0.1, 0.2, 0.3))
    assert message.pose.orientation.w == 1.0


def test_a_standstill_that_nobody_hears_yet_is_not_taken():
    """A killed node's switch goes on until the middleware has found the robot."""
    node = Node()
    node.listeners = 0
    standstill = switch(node, [ActionKind.VELOCITY])
    with pytest.raises(RobotFailed, match="nobody listens to the standstill yet"):
        standstill.act(np.zeros(1, np.float32))
    assert node.sent == []
    node.listeners = 1
    standstill.act(np.zeros(1, np.float32))
    assert len(node.sent) == 1


def test_a_standstill_that_the_switch_cannot_command_is_refused():
    settings = RosSettings(command_type="trajectory", command_names=("a",))
    with pytest.raises(BadSetting, match="the switch cannot command a trajectory of delta .* leave it at 0"):
        check_switchable(settings, [ActionKind.DELTA])
    check_switchable(settings, [ActionKind.ABSOLUTE])
