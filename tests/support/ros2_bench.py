"""The other side of a node's topics in tests: a second process that publishes sensors and keeps commands."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from lerobot.configs.types import FeatureType
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState

from vivace.accel.apply import calibrate
from vivace.accel.technique import CalibrationData
from vivace.deploy.export.export import export
from vivace.eval.training.fit import save
from vivace.eval.training.recipe import statistics
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.load import load_policy
from vivace.policies.session import Session
from vivace.policies.spec import ActionKind
from vivace.policies.tiny.policies import tiny_dp_transformer

NODE = "/vivace"
TRANSITIONS = {"configure": 1, "cleanup": 2, "activate": 3, "deactivate": 4}
FAST = [("step_schedule", {"sampler": "ddim", "n_steps": 2}), ("hoist", {})]


@contextmanager
def own_domain(log_folder):
    """A DDS domain of its own on this machine, alike for all processes that are started in it."""
    before = dict(os.environ)
    os.environ |= {
        "ROS_DOMAIN_ID": str(1 + os.getpid() % 100),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "ROS_LOG_DIR": str(log_folder),
    }
    yield
    os.environ.clear()
    os.environ |= before


def bundled(loaded, observations, folder):
    """Export a policy with two DDIM steps."""
    seen = Session(loaded).prepare(observations)
    plan = calibrate(loaded.staged, loaded.fingerprint, CalibrationData(seen, ((1, 0),)), FAST)
    export(loaded, plan, CalibrationData(seen, ((2, 0),)), folder)
    return folder


def tiny_bundle(base, images=False):
    """A miniature that sees five joints, with images also one camera, and has three actions."""
    policy = tiny_dp_transformer(images=images)
    random, stats, seen = np.random.default_rng(0), {}, {}
    for key, feature in {**policy.config.input_features, **policy.config.output_features}.items():
        is_image = feature.type is FeatureType.VISUAL
        shape = (3, 1, 1) if is_image else feature.shape
        stats[key] = statistics(random.uniform(-1, 1, (50, *shape)).astype(np.float32))
        blank = np.zeros((1, 2, 64, 64, 3), np.uint8) if is_image else np.zeros((1, 2, *shape), np.float32)
        seen |= {} if key == "action" else {key: blank}
    save(policy, *make_dp_transformer_pre_post_processors(policy.config, stats), base / "dp")
    kinds = (ActionKind.ABSOLUTE,) * 3
    return bundled(load_policy(base / "dp", action_kinds=kinds), seen, base / "bundle")


class Bench:
    """Spins in the test's own thread: time passes in `until` only."""

    def __init__(self, command_type, topic="command", deadline_s=0.0):
        self.context = Context()
        rclpy.init(context=self.context)
        self.node = rclpy.create_node("bench", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        if deadline_s:
            self.qos.deadline = Duration(seconds=deadline_s)
        self.commands, self.on_command, self.reports = [], None, {}
        self.process, self.clients = None, {}
        self.node.create_subscription(command_type, topic, self._command, 10)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._report, 100)
        self.joints = self.node.create_publisher(JointState, "joint_states", self.qos)
        self.camera = self.node.create_publisher(Image, "camera/image_raw", self.qos)

    def start(self, folder, terminal=None, **parameters):
        """Start a node in a process of its own; it writes to the terminal if there is one."""
        file, self.log = folder / "params.yaml", folder / "node.log"
        file.write_text(yaml.safe_dump({"/**": {"ros__parameters": parameters}}))
        command = [sys.executable, "-m", "vivace.deploy.ros2.node", "--ros-args", "--params-file", str(file)]
        with self.log.open("a") as log:
            out = log if terminal is None else terminal
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ)
        return self.process

    def now(self):
        return self.node.get_clock().now().nanoseconds * 1e-9

    def until(self, is_true, patience_s=30.0, what=""):
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.02)
            if is_true():
                return
            if self.process is not None and self.process.poll() not in (None, 0, -9):
                raise AssertionError(f"the node ended: {self.log.read_text()[-2000:]}")
        raise AssertionError(f"never: {what or is_true}; last reports {self.reports}")

    def spin(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.02)

    def call(self, kind, name, **fields):
        """Call a service, again if the answer was lost: DDS may not know the way back yet."""
        if name not in self.clients:
            self.clients[name] = self.node.create_client(kind, name)
        client = self.clients[name]
        self.until(client.service_is_ready, what=f"service {name}")
        futures = []

        def is_answered():
            if not futures or time.monotonic() > futures[-1][0] + 3:
                futures.append((time.monotonic(), client.call_async(kind.Request(**fields))))
            return any(future.done() for _, future in futures)

        self.until(is_answered, what=f"answer of {name}")
        return next(future.result() for _, future in futures if future.done())

    def change(self, label):
        """Make a transition; return the state it ended in."""
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[label]
        self.call(ChangeState, f"{NODE}/change_state", transition=request.transition)
        return self.state

    @property
    def state(self):
        return self.call(GetState, f"{NODE}/get_state").current_state.label

    def says(self, part, text, patience_s=30.0):
        """Wait until a status of that name says it, in its message or its values; return it."""

        def is_said():
            return part in self.reports and text in str(self.reports[part])

        self.until(is_said, patience_s, f"{part} says {text!r}")
        return self.reports[part]

    def send_joints(self, names, positions):
        message = JointState(name=list(names), position=[float(x) for x in positions])
        message.header.stamp = self.node.get_clock().now().to_msg()
        self.joints.publish(message)

    def send_image(self, encoding="rgb8", size=(64, 64), channels=3):
        pixels = np.full((*size, channels), 90, np.uint8)
        message = Image(encoding=encoding, height=size[0], width=size[1], step=size[1] * channels)
        message.data = pixels.tobytes()
        message.header.stamp = self.node.get_clock().now().to_msg()
        self.camera.publish(message)

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def _command(self, message):
        self.commands.append((self.now(), message))
        if self.on_command is not None:
            self.on_command(message)

    def _report(self, message):
        for status in message.status:
            values = {entry.key: entry.value for entry in status.values}
            self.reports[status.name.partition(": ")[2]] = (status.level[0], status.message, values)
