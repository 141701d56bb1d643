"""When the robot is taken from the policy, and given back."""

import numpy as np
import pytest

from vivace.deploy.loop.watchdog import State, Watchdog, WatchdogSettings
from vivace.policies.errors import BadSetting
from vivace.policies.spec import Observation

CAMERA = "observation.images.front"


def watch(
    dog, now, misses=0, restarts=0, accepted=False, fresh=True, seen=None, time_s=None, reached=True, **more
):
    """One tick; the observation's time is that of the tick unless given."""
    values = {"observation.state": np.array([now])} if seen is None else seen
    dog.look(Observation(values, 0, now if time_s is None else time_s), now)
    state = dog.judge(now, misses, restarts, has_accepted=accepted, **more)
    dog.acted(now, is_fresh=fresh, has_reached=reached)
    return state


def states(dog, ticks, **options):
    return [watch(dog, tick / 10, **options) for tick in ticks]


def test_a_robot_that_sees_and_thinks_runs():
    dog = Watchdog()
    assert set(states(dog, range(100))) == {State.RUN}
    assert (dog.counts, dog.why, dog.is_trusted) == ({}, "", True)


def test_an_observation_whose_time_stands_still_holds_then_stops():
    seen = []
    dog = Watchdog(WatchdogSettings(observation_age_s=0.5, hold_s=1), seen.append)
    assert states(dog, range(10)) == [State.RUN] * 10
    assert states(dog, range(10, 15), time_s=0.9) == [State.RUN] * 5
    assert states(dog, range(15, 17), time_s=0.9) == [State.HOLD] * 2
    assert not dog.is_trusted
    assert states(dog, [17, 18]) == [State.RUN] * 2, "it moves again"
    frozen = states(dog, range(19, 45), time_s=1.8)
    assert frozen.count(State.HOLD) == 11
    assert frozen[-1] == State.STOP
    assert states(dog, [45, 46]) == [State.STOP] * 2, "a stop stays"
    assert "the observation's time has not gone on for" in dog.why
    dog.reset(4.7)
    assert states(dog, [47, 48]) == [State.RUN] * 2
    changes = [(t.before, t.after) for t in seen]
    assert changes == [
        (State.RUN, State.HOLD), (State.HOLD, State.RUN),
        (State.RUN, State.HOLD), (State.HOLD, State.STOP), (State.STOP, State.RUN),
    ]  # fmt: skip
    assert list(dog.transitions) == seen
    assert dog.counts == {State.HOLD: 2, State.RUN: 2, State.STOP: 1}


@pytest.mark.parametrize(
    "times",
    [
        lambda n: float("nan"),
        lambda n: float("inf"),
        lambda n: 1.0 if n % 2 else 0.9,
        lambda n: 0.9 - n / 10,
        lambda n: 1e9 if n == 12 else (0.9 if n > 12 else n / 10),
    ],
    ids=["NaN", "infinite", "alternating", "backwards", "once from the future"],
)
def test_an_observation_time_that_does_not_go_on_is_no_news(times):
    dog = Watchdog(WatchdogSettings(observation_age_s=0.5, hold_s=1))
    assert states(dog, range(10)) == [State.RUN] * 10
    found = [watch(dog, n / 10, time_s=times(n)) for n in range(10, 40)]
    assert found[0] == State.RUN
    assert State.HOLD in found
    assert found[-1] == State.STOP
    assert "has not gone on" in dog.why
    dog.reset(4.0)
    assert states(dog, range(40, 60)) == [State.RUN] * 20


def test_a_time_that_was_never_one_is_no_news_either():
    dog = Watchdog(WatchdogSettings(observation_age_s=0.5, hold_s=0))
    found = states(dog, range(10), time_s=float("nan"))
    assert found == [State.RUN] * 6 + [State.HOLD] * 4
    assert states(dog, range(10, 12), time_s=None) == [State.RUN] * 2


