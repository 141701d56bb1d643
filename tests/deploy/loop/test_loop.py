"""The control loop in virtual time: what each tick executes, by mental arithmetic."""

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_options import part

from vivace.deploy.loop.budget import LatencyBudget, Rung
from vivace.deploy.loop.clock import VirtualClock
from vivace.deploy.loop.guard import ActionGuard, Limits
from vivace.deploy.loop.loop import ControlLoop, build_loop
from vivace.deploy.loop.settings import LoopSettings, Mode
from vivace.deploy.loop.standstill import fallback_action
from vivace.deploy.loop.watchdog import State, Watchdog, WatchdogSettings
from vivace.deploy.workers.worker import BatchedInference, Request, SimulatedWorker
from vivace.policies.errors import BadSetting, NonFiniteActions, ObservationMismatch
from vivace.policies.sampling.real_time_chunking import RealTimeChunking, continuation
from vivace.policies.spec import (
    DELAY,
    PREVIOUS,
    ActionKind,
    Chunk,
    Observation,
    PolicySpec,
    check_actions,
)

HZ, KEY = 10.0, "observation.state"
KINDS = (ActionKind.ABSOLUTE, ActionKind.DELTA, ActionKind.VELOCITY)


class CountingRobot:
    """A robot that sees the number of the tick and remembers what it did."""

    def __init__(self):
        self.actions = []

    def observe(self):
        return Observation({KEY: np.array([len(self.actions)], np.float32)}, len(self.actions), 0.0)

    def act(self, action):
        self.actions.append(action.tolist())


def count_on(observations, keys):
    """Eight actions; each is the number of the tick it is meant for, plus one."""
    ticks = observations[KEY][:, -1]
    return np.tile(ticks[:, None] + np.arange(1, 9, dtype=np.float32)[:, None], (1, 1, 3))


def make_loop(
    latency_ticks=0.0, predict=count_on, kinds=KINDS, limits=None, ladder=(), window=8, plan=None, **options
):
    """A loop over `CountingRobot`; the latency is in ticks, or request -> ticks; `plan` is its request_at."""
    ticks = latency_ticks if callable(latency_ticks) else lambda request: latency_ticks
    choices, options = part(options, n_action_steps=4)
    inference = BatchedInference(predict, {rung.name: predict for rung in ladder})
    spec = PolicySpec(
        type="counter",
        action_dim=3,
        horizon=9,
        n_obs_steps=2,
        n_action_steps=4,
        observation_shapes={KEY: (1,)},
        action_kinds=kinds,
        blocks=(),
        request_at=plan,
    )
    loop = build_loop(
        CountingRobot(),
        SimulatedWorker(inference, lambda n, request: ticks(n) / HZ),
        ActionGuard(limits),
        VirtualClock(),
        choices,
        spec,
        control_hz=HZ,
        episode_seed=7,
        **options,
    )
    loop.budget = LatencyBudget(HZ, ladder, window=window)
    return loop


def run(loop, n_ticks):
    """Return the records and the timeline, such as "ffcccs"."""
    records = [loop.tick() for _ in range(n_ticks)]
    assert [record.tick for record in records] == list(range(n_ticks))
    return records, "".join(record.source[0] for record in records)


def first_column(records):
    return [float(record.action[0]) for record in records]


def test_sync_without_latency_executes_every_tick_from_a_chunk():
    loop = make_loop()
    records, timeline = run(loop, 12)
    assert timeline == "c" * 12
    assert first_column(records) == list(range(1, 13))
    assert [record.chunk_id for record in records] == [0] * 4 + [1] * 4 + [2] * 4
    assert [record.age_ticks for record in records] == [0, 1, 2, 3] * 3
    assert [record.remaining for record in records] == [3, 2, 1, 0] * 3
    assert [record.tick for record in records if record.has_asked] == [0, 4, 8]
    assert [record.tick for record in records if record.has_accepted] == [0, 4, 8]
    assert (loop.budget.misses, loop.tick_count) == (0, 12)


