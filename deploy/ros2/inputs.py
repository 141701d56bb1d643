"""The subscriptions of a configured node: what sensors send, and what the middleware says of them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.time import Time
from sensor_msgs.msg import JointState

from vivace.deploy.ros2.messages.sensors import Sensors
from vivace.deploy.ros2.sources import TF, Source
from vivace.deploy.ros2.topics import KINDS, with_deadline
from vivace.policies.errors import BadSetting

_DEPTH, _DEPTH_OF_PARTS = 1, 16
"""Messages that may wait: the newest picture counts, but several drivers may share a topic of joints."""


class Inputs:
    """Listens to the sensors of a policy.

    Args:
        node: who listens.
        given: the topics.
        sensors: what keeps messages.
        deadline_s: QoS deadline asked of the publishers [s]; 0: none.
        frame: that poses are looked up in.
        now: time on the clock that stamps are of [s].
    """

    def __init__(
        self,
        node: Node,
        given: Sequence[Source],
        sensors: Sensors,
        deadline_s: float,
        frame: str,
        now: Callable[[], float],
    ) -> None:
        self._node, self._sensors, self._now = node, sensors, now
        self.problems: list[str] = []
        """What the middleware said since this was emptied."""
        self._frames = [Frames(node, source, frame, sensors, now) for source in given if source.kind == TF]
        self._subscriptions = [self._subscribe(s, deadline_s) for s in given if s.kind != TF]

    def look(self) -> None:
        """Look up what nobody sends, at every tick."""
        for frames in self._frames:
            frames.look()

    def close(self) -> None:
        """Listen no more."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        for frames in self._frames:
            frames.close()
        self._subscriptions, self._frames = [], []

    def _subscribe(self, source: Source, deadline_s: float) -> Any:
        kind = KINDS[source.kind]
        profile = QoSProfile(
            depth=_DEPTH_OF_PARTS if kind is JointState else _DEPTH,
            history=HistoryPolicy.KEEP_LAST,
            reliability=ReliabilityPolicy.BEST_EFFORT,
        )
        events = SubscriptionEventCallbacks(
            deadline=partial(self._miss, source.key), incompatible_qos=partial(self._mismatch, source.topic)
        )
        return self._node.create_subscription(
            kind,
            source.topic,
            partial(self._take, source),
            with_deadline(profile, deadline_s),
            event_callbacks=events,
        )

    def _take(self, source: Source, message: Any) -> None:
        sensor = self._sensors.sensors[source.key]
        before = sensor.reason
        reason = self._sensors.take(source.key, message, self._now(), source.read)
        if reason and (reason != before or sensor.refused == 1):
            self._node.get_logger().warning(f"{source.key} refused: {reason}", throttle_duration_sec=1.0)

    def _miss(self, key: str, event: Any) -> None:
        self._sensors.sensors[key].deadline_misses += event.total_count_change
        self.problems.append(f"{key} missed its QoS deadline")

    def _mismatch(self, topic: str, event: Any) -> None:
        policy = event.last_policy_kind.name.removeprefix("RMW_QOS_POLICY_").lower()
        self.problems.append(f"a publisher on {topic} offers other QoS ({policy}); nothing of it is received")


class Frames:
    """Looks a pose up in the tree of frames, with `tf2_ros`, which comes with ROS and is not on PyPI.

    Args:
        node: who listens to /tf.
        source: its topic is the frame whose pose is wanted.
        frame: the one it is in.
        sensors: what keeps it.
        now: time on the clock that stamps are of [s].
    """

    def __init__(
        self, node: Node, source: Source, frame: str, sensors: Sensors, now: Callable[[], float]
    ) -> None:
        try:
            from tf2_ros import Buffer, TransformListener
        except ImportError as error:
            raise BadSetting(
                "pose.type=tf needs the package tf2_ros, which comes with a ROS 2 installation; source one, "
                "or have the pose published: pose.type=pose"
            ) from error
        self._source, self._frame, self._sensors, self._now = source, frame, sensors, now
        self._buffer = Buffer()
        self._listener = TransformListener(self._buffer, node)

    def look(self) -> None:
        """Take the newest transform, stamped when it was seen."""
        try:
            found = self._buffer.lookup_transform(self._frame, self._source.topic, Time())
        except Exception as error:  # tf2's errors have no common root before it is imported
            self._sensors.refuse(self._source.key, str(error))
            return
        self._sensors.take(self._source.key, found, self._now(), self._source.read)

    def close(self) -> None:
        """Listen no more."""
        self._listener.unregister()
