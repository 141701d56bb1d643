"""The node over DDS: it closes the loop around a simulator in another process, and survives what users do."""

import os
import signal

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="no ROS 2 for this platform")

from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import DescribeParameters, SetParameters
from ros2_bench import NODE, Bench, bundled, own_domain, tiny_bundle
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from vivace.deploy.ros2.messages.vectors import stamp_s
from vivace.envs.registry import make
from vivace.policies.load import load_policy

pytestmark = pytest.mark.ros

STATE, IMAGE = "observation.state", "observation.images.front"
HZ = 25.0


@pytest.fixture(scope="module", autouse=True)
def domain(tmp_path_factory):
    with own_domain(tmp_path_factory.mktemp("ros")):
        yield


@pytest.fixture(scope="module")
def reach(tmp_path_factory):
    """zoo/reach with two DDIM steps."""
    state = make("metaworld", "reach-v3").reset(seed=1)[0][STATE]
    folder = tmp_path_factory.mktemp("reach") / "bundle"
    return bundled(load_policy("zoo/reach"), {STATE: np.stack([state] * 2)[None]}, folder)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A miniature that sees five joints and one camera, with three actions."""
    return tiny_bundle(tmp_path_factory.mktemp("tiny"), images=True)


class World:
    """Meta-World's reach-v3 behind topics: its 39 numbers are the joints of a JointState."""

    names = [f"state_{i}" for i in range(39)]

    def __init__(self, bench):
        self.bench, self.env = bench, make("metaworld", "reach-v3", control_hz=HZ, max_episode_steps=500)
        self.begin(0)

    def begin(self, seed):
        self.state = self.env.reset(seed=seed)[0][STATE]
        self.is_solved, self.steps = False, 0

    def show(self):
        self.bench.send_joints(self.names, self.state)

    def step(self, action):
        if not self.is_solved:
            values, _, _, is_over, info = self.env.step(np.asarray(action, np.float32))
            self.state, self.is_solved = values[STATE], info["is_success"]
            self.steps += 1
            assert not is_over, "the episode ended without success"
        self.show()


def test_a_simulated_task_is_solved_and_solved_again_after_a_kill(reach, tmp_path):
    bench = Bench(Float64MultiArray)
    world = World(bench)
    bench.on_command = lambda message: world.step(message.data)
    bench.node.create_timer(1 / HZ, world.show)
    options = {
        "bundle": str(reach),
        "autostart": True,
        "control_hz": HZ,
        "joint_names": world.names,
        "action_kinds": ["delta", "delta", "delta", "absolute"],
        "fallback": {"initial_action": [0, 0, 0, 0]},
        "watchdog.observation_age_s": 2,
        "diagnostics_hz": 10,
    }
    node = bench.start(tmp_path, **options)
    try:
        bench.until(lambda: world.is_solved, 60, "solved")
        bench.says("control loop", "running")
        world.begin(1)
        assert bench.call(Trigger, f"{NODE}/reset").success
        bench.until(lambda: world.steps > 4)
        os.kill(node.pid, signal.SIGKILL)
        node.wait()
        seen = -1
        for _ in range(10):  # what it had sent before may still be on its way
            if seen == len(bench.commands):
                break
            seen = len(bench.commands)
            bench.spin(0.3)
        assert len(bench.commands) == seen, "a killed node is silent"
        assert not world.is_solved
        node = bench.start(tmp_path, **options)
        bench.until(lambda: world.is_solved, 60, "solved by the second node")
        assert all(len(message.data) == 4 for _, message in bench.commands)
        node.send_signal(signal.SIGINT)
        assert node.wait(20) == 0
    finally:
        node.kill()
        bench.close()


class Player:
    """Executes trajectories of velocities at a controller's own pace, skipping what has passed."""

    def __init__(self, world):
        self.world, self.plan, self.stamps = world, None, {}

    def take(self, message):
        now, stamp = self.world.bench.now(), stamp_s(message.header.stamp)
        times = [p.time_from_start.sec + p.time_from_start.nanosec * 1e-9 for p in message.points]
        assert times == sorted(times)
        if len(times) > 1:  # a chunk; holds have one point
            self.stamps.setdefault(stamp, now - stamp)
        self.plan = (stamp, times, [list(point.velocities) for point in message.points])

    def step(self):
        if self.plan is None:  # the episode begins with the first command
            self.world.show()
            return
        stamp, times, actions = self.plan
        since = self.world.bench.now() - stamp
        action = next((a for t, a in zip(times, actions, strict=True) if since < t), [0.0] * 4)
        self.world.step(action)