@pytest.mark.parametrize(
    ("latency_ticks", "cycle"),
    [(0.5, "fcccs"), (1, "fcccs"), (2, "ffccss"), (3, "fffcsss"), (4, "ffffssss"), (4.2, "fffffssss")],
)
def test_sync_waits_exactly_the_latency_before_each_chunk(latency_ticks, cycle):
    loop = make_loop(latency_ticks)
    records, timeline = run(loop, 3 * len(cycle))
    assert timeline == 3 * cycle
    wait = cycle.count("f")
    executed = [record.action[0] for record in records if record.chunk_id == 2]
    assert executed == [2 * len(cycle) + i for i in (1, 2, 3, 4)]
    assert [record.age_ticks for record in records if record.chunk_id == 2] == [wait + i for i in range(4)]
    assert loop.budget.misses == 0, "G16: the robot waits for every chunk, so none is late"


def test_the_fallback_holds_stands_still_or_ramps_by_kind_of_action():
    loop = make_loop(latency_ticks=6, ramp_ticks=4, posture=(8.0, 8.0, 8.0))
    run(loop, 16)
    first, chunk, second = loop._robot.actions[:6], loop._robot.actions[6:10], loop._robot.actions[10:]
    assert first == [[8, 0, velocity] for velocity in (6, 4, 2, 0, 0, 0)]
    assert chunk == [[i, i, i] for i in (1, 2, 3, 4)]
    assert second == [[4, 0, velocity] for velocity in (3, 2, 1, 0, 0, 0)]


def test_the_fallback_is_zero_before_the_first_action_unless_told():
    loop = make_loop(latency_ticks=2)
    run(loop, 2)
    assert loop._robot.actions == [[0, 0, 0]] * 2


def test_the_fallback_keeps_the_type_of_the_action():
    assert fallback_action(np.ones(3, np.float32), KINDS).dtype == np.float32


@pytest.mark.parametrize("latency_ticks", [0, 1, 2])
def test_async_with_latency_shorter_than_the_lead_never_falls_back_again(latency_ticks):
    loop = make_loop(latency_ticks, mode=Mode.ASYNC, request_at=3)
    records, timeline = run(loop, 40)
    assert timeline == "f" * latency_ticks + "c" * (40 - latency_ticks)
    second = next(record.tick for record in records if record.chunk_id == 1)
    first = first_column(records)[latency_ticks:second]
    assert first == list(range(1, len(first) + 1)), "the robot stood: nothing of the first chunk is skipped"
    assert first_column(records)[second:] == list(range(second + 1, 41))  # each at its own tick
    assert loop.queue.dropped == latency_ticks * (loop.queue.accepted - 1)
    assert loop.budget.misses == (latency_ticks > 0)  # the first chunk is due at tick 0


@pytest.mark.parametrize("latency_ticks", [0, 1, 2])
def test_async_learns_its_lead_from_the_first_chunk(latency_ticks):
    _, timeline = run(make_loop(latency_ticks, mode=Mode.ASYNC), 40)
    assert timeline == "f" * latency_ticks + "c" * (40 - latency_ticks)


def test_async_is_stale_but_aligned_where_one_worker_cannot_keep_up():
    records, timeline = run(make_loop(latency_ticks=3, mode=Mode.ASYNC), 12)
    assert timeline == "fff" + 3 * "css"  # a chunk every 3 ticks, of age 3, 4 and 5; 4 is not fresh
    assert first_column(records)[3:] == [1, 2, 3, *range(7, 13)]  # the first chunk began at tick 3


def test_async_that_asks_too_late_executes_stale_actions_and_misses_every_deadline():
    loop = make_loop(latency_ticks=2, mode=Mode.ASYNC, request_at=0)
    records, timeline = run(loop, 14)
    assert timeline == "ffccssccssccss"
    assert [record.tick for record in records if record.has_asked] == [0, 4, 8, 12]
    assert loop.budget.misses == 4
    assert first_column(records)[2:] == [1, 2, 3, 4, *range(7, 15)]


def test_a_plan_says_when_the_next_chunk_is_asked_for_unless_the_user_does():
    asked = {
        (plan, user): [
            record.tick
            for record in run(make_loop(1, mode=Mode.ASYNC, plan=plan, request_at=user), 9)[0]
            if record.has_asked
        ]
        for plan, user in ((None, 0), (None, 3), (0, None), (3, None), (0, 3), (3, 0))
    }
    assert asked[None, 0] != asked[None, 3]
    assert asked[0, None] == asked[3, 0] == asked[None, 0]
    assert asked[3, None] == asked[0, 3] == asked[None, 3]
    assert run(make_loop(plan=3), 8)[1] == "c" * 8, "in mode sync nobody asks early"


