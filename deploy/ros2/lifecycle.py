"""The policy node: a lifecycle node around the control loop.

    configure    read parameters, load the bundle in a process of its own, warm it up, listen to the sensors;
                 the node answers nothing until that is done
    activate     a timer ticks the control loop once a control period, which publishes commands
    deactivate   command a standstill, then be silent
    cleanup      end the process, close topics and services
    error        a fault while active deactivates, cleans up and leaves the node unconfigured; /diagnostics
                 says why

Only conversions of messages and the tick run in the executor (one thread); inference does not. A message can
do no more than be refused, an exception in a tick no more than bring the robot to a standstill.
`rclpy.lifecycle` of the PyPI wheels is complete, `launch` is not among them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType, JumpThreshold
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from vivace.deploy.loop.budget import Rung
from vivace.deploy.loop.ladder import load_ladder, measure_rungs
from vivace.deploy.loop.warm_up import warm_up
from vivace.deploy.loop.watchdog import WatchdogSettings
from vivace.deploy.ros2.deadman import NodeDeadman
from vivace.deploy.ros2.diagnostics import command_status, inference_status, loop_status, sensor_status
from vivace.deploy.ros2.driver import Driver, measured_positions
from vivace.deploy.ros2.inputs import Inputs
from vivace.deploy.ros2.messages.sensors import Sensors
from vivace.deploy.ros2.outputs import Outputs
from vivace.deploy.ros2.parameters.fit import check_rate, fit
from vivace.deploy.ros2.parameters.parameters import check, check_names
from vivace.deploy.ros2.parameters.settings import RENAMED, RosSettings, parameters
from vivace.deploy.ros2.robot import RetimedWorker
from vivace.deploy.ros2.sources import Source, make_sensors, sources
from vivace.deploy.ros2.topics import descriptor, diagnostic_message
from vivace.deploy.workers.process_worker import ProcessWorker, bundles
from vivace.policies.errors import BadSetting, VivaceError
from vivace.policies.spec import PolicySpec

_AGE = "watchdog.observation_age_s"
_RIVALS_S = 0.2
"""How often the node looks who else sends commands [s]."""
_LONGEST_TASK = 4096
_PATIENCE_S = 0.5
"""How long the node waits for the standstill to arrive before it ends [s]."""


@dataclass
class _Configured:
    """What exists between configure and cleanup."""

    settings: RosSettings
    spec: PolicySpec
    worker: ProcessWorker
    times: RetimedWorker
    sensors: Sensors
    ladder: tuple[Rung, ...] = ()
    inputs: Inputs | None = None
    outputs: Outputs | None = None
    deadman: NodeDeadman | None = None
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
        self._errors = 0
        self._rivals: list[str] = []
        self._timer: Any = None
        self.add_on_set_parameters_callback(self._check_parameters)
        for parameter in parameters():
            self.declare_parameter(parameter.name, parameter.default, descriptor(parameter))
        declared = self.list_parameters([], 0).names  # rclpy's own among them
        check_names(self._parameter_overrides, declared, RENAMED)
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
        except Exception as error:  # the outermost frame of a callback: rclpy drops it without a word
            self._fault = f"{type(error).__name__}: {error}"
            self.get_logger().error(self._fault)
            self._close()
            return TransitionCallbackReturn.FAILURE
        self._fault = ""
        self.report()
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to act; not while another node does, if the commands are to be exclusive."""
        if self._ready is None or (outputs := self._ready.outputs) is None:
            return TransitionCallbackReturn.FAILURE
        self._look_for_rivals()
        self._fault = ""
        if self._rivals and self._ready.settings.command_exclusive:
            self._fault = f"{self._rivals[0]}, and command.exclusive is set; end it first"
            self.get_logger().error(self._fault)
            self.report()
            return TransitionCallbackReturn.FAILURE
        done = super().on_activate(state)
        ready, is_simulated = self._ready, bool(self.get_parameter("use_sim_time").value)
        pace = self._now if is_simulated else time.monotonic
        command = outputs.command(
            lambda: measured_positions(ready.settings, ready.sensors, ready.spec.action_dim)
        )
        self._driver = Driver(
            ready.settings,
            ready.spec,
            ready.times,
            ready.sensors,
            command if ready.deadman is None else ready.deadman.watch(command),
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
        self.rest()
        done = super().on_shutdown(state)
        self._close()
        return done

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Clean up after a fault; the node can be configured again."""
        self._stop()
        self._close()
        self.report()
        return TransitionCallbackReturn.SUCCESS

    def rest(self) -> None:
        """Command a standstill and tick no more; returns when the command has arrived, or after a while."""
        self._stop()
        if self._ready is not None and self._ready.outputs is not None:
            self._ready.outputs.wait(_PATIENCE_S)

    def end(self) -> None:
        """Command a standstill, then close everything, whatever state the node is in."""
        self.rest()
        if self.state_name in ("unconfigured", "inactive", "active"):
            self.trigger_shutdown()
        self._close()

    @property
    def state_name(self) -> str:
        """Of the lifecycle: unconfigured, inactive, active or finalized, or a transition's."""
        return str(self._state_machine.current_state[1])

    def report(self) -> None:
        """Publish /diagnostics now."""
        found = [loop_status(self.state_name, self._fault, self._driver)]
        if self._ready is not None:
            ready = self._ready
            problems = [] if ready.inputs is None else ready.inputs.problems
            found.append(sensor_status(ready.sensors, self._now(), problems))
            problems.clear()
            status, self._errors = inference_status(ready.worker, ready.times, self._errors)
            found += [status, command_status(self._rivals)]
        message = DiagnosticArray(
            status=[diagnostic_message(self.get_fully_qualified_name(), s) for s in found]
        )
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def _configure(self) -> None:
        settings = RosSettings.read({name: self._get(name) for name in self._known})
        if not settings.bundle:
            raise BadSetting("the parameter bundle is empty; give the folder that vivace export wrote")
        plans = load_ladder(settings.bundle, settings.loop.ladder, settings.public_key)
        bundle = plans[settings.bundle]
        settings = settings.for_policy(bundle.spec)
        spec = fit(settings, bundle.spec)
        folders = {name: plan.reference for name, plan in plans.items()}
        load = bundles(
            folders, (settings.provider,), settings.threads, settings.loop.chunking, settings.public_key
        )
        worker = ProcessWorker(load, spec, stall_s=settings.stall_s)
        worker.start()
        given = sources(settings, spec)
        limit_s = settings.watchdog.observation_age_s
        sensors = Sensors(make_sensors(settings, spec, given, self.resolve_topic_name), limit_s)
        self._ready = _Configured(settings, spec, worker, RetimedWorker(worker), sensors)
        self._errors = 0
        task = settings.task or bundle.usual_task
        took = warm_up(worker, spec, task, settings.warmup, settings.stall_s, observations=bundle.example)
        names = tuple(plans) if settings.loop.ladder else ()
        self._ready.ladder = measure_rungs(worker, spec, names, task, observations=bundle.example)
        check_rate(settings, spec, [rung.p99_s for rung in self._ready.ladder] or took)
        self._open(self._ready, given)
        if settings.deadman_s and self._ready.outputs is not None:
            self._ready.deadman = NodeDeadman(self, self._ready.outputs, settings, spec)
        self.get_logger().info(
            f"{bundle.name} is ready; {len(took)} chunks took {', '.join(f'{s * 1e3:.1f}' for s in took)} ms"
        )
        trained_hz = bundle.spec.control_hz
        if trained_hz and abs(settings.control_hz - trained_hz) > 0.01 * trained_hz:
            self.get_logger().warning(
                f"control_hz={settings.control_hz:g}, the demonstrations were at {trained_hz:g} Hz: the "
                f"robot moves {settings.control_hz / trained_hz:.2f} times as fast as in them"
            )

    def _open(self, ready: _Configured, given: Sequence[Source]) -> None:
        """Make topics and services."""
        settings, entities = ready.settings, ready.entities
        ready.outputs = Outputs(self, settings, ready.spec, self._miss_command)
        ready.inputs = Inputs(
            self, given, ready.sensors, settings.deadline_sensors_s, settings.pose_frame, self._now
        )
        rivals = self.create_timer(_RIVALS_S, self._look_for_rivals, clock=self._steady)
        entities.append((self.destroy_timer, rivals))
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
        for topics in (ready.inputs, ready.outputs):
            if topics is not None:
                topics.close()
        if ready.deadman is not None:
            ready.deadman.close()
        ready.worker.close()

    def _tick(self) -> None:
        """One control period."""
        driver, ready = self._driver, self._ready
        if driver is None or ready is None or ready.inputs is None:
            return
        before = _kind(driver.reason)
        try:
            ready.inputs.look()
            driver.tick()
        except Exception as error:  # the outermost frame of a callback: the robot must stand still
            self._fault = str(error) if isinstance(error, VivaceError) else f"{type(error).__name__}: {error}"
            self.get_logger().error(self._fault)
            self.trigger_deactivate()
            return
        if _kind(driver.reason) != before:
            self.get_logger().info(f"holding: {driver.reason}" if driver.reason else "running")
            self.report()

    def _stop(self) -> None:
        """End ticking; the last command is a standstill."""
        timer, driver = self._timer, self._driver
        self._timer = self._driver = None
        if driver is not None:
            try:
                driver.stop()
            except Exception as error:  # whatever it is, the rest must end too
                self.get_logger().error(f"the standstill was not sent: {type(error).__name__}: {error}")
        if self._ready is not None and self._ready.deadman is not None:
            self._ready.deadman.disarm()
        if timer is not None:
            self.destroy_timer(timer)

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

    def _look_for_rivals(self) -> None:
        """See who else sends commands, and give way if the commands are to be exclusive."""
        if self._ready is None or self._ready.outputs is None:
            return
        before, self._rivals = self._rivals, self._ready.outputs.rivals()
        for rival in set(self._rivals) - set(before):
            self.get_logger().warning(rival)
        if self._driver is not None and self._ready.settings.command_exclusive:
            self._driver.rival = self._rivals[0] if self._rivals else ""

    def _on_task(self, message: Any) -> None:
        try:
            if len(message.data) > _LONGEST_TASK:
                raise BadSetting(f"it has {len(message.data)} characters; at most {_LONGEST_TASK} are taken")
            self.set_parameters([rclpy.Parameter("task", value=str(message.data))])
        except Exception as error:  # the outermost frame of what others send
            self.get_logger().warning(f"an instruction was refused: {error}", throttle_duration_sec=1.0)

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

    def _miss_command(self, event: Any) -> None:
        if self._driver is not None:
            self._driver.late_commands += event.total_count_change

    def _check_parameters(self, given: Sequence[Any]) -> SetParametersResult:
        """Refuse values that do not fit, and changes that could not have an effect."""
        for parameter in given:
            known = self._known.get(parameter.name)
            if known is None:
                continue
            try:
                check(known, parameter.value)
                if known.name == _AGE:
                    WatchdogSettings(observation_age_s=parameter.value)
            except BadSetting as error:
                return SetParametersResult(successful=False, reason=str(error))
            if self._ready is not None and not known.is_live and parameter.value != self._get(known.name):
                reason = f"{known.name} is read when the node is configured; clean it up first"
                return SetParametersResult(successful=False, reason=reason)
        for parameter in given:
            if parameter.name == "task" and self._driver is not None:
                self._driver.instruct(parameter.value)
            if parameter.name == _AGE and self._ready is not None:
                self._ready.sensors.oldest_s = float(parameter.value)
        return SetParametersResult(successful=True)

    def _get(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _now(self) -> float:
        """Time on the clock that stamps are of [s]."""
        return float(self.get_clock().now().nanoseconds) * 1e-9


def _kind(reason: str) -> str:
    """A reason without the age in it, which changes from tick to tick."""
    return reason.partition(" is ")[0]
