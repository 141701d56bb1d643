"""The node's driver in virtual time, without ROS: holds, staleness, trajectories, by mental arithmetic."""

from collections import Counter
from dataclasses import replace
from types import MappingProxyType
from types import SimpleNamespace as Message

import numpy as np
import pytest
from loop_options import part
from ros2_policy import NAMES, SPEC

from vivace.deploy.loop.budget import Rung
from vivace.deploy.loop.clock import VirtualClock
from vivace.deploy.loop.guard import Limits
from vivace.deploy.loop.watchdog import WatchdogSettings
from vivace.deploy.ros2.diagnostics import loop_status, percentiles, sensor_status
from vivace.deploy.ros2.driver import Driver, measured_positions
from vivace.deploy.ros2.messages.command import ArrayCommand, TrajectoryCommand
from vivace.deploy.ros2.messages.sensors import Sensor, Sensors
from vivace.deploy.ros2.parameters.fit import fit
from vivace.deploy.ros2.parameters.settings import RosSettings
from vivace.deploy.ros2.robot import RetimedWorker
from vivace.deploy.workers.worker import BatchedInference, Request, SimulatedWorker
from vivace.policies.errors import BadSetting
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.spec import ActionKind, ActionRange

HZ, KEY = 10.0, "observation.state"
ABSOLUTE, DELTA, VELOCITY = ActionKind.ABSOLUTE, ActionKind.DELTA, ActionKind.VELOCITY
JOINTS = ("joint a", "joint b")


class World:
    """A driver, its sensors and its virtual time; the joints stand at what `joints` says."""

    def __init__(
        self,
        kinds=SPEC.action_kinds,
        latency_ticks=0.0,
        offset=0.0,
        rungs=(),
        watchdog=MappingProxyType({}),
        **options,
    ):
        loop, options = part(options)
        watched = WatchdogSettings(observation_age_s=0.25, **watchdog)
        given = {"control_hz": HZ, "joint_names": NAMES, "loop": loop, "watchdog": watched, **options}
        self.settings, self.clock = RosSettings(**given), VirtualClock()
        self.spec = fit(self.settings, replace(SPEC, action_kinds=kinds))
        self.sensors = Sensors(
            {KEY: Sensor("/joints", JOINTS, lambda seen: np.concatenate([*seen.values()]))}, 0.25
        )
        self.sent, self.joints, self.asked, self.requests = [], (5.0, 7.0), [], []
        self.offset = offset  # of the loop's time against the stamps'

        def predict(observations, keys):
            self.asked += keys
            leap = np.array([0, 1, 2, 3, 4, 1000], np.float32)  # a step so large that nothing else is ramped
            return np.tile(100.0 * len(self.asked) + leap[None, :, None], (1, 1, 2))

        def latency_s(n, request):
            self.requests.append(request)
            return latency_ticks / HZ

        inference = BatchedInference(predict, {rung.name: predict for rung in rungs})
        worker = SimulatedWorker(inference, latency_s)
        self.worker = RetimedWorker(worker, self.pace)
        send = self.sent.append
        if self.settings.command_type == "trajectory":
            measured = lambda: measured_positions(self.settings, self.sensors, 2)  # noqa: E731
            names = self.settings.command_names
            horizon = self.settings.command_horizon
            command = TrajectoryCommand(names, self.spec.action_kinds, 1 / HZ, horizon, measured, send)
        else:
            command = ArrayCommand(lambda action: send(action.tolist()))
        self.driver = Driver(
            self.settings, self.spec, self.worker, self.sensors, command, self.clock.now, self.pace, rungs
        )

    def pace(self):
        return self.clock.now() + self.offset

    def see(self):
        now = self.clock.now()
        stamp = Message(sec=int(now), nanosec=round(now % 1 * 1e9) or 1)
        self.sensors.take(KEY, Message(header=Message(stamp=stamp)), now, self.read)

    def read(self, message):
        return {part: np.array([x], np.float32) for part, x in zip(JOINTS, self.joints, strict=True)}

    def run(self, n_ticks, is_seen=True):
        for _ in range(n_ticks):
            if is_seen:
                self.see()
            self.driver.tick()
            self.clock.sleep_until(self.clock.now() + 1 / HZ)
        return self

    @property
    def first(self):
        return [action[0] for action in self.sent]


