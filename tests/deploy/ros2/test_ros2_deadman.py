"""The policy node's dead man's switch over DDS: silent while the node ticks, at rest when it is killed."""

import os
import signal
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2 for this platform")

from ros2_bench import Bench, own_domain, tiny_bundle
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from vivace.deploy.ros2.deadman import StandstillTopic, standstill_command
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


def test_a_standstill_has_the_form_of_the_nodes_commands():
    node = Node()
    kinds = [ActionKind.VELOCITY] * 2
    standstill = StandstillTopic(*standstill_command("/go", "trajectory", ["a", "b"], kinds, 0.05, node))
    for speed in (0.5, 0.0, 0.0):
        standstill.act(np.array([speed, 0.0], np.float32))
    points = [message.points for _, _, message in node.sent]
    assert [[list(point.velocities) for point in each] for each in points] == [[[0.5, 0.0]], [[0.0, 0.0]]]
    assert (node.sent[0][0], node.sent[0][1]) == (JointTrajectory, "/go")
    stamp = node.sent[0][2].header.stamp
    assert (stamp.sec, stamp.nanosec) == (0, 0), "begin at once"
    hold = StandstillTopic(*standstill_command("/go", "trajectory", ["a"], [ActionKind.ABSOLUTE], 0.05, node))
    hold.act(np.array([0.25], np.float32))
    assert list(node.sent[-1][2].points[0].positions) == [0.25]


def test_a_standstill_that_nobody_hears_yet_is_not_taken():
    """A killed node's switch goes on until the middleware has found the robot."""
    node = Node()
    node.listeners = 0
    standstill = StandstillTopic(*standstill_command("/go", "array", (), [ActionKind.VELOCITY], 0.05, node))
    with pytest.raises(RobotFailed, match="nobody listens to the standstill yet"):
        standstill.act(np.zeros(1, np.float32))
    assert node.sent == []
    node.listeners = 1
    standstill.act(np.zeros(1, np.float32))
    assert len(node.sent) == 1


@pytest.mark.parametrize(("form", "kind"), [("trajectory", ActionKind.DELTA), ("twist", ActionKind.VELOCITY)])
def test_a_standstill_that_the_switch_cannot_command_is_refused(form, kind):
    with pytest.raises(
        BadSetting, match=f"the switch cannot command '{form}' of {kind} actions; leave it at 0"
    ):
        standstill_command("command", form, ["a"], [kind], 0.05, Node())