def test_inferences_that_fail_in_a_row_hold_then_stop_and_a_chunk_ends_it():
    dog = Watchdog(WatchdogSettings(failures=3, hold_s=1, starved_s=0))
    assert [watch(dog, n / 10, failures=n) for n in range(3)] == [State.RUN] * 3
    assert watch(dog, 0.3, failures=3) == State.HOLD
    assert dog.why == "3 inferences in a row failed"
    assert dog.is_trusted, "it goes on thinking"
    assert watch(dog, 0.4, failures=3, accepted=True) == State.RUN
    assert watch(dog, 0.5, failures=5) == State.RUN
    assert watch(dog, 0.6, failures=0) == State.RUN, "another loop counts from 0"
    assert [watch(dog, n / 10, failures=n) for n in range(7, 30)][-1] == State.STOP


def test_a_tick_that_acts_late_holds_until_ticks_are_on_time_again():
    dog = Watchdog(WatchdogSettings(late_s=0.5, hold_s=3))
    assert states(dog, range(5), late_s=0.4) == [State.RUN] * 5
    assert watch(dog, 1.5, late_s=0.9) == State.HOLD
    assert dog.why == "a tick acted 0.90 s late"
    assert states(dog, range(16, 20)) == [State.HOLD] * 4
    assert states(dog, range(21, 25)) == [State.RUN] * 4
    blocked = [watch(dog, float(n), late_s=0.95) for n in range(3, 9)]
    assert blocked == [State.HOLD] * 4 + [State.STOP] * 2, "a call that blocks a second in every tick"


def test_actions_that_do_not_reach_the_robot_hold_then_stop():
    dog = Watchdog(WatchdogSettings(act_s=0.25, hold_s=1))
    assert states(dog, range(3)) == [State.RUN] * 3
    found = states(dog, range(3, 8), reached=False)
    assert found == [State.RUN] * 3 + [State.HOLD] * 2
    assert dog.why.startswith("no action has reached the robot for 0.3")
    assert watch(dog, 0.8) == State.HOLD
    assert watch(dog, 0.9) == State.RUN, "the one before was taken"
    slow = [watch(dog, float(n)) for n in range(1, 5)]
    assert slow == [State.RUN] * 4, "a low rate is no failure"
    assert [watch(dog, 5 + n / 10, reached=False) for n in range(20)][-1] == State.STOP


def test_a_new_episode_begins_its_own_times_and_a_stop_stays():
    dog = Watchdog(WatchdogSettings(observation_age_s=0.5))
    states(dog, range(10))
    dog.begin()
    assert (
        states(dog, range(10, 20), time_s=None, seen={"observation.state": np.zeros(1)}) == [State.RUN] * 10
    )
    dog.begin()
    assert [watch(dog, n / 10, time_s=n / 10 - 2) for n in range(20, 40)] == [State.RUN] * 20
    dog.stop("somebody", 4.0)
    dog.begin()
    assert watch(dog, 4.1) == State.STOP


def test_a_hold_that_is_asked_for_lasts_until_it_is_not():
    dog = Watchdog(WatchdogSettings(observation_age_s=0, hold_s=1, starved_s=2))
    dog.hold("somebody is in the way")
    assert not dog.is_trusted, "what is seen meanwhile is not thought about"
    assert set(states(dog, range(100), fresh=False)) == {State.HOLD}, "neither too long nor starved"
    assert dog.why == "somebody is in the way"
    dog.hold("")
    assert (dog.is_trusted, watch(dog, 10)) == (True, State.RUN)
    dog.stop("enough", 11)
    dog.hold("again")
    assert watch(dog, 12) == State.STOP, "a stop is not undone by a hold"
    dog.hold("")
    assert watch(dog, 13) == State.STOP


