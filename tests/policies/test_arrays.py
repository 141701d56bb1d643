"""Arrays enter as they are or not at all: nothing is broadcast, cast or taken for something else."""

import numpy as np
import pytest

from vivace.policies.arrays import (
    batch_layout,
    enter_observations,
    enter_previous,
    entered,
    observation_layout,
)
from vivace.policies.errors import ObservationMismatch
from vivace.policies.spec import DELAY, PREVIOUS, ActionKind, PolicySpec

STATE, CAMERA = "observation.state", "observation.images.front"
SPEC = PolicySpec(
    type="x",
    action_dim=4,
    horizon=16,
    n_obs_steps=2,
    n_action_steps=8,
    observation_shapes={STATE: (39,), CAMERA: (3, 4, 5)},
    action_kinds=(ActionKind.ABSOLUTE,) * 4,
    blocks=(),
)


def seen(**changed):
    values = {"state": np.ones((1, 2, 39)), "camera": np.zeros((1, 2, 4, 5, 3), np.uint8)} | changed
    return {STATE: values["state"], CAMERA: values["camera"], "observation.extra": "passed over"}


def test_layouts_are_as_a_robot_gives_them():
    assert observation_layout(SPEC) == {STATE: ((2, 39), "float32"), CAMERA: ((2, 4, 5, 3), "uint8")}
    assert batch_layout(SPEC, 3)[STATE] == ((3, 2, 39), "float32")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int8", "uint8"])
def test_real_numbers_become_float32(dtype):
    found = enter_observations(seen(state=np.full((1, 2, 39), 3, dtype)), batch_layout(SPEC, 1))
    assert set(found) == {STATE, CAMERA}
    assert found[STATE].dtype == np.float32
    assert (found[STATE] == 3).all()


@pytest.mark.parametrize(("changed", "message"), [
    ({"state": np.ones((1, 2, 1))}, r"'observation\.state' has shape \(1, 2, 1\), needed is \(1, 2, 39\)"),
    ({"state": np.ones((1,))}, r"has shape \(1,\), needed is \(1, 2, 39\)"),
    ({"state": np.float32(1)}, r"has shape \(\), needed"),
    ({"state": np.ones((1, 1, 39))}, r"has shape \(1, 1, 39\)"),
    ({"state": np.ones((2, 2, 39))}, r"has shape \(2, 2, 39\)"),
    ({"state": np.full((1, 2, 39), np.nan)}, "holds NaN or infinity; check the sensor"),
    ({"state": np.full((1, 2, 39), 1e300)}, "holds NaN or infinity"),
    ({"state": np.full((1, 2, 39), "1")}, "is <U1; real numbers are needed"),
    ({"state": np.full((1, 2, 39), None)}, "is object; real numbers are needed"),
    ({"state": np.full((1, 2, 39), 1j)}, "is complex128; real numbers are needed"),
    ({"state": np.ones((1, 2, 39), bool)}, "is bool; real numbers are needed"),
    ({"camera": np.zeros((1, 2, 4, 5, 3))}, r"'observation\.images\.front' is float64; pictures are uint8"),
    ({"camera": np.zeros((1, 2, 4, 5, 3), np.int64)}, "is int64; pictures are uint8"),
    ({"camera": np.zeros((1, 2, 3, 4, 5), np.uint8)}, r"has shape \(1, 2, 3, 4, 5\)"),
    ({"camera": np.zeros((1, 2, 4, 5, 1), np.uint8)}, r"has shape \(1, 2, 4, 5, 1\)"),
])  # fmt: skip
def test_what_is_not_what_the_policy_reads_is_named(changed, message):
    with pytest.raises(ObservationMismatch, match=message):
        enter_observations(seen(**changed), batch_layout(SPEC, 1))


def test_what_is_missing_is_named():
    with pytest.raises(
        ObservationMismatch, match=r"has keys \['a'\], but the policy needs 'observation\.state'"
    ):
        enter_observations({"a": 1}, batch_layout(SPEC, 1))


def test_ragged_lists_are_named():
    with pytest.raises(ObservationMismatch, match="'x' holds no array"):
        entered("'x'", [[1], [1, 2]], (2, 2), "float32")


def test_what_the_chunks_before_mean_is_checked_too():
    previous = np.ones((1, 3, 4), np.float32)
    previous[0, 2] = np.nan
    actions, delay = enter_previous({PREVIOUS: previous}, SPEC, 1)
    assert actions.dtype == np.float32
    assert delay.tolist() == [0]
    _, delay = enter_previous({PREVIOUS: previous, DELAY: np.array([2], np.int32)}, SPEC, 1)
    assert (delay.tolist(), delay.dtype) == ([2], np.int64)
    whole = np.ones((1, 3, 4), int)
    for wrong in (previous[0], previous[:, :, :1], previous[:0], whole, previous * np.inf):
        with pytest.raises(ObservationMismatch, match=r"'action\.previous' (is|holds)"):
            enter_previous({PREVIOUS: wrong}, SPEC, 1)
    for wrong in (np.array([-1]), np.array([0.5]), np.zeros(2, int), 3):
        with pytest.raises(ObservationMismatch, match="whole numbers of ticks, 0 or more"):
            enter_previous({PREVIOUS: previous, DELAY: wrong}, SPEC, 1)
