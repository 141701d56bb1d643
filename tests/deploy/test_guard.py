"""Whatever leaves the guard is finite and inside the limits; what was inside passes untouched."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vivace.deploy.guard import ActionGuard, Limits
from vivace.policies.errors import BadSetting

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
    with pytest.raises(BadSetting, match="limits are for 2 dimensions, an action has 3"):
        ActionGuard(LIMITS).check(np.zeros(3))
