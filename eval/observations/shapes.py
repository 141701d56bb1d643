"""Observations made up from what a checkpoint says of its inputs, where nothing better was given.

Numbers are uniform over the range that the statistics of its normaliser name, standard normal where there
are none; pictures are noise. They have the right shapes and sizes, so that work and latency are those of real
ones. How alike two steps of a policy are, and how far off its actions, is not known from them.
"""

from typing import Any

import numpy as np

from vivace.accel.technique import CalibrationData
from vivace.policies.arrays import is_image, observation_layout
from vivace.policies.features import renames
from vivace.policies.session import Session
from vivace.policies.spec import PREVIOUS
from vivace.policies.training_range import training_ranges


def made_up(session: Session, samples: int, seed: int) -> CalibrationData:
    """Make observations up, each as if it were of an episode of its own.

    Args:
        session: runs the policy; its task is the instruction.
        samples: how many.
        seed: of the first; the noise of row i is named (seed + i, 0).
    """
    spec = session.spec
    random = np.random.default_rng(seed)
    preprocess = session.loaded.preprocess
    ranges = dict(training_ranges(preprocess, spec, renames(preprocess)))
    raw: dict[str, Any] = {"task": [session.task] * samples}
    for key, (shape, _) in observation_layout(spec).items():
        if is_image(key):
            raw[key] = random.integers(0, 256, (samples, *shape), np.uint8)
        elif key in ranges:
            known = ranges[key]
            raw[key] = random.uniform(known.low, known.high, (samples, *shape)).astype(np.float32)
        else:
            raw[key] = random.standard_normal((samples, *shape), np.float32)
    raw[PREVIOUS] = np.full((samples, spec.horizon, spec.action_dim), np.nan, np.float32)
    inputs = session.inputs(raw)
    keys = tuple((seed + i, 0) for i in range(samples))
    source = f"from shapes ({samples} made up, none seen)"
    return CalibrationData(inputs.batch, keys, inputs.draft, raw, source=source)
