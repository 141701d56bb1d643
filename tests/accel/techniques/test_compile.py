"""A compiled execution gives the eager one's actions: whole, step by step or block by block."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch._dynamo

from vivace.accel.apply import accelerate
from vivace.accel.plan import AccelerationPlan
from vivace.accel.record import record
from vivace.accel.technique import CalibrationData
from vivace.accel.techniques.block_cache import BlockCache
from vivace.accel.techniques.compile import Compile, compile_execution, compiled
from vivace.accel.techniques.hoist import Hoist
from vivace.accel.techniques.jacobi import Jacobi
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.execution import (
    Denoising,
    always_compute,
    as_trained,
    call_denoiser,
    decode,
    eagerly,
    sample,
)
from vivace.policies.fingerprint import fingerprint
from vivace.policies.language.decoding import greedy
from vivace.policies.load import stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.tiny.policies import tiny_dp_transformer, tiny_token_vla

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler; none found"),
]


@pytest.mark.long
@pytest.mark.parametrize(
    ("is_cached", "graphs"),
    [
        pytest.param(False, 8, id="whole"),
        pytest.param(True, 8, id="steps"),
        pytest.param(True, 0, id="blocks"),
    ],
)
def test_compiled_equals_eager(is_cached, graphs, monkeypatch):
    monkeypatch.setattr("vivace.accel.techniques.compile._GRAPHS", graphs)
    staged = stage(tiny_dp_transformer(n_layer=1, num_inference_steps=4))
    updates = {"action.0.self": (0, 2), "action.0.mlp": (0, 3)} if is_cached else {}
    techniques = (Hoist(), BlockCache(n_steps=4, updates=updates)) if is_cached else ()
    mark = fingerprint(staged.policy, staged.spec.block_ids)
    execution = accelerate(staged, AccelerationPlan(mark, techniques))
    batch = {"observation.state": torch.rand(1, 2, 5, generator=torch.Generator().manual_seed(0))}
    eager = sample(execution, batch, EpisodeNoise([(1, 0)]))
    found = sample(compile_execution(execution), batch, EpisodeNoise([(1, 0)]))
    torch.testing.assert_close(found, eager, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "decoder",
    [
        pytest.param(greedy, marks=pytest.mark.long),
        pytest.param(Jacobi(freeze=False), marks=pytest.mark.long),
        pytest.param(Jacobi(), marks=pytest.mark.long),
    ],
    ids=["greedy", "jacobi", "jacobi-frozen"],
)
def test_compiled_passes_write_the_eager_tokens(decoder):
    execution = replace(
        as_trained(stage(tiny_token_vla(language_layers=2, horizon=2, n_action_steps=2))), decoder=decoder
    )
    generator = torch.Generator().manual_seed(0)
    batch = {
        "observation.images.front": torch.rand(1, 3, 32, 32, generator=generator),
        "observation.language.tokens": torch.arange(16)[None],
        "observation.language.attention_mask": torch.ones(1, 16, dtype=torch.bool),
    }
    eager = decode(execution, batch, EpisodeNoise([(1, 0)]))
    torch._dynamo.reset()  # or graphs of another test serve this one
    before = _graphs()
    found = decode(compile_execution(execution), batch, EpisodeNoise([(1, 0)]))
    assert torch.equal(found.tokens, eager.tokens)
    assert torch.equal(found.passes, eager.passes)
    assert 1 <= _graphs() - before <= 3  # the prompt, a block, a block of one token; not one for each size


def test_more_blocks_than_dynamo_allows_graphs_compile_and_its_limit_stays(monkeypatch):
    monkeypatch.setattr("vivace.accel.techniques.compile._GRAPHS", 0)
    staged, updates = stage(tiny_dp_transformer(n_layer=3, num_inference_steps=2)), {"action.0.self": (0,)}
    limit = torch._dynamo.config.recompile_limit
    assert len(staged.blocks) > limit
    mark = fingerprint(staged.policy, staged.spec.block_ids)
    execution = accelerate(staged, AccelerationPlan(mark, (BlockCache(n_steps=2, updates=updates),)))
    batch = {"observation.state": torch.rand(1, 2, 5, generator=torch.Generator().manual_seed(0))}
    eager = sample(execution, batch, EpisodeNoise([(1, 0)]))
    found = sample(compile_execution(execution, "eager"), batch, EpisodeNoise([(1, 0)]))
    torch.testing.assert_close(found, eager, atol=1e-5, rtol=0)
    assert torch._dynamo.config.recompile_limit == limit


def test_sizes_beyond_those_that_dynamo_allows_run_eagerly():
    staged = stage(tiny_dp_transformer(n_layer=1, num_inference_steps=2))
    eager, graphs = as_trained(staged), compile_execution(as_trained(staged), "eager")
    for n in range(1, torch._dynamo.config.recompile_limit + 3):
        batch = {"observation.state": torch.rand(n, 2, 5, generator=torch.Generator().manual_seed(n))}
        keys = [(1, i) for i in range(n)]
        found, wanted = (sample(it, batch, EpisodeNoise(keys)) for it in (graphs, eager))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def _graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def test_a_plan_that_decides_at_run_time_is_refused():
    staged = stage(tiny_dp_transformer(n_layer=1))
    execution = Denoising(staged, staged.sampler, lambda index, cache: None)
    with pytest.raises(UnsupportedPolicy, match="decides at run time"):
        compile_execution(execution)


def test_a_plan_says_it_once():
    staged = stage(tiny_dp_transformer(n_layer=1))
    mark = fingerprint(staged.policy, staged.spec.block_ids)
    plan = compiled(AccelerationPlan(mark, (Hoist(),)))
    assert [one.kind for one in plan.techniques] == ["hoist", "compile"]
    assert compiled(plan) is plan
    assert AccelerationPlan.from_json(plan.to_json()) == plan
    assert [one.kind for one in plan.techniques if not one.is_for_torch] == ["hoist"]


def test_where_many_are_computed_at_once_or_watched_what_it_is_made_of_runs():
    staged = stage(tiny_dp_transformer(n_layer=1))
    mark = fingerprint(staged.policy, staged.spec.block_ids)
    plan = AccelerationPlan(mark, (Hoist(), Compile(backend="eager")))
    execution = accelerate(staged, plan)
    assert execution.call is not eagerly(execution).call
    assert eagerly(execution).plan == plan  # results are of this plan
    assert eagerly(eagerly(execution)) == eagerly(execution)
    assert eagerly(execution).call is call_denoiser


def test_whoever_looks_at_its_blocks_sees_them_run():
    """A page shows what calibration looked at; the compiled steps of a cache keep nothing for it."""
    staged = stage(tiny_dp_transformer(n_layer=1, num_inference_steps=4))
    mark = fingerprint(staged.policy, staged.spec.block_ids)
    data = CalibrationData({"observation.state": torch.rand(2, 2, 5)}, ((1, 0), (2, 0)))
    cache = BlockCache(n_steps=4, updates={"action.0.self": (0, 2)})
    plain, graphs = (
        accelerate(staged, AccelerationPlan(mark, (cache, *more)))
        for more in ((), (Compile(backend="eager"),))
    )
    found, wanted = record(graphs, data), record(plain, data)
    assert found.similarity.keys() == wanted.similarity.keys() == set(staged.spec.block_ids)
    assert all(np.array_equal(found.similarity[name], wanted.similarity[name]) for name in wanted.similarity)
    twin = replace(graphs, action=always_compute)  # whoever runs it otherwise
    batch = data.one
    torch.testing.assert_close(
        sample(twin, batch, EpisodeNoise([(1, 0)])),
        sample(as_trained(staged), batch, EpisodeNoise([(1, 0)])),
        atol=1e-5,
        rtol=0,
    )


def test_without_a_compiler_it_is_refused(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    staged = stage(tiny_dp_transformer(n_layer=1))
    plan = AccelerationPlan(fingerprint(staged.policy, staged.spec.block_ids), (Compile(),))
    with pytest.raises(UnsupportedPolicy, match=r"without a compiler \(g\+\+; triton .* leave it out"):
        accelerate(staged, plan)