def test_a_deadline_is_not_missed_while_fresh_actions_are_left():
    loop = make_loop(lambda request: 3 * (request == 1), mode=Mode.ASYNC, request_at=2)
    records, timeline = run(loop, 5)
    assert [record.has_asked for record in records] == [True, False, True, False, False]
    assert (timeline, loop.budget.misses) == ("ccccs", 1)  # asked for at 2, due at 4, there at 5
    loop = make_loop(lambda request: 2 * (request == 1), mode=Mode.ASYNC, request_at=2)
    _, timeline = run(loop, 5)
    assert (timeline, loop.budget.misses) == ("ccccc", 0)


def test_an_action_that_is_not_finite_is_refused_and_the_fallback_acts():
    def second_is_broken(observations, keys):
        actions = count_on(observations, keys)
        if keys[0][1] == 4:
            actions[:, 1:] = np.nan
        return actions

    loop = make_loop(predict=second_is_broken)
    records, timeline = run(loop, 12)
    assert timeline == "cccccfffcccc"
    assert [record.tick for record in records if record.is_guarded] == [5, 6, 7]
    assert loop.guard.interventions == 3
    assert loop._robot.actions[5][:2] == [5, 0]
    assert loop._robot.actions[5][2] == pytest.approx(4.0)
    assert np.isfinite(loop._robot.actions).all()


def test_the_guard_limits_chunk_and_fallback():
    limits = Limits(low=(-2.0, -2.0, -2.0), high=(2.0, 2.0, 2.0))
    loop = make_loop(lambda request: request, limits=limits, posture=(5.0, 0.0, 0.0))
    records, _ = run(loop, 5)
    assert first_column(records) == [1, 2, 2, 2, 2]  # 3 and 4 are too much, then the 2 is held
    assert [record.is_guarded for record in records] == [False, False, True, True, False]
    loop = make_loop(1, limits=limits, posture=(5.0, 0.0, 0.0))
    assert (loop.tick().action[0], loop.guard.interventions) == (2, 1)


def test_a_slow_chunk_does_not_raise_the_expected_latency_for_ever():
    slow = 2
    loop = make_loop(lambda request: 9 if request == slow else 1, mode=Mode.ASYNC, window=4)
    records, expected = [], []
    for _ in range(60):
        records.append(loop.tick())
        expected.append(loop.budget.expected_ticks)
    assert max(expected) == 9
    assert expected[-1] == 1
    assert all(record.source == "chunk" for record in records[-30:])
    asked = [record.tick for record in records if record.has_asked]
    assert np.diff(asked[:3]).tolist() == np.diff(asked[-3:]).tolist() == [3, 3]


@settings(max_examples=150, deadline=None)
@given(
    latencies=st.lists(st.floats(0, 12), min_size=1, max_size=9),
    mode=st.sampled_from([Mode.SYNC, Mode.ASYNC]),
    request_at=st.none() | st.integers(0, 4),
)
def test_for_any_latencies_actions_are_aligned_and_sources_honest(latencies, mode, request_at):
    options = {} if mode == Mode.SYNC else {"request_at": request_at}
    loop = make_loop(lambda request: latencies[request % len(latencies)], mode=mode, **options)
    records, timeline = run(loop, 60)
    still, before = [], np.zeros(3)
    for record in records:
        is_still = record.action[0] == before[0] and not record.action[1:].any()
        still.append(record.chunk_id is None and is_still)
        before = record.action
    executed = [record for record in records if record.chunk_id is not None]
    for record in executed:
        assert (record.source == "chunk") == (record.age_ticks < 4)
        if mode == Mode.ASYNC:
            observed = record.tick - record.age_ticks
            moved = sum(not is_still for is_still in still[observed : record.tick])
            assert record.action[0] == observed + 1 + moved, "what it stood through is no part of the way"
    assert all(record.age_ticks is None for record in records if record.source == "fallback")
    numbers = [record.action[0] for record in executed]
    assert numbers == sorted(set(numbers))
    asked = loop._worker.asked
    assert [tick for tick, _ in asked] == [record.tick for record in records if record.has_asked]
    assert loop.budget.misses <= len(asked)
    assert (loop.budget.misses == 0) == (mode == Mode.SYNC or timeline == "c" * 60)


