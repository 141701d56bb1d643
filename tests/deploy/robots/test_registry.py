"""Robots by name, what they must be, and lerobot's own as one."""

import sys
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import numpy as np
import pytest

from vivace.deploy.loop.robot import Ends, Films, Listens, Told, able, trait
from vivace.deploy.robots import registry as robots
from vivace.deploy.robots.patient_robot import PatientRobot
from vivace.deploy.robots.registry import (
    action_kinds,
    action_names,
    check_robot,
    initial_action,
    is_simulated,
    make_robot,
    robot_names,
)
from vivace.policies.errors import BadBundle, BadSetting, ObservationMismatch
from vivace.policies.spec import ActionKind, Observation, PolicySpec

STATE, CAMERA = "observation.state", "observation.images.front"


def spec(kinds=(ActionKind.DELTA,) * 2, **shapes):
    return PolicySpec(
        type="fake",
        action_dim=len(kinds),
        horizon=4,
        n_obs_steps=1,
        n_action_steps=2,
        observation_shapes=shapes or {STATE: (3,), CAMERA: (3, 4, 5)},
        action_kinds=kinds,
        blocks=(),
    )


class Arm:
    """A user's robot."""

    def __init__(self, port="", **seen):
        self.port = port
        self.seen = seen or {STATE: np.zeros(3), CAMERA: np.zeros((4, 5, 3), np.uint8)}

    def observe(self):
        return Observation(self.seen, 0, 0.0)

    def act(self, action):
        pass


def arm(spec, port="usb0"):
    made = Arm(port)
    made.dim = spec.action_dim
    return made


def lamp():
    return SimpleNamespace(observe=lambda: None)


@pytest.fixture
def plugins(monkeypatch):
    """Entry points of a package that offers an arm, a lamp, and something broken."""
    places = {"arm": "its_robots:arm", "lamp": "its_robots:lamp", "gone": "no_such_module:arm"}
    points = [EntryPoint(name, place, robots.GROUP) for name, place in places.items()]
    monkeypatch.setitem(sys.modules, "its_robots", SimpleNamespace(arm=arm, lamp=lamp))
    monkeypatch.setattr(robots, "entry_points", lambda group: points)


def test_vivace_offers_its_own():
    assert "lerobot" in robot_names()


def test_a_robot_is_given_its_options_and_what_it_asks_of_the_run(plugins):
    context = {"spec": spec(), "control_hz": 20.0}
    robot = make_robot("arm", {"port": "usb7"}, context)
    assert (robot.port, robot.dim) == ("usb7", 2)
    assert make_robot("its_robots:arm", {}, context).port == "usb0"


@pytest.mark.parametrize(("kind", "options", "message"), [
    ("leg", {}, r"robot 'leg' is not known; known: arm, gone, lamp, or give package.module:function"),
    ("gone", {}, "robot 'gone' cannot be imported from no_such_module:arm .*; install it"),
    ("its_robots:leg", {}, "cannot be imported from its_robots:leg"),
    (":", {}, "cannot be imported from :"),
    ("arm", {"baud": 9}, "robot 'arm': .*'baud'; it takes port"),
    ("lamp", {}, r"robot 'lamp' is a SimpleNamespace without act; a robot has observe\(\) and act\(action\)"),
])  # fmt: skip
def test_robots_that_are_none(plugins, kind, options, message):
    with pytest.raises(BadSetting, match=message):
        make_robot(kind, options, {"spec": spec()})


def test_dimensions_are_named_or_numbered_and_must_be_as_many():
    robot = Arm()
    assert action_names(robot, spec()) == ("0", "1")
    robot.action_names = ["lift", "turn"]
    assert action_names(robot, spec()) == ("lift", "turn")
    with pytest.raises(BadBundle, match=r"have 2 dimensions \(lift, turn\), the bundle's 3; take a bundle"):
        action_names(robot, spec((ActionKind.DELTA,) * 3))


def test_nothing_is_invented_for_absolute_targets():
    robot, targets = Arm(), spec((ActionKind.ABSOLUTE, ActionKind.DELTA))
    assert initial_action(robot, spec()) == (0, 0)
    with pytest.raises(BadSetting, match="does not say what to hold before the first action"):
        initial_action(robot, targets)
    robot.initial_action = np.array([0.25, 0])
    assert initial_action(robot, targets) == (0.25, 0)
    assert initial_action(robot, targets, (1.0, 2.0)) == (1, 2)
    for wrong in ((1.0,), (1.0, float("nan"))):
        with pytest.raises(BadSetting, match="2 finite ones are needed"):
            initial_action(robot, targets, wrong)