def test_nothing_is_commanded_before_something_is_seen():
    world = World().run(3, is_seen=False)
    assert world.sent == []
    assert world.driver.reason == "waiting for observation.state on /joints"
    assert world.driver.ticks == {"hold": 3}


def test_the_loop_runs_while_observations_come():
    world = World().run(9)
    assert world.first == [100, 101, 102, 103, 200, 201, 202, 203, 300]
    assert world.driver.ticks == {"chunk": 9}
    assert (world.driver.chunks, world.driver.misses, world.driver.reason) == (3, 0, "")
    assert world.asked == [(0, 0), (0, 4), (0, 8)]


def test_an_unknown_absolute_target_is_not_commanded_while_the_first_chunk_is_computed():
    world = World(latency_ticks=2).run(4)
    assert world.first == [100, 101]
    assert world.driver.ticks == {"fallback": 2, "chunk": 2}


def test_the_measured_posture_is_held_before_the_first_chunk():
    world = World(latency_ticks=2, command_names=NAMES).run(4)
    assert world.sent == [[5, 7], [5, 7], [100, 100], [101, 101]]
    given = World(latency_ticks=2, fallback_initial_action=(1.0, 2.0)).run(3)
    assert given.sent[:2] == [[1, 2], [1, 2]]


def test_a_stale_observation_holds_and_drops_the_chunk():
    world = World(kinds=(ABSOLUTE, DELTA)).run(2).run(4, is_seen=False)
    assert world.sent == [[100, 100], [101, 101], [102, 102], [103, 103], [103, 0], [103, 0]]
    assert "is 0.40 s old, the limit (watchdog.observation_age_s) is 0.25 s" in world.driver.reason
    world.run(2)
    assert world.sent[6:] == [[200, 200], [201, 201]], "what the old chunk had left is not executed"
    assert world.driver.ticks == {"chunk": 6, "hold": 2}
    assert world.driver.episode == 1


def test_velocities_ramp_down_and_do_not_come_back_with_the_next_episode():
    world = World(kinds=(VELOCITY, VELOCITY), ramp_ticks=4, latency_ticks=1).run(3)
    world.driver.is_held = True
    world.run(5)
    world.driver.is_held = False
    world.run(2)
    assert world.first == [0, 100, 101, 75.75, 50.5, 25.25, 0, 0, 0, 200]


def test_a_hold_is_asked_for_and_ends():
    world = World().run(2)
    world.driver.is_held = True
    world.run(3)
    assert world.driver.reason == "asked to hold"
    assert world.first == [100, 101, 101, 101, 101]
    world.driver.is_held = False
    assert world.run(2).first[-2:] == [200, 201]


def test_a_reset_or_a_new_instruction_drops_the_chunk_and_the_request_in_flight():
    world = World(latency_ticks=1).run(3)
    world.driver.reset()
    world.run(3)
    assert world.first == [100, 101, 101, 200, 201]
    assert (world.driver.chunks, world.driver.episode) == (2, 1)
    world.run(2)  # the chunk is used up
    assert world.worker.is_busy is False
    world.run(1)
    assert world.worker.is_busy, "the third request is in flight"
    world.driver.instruct("another")
    world.driver.instruct("another")
    world.run(4)
    assert len(world.asked) == 4
    assert world.first[-3:] == [400, 401, 402]
    assert 300 not in world.first, "the third chunk was meant for the old instruction"
    assert world.driver.episode == 2
    assert world.driver.task == "another"


@pytest.mark.parametrize(("kind", "last"), [(ABSOLUTE, 101), (DELTA, 0), (VELOCITY, 0)])
def test_the_last_command_is_a_standstill(kind, last):
    world = World(kinds=(kind, kind)).run(2)
    world.driver.stop()
    assert world.first == [100, 101, last]
    silent = World(kinds=(kind, kind))
    silent.driver.stop()
    assert silent.sent == []


def test_limits_hold_from_the_measured_posture_on():
    world = World(command_names=NAMES, limits_max_step=(10.0, 20.0)).run(3)
    assert world.sent == [[15, 27], [25, 47], [35, 67]]
    assert world.driver.interventions == 3


def test_real_time_chunking_is_a_mode():
    world = World(mode="rtc", latency_ticks=1, request_at=2).run(6)
    assert world.settings.loop.chunking == RealTimeChunking()
    assert world.first == [100, 101, 201, 202, 301], "as async: late actions are dropped, but for the first"
    assert RosSettings().loop.chunking is None