def test_noise_is_keyed_by_seed_and_tick_and_history_is_padded():
    seen = []

    def note(observations, keys):
        seen.append((keys, observations[KEY][:, :, 0].tolist()))
        return count_on(observations, keys)

    run(make_loop(predict=note), 8)
    assert seen == [([(7, 0)], [[0, 0]]), ([(7, 4)], [[3, 4]])]


def test_the_plan_that_fits_the_time_left_is_asked_for():
    loop = make_loop(ladder=(Rung("good", 0.2), Rung("fast", 0.1)), mode=Mode.ASYNC, request_at=2)
    plans, submit = [], loop._worker.submit
    loop._worker.submit = lambda request: (plans.append(request.plan), submit(request))
    run(loop, 8)
    assert plans == ["fast", "fast", "fast", "good"]  # no time at first, then two ticks of 0.1 s; patience


def test_an_anytime_chunk_is_told_when_it_must_be_there():
    loop = make_loop(2, mode=Mode.ASYNC, request_at=2, anytime=True)
    deadlines, submit = [], loop._worker.submit
    loop._worker.submit = lambda request: (deadlines.append(request.deadline_s), submit(request))
    run(loop, 8)
    assert deadlines[0] is None  # nothing to execute meanwhile: late anyway
    assert deadlines[1:] == pytest.approx([0.4, 0.6, 0.8])


def test_rtc_says_how_long_a_chunk_will_take_and_what_it_continues():
    loop = make_loop(2, mode=Mode.RTC, request_at=2)
    requests, submit = [], loop._worker.submit
    loop._worker.submit = lambda request: (requests.append(request), submit(request))
    run(loop, 8)
    assert [request.delay_ticks for request in requests[:2]] == [0, 2]
    assert requests[0].previous is None
    now = requests[1].tick
    assert np.array_equal(requests[1].previous[:, 0], np.arange(now - 1, 9))  # action i is for tick i + 1


def continue_ones(observations, keys):
    """Real-time chunking of a policy that always means 1, drawn all the way to the chunk before."""
    own = np.ones((1, 8, 3), np.float32)
    if PREVIOUS not in observations:
        return own
    rtc = RealTimeChunking(schedule="ones")
    wish, weights = continuation(rtc, observations[PREVIOUS], observations[DELAY], 0, 8)
    return own + weights * (wish - own)


def test_the_end_of_a_chunk_is_not_drawn_to_zero():
    """lerobot 0.6 pads what is left of the chunk before with zeros, and guides towards them too."""
    records, timeline = run(make_loop(2, continue_ones, mode=Mode.RTC, request_at=3), 60)
    assert timeline == "ff" + "c" * 58
    assert {record.action[0] for record in records[2:]} == {1.0}


def test_a_cold_start_is_waited_out_and_forgotten():
    """lerobot 0.6 keeps the largest latency it ever saw: that of the first chunk, where all is cold."""
    cold, warm, window = 7, 2, 4
    loop = make_loop(lambda n: warm if n else cold, continue_ones, mode=Mode.RTC, window=window)
    requests, submit = [], loop._worker.submit
    loop._worker.submit = lambda request: (requests.append(request), submit(request))
    _, timeline = run(loop, 60)
    assert timeline[:cold] == "f" * cold
    assert requests[0].previous is None, "nothing is continued before the first chunk"
    assert [request.delay_ticks for request in requests[: window + 2]] == [0, *[cold] * window, warm]
    assert set(timeline[-40:]) == {"c"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "turbo"}, "'turbo' is unknown; the modes: sync, async, rtc"),
        ({"n_action_steps": 0}, "n_action_steps=0"),
        ({"mode": Mode.ASYNC, "request_at": 9, "n_action_steps": 8}, "request_at=9; needed: 0..8"),
        ({"request_at": 2}, "do nothing in mode sync"),
        ({"blend_ticks": 2}, "do nothing in mode sync"),
        ({"anytime": True}, "anytime do nothing in mode sync"),
        ({"mode": Mode.ASYNC, "blend_ticks": -1}, "blend_ticks=-1"),
        ({"ramp_ticks": 0}, "ramp_ticks=0"),
    ],
)
def test_bad_settings_are_refused(options, message):
    """At the latest when it is known what a plan says of the mode."""
    with pytest.raises(BadSetting, match=message):
        LoopSettings(**options).settled(None)


