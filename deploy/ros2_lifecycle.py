"""The policy node: a lifecycle node around the control loop.

    configure    read parameters, load the bundle in a process of its own, warm it up, listen to the sensors;
                 the node answers nothing until that is done
    activate     a timer ticks the control loop once a control period, which publishes commands
    deactivate   command a standstill, then be silent
    cleanup      end the process, close topics and services
    error        a fault while active deactivates, cleans up and leaves the node unconfigured; /diagnostics
                 says why

Only conversions of messages and the tick run in the executor (one thread); inference does not.
`rclpy.lifecycle` of the PyPI wheels is complete, `launch` is not among them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Float64MultiArray, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from vivace.deploy.budget import Rung
from vivace.deploy.process_worker import ProcessWorker, bundles
from vivace.deploy.ros2_command import ArrayCommand, Command, TrajectoryCommand
from vivace.deploy.ros2_diagnostics import inference_status, loop_status, sensor_status
from vivace.deploy.ros2_driver import Driver, measured_positions
from vivace.deploy.ros2_robot import RetimedWorker
from vivace.deploy.ros2_sensors import Sensors
from vivace.deploy.ros2_settings import RosSettings, check, parameters
from vivace.deploy.ros2_topics import (
    descriptor,
    diagnostic_message,
    make_sensors,
    topic_of,
    trajectory_message,
    with_deadline,
)
from vivace.deploy.rungs import load_plans, measure_rungs
from vivace.deploy.warm_up import warm_up
from vivace.policies.errors import BadSetting, VivaceError
from vivace.policies.types import PolicySpec


@dataclass
class _Configured:
    """What exists between configure and cleanup."""

    settings: RosSettings
    spec: PolicySpec
    worker: ProcessWorker
    times: RetimedWorker
    sensors: Sensors
    ladder: tuple[Rung, ...] = ()
    publisher: Any = None
    entities: list[tuple[Callable[[Any], Any], Any]] = field(default_factory=list)
    """(what destroys it, what was made)."""


class PolicyNode(LifecycleNode):  # type: ignore[misc]
    """Runs an exported policy on a robot behind ROS 2 topics; its parameters are `RosSettings`."""

    def __init__(self, name: str = "vivace", **options: Any) -> None:
        super().__init__(name, **options)
        self._known = {parameter.name: parameter for parameter in parameters()}
        self._ready: _Configured | None = None
        self._driver: Driver | None = None
        self._fault = ""
        self._problems: list[str] = []
        self._errors = 0
        self._timer: Any = None
        self.add_on_set_parameters_callback(self._check_parameters)
        for parameter in parameters():
            self.declare_parameter(parameter.name, parameter.default, descriptor(parameter))
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self.create_timer(1.0 / self._get("diagnostics_hz"), self.report, clock=self._steady)
        self._jumps = self.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1), on_clock_change=True),
            post_callback=lambda _: self._restart(),
        )
        if self._get("autostart"):
            self._starter = self.create_timer(0.01, self._start, clock=self._steady)

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and warm up; the node stays unconfigured if that fails."""
        try:
            self._configure()
        except VivaceError as error:
            self._fault = str(error)
            self.get_logger().error(self._fault)
            self._close()
            return TransitionCallbackReturn.FAILURE
        except Exception as error:  # rclpy drops it without a word
            self._fault = f"{type(error).__name__}: {error}"
            self.get_logger().error(self._fault)
            raise
        self._fault = ""
        self.report()
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to act."""
        done = super().on_activate(state)
        if self._ready is None:
            return TransitionCallbackReturn.FAILURE
        ready, is_simulated = self._ready, bool(self.get_parameter("use_sim_time").value)
        pace = self._now if is_simulated else time.monotonic
        self._driver = Driver(
            ready.settings,
            ready.spec,
            ready.times,
            ready.sensors,
            self._command(ready),
            self._now,
            pace,
            ready.ladder,
        )
        self._driver.task = self._get("task")  # it may have been set since
        clock = self.get_clock() if is_simulated else self._steady
        self._timer = self.create_timer(1.0 / ready.settings.control_hz, self._tick, clock=clock)
        self.report()
        return done

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Command a standstill, then be silent."""
        self._stop()
        done = super().on_deactivate(state)
        self.report()
        return TransitionCallbackReturn.ERROR if self._fault else done

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """End the process, close topics and services."""
        done = super().on_cleanup(state)
        self._close()
        return done

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop if active, then clean up."""
        self._stop()
        if self._ready is not None and self._ready.publisher is not None:
            self._ready.publisher.wait_for_all_acked(Duration(seconds=0.5))
        done = super().on_shutdown(state)
        self._close()
        return done

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Clean up after a fault; the node can be configured again."""
        self._stop()
        self._close()
        self.report()
        return TransitionCallbackReturn.SUCCESS

    @property
    def state_name(self) -> str:
        """Of the lifecycle: unconfigured, inactive, active or finalized, or a transition's."""
        return str(self._state_machine.current_state[1])

    def report(self) -> None:
        """Publish /diagnostics now."""
        found = [loop_status(self.state_name, self._fault, self._driver)]
        if self._ready is not None:
            ready = self._ready
            found.append(sensor_status(ready.sensors, self._now(), self._problems))
            status, self._errors = inference_status(ready.worker, ready.times, self._errors)
            found.append(status)
            self._problems.clear()
        message = DiagnosticArray(
            status=[diagnostic_message(self.get_fully_qualified_name(), s) for s in found]
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def _configure(self) -> None:
        settings = RosSettings.read({name: self._get(name) for name in self._known})
        if not settings.bundle:
            raise BadSetting("the parameter bundle is empty; give the folder that vivace export wrote")
        plans = load_plans(settings.bundle, settings.ladder, settings.mode)
        bundle = plans[settings.bundle]
        spec = settings.for_policy(bundle.spec)
        folders = {name: plan.reference for name, plan in plans.items()}
        load = bundles(folders, (settings.provider,), settings.threads, settings.chunking)
        worker = ProcessWorker(load, spec, stall_s=settings.stall_s)
        worker.start()
        sensors = Sensors(make_sensors(settings, spec, self.resolve_topic_name), settings.staleness_s)
        self._ready = _Configured(settings, spec, worker, RetimedWorker(worker), sensors)
        self._errors = 0
        task = settings.task or bundle.usual_task
        took = warm_up(worker, spec, task, settings.warmup, settings.stall_s, observations=bundle.example)
        names = tuple(plans) if settings.ladder else ()
        self._ready.ladder = measure_rungs(worker, spec, names, task, observations=bundle.example)
        self._open(self._ready)
        self.get_logger().info(
            f"{bundle.name} is ready; {len(took)} chunks took {', '.join(f'{s * 1e3:.1f}' for s in took)} ms"
        )

    def _open(self, ready: _Configured) -> None:
        """Make topics and services."""
        settings, entities = ready.settings, ready.entities
        is_trajectory = settings.command_type == "trajectory"
        ready.publisher = self.create_lifecycle_publisher(
            JointTrajectory if is_trajectory else Float64MultiArray,
            settings.command_topic,
            with_deadline(QoSProfile(depth=10), settings.deadline_command_s),
            event_callbacks=PublisherEventCallbacks(deadline=self._miss_command),
        )
        entities.append((self.destroy_lifecycle_publisher, ready.publisher))
        sensor_qos = QoSProfile(
            depth=1, history=HistoryPolicy.KEEP_LAST, reliability=ReliabilityPolicy.BEST_EFFORT
        )
        sensor_qos = with_deadline(sensor_qos, settings.deadline_sensors_s)
        for key in ready.spec.observation_shapes:
            kind, topic = topic_of(settings, key)
            events = SubscriptionEventCallbacks(
                deadline=partial(self._miss_sensor, key), incompatible_qos=partial(self._mismatch, topic)
            )
            take = partial(self._take, key)
            made = self.create_subscription(kind, topic, take, sensor_qos, event_callbacks=events)
            entities.append((self.destroy_subscription, made))
        task = self.create_subscription(String, "task", self._on_task, 1)
        entities.append((self.destroy_subscription, task))
        for kind, name, answer in ((Trigger, "~/reset", self._on_reset), (SetBool, "~/hold", self._on_hold)):
            entities.append((self.destroy_service, self.create_service(kind, name, answer)))

    def _close(self) -> None:
        """Undo `_configure`, however far it came."""
        ready, self._ready = self._ready, None
        if ready is None:
            return
        for destroy, made in ready.entities:
            destroy(made)
        ready.worker.close()

    def _command(self, ready: _Configured) -> Command:
        settings, spec = ready.settings, ready.spec
        if settings.command_type == "array":
            return ArrayCommand(
                lambda action: ready.publisher.publish(Float64MultiArray(data=action.tolist()))
            )
        return TrajectoryCommand(
            settings.command_names,
            spec.action_kinds,
            1.0 / settings.control_hz,
            settings.command_horizon,
            lambda: measured_positions(settings, ready.sensors, spec.action_dim),
            lambda trajectory: ready.publisher.publish(trajectory_message(trajectory)),
        )

    def _tick(self) -> None:
        """One control period."""
        driver, ready = self._driver, self._ready
        if driver is None or ready is None:
            return
        before = _kind(driver.reason)
        try:
            driver.tick()
        except VivaceError as error:
            self._fault = str(error)
            self.get_logger().error(self._fault)
            self.trigger_deactivate()
            return
        if _kind(driver.reason) != before:
            self.get_logger().info(f"holding: {driver.reason}" if driver.reason else "running")
            self.report()

    def _stop(self) -> None:
        """End ticking; the last command is a standstill."""
        if self._timer is not None:
            self.destroy_timer(self._timer)
        if self._driver is not None:
            self._driver.stop()
        self._timer = self._driver = None

    def _start(self) -> None:
        """Configure and activate, once."""
        self.destroy_timer(self._starter)
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def _restart(self) -> None:
        """Time has jumped back: what was seen is of another time."""
        if self._ready is not None:
            self._ready.sensors.forget()
        if self._driver is not None:
            self._driver.reset()

    def _take(self, key: str, message: Any) -> None:
        if self._ready is None:
            return
        sensor = self._ready.sensors.sensors[key]
        before = sensor.reason
        reason = self._ready.sensors.take(key, message, self._now())
        if reason and (reason != before or sensor.refused == 1):
            self.get_logger().warning(f"{key} refused: {reason}", throttle_duration_sec=1.0)

    def _on_task(self, message: Any) -> None:
        self.set_parameters([rclpy.Parameter("task", value=str(message.data))])

    def _on_reset(self, _: Any, answer: Any) -> Any:
        if self._driver is None:
            answer.success, answer.message = False, "the node is not active; activate it first"
            return answer
        self._driver.reset()
        answer.success, answer.message = True, "a new episode begins"
        return answer

    def _on_hold(self, wanted: Any, answer: Any) -> Any:
        if self._driver is None:
            answer.success, answer.message = False, "the node is not active, so it commands nothing"
            return answer
        self._driver.is_held = bool(wanted.data)
        answer.success, answer.message = True, "holding" if wanted.data else "going on"
        return answer

    def _miss_sensor(self, key: str, event: Any) -> None:
        if self._ready is not None:
            self._ready.sensors.sensors[key].deadline_misses += event.total_count_change
            self._problems.append(f"{key} missed its QoS deadline")

    def _miss_command(self, event: Any) -> None:
        if self._driver is not None:
            self._driver.late_commands += event.total_count_change

    def _mismatch(self, topic: str, event: Any) -> None:
        policy = event.last_policy_kind.name.removeprefix("RMW_QOS_POLICY_").lower()
        self._problems.append(
            f"a publisher on {topic} offers other QoS ({policy}); nothing of it is received"
        )

    def _check_parameters(self, given: Sequence[Any]) -> SetParametersResult:
        """Refuse values that do not fit, and changes that could not have an effect."""
        for parameter in given:
            known = self._known.get(parameter.name)
            if known is None:
                continue
            try:
                check(known, parameter.value)
            except BadSetting as error:
                return SetParametersResult(successful=False, reason=str(error))
            if self._ready is not None and not known.is_live and parameter.value != self._get(known.name):
                reason = f"{known.name} is read when the node is configured; clean it up first"
                return SetParametersResult(successful=False, reason=reason)
        for parameter in given:
            if parameter.name == "task" and self._driver is not None:
                self._driver.instruct(parameter.value)
            if parameter.name == "staleness_s" and self._ready is not None:
                self._ready.sensors.staleness_s = float(parameter.value)
        return SetParametersResult(successful=True)

    def _get(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _now(self) -> float:
        """Time on the clock that stamps are of [s]."""
        return float(self.get_clock().now().nanoseconds) * 1e-9


def _kind(reason: str) -> str:
    """A reason without the age in it, which changes from tick to tick."""
    return reason.partition(" is ")[0]
