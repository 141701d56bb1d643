"""A compiled execution gives the eager one's actions, whole or block by block."""

import shutil

import pytest
import torch

from vivace.accel.apply import accelerate
from vivace.accel.block_cache import BlockCache
from vivace.accel.compile import compile_execution
from vivace.accel.hoist import Hoist
from vivace.accel.plan import AccelerationPlan
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.noise import EpisodeNoise
from vivace.policies.staged import Execution, sample
from vivace.policies.tiny import tiny_dp_transformer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler; none found"),
]


@pytest.mark.parametrize("is_cached", [False, True], ids=["whole", "blocks"])
def test_compiled_equals_eager(is_cached):
    staged = stage(tiny_dp_transformer(n_layer=1, num_inference_steps=4))
    updates = {"action.0.self": (0, 2), "action.0.mlp": (0, 3)} if is_cached else {}
    techniques = (Hoist(), BlockCache(n_steps=4, updates=updates)) if is_cached else ()
    mark = fingerprint(staged.policy, staged.spec.block_ids)
    execution = accelerate(staged, AccelerationPlan(mark, techniques))
    batch = {"observation.state": torch.rand(1, 2, 5, generator=torch.Generator().manual_seed(0))}
    eager = sample(execution, batch, EpisodeNoise([(1, 0)]))
    compiled = sample(compile_execution(execution), batch, EpisodeNoise([(1, 0)]))
    torch.testing.assert_close(compiled, eager, atol=1e-5, rtol=0)


def test_a_plan_that_decides_at_run_time_is_refused():
    staged = stage(tiny_dp_transformer(n_layer=1))
    execution = Execution(staged, staged.sampler, lambda index, cache: None)
    with pytest.raises(UnsupportedPolicy, match="decides at run time"):
        compile_execution(execution)