def test_what_its_dimensions_mean_is_said_by_the_robot_or_its_names():
    robot, silent = Arm(), spec((ActionKind.UNKNOWN,) * 2)
    absolute, velocity = ActionKind.ABSOLUTE, ActionKind.VELOCITY
    assert action_kinds(robot, ("arm_pan.pos", "x.vel"), silent) == (absolute, velocity)
    with pytest.raises(BadSetting, match="nobody says what the actions lift mean"):
        action_kinds(robot, ("lift", "x.vel"), silent)
    assert action_kinds(robot, ("lift", "x.vel"), silent, ["delta", "velocity"])[0] == ActionKind.DELTA
    with pytest.raises(BadBundle, match="the bundle says that 'x.vel' is absolute, the robot says velocity"):
        action_kinds(robot, ("lift", "x.vel"), spec((absolute, absolute)))
    robot.action_kinds = ["velocity", "unknown"]
    with pytest.raises(BadSetting, match="nobody says what the actions b mean"):
        action_kinds(robot, ("a", "b"), silent)
    assert action_kinds(robot, ("a", "b"), spec((ActionKind.UNKNOWN, absolute))) == (velocity, absolute)
    robot.action_kinds = ["velocity"] * 3
    with pytest.raises(BadSetting, match="the robot's action_kinds has 3 entries, an action 2 dimensions"):
        action_kinds(robot, ("a", "b"), silent)


def test_a_name_that_is_there_twice_is_refused():
    robot = Arm()
    robot.action_names = ("lift", "lift")
    with pytest.raises(BadSetting, match="action_names are lift, lift; each may be there once"):
        action_names(robot, spec())


def test_a_speed_that_is_measured_is_none_to_hold():
    robot = Arm()
    robot.initial_action = (0.25, 0.7)
    assert initial_action(robot, spec((ActionKind.ABSOLUTE, ActionKind.VELOCITY))) == (0.25, 0)


def test_what_is_seen_is_checked_before_the_first_tick():
    check_robot(Arm(), spec())
    for seen, message in (
        ({STATE: np.zeros(3)}, f"has keys .*but the policy needs '{CAMERA}'"),
        ({STATE: np.zeros(4), CAMERA: np.zeros((4, 5, 3), np.uint8)}, r"has shape \(4,\), needed is \(3,\)"),
        ({STATE: np.full(3, np.nan), CAMERA: np.zeros((4, 5, 3), np.uint8)}, "holds NaN"),
        (
            {STATE: np.zeros(3), CAMERA: np.zeros((5, 4, 3), np.uint8)},
            r"has shape \(5, 4, 3\), needed is \(4, 5, 3\)",
        ),
        ({STATE: np.zeros(3), CAMERA: np.zeros((4, 5, 3))}, "is float64; pictures are uint8"),
    ):
        with pytest.raises(ObservationMismatch, match=message):
            check_robot(Arm(**seen), spec())
    robot = Arm()
    robot.observe = lambda: {STATE: np.zeros(3)}
    with pytest.raises(ObservationMismatch, match=r"observe\(\) returned a dict"):
        check_robot(robot, spec())


def test_a_robot_has_an_ability_if_it_has_all_of_it_whoever_wraps_it():
    robot = Arm()
    wrapped = PatientRobot(robot, spec())
    assert able(robot, Films) is able(wrapped, Ends) is able(robot, Listens) is None
    robot.film = lambda: []
    assert able(robot, Films) is None, "film_fps is missing"
    robot.film_fps, robot.is_over = 25.0, False
    assert able(wrapped, Films) is able(wrapped, Ends) is able(wrapped, Told) is wrapped
    assert (trait(wrapped, "action_names"), trait(wrapped, "is_simulated")) == (None, False)
    robot.is_simulated = True
    assert trait(wrapped, "is_simulated") is True


def test_a_robot_that_stands_still_by_itself_says_so():
    """A class says it of itself; no name of a robot is known by heart."""
    assert is_simulated("dataset")
    assert is_simulated("vivace.eval.live.sim_robot:simulation")
    assert not is_simulated("lerobot")
    with pytest.raises(BadSetting, match="robot 'leg' is not known"):
        is_simulated("leg")
