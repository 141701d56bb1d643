"""lerobot's robots as robots of the loop, on a robot of lerobot's own base class."""

import sys
from dataclasses import dataclass

import numpy as np
import pytest
from lerobot.robots import Robot, RobotConfig

from vivace.deploy.robots.lerobot import LerobotRobot
from vivace.deploy.robots.patient_robot import PatientRobot
from vivace.deploy.robots.registry import check_robot, initial_action, make_robot
from vivace.policies.errors import BadSetting, ObservationMismatch
from vivace.policies.spec import ActionKind, PolicySpec

SPEC = PolicySpec(
    type="fake",
    action_dim=2,
    horizon=4,
    n_obs_steps=1,
    n_action_steps=2,
    observation_shapes={"observation.state": (2,), "observation.images.wrist": (3, 2, 2)},
    action_kinds=(ActionKind.ABSOLUTE,) * 2,
    blocks=(),
)


@RobotConfig.register_subclass("vivace_test_arm")
@dataclass(kw_only=True)
class TestArmConfig(RobotConfig):
    __test__ = False
    port: str = "usb0"
    speed: int = 1


class TestArm(Robot):
    """Two joints and a camera; says what it was told."""

    __test__ = False
    config_class, name = TestArmConfig, "vivace_test_arm"

    def __init__(self, config):
        super().__init__(config)
        self.config, self.sent, self.breaks = config, [], ""
        self._is_connected = False

    @property
    def observation_features(self):
        return {"pan.pos": float, "lift.pos": float, "wrist": (2, 2, 3)}

    @property
    def action_features(self):
        return {"pan.pos": float, "lift.pos": float}

    is_connected = property(lambda self: self._is_connected)
    is_calibrated = property(lambda self: True)

    def connect(self, calibrate=True):
        if self.config.port == "none":
            raise ConnectionError("no motor answers on none")
        if self.config.port == "some":
            raise RuntimeError("motor check failed: 3, 4 are missing")
        self._is_connected = True

    def disconnect(self):
        self._is_connected = False

    def calibrate(self):
        pass

    def configure(self):
        pass

    def get_observation(self):
        if self.breaks == "camera":
            raise TimeoutError("no frame for 200 ms")
        return {"pan.pos": 0.5, "lift.pos": -1.0, "wrist": np.full((2, 2, 3), 7, np.uint8)}

    def send_action(self, action):
        if self.breaks == "bus":
            raise ConnectionError("the bus is silent")
        if self.breaks == "motor":
            raise RuntimeError("Failed to write 'Goal_Position': [RxPacketError] Overload error!")
        self.sent.append(action)
        return action


@pytest.fixture(autouse=True)
def plugin(monkeypatch):
    """lerobot looks for a plug-in's robot in a module of its name beside its config."""
    monkeypatch.setitem(sys.modules, f"{__name__.rpartition('.')[0]}.testarm", sys.modules[__name__])


@pytest.fixture
def robot(tmp_path):
    arm = TestArm(TestArmConfig(id="a", calibration_dir=tmp_path))
    arm.connect()
    times = iter(range(100))
    return LerobotRobot(arm, "lift it", lambda: float(next(times)))


def test_features_become_lerobots_keys(robot):
    seen = robot.observe()
    assert seen.values["observation.state"].tolist() == [0.5, -1.0]
    assert seen.values["observation.state"].dtype == np.float32
    assert seen.values["observation.images.wrist"].shape == (2, 2, 3)
    assert (seen.time_s, seen.task, seen.tick) == (0.0, "lift it", 0)
    assert robot.observe().time_s == 1.0
    check_robot(robot, SPEC)
    assert initial_action(robot, SPEC) == (0.5, -1.0), "the present posture"


def test_actions_go_by_name(robot):
    robot.act(np.array([1.5, 2.0], np.float32))
    assert robot.robot.sent == [{"pan.pos": 1.5, "lift.pos": 2.0}]
    robot.close()
    assert not robot.robot.is_connected
    robot.close()


def test_a_robot_that_falls_silent_shows_its_last_observation_whose_time_stands_still(robot):
    patient = PatientRobot(robot, SPEC)
    before = patient.observe()
    robot.robot.breaks = "camera"
    assert patient.observe() is before
    robot.robot.breaks = "bus"
    patient.act(np.zeros(2, np.float32))
    robot.robot.breaks = "motor"
    patient.act(np.zeros(2, np.float32))
    assert list(patient.errors) == [
        "observing: TimeoutError: no frame for 200 ms",
        "acting: ConnectionError: the bus is silent",
        "acting: RuntimeError: Failed to write 'Goal_Position': [RxPacketError] Overload error!",
    ]
    assert patient.observe().time_s == 1.0


def test_a_robot_that_never_answered_is_an_error(robot):
    robot.robot.breaks = "camera"
    with pytest.raises(ObservationMismatch, match=r"does not answer \(TimeoutError: no frame for 200 ms\)"):
        PatientRobot(robot, SPEC).observe()


def test_lerobots_factory_makes_and_connects_it(tmp_path):
    options = {"robot": "vivace_test_arm", "port": "usb3", "calibration_dir": str(tmp_path)}
    made = make_robot("lerobot", options, {"spec": SPEC, "instruction": "go", "control_hz": 10.0})
    assert made.robot.config.port == "usb3"
    assert made.robot.is_connected
    assert made.observe().task == "go"
    assert not made.is_shareable, "one bus"
    assert make_robot("lerobot", options | {"is_shareable": True}, {}).is_shareable
    assert made.action_names == ("pan.pos", "lift.pos")


@pytest.mark.parametrize(("options", "message"), [
    ({"robot": "so_9000"}, "lerobot has no robot 'so_9000'; it has .*so101_follower.*vivace_test_arm"),
    ({"robot": "vivace_test_arm", "port": "none"}, "does not connect .no motor answers on none.; check port"),
    ({"robot": "vivace_test_arm", "port": "some"}, "does not connect .motor check failed: 3, 4 are missing."),
    ({"robot": "vivace_test_arm", "baud": 3}, "'vivace_test_arm' cannot be made .*baud"),
    ({"robot": "vivace_test_arm", "speed": "fast"}, "'vivace_test_arm' cannot be made"),
])  # fmt: skip
def test_bad_robots_of_lerobots(options, message, tmp_path):
    with pytest.raises(BadSetting, match=message):
        make_robot("lerobot", {"calibration_dir": str(tmp_path)} | options, {})


def test_without_lerobot_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "lerobot.robots", None)
    with pytest.raises(BadSetting, match="a lerobot robot needs lerobot"):
        make_robot("lerobot", {"robot": "so101_follower"}, {})
