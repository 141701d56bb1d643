"""A robot's errors are noted and judged; they never reach the loop."""

from collections import UserDict

import numpy as np
import pytest

from vivace.deploy.robots.patient_robot import PatientRobot
from vivace.policies.errors import ObservationMismatch
from vivace.policies.spec import ActionKind, Observation, PolicySpec

STATE, CAMERA = "observation.state", "observation.images.front"
SPEC = PolicySpec(
    type="fake",
    action_dim=2,
    horizon=4,
    n_obs_steps=1,
    n_action_steps=2,
    observation_shapes={STATE: (3,), CAMERA: (3, 4, 5)},
    action_kinds=(ActionKind.VELOCITY,) * 2,
    blocks=(),
)
GOOD = {STATE: np.zeros(3), CAMERA: np.zeros((4, 5, 3), np.uint8)}


class Arm:
    """Says what it is told to say, and raises what it is told to raise."""

    def __init__(self):
        self.values, self.error, self.taken, self.time_s = GOOD, None, [], 0.0
        self.action_names = ("x", "y")

    def observe(self):
        if self.error is not None:
            raise self.error
        self.time_s += 1.0
        return Observation(self.values, 0, self.time_s)

    def act(self, action):
        if self.error is not None:
            raise self.error
        self.taken.append(action.tolist())


@pytest.fixture
def arm():
    return Arm()


@pytest.mark.parametrize(
    "error", [RuntimeError("overload"), OSError("no frame"), KeyError("x"), TimeoutError()]
)
def test_an_observation_that_does_not_come_is_the_one_before_with_its_time(arm, error):
    robot = PatientRobot(arm, SPEC)
    before = robot.observe()
    arm.error = error
    assert robot.observe() is before
    assert robot.failures == {"observing": 1}
    assert robot.errors[-1] == f"observing: {type(error).__name__}: {error}"
    arm.error = None
    assert robot.observe().time_s == 2.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**GOOD, STATE: np.zeros(1)}, r"'observation.state' has shape \(1,\), needed is \(3,\)"),
        ({**GOOD, STATE: np.zeros((1, 3))}, r"has shape \(1, 3\)"),
        ({**GOOD, STATE: np.array([0, np.nan, 0])}, "holds NaN or infinity; check the sensor"),
        ({**GOOD, STATE: np.array(["0", "1", "2"])}, "real numbers are needed"),
        ({**GOOD, STATE: np.array([True, False, True])}, "real numbers are needed"),
        ({**GOOD, CAMERA: np.zeros((4, 5, 3))}, "is float64; pictures are uint8"),
        ({**GOOD, CAMERA: np.zeros((3, 4, 5), np.uint8)}, r"shape \(3, 4, 5\), needed is \(4, 5, 3\)"),
        ({STATE: np.zeros(3)}, "but the policy needs 'observation.images.front' of shape"),
        (UserDict(STATE=1), "but the policy needs 'observation.state'"),
    ],
)  # fmt: skip
def test_an_observation_that_does_not_fit_did_not_come(arm, values, message):
    robot = PatientRobot(arm, SPEC)
    before = robot.observe()
    arm.values = values
    assert robot.observe() is before
    assert robot.failures == {"observing": 1}
    fresh = PatientRobot(arm, SPEC)
    with pytest.raises(ObservationMismatch, match=message):
        fresh.observe()


def test_pictures_that_are_not_rendered_yet_are_left_alone(arm):
    class Lazy(dict):
        def __missing__(self, key):
            raise AssertionError("nobody looked")

    arm.values = Lazy({STATE: np.zeros(3)})
    robot = PatientRobot(arm, SPEC)
    robot.observe()
    assert robot.errors.maxlen == 100
    assert not robot.failures


def test_a_robot_that_never_answered_is_refused(arm):
    arm.error = RuntimeError("no power")
    with pytest.raises(
        ObservationMismatch, match=r"does not answer \(RuntimeError: no power\); check its cables"
    ):
        PatientRobot(arm, SPEC).observe()
    arm.observe = lambda: {"state": 1}
    with pytest.raises(
        ObservationMismatch, match=r"observe\(\) returned a dict; return a vivace.policies.Obs"
    ):
        PatientRobot(arm, SPEC).observe()


def test_an_action_that_fails_is_noted_and_the_next_one_is_told(arm):
    robot = PatientRobot(arm, SPEC)
    assert robot.last is None
    robot.act(np.array([1.0, 2.0]))
    arm.error = RuntimeError("overload")
    robot.act(np.array([3.0, 4.0]))
    assert (robot.has_reached, robot.last.tolist()) == (False, [3.0, 4.0])
    assert robot.errors[-1] == "acting: RuntimeError: overload"
    arm.error = None
    robot.act(np.array([5.0, 6.0]))
    assert robot.has_reached
    assert arm.taken == [[1.0, 2.0], [5.0, 6.0]]


def test_a_reset_moves_the_robot_from_where_it_was_told_to_be(arm):
    robot = PatientRobot(arm, SPEC)
    arm.reset = arm.taken.append
    robot.act(np.array([1.0, 2.0]))
    robot.begin(7)
    assert robot.last is None
    assert (arm.taken, robot.told) == ([[1.0, 2.0], 7], 1)


def test_closing_may_fail_too(arm):
    robot = PatientRobot(arm, SPEC)
    robot.close()  # there is nothing to close
    arm.close = lambda: arm.taken.append("closed")
    robot.close()
    arm.close = lambda: 1 / 0
    robot.close()
    assert arm.taken == ["closed"]
    assert robot.failures == {"closing": 1}


def test_what_else_a_robot_has_is_there(arm):
    robot = PatientRobot(arm, SPEC)
    assert robot.action_names == ("x", "y")
    assert not hasattr(robot, "reset")
    arm.is_over = True
    assert robot.is_over


def test_every_call_may_be_broken_off(arm):
    asked = []

    def within(seconds, call, *arguments):
        asked.append((seconds, call.__name__))
        raise RuntimeError("took too long")

    arm.close = lambda: None
    robot = PatientRobot(arm, SPEC, within, 2.0)
    robot.act(np.zeros(2))
    with pytest.raises(ObservationMismatch, match="RuntimeError: took too long"):
        robot.observe()
    robot.close()
    assert asked == [(2.0, "act"), (2.0, "observe"), (30.0, "<lambda>")]
    assert robot.failures == {"acting": 1, "observing": 1, "closing": 1}
