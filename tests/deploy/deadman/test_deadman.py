"""The dead man's switch in virtual time: it always fires in time, and never on a loop that lives."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vivace.deploy.deadman.deadman import Deadman, DeadmanSettings
from vivace.deploy.loop.guard import Limits
from vivace.deploy.loop.standstill import is_standstill
from vivace.policies.errors import BadSetting
from vivace.policies.spec import ActionKind

PERIOD_S, LIMIT_S = 0.01, 0.05
KINDS = (ActionKind.ABSOLUTE, ActionKind.DELTA, ActionKind.VELOCITY)
SLACK_S = 1e-9


def action(*values):
    return np.array(values, np.float32)


def watched(ticks, switch, end_s, late_s=lambda: 0.0):
    """Play ticks, [(time, action)], before a switch that sleeps as a process does; [(time, who, action)]."""
    told, now, ticks = [], 0.0, list(ticks)
    while now < end_s:
        wait_s = switch.wait_s(now)
        wakes = min(end_s, now + (end_s if wait_s is None else wait_s) + late_s())
        if ticks and ticks[0][0] <= wakes:
            now, said = ticks.pop(0)
            switch.tick(said, now)
            told.append((now, "loop", said))
        else:
            now = wakes
            if (command := switch.command(now)) is not None:
                told.append((now, "switch", command))
    return told


gaps = st.lists(st.floats(0.0005, 4 * LIMIT_S), min_size=1, max_size=40)
values = st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3)


@settings(max_examples=300, deadline=None)
@given(gaps=gaps, values=st.lists(values, min_size=40, max_size=40))
def test_whatever_the_pattern_of_ticks_it_fires_in_time_and_only_then(gaps, values):
    times = np.cumsum(gaps)
    ticks = [(float(t), action(*v)) for t, v in zip(times, values, strict=False)]
    switch = Deadman(LIMIT_S, PERIOD_S, KINDS)
    told = watched(ticks, switch, float(times[-1]) + 1.0)
    ends = [*times[1:], times[-1] + 1.0]
    for (began, said), end in zip(ticks, ends, strict=True):
        commands = [(t, c) for t, who, c in told if who == "switch" and began <= t < end]
        if end - began < LIMIT_S - SLACK_S:
            assert not commands, "the loop lives"
            continue
        if end - began < LIMIT_S + SLACK_S:
            continue  # at the very limit either is right
        assert commands[0][0] - began <= LIMIT_S + PERIOD_S
        assert np.diff([t for t, _ in commands] or [0.0]).max(initial=0.0) <= PERIOD_S + SLACK_S, (
            "again and again"
        )
        for n, (_, command) in enumerate(commands, 1):
            share = max(0.0, 1 - n / 5)
            assert command.tolist() == pytest.approx([said[0], 0.0, said[2] * share], abs=1e-6)
    assert switch.is_at_rest, "a second after the last tick"
    moving = [said for _, said in ticks if not is_standstill(said, said, KINDS)]
    assert switch.fired <= len(moving)


@settings(max_examples=100, deadline=None)
@given(gaps=gaps, data=st.data())
def test_a_process_that_wakes_late_does_not_catch_up_in_a_burst(gaps, data):
    ticks = [(float(t), action(0, 0, 1)) for t in np.cumsum(gaps)]
    late = st.floats(0, 3 * PERIOD_S)
    told = watched(ticks, Deadman(LIMIT_S, PERIOD_S, KINDS), ticks[-1][0] + 0.5, lambda: data.draw(late))
    ours = [t for t, who, _ in told if who == "switch"]
    for before, after in zip(ours, ours[1:], strict=False):
        assert after - before >= -SLACK_S
    for start in ours:
        assert sum(start <= t < start + PERIOD_S - SLACK_S for t in ours) <= 2


def test_nothing_is_expected_before_the_first_tick_nor_after_it_is_disarmed():
    switch = Deadman(LIMIT_S, PERIOD_S, KINDS)
    assert (switch.wait_s(5.0), switch.command(5.0), switch.is_armed) == (None, None, False)
    switch.fire(5.0)
    assert switch.command(5.0) is None, "nothing was ever commanded, so nothing moves"
    switch.tick(action(1, 2, 3), 6.0)
    assert switch.is_armed
    switch.disarm()
    assert (switch.wait_s(9.0), switch.command(9.0)) == (None, None)


def test_it_can_be_fired_by_hand_and_a_tick_takes_the_robot_back():
    switch = Deadman(LIMIT_S, PERIOD_S, KINDS)
    switch.tick(action(1, 2, 1), 0.0)
    switch.fire(0.001)
    assert switch.command(0.001).tolist() == pytest.approx([1, 0, 0.8])
    assert switch.command(0.002) is None
    switch.tick(action(1, 2, 0.5), 0.003)
    assert switch.command(0.01) is None
    assert switch.command(0.0531).tolist() == pytest.approx([1, 0, 0.4])
    assert switch.fired == 2


def test_a_robot_that_stands_still_is_held_but_nothing_has_fired():
    switch = Deadman(LIMIT_S, PERIOD_S, KINDS)
    switch.tick(action(7, 0, 0), 0.0)
    assert switch.command(1.0).tolist() == [7, 0, 0]
    assert switch.fired == 0


def test_the_standstill_keeps_to_the_limits_of_the_loop():
    switch = Deadman(LIMIT_S, PERIOD_S, (ActionKind.VELOCITY,), Limits(max_acceleration=(5.0,)))
    for tick in range(40):
        switch.tick(action(min(1.0, 0.05 * tick)), tick * PERIOD_S)
    told = [1.0]
    while told[-1]:
        told.append(float(switch.command(100 + len(told) * 1.01 * PERIOD_S)[0]))
    assert -np.diff(told) == pytest.approx([0.05] * 20, abs=1e-4)
    assert switch.is_at_rest


def test_an_action_that_was_on_its_way_for_too_long_is_late():
    switch = Deadman(LIMIT_S, PERIOD_S, KINDS)
    assert switch.is_late(1.0, 1.0 + LIMIT_S + 0.001)
    assert not switch.is_late(1.0, 1.0 + LIMIT_S - 0.001)


def test_settings_that_cannot_be():
    assert DeadmanSettings(periods=5, floor_s=0.02).limit_s(0.01) == 0.05
    assert DeadmanSettings().limit_s(0.01) == 0.1
    for wrong, message in (
        ({"periods": 1}, "periods=1; 2 or more"),
        ({"periods": float("nan")}, "periods=nan"),
        ({"floor_s": -1}, "floor_s=-1"),
        ({"floor_s": float("inf")}, "floor_s=inf"),
        ({"stall_s": 0}, "stall_s=0"),
    ):
        with pytest.raises(BadSetting, match=message):
            DeadmanSettings(**wrong)
