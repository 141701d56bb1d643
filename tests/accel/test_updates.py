"""Schedules: the dynamic programme against brute force, unions, baselines, refusals."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vivace.accel.updates import (
    UpdateOptions,
    bubbling_union,
    choose_updates,
    inner_half,
    optimal_updates,
    segment_values,
    uniform_updates,
)
from vivace.policies.errors import BadSetting, CalibrationError

BLOCKS = (
    "action.0.self",
    "action.0.cross",
    "action.0.mlp",
    "action.1.self",
    "action.1.cross",
    "action.1.mlp",
)


def value(similarity, steps, objective):
    """Kept similarity, by definition."""
    total = 0.0
    for k in range(len(similarity)):
        anchor = max(s for s in steps if s <= k)
        if objective == "anchor":
            total += similarity[anchor, k]
        elif k != anchor:
            total += similarity[k, k - 1]
    return total


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(2, 9), objective=st.sampled_from(["anchor", "consecutive"]))
def test_dynamic_programme_equals_brute_force(seed, n, objective):
    rng = np.random.default_rng(seed)
    similarity = rng.uniform(-1, 1, (n, n))
    similarity = (similarity + similarity.T) / 2
    np.fill_diagonal(similarity, 1)
    for updates in range(1, n + 1):
        found = optimal_updates(similarity, updates, objective)
        assert len(found) == updates
        assert found[0] == 0
        best = max(
            value(similarity, (0, *rest), objective) for rest in combinations(range(1, n), updates - 1)
        )
        assert value(similarity, found, objective) == pytest.approx(best)


def test_consecutive_objective_degenerates_to_a_sort():
    rng = np.random.default_rng(1)
    similarity = rng.uniform(0, 1, (30, 30))
    lowest = np.argsort([similarity[k, k - 1] for k in range(1, 30)])[:6] + 1
    assert optimal_updates(similarity, 7, "consecutive") == (0, *sorted(lowest.tolist()))


def test_segment_values_are_minus_infinity_below_the_diagonal():
    assert segment_values(np.ones((3, 3)), "anchor")[2, 1] == -np.inf


def test_uniform_updates():
    assert uniform_updates(100, 5) == (0, 20, 40, 60, 80)
    assert uniform_updates(10, 10) == tuple(range(10))


def test_bubbling_union_follows_feed_forward_of_same_and_later_layers():
    schedule = {b: (0, i + 1) for i, b in enumerate(BLOCKS)}
    union = bubbling_union(schedule, ["action.0.cross", "action.1.mlp"])
    assert union["action.0.cross"] == (0, 2, 3, 6)
    assert union["action.1.mlp"] == (0, 6)
    assert union["action.0.self"] == (0, 1)


def test_methods_and_forced_last_step():
    rng = np.random.default_rng(0)
    similarity = {b: rng.uniform(0, 1, (20, 20)) for b in BLOCKS}
    volatility = {b: float(i) for i, b in enumerate(BLOCKS)}

    def choose(**options):
        return choose_updates(BLOCKS, similarity, volatility, 20, UpdateOptions(**options))

    plain = choose(updates=4, bubbling=0)
    assert all(len(steps) == 4 for steps in plain.values())
    assert len(set(plain.values())) > 1
    assert choose(updates=4, bubbling=1) == plain  # the most volatile is the last mlp: only itself follows
    assert len(set(choose(method="shared", updates=4).values())) == 1
    forced = choose(method="uniform", updates=4, force_last=True)
    assert set(forced.values()) == {(0, 5, 10, 15, 19)}
    deep = choose(method="deepcache", updates=2)
    assert deep["action.0.self"] == tuple(range(20))
    assert deep["action.1.self"] == (0, 10)


def test_deepcache_reuses_the_inner_levels_of_a_unet():
    blocks = ("action.down0.0", "action.down1.0", "action.mid.0", "action.up0.0", "action.up1.0")
    assert inner_half(blocks) == {"action.down1.0", "action.mid.0", "action.up0.0"}


def test_refusals():
    square = np.eye(4)
    with pytest.raises(CalibrationError, match=r"updates=5, but the sampler runs 4 steps; choose 1\.\.4"):
        optimal_updates(square, 5)
    with pytest.raises(CalibrationError, match=r"choose 1\.\.4"):
        optimal_updates(square, 0)
    with pytest.raises(CalibrationError, match="square matrix"):
        optimal_updates(np.ones((2, 3)), 1)
    with pytest.raises(CalibrationError, match="bubbling=7, but the policy has 6 blocks"):
        choose_updates(BLOCKS, {}, {}, 20, UpdateOptions(bubbling=7))
    with pytest.raises(BadSetting, match="method='greedy' is not one of bac, shared"):
        UpdateOptions(method="greedy")
    with pytest.raises(BadSetting, match="bubbling=-1 is negative"):
        UpdateOptions(bubbling=-1)


def test_numbers_that_nobody_gave_fit_the_policy():
    """G11: a policy of few blocks and steps has a schedule without being asked for smaller numbers."""
    few, many = UpdateOptions().settled(4, 3), UpdateOptions().settled(100, 16)
    assert (few.updates, few.bubbling) == (2, 3)
    assert (many.updates, many.bubbling) == (10, 5)
    asked = UpdateOptions(updates=4, bubbling=0)
    assert asked.settled(100, 16) == asked


def test_layers_may_run_at_numbers_of_steps_of_their_own():
    """Two parts of four blocks: the outer ones keep three updates, the inner ones one."""
    blocks = [f"action.{i}.mlp" for i in range(4)]
    similarity = dict.fromkeys(blocks, np.eye(4))
    options = UpdateOptions(method="layered", parts=(3, 1))
    found = choose_updates(blocks, similarity, {}, 4, options)
    assert [len(found[block]) for block in blocks] == [3, 3, 1, 1]
    with pytest.raises(CalibrationError, match="updates=5, but the sampler runs 4 steps"):
        choose_updates(blocks, similarity, {}, 4, replace(options, parts=(5, 1)))
    for wrong in ({"method": "layered"}, {"parts": (2, 1)}):
        with pytest.raises(BadSetting, match="parts go with method layered, and it needs them"):
            UpdateOptions(**wrong)
