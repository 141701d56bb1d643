"""What is drawn is what the plan keeps."""

import numpy as np

from vivace.eval.simulation.patches import shade


def test_dropped_patches_are_dark_and_kept_ones_are_not():
    image = np.full((32, 32, 3), 200, np.uint8)
    frame = shade([image, image], np.array([0, 5, 16]), (16, 16))
    assert frame.shape == (320, 640, 3)
    bright = frame[40::80, 40::80, 0] == 200
    expected = np.zeros((4, 8), bool)
    expected[0, 0] = expected[1, 1] = expected[0, 4] = True
    assert np.array_equal(bright, expected)
    assert (frame[40::80, 40::80, 0][~expected] == 50).all()