def test_wrong_action_sizes_are_refused():
    with pytest.raises(BadSetting, match="limits has 2 dimensions, the policy's actions have 3"):
        make_loop(limits=Limits(low=(0.0, 0.0)))
    with pytest.raises(BadSetting, match="posture has 1 dimensions"):
        make_loop(posture=(0.0,))
    with pytest.raises(BadSetting, match="posture=.* holds NaN or infinity"):
        make_loop(posture=(0.0, np.nan, 0.0))
    with pytest.raises(BadSetting, match="n_action_steps=9, but a chunk has 8 actions; give 1..8"):
        make_loop(n_action_steps=9)
    with pytest.raises(BadSetting, match="request_at=5; needed: 0..4 .the policy's n_action_steps."):
        make_loop(mode=Mode.ASYNC, n_action_steps=None, request_at=5)
    with pytest.raises(BadSetting, match="action_kinds has 2 dimensions"):
        make_loop(kinds=KINDS[:2])
    with pytest.raises(BadSetting, match=r"a chunk has shape \(8, 2\); \(actions, 3\) is needed"):
        make_loop(predict=lambda *batch: count_on(*batch)[..., :2]).tick()
    with pytest.raises(BadSetting, match="predict returned shape"):
        make_loop(predict=lambda *batch: count_on(*batch)[0]).tick()


def test_a_missing_observation_is_refused():
    loop = make_loop()
    loop._robot.observe = lambda: Observation({"state": np.zeros(1)}, 0, 0.0)
    with pytest.raises(ObservationMismatch, match=r"has keys \['state'\], but the policy needs"):
        loop.tick()


@pytest.mark.parametrize("mode", [Mode.SYNC, "sync"])
def test_the_queue_of_another_mode_is_refused(mode):
    loop, other = make_loop(), make_loop(mode=Mode.ASYNC).queue
    parts = (loop._robot, loop._worker, other, loop.guard, loop.budget, VirtualClock())
    with pytest.raises(BadSetting, match="drop_late=True, which mode sync cannot use"):
        ControlLoop(*parts, LoopSettings(mode=mode), spec=loop._spec)


def test_workers_share_one_batch_when_the_first_is_needed():
    sizes = []

    def note(observations, keys):
        sizes.append(len(keys))
        return count_on(observations, keys)

    inference = BatchedInference(note)
    fast, slow, gone = (SimulatedWorker(inference, lambda n, request, t=t: t) for t in (0.1, 0.2, 0.3))
    for tick, worker in enumerate((fast, slow, gone)):
        worker.submit(Request({KEY: np.full((2, 1), tick)}, tick, 0.0, (0, tick)))
    with pytest.raises(BadSetting, match="a request came at tick 5 while that of 0 is in flight"):
        fast.submit(Request({}, 5, 0.0, (0, 5)))
    gone.cancel()
    assert not gone.is_busy
    assert fast.poll(0.05) is None
    assert sizes == []
    chunk = fast.poll(0.1)
    assert (chunk.actions[0, 0], chunk.tick, chunk.ready_s) == (1, 0, 0.1)
    assert fast.poll(0.1) is None
    assert slow.poll(0.1) is None
    assert slow.poll(0.2).actions[0, 0] == 2
    assert sizes == [2]


def test_requests_say_what_the_chunk_before_means_for_now():
    asked = []

    def predict(observations, keys):
        asked.append(observations.get(PREVIOUS))
        return count_on(observations, keys)

    run(make_loop(predict=predict), 9)
    assert asked[0] is None
    for ticks, previous in zip((4, 8), asked[1:], strict=True):
        assert previous[0, :, 0].tolist() == [ticks + 1, ticks + 2, ticks + 3, ticks + 4]


def requests_of(loop, n_ticks):
    """Tick of every request, and the chunk it follows."""
    asked, submit = [], loop._worker.submit
    loop._worker.submit = lambda request: (asked.append(request), submit(request))
    run(loop, n_ticks)
    return [(request.tick, request.followed) for request in asked]


def test_requests_say_which_chunk_they_follow_and_how_far_it_has_come():
    assert requests_of(make_loop(), 9) == [(0, None), (4, (0, 4)), (8, (4, 4))]
    # sync with latency: the robot waits, and the chunk begins with its first action
    assert requests_of(make_loop(2), 13) == [(0, None), (6, (0, 4)), (12, (6, 4))]
    # async: the first chunk begins at tick 1, for the robot stood until then; of the others action 0 is past
    found = requests_of(make_loop(1, mode=Mode.ASYNC), 8)
    assert found == [(0, None), (3, (0, 2)), (6, (3, 3))]