def test_chunks_are_trajectories_aligned_to_the_observation(reach, tmp_path, record_property):
    bench = Bench(JointTrajectory)
    world = World(bench)
    player = Player(world)
    bench.on_command = player.take
    world.begin(2)
    bench.node.create_timer(1 / HZ, player.step)
    node = bench.start(
        tmp_path,
        bundle=str(reach),
        autostart=True,
        control_hz=HZ,
        joint_names=world.names,
        action_kinds=["velocity"],  # displacements a period: a world that does not wait has a rate
        command={"type": "trajectory", "names": ["hand_x", "hand_y", "hand_z", "gripper"]},
        watchdog={"observation_age_s": 2.0},
        diagnostics_hz=10.0,
    )
    try:
        bench.until(lambda: world.is_solved, 90, "solved")
        bench.until(lambda: len(player.stamps) >= 20)
        inside = bench.reports["control loop"][2]["observation to command [ms]"]
        node.send_signal(signal.SIGTERM)
        assert node.wait(20) == 0
        bench.spin(0.1)
    finally:
        node.kill()
        bench.close()
    last = bench.commands[-1][1].points
    assert [list(point.velocities) for point in last] == [[0.0] * 4], "the last command is a standstill"
    latencies = np.array(list(player.stamps.values())) * 1e3
    p50, p95 = np.percentile(latencies, [50, 95])
    line = f"p50 {p50:.1f}, p95 {p95:.1f}, max {latencies.max():.1f} ms, n {len(latencies)}"
    record_property("observation_to_action", line)
    print(f"\nobservation stamp to chunk received: {line}; to chunk sent: {inside}")
    assert latencies.min() > 0, "no action can be there before its observation"


JOINTS = ["a", "b", "c", "d", "e"]


class Live:
    """A node in a process of its own, active, and the sensors it needs."""

    def __init__(self, bundle, folder):
        self.bench = Bench(Float64MultiArray, deadline_s=1.0)
        self.node = self.bench.start(
            folder,
            bundle=str(bundle),
            control_hz=HZ,
            joint_names=JOINTS,
            cameras=["front=camera/image_raw"],
            command={"names": JOINTS[:3]},
            watchdog={"observation_age_s": 0.5},
            deadline={"sensors_s": 1.0, "command_s": 5.0},
            diagnostics_hz=10,
        )
        self.good()
        self.bench.node.create_timer(1 / HZ, lambda: [send() for send in self.sending])

    def good(self):
        self.send_joints = lambda: self.bench.send_joints(["x", *JOINTS[::-1]], [9, 0.5, 0.4, 0.3, 0.2, 0.1])
        self.send_image = self.bench.send_image
        self.sending = [lambda: self.send_joints(), lambda: self.send_image()]

    def is_running(self):
        self.bench.reports.pop("control loop", None)
        self.bench.says("control loop", "running")


@pytest.fixture(scope="module")
def live(tiny, domain, tmp_path_factory):
    live = Live(tiny, tmp_path_factory.mktemp("live"))
    yield live
    live.node.kill()
    live.bench.close()


@pytest.fixture
def active(live):
    """The node, running on good sensors before the test and after it."""
    if live.bench.state == "unconfigured":
        assert live.bench.change("configure") == "inactive"
        assert live.bench.change("activate") == "active"
    live.is_running()
    yield live
    live.good()
    live.is_running()
    assert live.node.poll() is None


def test_a_lifecycle_from_configure_to_cleanup(live):
    bench = live.bench
    assert bench.state == "unconfigured"
    assert bench.says("control loop", "unconfigured")[0] == 0
    assert bench.change("configure") == "inactive"
    bench.says("inference", "ready")
    bench.says("observations", "fresh")
    assert not bench.call(SetBool, f"{NODE}/hold", data=True).success, "nothing to hold before it acts"
    assert bench.commands == []
    assert bench.change("activate") == "active"
    bench.until(lambda: len(bench.commands) > 10)
    first = bench.commands[0][1].data
    np.testing.assert_allclose(first, [0.1, 0.2, 0.3], atol=1e-6, err_msg="the posture, by names")
    live.is_running()
    assert bench.change("deactivate") == "inactive"
    bench.spin(0.1)
    count = len(bench.commands)
    assert list(bench.commands[-1][1].data) == list(bench.commands[-2][1].data), "absolute targets are held"
    bench.spin(0.3)
    assert len(bench.commands) == count, "an inactive node is silent"
    assert bench.change("cleanup") == "unconfigured"