def test_limits_come_from_a_file(tmp_path):
    file = tmp_path / "arm.yaml"
    file.write_text("limits: {a: {high: 101.0}, b: {high: 100.5}}")
    world = World(command_names=NAMES, limits_file=str(file)).run(3)
    assert world.sent == [[100, 100], [101, 100.5], [101, 100.5]]


def test_limits_are_those_of_the_training_data_unless_others_are_given():
    narrow = ActionRange(low=(0,) * 2, high=(50,) * 2, step=(30,) * 2, bounds_from="data", step_from="data")
    spec, known = replace(SPEC, action_range=narrow), RosSettings(joint_names=NAMES)
    limits = known.limits(spec)
    assert (limits.low, limits.max_step) == (pytest.approx((0, 0), abs=1e-3), (30, 30))
    assert known.limits(spec).high == pytest.approx((50, 50), abs=1e-3)
    assert replace(known, limits_file="none").limits(spec) == Limits()
    assert replace(known, limits_high=(70.0, 70.0)).limits(spec) == Limits(high=(70, 70))
    with pytest.raises(
        BadSetting, match="the bundle does not say what the actions of its training data were"
    ):
        fit(known, replace(SPEC, action_range=None))


def test_ticks_that_the_timer_skipped_keep_chunks_in_time():
    world = World(command_type="trajectory", command_names=NAMES, mode="async", request_at=0).run(1)
    world.clock.sleep_until(world.clock.now() + 2 / HZ)
    world.run(2)
    assert world.driver.skipped == 2
    assert [t.positions[0, 0] for t in world.sent] == [100, 200], "the third tick asks, at number 4"
    assert world.sent[1].stamp_s == pytest.approx(0.4)


def test_the_watchdog_stops_until_reset():
    world = World(watchdog={"starved_s": 0.35}, latency_ticks=9, mode="async").run(8)
    assert world.driver.reason == "no fresh action for 0.40 s; stopped until reset"
    assert loop_status("active", "", world.driver).message.startswith("holding: no fresh action")
    world.run(2, is_seen=False).run(3)
    assert "stopped until reset" in world.driver.reason, "a gap in between does not set it free"
    world.driver.reset()
    world.run(1)
    assert world.driver.reason == ""


def test_a_policy_that_is_slow_in_sync_mode_is_not_stopped():
    world = World(watchdog={"starved_s": 0.65}, latency_ticks=5).run(20)
    assert world.driver.reason == ""
    assert world.driver.ticks == {"fallback": 12, "stale": 8}


def test_a_plan_is_chosen_before_every_chunk_and_told():
    rungs = (Rung("full", 0.25), Rung("fast", 0.1))
    world = World(mode="async", rungs=rungs, anytime=True, offset=1000.0).run(30)
    assert world.requests[0].plan == "fast", "nothing is left at first"
    chosen = world.driver.choices
    assert min(chosen["full"], chosen["fast"]) > 0
    values = loop_status("active", "", world.driver).values
    assert values["chosen full"] == str(chosen["full"])
    world.driver.reset()
    world.run(1)
    assert world.driver.choices == chosen + Counter(fast=1), "an episode's count outlives it"


def test_a_deadline_is_told_in_wall_time():
    asked = []
    worker = RetimedWorker(Message(submit=asked.append, is_busy=False), wall=lambda: 50.0)
    worker.submit(Request({}, 0, 7.0, (0, 0), deadline_s=7.25))
    worker.submit(Request({}, 0, 8.0, (0, 0)))
    assert [(request.time_s, request.deadline_s) for request in asked] == [(50.0, 50.25), (50.0, None)]


def test_latency_is_told_in_the_loops_time():
    world = World(latency_ticks=2, offset=1000.0).run(5)
    assert world.worker.latencies_s[0] == pytest.approx(0.2)
    assert list(world.driver.reactions_s) == pytest.approx([0.2])
    assert world.driver.misses == 0, "in sync mode the robot waits for every chunk (G16)"


def trajectories(latency_ticks=0.0, n_ticks=1, kinds=SPEC.action_kinds, **options):
    world = World(
        kinds, latency_ticks=latency_ticks, command_type="trajectory", command_names=NAMES, **options
    )
    return world.run(n_ticks).sent


