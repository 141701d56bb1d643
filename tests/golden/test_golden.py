"""Action traces that must not change: seeded miniatures, plain and accelerated.

Rewrite with `pytest tests/golden --regen-golden`; it prints the largest change.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from vivace.accel.apply import accelerate
from vivace.accel.plan import AccelerationPlan
from vivace.accel.techniques.block_cache import BlockCache
from vivace.accel.techniques.forecast import Forecast
from vivace.accel.techniques.hoist import Hoist
from vivace.accel.techniques.step_schedule import StepSchedule
from vivace.policies.execution import sample
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.tiny.policies import tiny_diffusion, tiny_dp_transformer

HERE = Path(__file__).parent
UPDATES = (0, 1, 4, 7)


def plans(blocks):
    updates = {name: UPDATES[: 2 + i % 3] for i, name in enumerate(blocks)}
    return {
        "plain": (),
        "hoist+cache": (Hoist(), BlockCache(n_steps=10, updates=updates)),
        "forecast": (Forecast(n_steps=10, updates=updates, order=2),),
        "ddim": (StepSchedule(sampler="ddim", n_steps=5),),
    }


@pytest.mark.parametrize("build", [tiny_dp_transformer, tiny_diffusion], ids=["dp_transformer", "diffusion"])
def test_actions_are_those_on_file(build, request):
    staged = stage(build())
    generator = torch.Generator().manual_seed(5)
    batch = {
        key: torch.rand(2, staged.spec.n_obs_steps, *shape, generator=generator)
        for key, shape in staged.spec.observation_shapes.items()
    }
    mark = fingerprint(staged.policy, staged.spec.block_ids)
    found = {
        name: sample(
            accelerate(staged, AccelerationPlan(mark, techniques)), batch, EpisodeNoise([(3, 0), (4, 0)])
        ).numpy()
        for name, techniques in plans(staged.spec.block_ids).items()
    }
    file = HERE / f"{staged.spec.type}.npz"
    if request.config.getoption("--regen-golden"):
        changes = {}
        if file.exists():
            old = np.load(file)
            changes = {name: float(np.abs(old[name] - value).max()) for name, value in found.items()}
        print(f"{file.name}: largest change {changes or 'new file'}")
        np.savez_compressed(file, **found)
    expected = np.load(file)
    for name, value in found.items():
        np.testing.assert_allclose(value, expected[name], atol=1e-5, rtol=0, err_msg=name)
