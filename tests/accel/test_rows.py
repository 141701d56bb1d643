"""Rows: mental arithmetic with blocks that double, collapse of reused runs, fresh rows are the identity."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from vivace.accel.rows import RowRunner, make_rows
from vivace.accel.techniques.forecast import Forecast
from vivace.policies.block import EMPTY, Block, through
from vivace.policies.spec import BlockInfo

NAMES = ("action.0.self", "action.0.mlp", "action.1.self", "action.1.mlp")
INFOS = tuple(BlockInfo(name) for name in NAMES)


def run(rows, inputs, scale=1.0, additive=True):
    """Stream of each step through blocks whose output is `scale` times their input; counts calls."""
    calls, outputs, cache = [], [], EMPTY
    blocks = [Block(n, lambda h, n=n: calls.append(n) or scale * h, additive) for n in NAMES]
    for index, value in enumerate(inputs):
        runner, h = rows(index, cache), torch.tensor(float(value))
        for block in blocks:
            h = through(runner, block, h)
        outputs.append(h.item())
        cache = runner.cache
    return outputs, calls


def test_reused_branches_are_added_as_they_were():
    rows = make_rows(INFOS, dict.fromkeys(NAMES, (0,)), 2)
    outputs, calls = run(rows, [1, 10])
    # each block doubles the stream: outputs 1, 2, 4, 8; their sum 15 is added to the next input
    assert outputs == [16, 25]
    assert calls == list(NAMES)


def test_a_fully_reused_step_is_one_group_and_one_addition():
    rows = make_rows(INFOS, dict.fromkeys(NAMES, (0,)), 3)
    assert [len(row.groups) for row in rows.rows] == [0, 1, 1]
    assert [g.is_renewed for row in rows.rows for g in row.groups] == [True, False]
    runner = RowRunner(rows.rows[2], {"+".join(NAMES): (torch.tensor(7.0),)})
    answers = [runner(Block(n, lambda h: h), torch.tensor(1.0)) for n in NAMES]
    assert answers[0].item() == 7.0
    assert answers[1:] == [None, None, None]


def test_groups_break_at_computed_blocks():
    updates = dict.fromkeys(NAMES, (0,)) | {"action.1.self": (0, 1)}
    row = make_rows(INFOS, updates, 2).rows[1]
    assert [group.members for group in row.groups] == [NAMES[:2], NAMES[3:]]


def test_replacing_blocks_never_collapse():
    infos = tuple(BlockInfo(name, additive=False) for name in NAMES)
    rows = make_rows(infos, dict.fromkeys(NAMES, (0,)), 2)
    assert [len(group.members) for group in rows.rows[1].groups] == [1, 1, 1, 1]
    assert run(rows, [1, 5], scale=2.0, additive=False)[0] == [16, 16]


def test_cache_of_an_earlier_step_is_not_changed():
    rows = make_rows(INFOS, dict.fromkeys(NAMES, (0, 1)), 2)
    first = rows(0, EMPTY)
    first(Block(NAMES[0], lambda h: h), torch.tensor(1.0))
    before = dict(first.cache)
    rows(1, first.cache)(Block(NAMES[0], lambda h: h), torch.tensor(2.0))
    assert first.cache == before


def test_forecasts_continue_a_line():
    forecast = Forecast(n_steps=6, updates=dict.fromkeys(NAMES, (0, 1)), order=1)
    rows = make_rows(INFOS, forecast.updates, 6, 2, forecast.weights)
    outputs, _ = run(rows, [1, 2, 3, 4, 5, 6])
    # with a linear input every output is linear: 16 times the input, exactly forecast
    assert outputs == [16, 32, 48, 64, 80, 96]


@given(
    st.lists(st.sets(st.integers(1, 5)), min_size=4, max_size=4),
    st.lists(st.integers(-9, 9), min_size=6, max_size=6),
)
def test_collapsing_equals_block_by_block(extra, inputs):
    updates = {n: (0, *sorted(steps)) for n, steps in zip(NAMES, extra, strict=True)}
    collapsed, calls = run(make_rows(INFOS, updates, 6), inputs)
    cached, expected = {}, []
    for step, value in enumerate(inputs):
        h = float(value)
        for name in NAMES:
            if step in updates[name]:
                cached[name] = h
            h += cached[name]
        expected.append(h)
    assert collapsed == expected
    assert len(calls) == sum(map(len, updates.values()))


def test_all_fresh_is_the_identity():
    rows = make_rows(INFOS, {}, 2)
    assert run(rows, [1, 2])[0] == [16, 32]
    assert rows.programs == 1
