"""Whatever leaves the guard is finite and inside the limits; what was inside passes untouched."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vivace.deploy.loop.guard import ActionGuard, Limits
from vivace.policies.errors import BadSetting
from vivace.policies.spec import ActionKind

ACTIONS = hnp.arrays(np.float32, (9, 2), elements=st.floats(-3, 3, width=32))
LIMITS = Limits(low=(-0.1, -1.0), high=(0.7, 1.0), max_step=(0.3, 0.05))


@settings(max_examples=200, deadline=None)
@given(ACTIONS)
def test_bounds_and_steps_hold_for_any_sequence(actions):
    guard = ActionGuard(LIMITS)
    executed = np.array([guard.check(action) for action in actions])
    assert executed.dtype == np.float32
    assert np.all(executed >= np.array(LIMITS.low) - 1e-6)
    assert np.all(executed <= np.array(LIMITS.high) + 1e-6)
    assert np.all(np.abs(np.diff(executed, axis=0)) <= np.array(LIMITS.max_step) + 1e-6)


@settings(max_examples=200, deadline=None)
@given(ACTIONS)
def test_only_actions_that_changed_are_counted(actions):
    guard = ActionGuard(LIMITS)
    changed = 0
    for action in actions:
        changed += not np.array_equal(guard.check(action), action)
        assert guard.interventions == changed


def test_an_action_on_its_bound_passes_uncounted():
    guard = ActionGuard(Limits(high=(0.1,)))
    action = np.array([0.1], np.float32)  # rounds to a little more than 0.1
    assert guard.check(action) == action
    assert guard.interventions == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_actions_that_are_not_finite_are_refused(bad):
    guard = ActionGuard(Limits(max_step=(1.0, 1.0)))
    guard.check(np.array([0.0, 0.0]))
    assert guard.check(np.array([0.0, bad])) is None
    assert guard.interventions == 1
    assert guard.check(np.array([9.0, 0.5])).tolist() == [1.0, 0.5]  # steps from the last one executed


def test_without_limits_everything_finite_passes():
    guard, action = ActionGuard(), np.array([1e9, -1e9])
    assert guard.check(action) is action
    assert guard.interventions == 0


def test_errors():
    with pytest.raises(BadSetting, match="different lengths"):
        Limits(low=(0.0,), high=(1.0, 1.0))
    with pytest.raises(BadSetting, match="NaN"):
        Limits(low=(np.nan,))
    with pytest.raises(BadSetting, match="swap them"):
        Limits(low=(1.0,), high=(0.0,))
    with pytest.raises(BadSetting, match="above 0"):
        Limits(max_step=(0.0,))
    with pytest.raises(BadSetting, match=r"limits are for 2 dimensions, an action has shape \(3,\)"):
        ActionGuard(LIMITS).check(np.zeros(3))


KINDS = (ActionKind.ABSOLUTE, ActionKind.DELTA, ActionKind.VELOCITY)
RATES = Limits(max_velocity=(2.0, 2.0, 2.0), max_acceleration=(10.0, 10.0, 10.0))
PERIOD_S = 0.1


def motions(executed):
    """What each tick moved each dimension by."""
    return np.stack([np.diff(executed[:, 0]), executed[1:, 1], executed[1:, 2] * PERIOD_S], axis=1)


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float64, (9, 3), elements=st.floats(-3, 3)))
def test_speeds_and_accelerations_hold_for_every_kind_of_action(actions):
    guard = ActionGuard(RATES, KINDS, PERIOD_S)
    executed = np.array([guard.check(action) for action in actions])
    moved = motions(executed)
    assert np.abs(moved).max() <= 2.0 * PERIOD_S + 1e-9
    assert np.abs(np.diff(moved, axis=0)).max() <= 10.0 * PERIOD_S**2 + 1e-9


def test_slow_actions_pass_untouched():
    guard = ActionGuard(RATES, KINDS, PERIOD_S)
    for tick in range(20):
        action = np.array([1 + 0.004 * tick**2, 0.03, 0.2], np.float32)
        assert guard.check(action) is action
    assert guard.interventions == 0


def test_a_bound_holds_against_an_acceleration():
    limits = Limits(high=(1.0,), max_acceleration=(1.0,))
    guard = ActionGuard(limits, (ActionKind.ABSOLUTE,), PERIOD_S)
    positions = [guard.check(np.array([0.4 * tick])) for tick in range(40)]
    assert np.max(positions) == 1.0


def test_rates_need_period_and_kinds():
    with pytest.raises(BadSetting, match="need the control period and the kind of each of 3 dimensions"):
        ActionGuard(RATES)
    with pytest.raises(BadSetting, match="max_velocity .* must be above 0"):
        Limits(max_velocity=(0.0,))
