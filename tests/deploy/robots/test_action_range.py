"""Limits by default: from the statistics of the training data and the steps that were seen."""

import json
import re
from dataclasses import asdict

import numpy as np
import pytest

from vivace.deploy.loop.guard import ActionGuard, Limits
from vivace.deploy.robots.action_range import choose_limits, learned_limits, learned_range
from vivace.policies.errors import BadSetting
from vivace.policies.spec import ActionKind, PolicySpec

ABSOLUTE, DELTA, VELOCITY = ActionKind.ABSOLUTE, ActionKind.DELTA, ActionKind.VELOCITY
STATISTICS = {
    "min": np.array([-1.0, 0.1, -3.0]), "max": np.array([3.0, 0.5, -1.0]), "mean": np.array([1.0, 0.3, -2.0]),
    "std": np.array([0.5, 0.1, 0.25]), "q01": np.array([-0.5, 0.2, -2.5]), "q99": np.array([1.5, 0.4, -1.5]),
}  # fmt: skip
STEPS = np.array([0.2, 0.3, 0.0])


def spec(kinds, action_range):
    return PolicySpec(
        type="fake", action_dim=len(kinds), horizon=4, n_obs_steps=1, n_action_steps=2, observation_shapes={},
        action_kinds=kinds, blocks=(), action_range=action_range,
    )  # fmt: skip


@pytest.mark.parametrize(("names", "low", "high", "source"), [
    (("min", "max", "q01", "q99"), [-1, 0.1, -3], [3, 0.5, -1], "min and max of the training data"),
    (("q01", "q99", "mean", "std"), [-1, 0.15, -2.75], [2, 0.45, -1.25], "q01 and q99 .* widened by 0.25"),
    (("mean", "std"), [-1, -0.1, -3], [3, 0.7, -1], "mean ± 4 standard deviations"),
])  # fmt: skip
def test_bounds_are_the_best_that_is_known(names, low, high, source):
    found = learned_range({name: STATISTICS[name] for name in names}, STEPS, "seen")
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert re.match(source, found.bounds_from)


def test_nothing_is_known_without_statistics():
    assert learned_range({"count": np.array([3.0])}, STEPS, "seen") is None
    assert learned_range({"min": STATISTICS["min"]}, STEPS, "seen") is None


def test_steps_are_twice_what_was_seen_and_no_more_than_the_range():
    found = learned_range(STATISTICS, STEPS, "executed in the episodes [7]")
    assert found.step == pytest.approx((0.4, 0.4, 0.2)), (
        "twice; the range; a tenth of it, where nothing moved"
    )
    assert found.step_from == "2 times the largest executed in the episodes [7], else 0.1 of the range"
    assert json.loads(json.dumps(asdict(found), allow_nan=False))["step"] == list(found.step)
    still = learned_range({"min": np.array([5.0]), "max": np.array([5.0])}, np.array([np.nan]), "seen")
    assert still.step == (0.05,)


def test_a_step_is_for_targets_and_what_stops_the_others_is_in_range():
    known = learned_range(STATISTICS, STEPS, "seen")
    limits = learned_limits(known, (ABSOLUTE, VELOCITY, DELTA))
    assert limits.low == (pytest.approx(-1, abs=1e-3), 0, pytest.approx(-3, abs=1e-3))
    assert limits.high == (pytest.approx(3, abs=1e-3), pytest.approx(0.5, abs=1e-3), 0)
    assert limits.max_step == (pytest.approx(0.4), np.inf, np.inf)
    guard = ActionGuard(limits, (ABSOLUTE, VELOCITY, DELTA), 0.1)
    guard.start(np.zeros(3))
    assert np.abs(guard.check(np.full(3, 1e30))).max() < 1
    assert guard.check(np.zeros(3))[1:].tolist() == [0, 0]
    assert guard.interventions == 1


def test_rounding_at_a_bound_is_no_excess():
    known = learned_range(STATISTICS, STEPS * 100, "seen")
    guard = ActionGuard(learned_limits(known, (ABSOLUTE,) * 3))
    guard.check(np.nextafter(np.array(known.high, np.float32), np.float32(np.inf)))
    assert guard.interventions == 0


def test_limits_are_chosen_by_name(tmp_path):
    known, kinds, names = learned_range(STATISTICS, STEPS, "seen"), (ABSOLUTE,) * 3, ("a", "b", "c")
    limits, source = choose_limits("", names, spec(kinds, known))
    assert (limits, source[:11]) == (learned_limits(known, kinds), "min and max")
    assert choose_limits("none", names, spec(kinds, known)) == (Limits(), "none, as asked for")
    file = tmp_path / "arm.yaml"
    file.write_text("limits: {a: {high: 7}, b: {}, c: {}}")
    assert choose_limits(str(file), names, spec(kinds, known))[0].high[0] == 7
    with pytest.raises(
        BadSetting, match="the bundle does not say .* export it again, give a limits file, or"
    ):
        choose_limits("", names, spec(kinds, None))
    assert choose_limits("", names, spec(kinds, None), may_lack=True)[0] == Limits()
