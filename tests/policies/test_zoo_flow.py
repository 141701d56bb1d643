"""The trained SmolVLA of the zoo: it loads as it lies there, reads, looks, and is blind to the answer."""

import numpy as np
import pytest

from vivace.policies.load import load_policy
from vivace.policies.session import Session

CAMERA, STATE = "observation.images.close_up", "observation.state"


@pytest.fixture(scope="module")
def loaded():
    return load_policy("zoo/halfway-flow")


def chunk(loaded, seen, task="Open the drawer"):
    return Session(loaded, task=task).predict(seen, [(0, 0)])


@pytest.fixture(scope="module")
def seen():
    """One made-up moment."""
    random = np.random.default_rng(0)
    return {
        CAMERA: random.integers(0, 255, (1, 1, 128, 128, 3)).astype(np.uint8),
        STATE: random.uniform(-0.5, 0.5, (1, 1, 39)).astype(np.float32),
    }


def test_it_acts_on_what_it_sees_and_is_told(loaded, seen):
    plain = chunk(loaded, seen)
    assert plain.shape == (1, 16, 4)
    assert np.isfinite(plain).all()
    assert np.array_equal(plain, chunk(loaded, seen))
    for changed in (seen | {CAMERA: 255 - seen[CAMERA]}, seen | {STATE: seen[STATE] + 0.1}):
        assert np.abs(chunk(loaded, changed) - plain).max() > 1e-3
    assert np.abs(chunk(loaded, seen, "Close the drawer") - plain).max() > 1e-3


def test_it_is_blind_to_where_things_are(loaded, seen):
    moved = {**seen, STATE: seen[STATE].copy()}
    moved[STATE][..., 4:] *= -3
    np.testing.assert_allclose(chunk(loaded, moved), chunk(loaded, seen), atol=1e-5)
