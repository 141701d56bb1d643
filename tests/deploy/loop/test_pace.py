"""Absolute deadlines: no drift, no burst after an overrun, no sleep through a clock that goes back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vivace.deploy.loop.clock import VirtualClock, WallClock
from vivace.deploy.loop.pace import Pace
from vivace.policies.errors import BadSetting


class SettableClock:
    """Virtual time that may also be set back."""

    def __init__(self, now=0.0):
        self.time_s = now

    def now(self):
        return self.time_s

    def sleep_until(self, when):
        self.time_s = max(self.time_s, when)


def test_a_late_tick_does_not_shift_the_next_one():
    clock = SettableClock(5.0)
    pace = Pace(clock, 0.1)
    late = []
    for tick, took_s in enumerate((0.01, 0.13, 0.02, 0.0)):
        beat = pace.wait(tick)
        assert beat.tick == tick
        late.append(beat.late_s)
        clock.time_s += took_s
    assert late == pytest.approx([0, 0, 0.03, 0])
    assert clock.now() == pytest.approx(5.3)
    assert pace.skipped == 0


def test_whole_periods_are_skipped_and_counted_and_never_caught_up():
    clock = SettableClock()
    pace = Pace(clock, 0.1)
    pace.wait(0)
    clock.time_s = 0.46  # deadlines at 0.1, 0.2 and 0.3 are past; that of 0.4 is the present one
    beat = pace.wait(1)
    assert (beat.tick, beat.skipped, pace.skipped) == (4, 3, 3)
    assert beat.late_s == pytest.approx(0.36)
    following = pace.wait(5)
    assert (following.tick, following.skipped, following.late_s) == (5, 0, 0)
    assert following.time_s == pytest.approx(0.5)


def test_a_clock_that_goes_back_does_not_stop_the_loop():
    clock = SettableClock(1000.0)
    pace = Pace(clock, 0.1)
    pace.wait(0)
    clock.time_s = 20.0
    assert pace.wait(1).time_s == 20.0
    assert pace.wait(2).time_s == pytest.approx(20.1)
    assert (pace.turned_back, pace.skipped) == (1, 0)


@settings(max_examples=200, deadline=None)
@given(took=st.lists(st.floats(0, 1), min_size=1, max_size=50), hz=st.sampled_from([3, 10, 30, 50, 1000]))
def test_ticks_ascend_are_never_early_and_account_for_every_deadline(took, hz):
    clock = SettableClock(0.7)
    pace, tick, ticks = Pace(clock, 1 / hz), 0, []
    for took_s in took:
        beat = pace.wait(tick)
        due = 0.7 + beat.tick / hz
        assert due - 1e-9 <= beat.time_s < due + 1 / hz + 1e-6
        ticks.append(beat.tick)
        tick = beat.tick + 1
        clock.time_s += took_s
    assert np.all(np.diff(ticks) >= 1)
    assert ticks[-1] + 1 == len(ticks) + pace.skipped


def test_virtual_time_is_never_late():
    clock = VirtualClock()
    pace = Pace(clock, 1 / 30)
    assert all(pace.wait(tick).late_s == 0 for tick in range(1000))


def test_spinning_wakes_on_time_without_sleeping_at_the_end(monkeypatch):
    times = iter(np.arange(0, 1, 0.001))
    naps = []
    monkeypatch.setattr("vivace.deploy.loop.clock.time.monotonic", lambda: next(times))
    monkeypatch.setattr("vivace.deploy.loop.clock.time.sleep", naps.append)
    WallClock(spin_s=0.02).sleep_until(0.05)
    assert naps == pytest.approx([0.03])
    assert next(times) == pytest.approx(0.051, abs=0.002)  # it read the clock until then
    with pytest.raises(BadSetting, match="spin_s=-1"):
        WallClock(-1)