def test_a_chunk_that_came_late_is_followed_by_none():
    # two ticks of latency, asked for when one fresh action is left: every chunk but the first is late
    found = requests_of(make_loop(2, mode=Mode.ASYNC, request_at=1), 12)
    assert [followed is None for _, followed in found] == [True, False, True, True]


def test_a_chunk_with_an_action_that_was_refused_is_followed_by_none():
    def broken(observations, keys):
        actions = count_on(observations, keys)
        actions[:, 2] = np.nan
        return actions

    assert requests_of(make_loop(predict=broken), 9) == [(0, None), (4, None), (8, None)]


def test_a_stopped_robot_is_held_until_the_reset_and_old_chunks_are_forgotten():
    loop = make_loop(latency_ticks=1, mode=Mode.ASYNC)
    dog = loop._watchdog = Watchdog(WatchdogSettings(observation_age_s=0, starved_s=0))
    _, before = run(loop, 6)
    dog.stop("somebody pressed the button", 0.6)
    held = [loop.tick() for _ in range(5)]
    dog.reset(1.1)
    after = [loop.tick() for _ in range(5)]
    assert before == "fccccc"
    assert "".join(record.source[0] for record in held + after) == "ffffff" + "cccc"
    assert {record.state for record in held} == {State.STOP}
    assert not any(record.has_asked for record in held)
    assert [record.action[0] for record in after[1:]] == [12, 13, 14, 16]  # asked for at tick 11, then at 13


def test_a_frozen_observation_is_neither_thought_about_nor_acted_on():
    loop = make_loop(mode=Mode.ASYNC)
    robot, loop._watchdog = (
        loop._robot,
        Watchdog(WatchdogSettings(observation_age_s=0.25, starved_s=0, hold_s=0)),
    )
    robot.observe = lambda: Observation({KEY: np.array([7.0], np.float32)}, 0, 0.5)
    records = [loop.tick() for _ in range(10)]
    assert "".join(record.source[0] for record in records) == "ccc" + "f" * 7
    assert not any(record.has_asked for record in records[3:])
    times = iter([0.6, 0.7, 0.8, 0.1, 0.8, 0.2, 0.3])
    robot.observe = lambda: Observation({KEY: np.array([7.0], np.float32)}, 0, next(times))
    moving = [loop.tick() for _ in range(7)]
    assert "".join(record.source[0] for record in moving) == "ccccc" + "ff", "what goes back is no news"


@pytest.mark.parametrize(("latency_ticks", "state"), [(6, State.RUN), (30, State.STOP)])
def test_late_actions_keep_a_robot_in_sync_mode_alive_none_do_not(latency_ticks, state):
    loop = make_loop(latency_ticks=latency_ticks)
    loop._watchdog = Watchdog(WatchdogSettings(observation_age_s=0, starved_s=1.0))
    _, sources = run(loop, 25)
    assert loop._watchdog.state == state
    assert ("s" in sources) == (state == State.RUN)


def test_inferences_that_fail_every_time_hold_the_robot_then_stop_it():
    def predict(observations, keys):
        raise NonFiniteActions("NaN")

    loop = make_loop(predict=predict, mode=Mode.ASYNC)
    loop._watchdog = Watchdog(WatchdogSettings(observation_age_s=0, starved_s=0, misses=0, hold_s=0.5))
    states = [loop.tick().state for _ in range(12)]
    assert states[:2] == [State.RUN] * 2
    assert State.HOLD in states
    assert states[-1] == State.STOP
    assert "inferences in a row failed" in loop._watchdog.why
    assert loop.failures == len(loop._worker.asked)


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (np.zeros((8, 2)), r"a chunk has shape \(8, 2\); \(actions, 3\) is needed"),
        (np.zeros((1, 8, 3)), r"a chunk has shape \(1, 8, 3\)"),
        (np.zeros(3), r"a chunk has shape \(3,\)"),
    ],
)
def test_a_chunk_of_a_wrong_shape_is_a_failed_inference_where_somebody_judges_it(chunk, message):
    loop = make_loop(mode=Mode.ASYNC)
    loop._watchdog = Watchdog(WatchdogSettings(observation_age_s=0))
    poll = loop._worker.poll
    loop._worker.poll = lambda now: (found := poll(now)) and replace(found, actions=chunk)
    records = [loop.tick() for _ in range(8)]
    assert {record.source for record in records} == {"fallback"}
    assert records[-1].state == State.HOLD
    assert loop.failures == len(loop._worker.asked)
    assert re.search(message, loop.errors[-1])


