"""Clocks never go back; virtual time moves when told to, and nothing here sleeps."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vivace.deploy.loop.clock import VirtualClock, WallClock
from vivace.policies.errors import BadSetting


@given(st.lists(st.floats(-1e6, 1e6)))
def test_virtual_time_is_the_latest_time_asked_for(whens):
    clock, latest = VirtualClock(), 0.0
    for when in whens:
        clock.sleep_until(when)
        latest = max(latest, when)
        assert clock.now() == latest


@pytest.mark.parametrize("when", [float("nan"), float("inf"), -float("inf")])
def test_virtual_time_stays_finite(when):
    clock = VirtualClock()
    with pytest.raises(BadSetting, match="a finite time is needed"):
        clock.sleep_until(when)
    assert clock.now() == 0


def test_the_wall_clock_sleeps_what_is_left_and_nothing_if_late(monkeypatch):
    naps = []
    monkeypatch.setattr(time, "sleep", naps.append)
    clock = WallClock()
    began = clock.now()
    clock.sleep_until(began - 1)
    clock.sleep_until(began)
    assert naps == []
    clock.sleep_until(began + 1000)
    assert 0 < naps[0] <= 1000
    assert clock.now() >= began
