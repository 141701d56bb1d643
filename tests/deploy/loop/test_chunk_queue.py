"""The queue under any arrival pattern: order, alignment, newest wins, blending, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vivace.deploy.loop.chunk_queue import ChunkQueue
from vivace.policies.errors import BadSetting
from vivace.policies.spec import Chunk

ARRIVALS = st.lists(  # one entry a tick: is it executed, and chunks (delay, length) that arrive
    st.tuples(st.booleans(), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 7)), max_size=2)),
    max_size=25,
)


def make_chunk(tick, length, value=None):
    """Action i is (tick, i), so it says where it comes from; or all are `value`."""
    if value is not None:
        return Chunk(np.full((length, 2), value, dtype=float), tick, 0.0)
    return Chunk(np.array([(tick, i) for i in range(length)], dtype=float).reshape(length, 2), tick, 0.0)


def play(queue, arrivals):
    """Push and pop; list (tick, popped, remaining before, tick of the last arrival accepted)."""
    shown, accepted_at = [], None
    for tick, (is_executed, chunks) in enumerate(arrivals):
        for delay, length in chunks:
            observed, before = max(0, tick - delay), queue.observed_tick
            is_newer = before is None or observed > before
            assert queue.push(make_chunk(observed, length), tick) == is_newer
            assert queue.observed_tick == (observed if is_newer else before)
            accepted_at = tick if is_newer else accepted_at
        if is_executed:
            remaining = queue.remaining(tick)
            shown.append((tick, queue.pop(tick), remaining, accepted_at))
    return shown


@settings(max_examples=200, deadline=None)
@given(arrivals=ARRIVALS, drop_late=st.booleans(), limit=st.none() | st.integers(1, 5))
def test_no_action_is_executed_twice_or_out_of_order(arrivals, drop_late, limit):
    shown = play(ChunkQueue(drop_late=drop_late, limit=limit), arrivals)
    places = [(popped.chunk_id, popped.index) for _, popped, _, _ in shown if popped]
    assert places == sorted(set(places))
    sources = [tuple(popped.action) for _, popped, _, _ in shown if popped]
    assert sources == sorted(set(sources))  # nor does an older observation come after a newer one
    for tick, popped, remaining, _ in shown:
        assert (popped is None) == (remaining == 0)
        if popped:
            assert popped.action[1] == popped.index
            assert popped.age_ticks == tick - popped.action[0]
            assert limit is None or popped.index < limit


@settings(max_examples=200, deadline=None)
@given(arrivals=ARRIVALS)
def test_dropping_late_actions_executes_each_at_its_own_tick(arrivals):
    for tick, popped, _, _ in play(ChunkQueue(drop_late=True), arrivals):
        if popped:
            observed, index = popped.action
            assert popped.index == index == tick - observed


@settings(max_examples=200, deadline=None)
@given(arrivals=ARRIVALS)
def test_keeping_late_actions_begins_with_the_first_on_arrival(arrivals):
    for tick, popped, _, accepted_at in play(ChunkQueue(drop_late=False), arrivals):
        if popped:
            assert popped.index == tick - accepted_at


def test_late_actions_are_counted():
    queue = ChunkQueue(drop_late=True)
    queue.push(make_chunk(tick=2, length=8), tick=5)
    assert (queue.dropped, queue.accepted, queue.remaining(5)) == (3, 1, 5)
    queue.push(make_chunk(tick=4, length=3), tick=20)  # all of it is late
    assert (queue.dropped, queue.accepted, queue.remaining(20)) == (6, 2, 0)
    assert queue.pop(20) is None


def test_an_older_chunk_never_replaces_a_newer_one():
    queue = ChunkQueue(drop_late=True)
    assert queue.push(make_chunk(tick=3, length=9), tick=4)
    for tick in (1, 3):
        assert not queue.push(make_chunk(tick=tick, length=9), tick=5)
    assert queue.pop(5).action.tolist() == [3, 2]
    assert (queue.accepted, queue.dropped) == (1, 1)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 10_000), blend_ticks=st.integers(0, 6), delay=st.integers(0, 4))
def test_blending_is_a_convex_combination_and_ends_at_the_new_chunk(seed, blend_ticks, delay):
    rng = np.random.default_rng(seed)
    old, new = rng.normal(size=(20, 2)), rng.normal(size=(20, 2))
    queue = ChunkQueue(drop_late=True, blend_ticks=blend_ticks)
    queue.push(Chunk(old, 0, 0.0), 0)
    switched = 3 + delay
    queue.push(Chunk(new, 3, 0.0), switched)
    for tick in range(switched, 20):
        action, before, after = queue.pop(tick).action, old[tick], new[tick - 3]
        assert np.all(action >= np.minimum(before, after) - 1e-12)
        assert np.all(action <= np.maximum(before, after) + 1e-12)
        if tick >= switched + blend_ticks:
            np.testing.assert_array_equal(action, after)


def test_the_share_of_the_new_chunk_rises_evenly():
    queue = ChunkQueue(drop_late=True, blend_ticks=3)
    queue.push(make_chunk(0, 10, value=0), 0)
    queue.push(make_chunk(2, 10, value=1), 4)
    assert [queue.pop(tick).action[0] for tick in range(4, 9)] == [0.25, 0.5, 0.75, 1, 1]


def test_blending_keeps_the_type_of_the_actions():
    queue = ChunkQueue(drop_late=True, blend_ticks=1)
    for tick in (0, 1):
        queue.push(Chunk(np.ones((4, 2), np.float32), tick, 0.0), tick)
    assert queue.pop(1).action.dtype == np.float32


@pytest.mark.parametrize("old", [make_chunk(0, 3, value=9), make_chunk(0, 10, value=np.nan)])
def test_nothing_is_blended_with_an_action_that_is_missing_or_not_finite(old):
    queue = ChunkQueue(drop_late=True, blend_ticks=4)
    queue.push(old, 0)
    queue.push(make_chunk(3, 10, value=1), 3)
    assert [queue.pop(tick).action[0] for tick in range(3, 6)] == [1, 1, 1]


def test_an_empty_queue_has_nothing():
    queue = ChunkQueue(drop_late=False)
    assert queue.pop(0) is None
    assert (queue.observed_tick, queue.remaining(1), queue.accepted) == (None, 0, 0)


def test_errors():
    with pytest.raises(BadSetting, match="limit=0; at least 1"):
        ChunkQueue(drop_late=False, limit=0)
    with pytest.raises(BadSetting, match="blend_ticks=-1"):
        ChunkQueue(drop_late=True, blend_ticks=-1)
    with pytest.raises(BadSetting, match="blend_ticks=2 with drop_late=False"):
        ChunkQueue(drop_late=False, blend_ticks=2)
    queue = ChunkQueue(drop_late=True)
    with pytest.raises(BadSetting, match="observed at tick 4 arrived at tick 3"):
        queue.push(make_chunk(4, 1), 3)
    queue.pop(6)
    with pytest.raises(BadSetting, match="tick 6 was asked for after that of 6; ticks must ascend"):
        queue.pop(6)


def test_what_is_ahead_begins_at_the_tick_asked_for():
    queue = ChunkQueue(drop_late=False, limit=2)
    assert queue.ahead(0) is None
    queue.push(Chunk(np.arange(10.0).reshape(5, 2), 0, 0.0), 3)  # executed from tick 3 on
    assert queue.ahead(4)[:, 0].tolist() == [2.0, 4.0, 6.0, 8.0]  # also what the limit leaves out
    assert queue.ahead(8) is None


def test_a_chunk_is_followed_from_where_it_has_come_to():
    queue = ChunkQueue(drop_late=True)
    assert queue.followed(0) is None, "there is none yet"
    queue.push(Chunk(np.zeros((4, 1)), tick=2, ready_s=0.0), 3)
    assert [queue.followed(tick) for tick in (3, 5, 6)] == [(2, 1), (2, 3), None]
    waiting = ChunkQueue(drop_late=False)
    waiting.push(Chunk(np.zeros((4, 1)), tick=2, ready_s=0.0), 5)
    assert waiting.followed(6) == (2, 1), "it began with its first action"
    waiting.clear(7)
    assert waiting.followed(7) is None


def test_a_late_or_refused_chunk_is_followed_by_none():
    queue = ChunkQueue(drop_late=True)
    queue.push(Chunk(np.zeros((4, 1)), tick=0, ready_s=0.0), 1, was_late=True)
    assert queue.followed(2) is None
    queue.push(Chunk(np.zeros((4, 1)), tick=2, ready_s=0.0), 3)
    assert queue.followed(3) == (2, 1)
    queue.refuse()
    assert queue.followed(3) is None
    standing = ChunkQueue(drop_late=True)
    standing.stand(0)
    standing.push(Chunk(np.zeros((4, 1)), tick=0, ready_s=0.0), 3, was_late=True)
    standing.pop(3)
    assert standing.followed(4) == (0, 1), "the robot stood, so that it is where the chunk begins"


def test_what_was_cleared_is_gone_and_does_not_come_back():
    queue = ChunkQueue(drop_late=True)
    queue.push(make_chunk(tick=2, length=8), tick=3)
    queue.clear(3)
    assert (queue.pop(4), queue.observed_tick) == (None, None)
    assert not queue.push(make_chunk(tick=2, length=8), tick=5)
    assert queue.push(make_chunk(tick=3, length=8), tick=5)
    queue.clear(3)
    assert queue.pop(5).action.tolist() == [3, 2]


@pytest.mark.parametrize("drop_late", [True, False])
@pytest.mark.parametrize("ensemble", [0.0, 0.3, -0.5])
def test_an_ensemble_executes_the_mean_of_all_that_was_meant(ensemble, drop_late):
    """B1: against algorithm 2 of ACT, written down; standstills do not count."""
    limit, random = None if drop_late else 1, np.random.default_rng(0)
    queue = ChunkQueue(drop_late=drop_late, limit=limit, ensemble=ensemble)
    chunks = random.normal(size=(9, 4, 2))
    ticks = [0, 1, 2, 3, 4, 5, 6, 7, 8] if drop_late else [0, 2, 4, 6, 8, 10, 12, 14, 16]
    for t, tick in enumerate(ticks):
        queue.push(Chunk(chunks[t], tick, 0.0), tick)
        means = np.stack([chunks[k][t - k] for k in range(max(0, t - 3), t + 1)])
        weights = np.exp(-ensemble * np.arange(len(means)))
        np.testing.assert_allclose(queue.pop(tick).action, weights @ means / weights.sum())
        if not drop_late:
            queue.stand(tick + 1)
    queue.clear(99)
    queue.push(Chunk(chunks[0], 99, 0.0), 99)
    np.testing.assert_array_equal(queue.pop(99).action, chunks[0][0])


def test_an_ensemble_is_not_blended():
    with pytest.raises(BadSetting, match="blend_ticks=2, but this policy executes the mean of its chunks"):
        ChunkQueue(drop_late=True, blend_ticks=2, ensemble=0.01)
