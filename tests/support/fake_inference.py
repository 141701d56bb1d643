"""What a process runs in tests: no policy, so that it is there at once and misbehaves when told to."""

import os
import time

import numpy as np

SHAPES = {"thin": (3, 1), "long": (5, 2), "empty": (0, 2), "flat": (2,), "one": ()}
"""Plan -> actions of a shape that is none of a chunk's."""


class Fake:
    """Answers with what it was asked; some plans misbehave."""

    def __call__(self, request):
        plan = request.plan
        if plan == "die":
            os._exit(1)
        if plan == "stall":
            time.sleep(60)
        if plan == "slow":
            time.sleep(1)
        if plan == "raise":
            raise ValueError("no such thing")
        if plan in SHAPES:
            return np.ones(SHAPES[plan], np.float32)
        if plan == "nan":
            return np.full((3, 2), np.nan, np.float32)
        state, image = (request.observations[f"observation.{key}"] for key in ("state", "images.front"))
        assert image.dtype == np.uint8
        assert image.shape == (2, 4, 5, 3)
        known = 0 if request.previous is None else request.previous.sum()
        total = state.sum() + image.sum() + known + len(request.task)
        return np.full((3, 2), total + request.noise_key[1], np.float32)


def broken():
    raise OSError("nothing there")
