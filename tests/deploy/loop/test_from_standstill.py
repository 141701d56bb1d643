"""From a standstill: no chunk begins in its middle, and the first actions do not jump."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vivace.deploy.loop.chunk_queue import ChunkQueue
from vivace.deploy.loop.clock import VirtualClock
from vivace.deploy.loop.guard import RAMP_TICKS, ActionGuard, Limits
from vivace.deploy.loop.loop import build_loop
from vivace.deploy.loop.settings import LoopSettings, Mode
from vivace.deploy.loop.standstill import is_standstill
from vivace.deploy.loop.watchdog import Watchdog, WatchdogSettings
from vivace.deploy.workers.worker import BatchedInference, SimulatedWorker
from vivace.policies.errors import BadSetting
from vivace.policies.spec import ActionKind, Chunk, Observation, PolicySpec

HZ, KEY = 10.0, "observation.state"
ABSOLUTE, DELTA, VELOCITY = ActionKind.ABSOLUTE, ActionKind.DELTA, ActionKind.VELOCITY


class Walker:
    """Goes where it is told, at once; sees where it is."""

    def __init__(self, kinds):
        self.kinds, self.place, self.path = kinds, np.zeros(len(kinds), np.float32), []

    def observe(self):
        return Observation({KEY: self.place.copy()}, len(self.path), 0.0)

    def act(self, action):
        is_absolute = np.array([kind == ABSOLUTE for kind in self.kinds])
        self.place = np.where(is_absolute, action, self.place + action)
        self.path.append(self.place.copy())


def walk_on(kinds):
    """Eight actions, each of which leads one further than where the one before it led."""
    is_absolute = np.array([kind == ABSOLUTE for kind in kinds])

    def predict(observations, keys):
        place = observations[KEY][:, -1:]
        ahead = place + np.arange(1, 9, dtype=np.float32)[None, :, None]
        return np.where(is_absolute, ahead, np.ones_like(ahead)).astype(np.float32)

    return predict


def make_loop(latency_ticks, mode, kinds=(ABSOLUTE,), limits=None, predict=None, watchdog=None, posture=None):
    ticks = latency_ticks if callable(latency_ticks) else lambda n: latency_ticks
    spec = PolicySpec(
        type="walker", action_dim=len(kinds), horizon=8, n_obs_steps=1, n_action_steps=4,
        observation_shapes={KEY: (len(kinds),)}, action_kinds=kinds, blocks=(),
    )  # fmt: skip
    choices = LoopSettings(mode=mode, n_action_steps=4)
    guard = ActionGuard(limits, kinds, 1 / HZ)
    if posture is not None:
        guard.start(np.array(posture, np.float32))
    worker = SimulatedWorker(BatchedInference(predict or walk_on(kinds)), lambda n, request: ticks(n) / HZ)
    return build_loop(
        Walker(kinds), worker, guard, VirtualClock(), choices, spec,
        control_hz=HZ, posture=posture, watchdog=watchdog,
    )  # fmt: skip


@pytest.mark.parametrize("kinds", [(ABSOLUTE,), (DELTA,), (VELOCITY,), (ABSOLUTE, DELTA, VELOCITY)])
@pytest.mark.parametrize("mode", list(Mode))
def test_the_first_chunk_begins_with_its_first_action(mode, kinds):
    loop = make_loop(6, mode, kinds)
    records = [loop.tick() for _ in range(9)]
    assert "".join(record.source[0] for record in records) == "ffffffsss", "an observation of six ticks ago"
    assert [place.tolist() for place in loop._robot.path] == [[0] * len(kinds)] * 6 + [
        [step] * len(kinds) for step in (1, 2, 3)
    ]


@settings(max_examples=60, deadline=None)
@given(
    latencies=st.lists(st.floats(0, 12), min_size=1, max_size=9),
    mode=st.sampled_from(Mode),
    kinds=st.sampled_from([(ABSOLUTE,), (DELTA,)]),
    held=st.sets(st.integers(0, 60), max_size=20),
)
def test_no_step_of_the_way_is_left_out_or_made_twice(latencies, mode, kinds, held):
    """Whatever is late, runs dry or is held: every action of a chunk leads on from where the robot is."""
    dog = Watchdog(WatchdogSettings(observation_age_s=0, starved_s=0, hold_s=0, misses=0))
    loop = make_loop(lambda n: latencies[n % len(latencies)], mode, kinds, watchdog=dog)
    before = 0.0
    for tick in range(60):
        dog._too_slow = lambda now=tick: "held" if now in held else ""
        record = loop.tick()
        place = float(loop._robot.place[0])
        assert place - before == (record.chunk_id is not None)
        before = place


def test_a_chunk_that_came_in_a_hold_begins_after_it_and_an_interrupted_one_is_forgotten():
    dog = Watchdog(WatchdogSettings(observation_age_s=0, starved_s=0, hold_s=0))
    loop = make_loop(lambda n: 0 if n == 0 else 30, Mode.ASYNC, watchdog=dog)
    assert [loop.tick().action[0] for _ in range(3)] == [1, 2, 3]
    dog._too_slow = lambda: "somebody is in the way"
    assert [loop.tick().action[0] for _ in range(2)] == [3, 3]
    dog._too_slow = lambda: ""
    assert [loop.tick().source for _ in range(10)] == ["fallback"] * 10, "the 4 was meant for before the hold"


def test_a_velocity_is_no_standstill_before_it_has_come_to_rest():
    kinds = (ABSOLUTE, DELTA, VELOCITY)
    rest, last = np.array([2.0, 0.0, 0.0]), np.array([2.0, 1.0, 0.5])
    assert is_standstill(rest, last, kinds)
    assert not is_standstill(rest + [0, 0, 0.1], last, kinds)
    assert not is_standstill(rest + [0.1, 0, 0], last, kinds)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), drop_late=st.booleans())
def test_ticks_stood_through_do_not_count_between_observation_and_first_action(data, drop_late):
    """Action i is one whose index is the number of ticks not stood through since the start of the chunk."""
    queue, stood, start, begun, shift = ChunkQueue(drop_late=drop_late), [], 0, False, 0
    for tick in range(40):
        if data.draw(st.integers(0, 4)) == 0:
            observed = data.draw(st.integers(max(0, tick - 9), tick))
            if queue.push(Chunk(np.full((6, 1), float(observed)), observed, 0.0), tick):
                start, begun = observed if drop_late else tick, False
        is_held = data.draw(st.booleans())
        expected = tick - start - (sum(t >= start for t in stood) if not begun else shift)
        if is_held:
            if begun and queue.remaining(tick):
                assert expected < 6
                start = 99  # forgotten
            queue.stand(tick)
            stood.append(tick)
            assert queue.remaining(tick + 1) <= 6
            continue
        popped = queue.pop(tick)
        if popped is None:
            queue.stand(tick)
            stood.append(tick)
            continue
        assert popped.index == expected
        if not begun:
            begun, shift = True, sum(t >= start for t in stood)


def jump(limits, targets, posture, ticks=40, kinds=(ABSOLUTE, ABSOLUTE)):
    """Execute a chunk over and over from a posture; returns what was executed (ticks, A)."""
    loop = make_loop(
        2, Mode.SYNC, kinds, limits, lambda o, keys: targets[None].astype(np.float32), posture=posture
    )
    return np.array([loop.tick().action for _ in range(ticks)]), loop.guard


PLACES = st.floats(-50, 50, width=32)
WAYS = st.lists(st.tuples(PLACES, PLACES), min_size=8, max_size=8)


@settings(max_examples=60, deadline=None)
@given(way=WAYS, posture=st.tuples(PLACES, PLACES), step=st.floats(0.1, 5))
def test_with_limits_no_command_steps_further_from_the_posture_than_they_say(way, posture, step):
    executed, _ = jump(Limits(max_step=(step, step)), np.array(way), posture)
    assert np.abs(np.diff([posture, *executed], axis=0)).max() <= step + 1e-5


@settings(max_examples=60, deadline=None)
@given(way=WAYS, posture=st.tuples(PLACES, PLACES))
def test_without_limits_none_steps_further_than_the_chunk_itself_until_it_is_there(way, posture):
    targets = np.array(way, np.float32)
    executed, _ = jump(None, targets, posture, ticks=6)
    own = np.abs(np.diff(targets, axis=0)).max(axis=0)
    allowed = np.where(own > 0, own, np.abs(targets[0] - posture) / RAMP_TICKS)
    assert np.all(np.abs(np.diff([posture, *executed], axis=0)) <= allowed + 1e-4)


def test_a_ramp_ends_where_the_target_is_reached():
    targets = np.stack([np.arange(10.0, 18.0), np.full(8, -1.0)], axis=1)
    executed, guard = jump(None, targets, (8.0, 0.0), ticks=6)
    assert executed[:2].tolist() == [[8, 0]] * 2
    assert executed[2:6, 0].tolist() == [9, 10, 11, 12], "steps of one, two behind"
    assert executed[2:6, 1] == pytest.approx([-0.2, -0.4, -0.6, -0.8]), "a target that does not move: evenly"
    assert guard.interventions == 4, "and it is told"


def test_nothing_is_ramped_where_the_posture_is_not_known():
    loop = make_loop(0, Mode.SYNC, predict=lambda o, keys: np.full((1, 8, 1), 9.0, np.float32))
    assert loop.tick().action.tolist() == [9]


def test_a_robot_outside_its_bounds_may_stay_or_come_back_by_steps():
    guard = ActionGuard(Limits(low=(0.0,), high=(10.0,), max_step=(1.0,)), (ABSOLUTE,))
    guard.start(np.array([12.5]))
    assert [guard.limit(np.array([x]))[0] for x in (12.5, 20.0, 3.0, 3.0, 3.0, 12.0)] == [
        12.5, 12.5, 11.5, 10.5, 9.5, 10.0
    ]  # fmt: skip
    with pytest.raises(
        BadSetting, match="the robot holds 45 in dimension 0 .* far outside its limits, 0 to 10"
    ):
        guard.start(np.array([45.0]))


def test_an_action_of_another_size_or_type_is_refused_not_broadcast():
    guard = ActionGuard(None, (ABSOLUTE,) * 4)
    for wrong in (np.zeros(1), np.zeros((4, 1)), np.zeros(()), np.zeros((2, 4))):
        with pytest.raises(BadSetting, match="limits are for 4 dimensions, an action has shape"):
            guard.check(wrong)
    for wrong in (np.zeros(4, int), np.zeros(4, bool), np.zeros(4, complex), np.zeros(4, object)):
        with pytest.raises(BadSetting, match="an action is of type .*; real numbers are needed"):
            guard.check(wrong)