BAD = {
    "encoding": (IMAGE, lambda b: b.send_image("16UC1"), "encoding '16UC1' cannot be read"),
    "size": (IMAGE, lambda b: b.send_image(size=(48, 64)), "an image is 64 x 48, the policy needs 64 x 64"),
    "names": (STATE, lambda b: b.send_joints("vvxyz", range(5)), "joints come twice in ['v', 'v', 'x'"),
    "numbers": (STATE, lambda b: b.send_joints(JOINTS, range(4)), "4 numbers in position for 5 joints"),
    "nan": (STATE, lambda b: b.send_joints(JOINTS, [0, 0, np.nan, 0, 0]), "['c'] are NaN or infinite"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_message_is_refused_and_said(active, name):
    key, send, reason = BAD[name]
    if key == IMAGE:
        active.send_image = lambda: send(active.bench)
    else:
        active.send_joints = lambda: send(active.bench)
    active.bench.says("control loop", f"holding: {key} on /")
    level, message, values = active.bench.says("observations", reason)
    assert level == 1
    assert "\n" not in message
    assert reason in values[key]
    assert " 0 refused" not in values[key]


def test_joints_come_from_several_drivers(active):
    bench, names = active.bench, JOINTS[:2]
    active.send_joints = lambda: bench.send_joints(["wheel", *names], [9, 0.1, 0.2])
    _, message, _ = bench.says("control loop", f"holding: {STATE} on /")
    assert "(joint c)" in message, "the oldest joint is named"
    active.sending.append(lambda: bench.send_joints(JOINTS[2:], [0.3, 0.4, 0.5]))
    active.is_running()
    active.sending.append(lambda: bench.send_joints(["other"], [0.0]))
    bench.says("observations", "of other joints")
    active.is_running()


def test_a_sensor_that_stops_holds_the_robot(active):
    bench = active.bench
    active.sending = active.sending[:1]
    level, message, _ = bench.says("control loop", f"holding: {IMAGE} on /camera/image_raw (Image) is ")
    assert (level, "the limit (watchdog.observation_age_s) is 0.50 s" in message) == (1, True)
    bench.spin(0.1)
    held = [tuple(message.data) for _, message in bench.commands[-2:]]
    assert held[0] == held[1], "absolute targets are held"
    bench.says("observations", "missed its QoS deadline")
    assert "deadline misses" in bench.says("observations", IMAGE)[2][IMAGE]


def test_a_publisher_without_the_deadline_is_named(active):
    bench = active.bench
    extra = bench.node.create_publisher(JointState, "joint_states", 1)
    bench.says("observations", "a publisher on joint_states offers other QoS (deadline)")
    bench.node.destroy_publisher(extra)


def test_hold_and_reset_are_services(active):
    bench = active.bench
    assert bench.call(SetBool, f"{NODE}/hold", data=True).message == "holding"
    assert bench.says("control loop", "holding: asked to hold")[0] == 1
    assert bench.call(SetBool, f"{NODE}/hold", data=False).message == "going on"
    active.is_running()
    before = int(bench.reports["control loop"][2]["episode"])
    assert bench.call(Trigger, f"{NODE}/reset").success
    bench.until(lambda: int(bench.reports["control loop"][2]["episode"]) == before + 1)


def test_an_instruction_comes_by_topic_and_begins_anew(active):
    bench = active.bench
    publisher = bench.node.create_publisher(String, "task", 1)
    before = int(bench.reports["control loop"][2]["episode"])
    bench.until(publisher.get_subscription_count)
    publisher.publish(String(data="open the drawer"))
    _, _, values = bench.says("control loop", "open the drawer")
    bench.until(lambda: int(bench.reports["control loop"][2]["episode"]) > before)
    assert values["state"] == "active"


def parameter(name, **value):
    kinds = {"double_value": 3, "string_value": 4}
    return Parameter(name=name, value=ParameterValue(type=kinds[next(iter(value))], **value))


def test_parameters_are_described_and_guarded(active):
    bench = active.bench
    names = ["watchdog.observation_age_s", "cameras", "threads"]
    found = bench.call(DescribeParameters, f"{NODE}/describe_parameters", names=names).descriptors
    assert found[0].floating_point_range[0].to_value == 10**6
    assert found[1].description.startswith("Camera map")
    assert found[2].integer_range[0].from_value == 1
    asked = [
        parameter("watchdog.observation_age_s", double_value=0.6),
        parameter("loop.mode", string_value="async"),
        parameter("watchdog.observation_age_s", double_value=-1.0),
    ]
    results = bench.call(SetParameters, f"{NODE}/set_parameters", parameters=asked).results
    assert [result.successful for result in results] == [True, False, False]
    assert results[1].reason == "loop.mode is read when the node is configured; clean it up first"
    active.sending = []
    bench.says("control loop", "the limit (watchdog.observation_age_s) is 0.60 s")
