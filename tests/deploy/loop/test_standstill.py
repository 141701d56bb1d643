"""Whatever the limits and the robot's errors, the last command is a standstill."""

import numpy as np
import pytest

from vivace.deploy.loop.clock import VirtualClock
from vivace.deploy.loop.guard import ActionGuard, Limits
from vivace.deploy.loop.standstill import Standstill
from vivace.deploy.robots.patient_robot import PatientRobot
from vivace.policies.spec import ActionKind, PolicySpec

ABSOLUTE, DELTA, VELOCITY = ActionKind.ABSOLUTE, ActionKind.DELTA, ActionKind.VELOCITY
PERIOD_S = 0.1


class Base:
    """Fails so many times as it is told to."""

    def __init__(self, clock):
        self.taken, self.fails, self.clock, self.blocks_s = [], 0, clock, 0.0

    def observe(self):
        raise AssertionError("a standstill needs no eyes")

    def act(self, action):
        self.clock.sleep_until(self.clock.now() + self.blocks_s)
        if self.fails > 0:
            self.fails -= 1
            raise RuntimeError("overload")
        self.taken.append(action.tolist())


def rest(kinds, last, limits=None, fails=0, period_s=PERIOD_S, ramp_ticks=4, blocks_s=0.0):
    """Command a standstill after `last`; returns whether it was taken, and what was."""
    spec = PolicySpec(
        type="fake", action_dim=len(kinds), horizon=4, n_obs_steps=1, n_action_steps=2,
        observation_shapes={}, action_kinds=kinds, blocks=(),
    )  # fmt: skip
    clock = VirtualClock()
    base = Base(clock)
    robot = PatientRobot(base, spec)
    guard = ActionGuard(limits, kinds, period_s)
    if last is not None:
        robot.act(guard.limit(np.array(last, np.float32)))
    base.taken.clear()
    base.fails, base.blocks_s = fails, blocks_s
    is_taken = Standstill(robot, spec, clock, period_s, ramp_ticks).command(guard)
    return is_taken, base.taken, clock.now()


def test_velocities_ramp_down_targets_hold_offsets_are_zero():
    is_taken, taken, took_s = rest((VELOCITY, ABSOLUTE, DELTA), (8.0, 3.0, 2.0))
    assert is_taken
    assert taken == [[6, 3, 0], [4, 3, 0], [2, 3, 0], [0, 3, 0]]
    assert took_s == pytest.approx(0.3)


def test_what_stands_still_is_told_once():
    assert rest((ABSOLUTE, DELTA), (3.0, 2.0))[1] == [[3, 0]]
    assert rest((VELOCITY, DELTA), (0.0, 0.0))[1] == [[0, 0]]


def test_a_robot_that_was_told_nothing_is_left_alone():
    assert rest((VELOCITY,), None) == (True, [], 0.0)


def test_the_ramp_keeps_to_the_limits_and_takes_as_long_as_they_need():
    _, taken, _ = rest((VELOCITY,), (1.0,), Limits(max_step=(0.125,)))
    assert [value for (value,) in taken] == [0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0]


@pytest.mark.parametrize(
    "limits", [Limits(max_step=(0.001,)), Limits(low=(0.5,)), Limits(max_acceleration=(0.01,))]
)
def test_the_last_command_is_a_standstill_whatever_the_limits(limits):
    is_taken, taken, took_s = rest((VELOCITY,), (1.0,), limits)
    assert is_taken
    assert taken[-1] == [0.0]
    assert took_s < 2.2


@pytest.mark.parametrize("fails", [1, 3, 15])
def test_a_robot_that_does_not_take_it_is_told_again(fails):
    is_taken, taken, _ = rest((VELOCITY,), (1.0,), fails=fails)
    assert is_taken
    assert taken == [[0.0]], "a robot in trouble is told the end of the ramp at once"


def test_a_robot_that_never_takes_it_is_given_up_and_that_is_said():
    is_taken, taken, took_s = rest((VELOCITY,), (1.0,), fails=10**6)
    assert (is_taken, taken) == (False, [])
    assert took_s < 3
    _, _, took_s = rest((VELOCITY,), (1.0,), fails=10**6, blocks_s=1.0)
    assert took_s < 6, "one that blocks as well"


def test_a_slow_rate_does_not_draw_out_the_ramp():
    is_taken, taken, took_s = rest((VELOCITY,), (1.0,), period_s=10.0)
    assert is_taken
    assert (taken, took_s) == ([[0.0]], 0.0)