def test_a_camera_that_freezes_is_seen_though_the_arm_moves():
    dog = Watchdog(WatchdogSettings(stuck_s=0.35))
    random = np.random.default_rng(0)

    def tick(n, picture):
        return watch(dog, n / 10, seen={"observation.state": np.array([n]), CAMERA: picture})

    alive = [tick(n, random.integers(0, 9, (8, 8, 3), dtype=np.uint8)) for n in range(5)]
    picture = np.ones((8, 8, 3), np.uint8)
    frozen = [tick(n, picture) for n in range(5, 10)]
    assert alive == [State.RUN] * 5
    assert frozen == [State.RUN] * 4 + [State.HOLD]
    assert dog.why.startswith(f"{CAMERA} has been the same for 0.4")
    picture[4, 0, 0] = 2
    assert tick(10, picture) == State.RUN, "the same array, written anew"


def test_a_robot_without_cameras_may_be_watched_by_its_state():
    dog = Watchdog(WatchdogSettings(stuck_s=0.25))
    still = {"observation.state": np.zeros(3)}
    assert states(dog, range(4), seen=still) == [State.RUN] * 3 + [State.HOLD]
    assert watch(dog, 0.4) == State.RUN


def test_deadlines_missed_in_a_row_hold_and_a_chunk_in_time_ends_it():
    dog = Watchdog(WatchdogSettings(misses=3, hold_s=0))
    assert watch(dog, 0.0, misses=2) == State.RUN
    assert watch(dog, 0.1, misses=2, accepted=True) == State.RUN, "it came late, the row goes on"
    assert watch(dog, 0.2, misses=3) == State.HOLD
    assert dog.why == "3 deadlines in a row were missed"
    assert dog.is_trusted, "it goes on thinking"
    assert watch(dog, 0.3, misses=3, accepted=True) == State.HOLD, "that was the late one"
    assert watch(dog, 0.4, misses=3, accepted=True) == State.RUN
    assert watch(dog, 0.5, misses=5, accepted=True) == State.RUN, "the row began anew"


def test_a_worker_that_is_replaced_too_often_stops_the_robot():
    dog = Watchdog(WatchdogSettings(restarts=2, window_s=5))
    assert watch(dog, 0, restarts=1) == State.RUN
    assert watch(dog, 1, restarts=2) == State.RUN
    assert watch(dog, 7, restarts=4) == State.RUN, "the first two are long ago"
    assert watch(dog, 8, restarts=5) == State.STOP
    assert dog.why == "the worker was replaced 3 times within 5 s"
    dog.reset(9)
    assert watch(dog, 9, restarts=5) == State.RUN, "a reset forgets them"


def test_a_robot_that_gets_nothing_fresh_is_stopped():
    dog = Watchdog(WatchdogSettings(starved_s=1))
    assert states(dog, range(10), fresh=False) == [State.RUN] * 10
    assert states(dog, [10, 11, 12], fresh=False)[-1] == State.STOP
    assert dog.why.startswith("no fresh action for 1.")
    dog.reset(1.3)
    assert states(dog, range(13, 20), fresh=False) == [State.RUN] * 7


def test_a_clock_that_goes_back_is_no_fault():
    dog = Watchdog(WatchdogSettings(stuck_s=0.3, starved_s=1))
    states(dog, range(100))
    assert states(dog, range(5)) == [State.RUN] * 5


def test_somebody_may_stop_it():
    dog = Watchdog()
    dog.stop("the run ends", 1.0)
    dog.stop("again", 2.0)
    assert (dog.state, dog.why, dog.counts[State.STOP]) == (State.STOP, "the run ends", 1)
    assert not dog.is_trusted


def test_everything_can_be_left_unwatched():
    off = WatchdogSettings(**dict.fromkeys(vars(WatchdogSettings()), 0))
    dog = Watchdog(off)
    more = {"failures": 99, "late_s": 9.0, "reached": False}
    assert states(dog, range(300), time_s=0, fresh=False, restarts=99, misses=99, **more)[-1] == State.RUN


@pytest.mark.parametrize("bad", [-1, float("nan"), float("inf")])
def test_bad_settings_are_refused(bad):
    with pytest.raises(BadSetting, match=f"watchdog: hold_s={bad}; a finite number, 0 or more, is needed"):
        WatchdogSettings(hold_s=bad)
