"""What a process runs in tests: no policy, so that it is there at once and misbehaves when told to."""

import os
import time

import numpy as np

from vivace.policies.types import PREVIOUS


class Fake:
    """Answers with what it was asked; some plans misbehave."""

    def __call__(self, observations, noise_key, plan, task):
        if plan == "die":
            os._exit(1)
        if plan == "stall":
            time.sleep(60)
        if plan == "raise":
            raise ValueError("no such thing")
        state, image = observations["observation.state"], observations["observation.images.front"]
        assert image.dtype == np.uint8
        assert image.shape == (1, 2, 4, 5, 3)
        known = observations[PREVIOUS].sum() if PREVIOUS in observations else 0
        total = state.sum() + image.sum() + known + len(task)
        return np.full((3, 2), total + noise_key[1], np.float32)


def broken():
    raise OSError("nothing there")