def test_a_chunk_is_one_trajectory_that_begins_at_its_observation():
    sent = trajectories(n_ticks=5)
    assert len(sent) == 2
    assert sent[0].names == NAMES
    assert sent[0].positions.tolist() == [[x, x] for x in (100, 101, 102, 103)]
    assert sent[0].times_s == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert (sent[0].stamp_s, sent[1].stamp_s) == pytest.approx((0.0, 0.4), abs=1e-6)
    assert sent[1].positions[0, 0] == 200


def test_a_late_chunk_keeps_the_time_of_its_observation():
    sent = trajectories(latency_ticks=2, n_ticks=3, mode="async", n_action_steps=4)
    assert [len(t.times_s) for t in sent] == [1, 6]
    assert sent[0].positions.tolist() == [[5, 7]], "the posture, while the policy thinks"
    assert sent[1].positions[:, 0].tolist() == [100, 101, 102, 103, 104, 1100], (
        "the robot has stood meanwhile"
    )
    assert sent[1].stamp_s == pytest.approx(0.0, abs=1e-6)
    assert sent[1].times_s == pytest.approx((0.3, 0.4, 0.5, 0.6, 0.7, 0.8))


def test_displacements_start_from_the_measured_joints():
    sent = trajectories(kinds=(DELTA, ABSOLUTE), limits_low=(-1.0, -999.0), limits_high=(2.0, 999.0))
    assert sent[0].positions.tolist() == [[7, 100], [9, 101], [11, 102], [13, 103]]


def test_velocities_are_sent_as_such_and_points_are_counted():
    sent = trajectories(kinds=(VELOCITY, VELOCITY), n_ticks=3, command_horizon=2)
    assert [t.velocities[:, 0].tolist() for t in sent] == [[100, 101], [102, 103]]
    assert sent[0].positions is None
    assert [t.times_s for t in sent] == [pytest.approx((0.1, 0.2)), pytest.approx((0.3, 0.4))]
    assert [t.stamp_s for t in sent] == pytest.approx([0, 0], abs=1e-6)


def test_a_hold_is_one_trajectory_and_ends_the_one_before():
    world = World(command_type="trajectory", command_names=NAMES).run(2)
    world.driver.is_held = True
    world.run(4)
    assert [t.positions[:, 0].tolist() for t in world.sent] == [[100, 101, 102, 103], [101]]
    assert world.sent[1].stamp_s == pytest.approx(0.2)


def test_points_pass_the_guard_as_they_will_be_executed():
    sent = trajectories(n_ticks=4, limits_max_step=(2.0, 2.0))
    assert len(sent) == 1, "what was announced is what is executed"
    assert sent[0].positions[:, 0].tolist() == [7, 9, 11, 13]


def test_diagnostics_say_what_is_wrong_in_one_line():
    world = World().run(2)
    assert loop_status("active", "", world.driver).message == "running"
    now = world.clock.now()
    status = sensor_status(world.sensors, now, [])
    assert (status.level, status.message) == (0, "fresh")
    assert status.values[KEY] == "2 taken, age 100 ms, 0 refused"
    world.run(4, is_seen=False)
    status = loop_status("active", "", world.driver)
    assert status.level == 1
    assert status.message.startswith("holding: observation.state on /joints is 0.")
    assert status.values["ticks chunk"] == "4"
    assert status.values["skipped ticks"] == "0"
    assert sensor_status(world.sensors, world.clock.now(), ["QoS"]).message.endswith("; QoS")
    assert loop_status("unconfigured", "no bundle", None).level == 2
    assert percentiles([0.001, 0.003]) == "p50 2.0, p95 –, max 3.0 (n 2)"
    assert percentiles([0.001] * 20) == "p50 1.0, p95 1.0, max 1.0 (n 20)"


def test_while_another_commands_the_robot_ours_is_stopped_and_silent():
    world = World(kinds=(VELOCITY, ABSOLUTE), command_names=NAMES, limits_max_step=(200.0, 10.0)).run(2)
    world.driver.rival = "/other publishes on /command too"
    world.run(3)
    assert world.sent == [[100, 17], [101, 27], [0, 27]], "one standstill, then nothing"
    assert world.driver.reason == "/other publishes on /command too, and command.exclusive is set"
    assert world.driver.ticks == {"chunk": 2, "hold": 3}
    interventions = world.driver.interventions
    world.joints, world.driver.rival = (5.0, 70.0), ""
    world.run(1)
    assert world.sent[3:] == [[200, 80]], "from where the other has left it"
    assert world.driver.interventions == interventions + 1
