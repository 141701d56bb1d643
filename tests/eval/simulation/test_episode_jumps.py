"""Jumps of the action are told apart: from chunk to chunk, and within one."""

from types import SimpleNamespace

import numpy as np

from vivace.eval.simulation.episode import jumps


def record(tick, action, chunk_id):
    return SimpleNamespace(tick=tick, action=np.array([action, 0.0]), chunk_id=chunk_id)


def test_jumps_are_told_apart_and_stops_are_among_them():
    actions = [
        (7.0, None),
        (0.0, 0),
        (1.0, 0),
        (4.0, 1),
        (4.5, 1),
        (9.0, None),
        (8.0, None),
        (2.0, 2),
        (0.0, 3),
    ]
    records = [record(tick, *seen) for tick, seen in enumerate(actions)]
    assert jumps(records) == ((3.0, 4.5, 6.0, 2.0), (1.0, 0.5))
    assert jumps(records[:1]) == ((), ())