def test_an_observation_that_cannot_be_thought_about_is_a_failed_inference_too():
    loop = make_loop(mode=Mode.ASYNC)
    loop._watchdog = Watchdog(WatchdogSettings(observation_age_s=0))
    shapes = iter([1, 2] * 5)
    loop._robot.observe = lambda: Observation({KEY: np.zeros(next(shapes))}, 0, 0.0)
    records = [loop.tick() for _ in range(6)]
    assert records[0].source == "chunk"
    assert loop.failures > 0
    assert "observations do not fit one another" in loop.errors[-1]
    assert not any(record.has_asked for record in records[4:])


def test_a_tick_that_acts_late_is_not_executed_and_is_judged():
    loop = make_loop(mode=Mode.ASYNC)
    loop._watchdog = Watchdog(WatchdogSettings(observation_age_s=0, late_s=0.5))
    run(loop, 2)
    observe = loop._robot.observe
    loop._robot.observe = lambda: (loop._clock.sleep_until(loop._clock.now() + 1.0), observe())[1]
    blocked = loop.tick()
    assert (blocked.state, blocked.source) == (State.HOLD, "fallback")
    assert loop._watchdog.why == "a tick acted 0.90 s late", "beyond its period of 0.1 s"


def test_actions_that_do_not_reach_the_robot_are_judged():
    loop = make_loop(mode=Mode.ASYNC)
    loop._watchdog = Watchdog(WatchdogSettings(observation_age_s=0, act_s=0.25))
    loop._robot.has_reached, loop._listener = False, loop._robot
    assert [loop.tick().state for _ in range(5)][-1] == State.HOLD
    loop._robot.has_reached = True
    assert [loop.tick().state for _ in range(2)][-1] == State.RUN


def test_a_tick_that_comes_late_takes_the_number_of_its_period():
    loop = make_loop(mode=Mode.ASYNC)
    run(loop, 2)
    loop._clock.sleep_until(0.35)
    record = loop.tick()
    assert (record.tick, record.beat.skipped, record.action[0]) == (3, 1, 4)  # the 3 was for tick 2
    assert record.beat.late_s == pytest.approx(0.15)
    assert loop.tick().tick == 4


def test_a_clock_set_back_does_not_make_latencies_negative():
    loop = make_loop(mode=Mode.ASYNC)
    loop._worker.poll = lambda now: Chunk(np.zeros((4, 3), np.float32), loop.tick_count, ready_s=-100.0)
    assert loop.tick().latency_s == 0
    assert loop.budget.expected_ticks == 0


def test_an_inference_that_gives_nan_fails_alone():
    def predict(observations, keys):
        actions = count_on(observations, keys)
        actions[np.array(keys)[:, 0] == 1] = np.nan
        check_actions(actions, "counter")
        return actions

    inference = BatchedInference(predict)
    workers = [SimulatedWorker(inference, lambda n, request: 0.0) for _ in range(3)]
    for seed, worker in enumerate(workers):
        worker.submit(Request({KEY: np.zeros((2, 1), np.float32)}, 0, 0.0, (seed, 0)))
    chunks = [worker.poll(0.0) for worker in workers]
    assert [chunk is None for chunk in chunks] == [False, True, False]
    assert not any(worker.is_busy for worker in workers)
    assert [len(worker.errors) for worker in workers] == [0, 1, 0]
    assert "policy 'counter' gave NaN or infinity in 1 of 1 chunks" in workers[1].errors[0]


def test_a_loop_whose_inferences_give_nan_goes_on_without_chunks():
    def predict(observations, keys):
        raise NonFiniteActions("NaN")

    loop = make_loop(predict=predict, posture=(0.0, 0.0, 0.0))
    records, _ = run(loop, 10)
    assert all(np.isfinite(record.action).all() for record in records)
    assert loop._worker.errors == ["NaN"] * len(loop._worker.asked)
