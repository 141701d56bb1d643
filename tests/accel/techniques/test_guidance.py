"""The unconditional branch is given up, or estimated, where and as calibrated."""

from dataclasses import replace

import pytest
import torch

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.flops import count_flops
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.accel.techniques.block_cache import BlockCache
from vivace.accel.techniques.guidance import Guidance
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import as_trained, sample
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.tiny.policies import tiny_cogact


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    batch = {
        "observation.images.front": torch.rand(2, 1, 3, 32, 32, generator=generator),
        "observation.language.tokens": torch.arange(48).view(2, 24),
        "observation.language.attention_mask": torch.ones(2, 24, dtype=torch.bool),
    }
    return CalibrationData(batch, ((0, 0), (0, 1)))


def run(execution, data):
    return sample(execution, data.batch, EpisodeNoise(data.noise_keys))


def test_all_steps_full_is_the_plain_loop_bit_for_bit(data):
    execution = as_trained(stage(tiny_cogact()))
    full = Guidance(steps=("full",) * 10)
    assert torch.equal(run(full.apply(execution), data), run(execution, data))


def test_conditional_steps_are_the_policy_without_guidance(data):
    """After the first step guided, the rest must be what scale 1 gives from there."""
    guided, free = stage(tiny_cogact()), stage(tiny_cogact(guidance_scale=1.0))
    technique = Guidance(steps=("full",) + ("conditional",) * 9)
    actions = run(technique.apply(as_trained(guided)), data)

    noise = EpisodeNoise(data.noise_keys)
    with torch.inference_mode():
        z = guided.encode(data.batch)
        x, memory = noise((2, 8, 3), z), ()
        for step in guided.sampler.steps:
            policy = guided if step.index == 0 else free
            x, memory = step.advance(x, policy.denoise(x, policy.condition(step, z)), memory, noise)
        expected = guided.finish(x, z)
    torch.testing.assert_close(actions, expected, atol=1e-6, rtol=0)


def test_adaptive_guidance_stops_once_both_branches_agree(data):
    execution = as_trained(stage(tiny_cogact()))
    recorded = Guidance.calibrate(execution, data, {"threshold": -1.0})
    assert recorded.steps == ("full",) + ("conditional",) * 9
    threshold = sorted(recorded.agreement)[5]
    technique = Guidance.calibrate(execution, data, {"threshold": threshold})
    first = next(k for k, value in enumerate(technique.agreement) if value >= threshold)
    assert technique.steps.count("full") == max(1, first)
    never = Guidance.calibrate(execution, data, {"threshold": 1.0})
    assert never.steps == ("full",) * 10


def test_a_linear_unconditional_branch_is_estimated_exactly(data):
    """A head that ignores its condition has eps_u = eps_c, which least squares must find."""
    policy = tiny_cogact()
    with torch.no_grad():
        policy.action_model.net.z_embedder.linear.weight.zero_()
    execution = as_trained(stage(policy))
    technique = Guidance.calibrate(execution, data, {"method": "linear"})
    assert technique.steps == ("full",) * 5 + ("linear", "full", "linear", "full", "linear")
    torch.testing.assert_close(run(technique.apply(execution), data), run(execution, data), atol=0.03, rtol=0)


def test_linear_guidance_is_nearer_than_giving_up(data):
    execution = as_trained(stage(tiny_cogact(guidance_scale=3.0)))
    reference = run(execution, data)
    linear = Guidance.calibrate(execution, data, {"method": "linear"})
    gone = Guidance(steps=tuple("conditional" if step == "linear" else step for step in linear.steps))
    errors = [(run(t.apply(execution), data) - reference).abs().mean() for t in (linear, gone)]
    assert errors[0] < errors[1]


def test_work_is_saved_step_by_step(data):
    execution = as_trained(stage(tiny_cogact()))
    half = Guidance(steps=("full",) * 5 + ("conditional",) * 5).apply(execution)
    before, after = count_flops(execution, data.one), count_flops(half, data.one)
    assert sum(after.blocks.values()) == pytest.approx(0.75 * sum(before.blocks.values()))


def test_caching_goes_with_adaptive_guidance_but_not_with_linear(data):
    policy = tiny_cogact()
    staged = stage(policy)
    mark = fingerprint(policy, staged.spec.block_ids)
    cache = BlockCache(n_steps=10, updates=dict.fromkeys(staged.spec.block_ids, (0, 5)))
    adaptive = Guidance(steps=("full",) * 3 + ("conditional",) * 7)
    actions = run(accelerate(staged, AccelerationPlan(mark, (adaptive, cache))), data)
    assert actions.isfinite().all()
    linear = Guidance.calibrate(as_trained(staged), data, {"method": "linear"})
    with pytest.raises(PlanMismatch, match="not with LinearAG"):
        accelerate(staged, AccelerationPlan(mark, (linear, cache)))


@pytest.mark.parametrize(
    "options", [{"method": "magic"}, {"window": 0}, {"threshold": 2.0}, {"full_steps": 11}, {"full_steps": 0}]
)
def test_bad_options_are_refused(data, options):
    with pytest.raises(BadSetting, match="guidance"):
        Guidance.calibrate(as_trained(stage(tiny_cogact())), data, options)


@pytest.mark.parametrize("steps", [("full",) * 9, ("conditional",) * 10, ("full",) * 9 + ("odd",)])
def test_steps_that_do_not_fit_are_refused(steps):
    with pytest.raises(PlanMismatch):
        Guidance(steps=steps).check(as_trained(stage(tiny_cogact())))


def test_it_fits_beside_fewer_steps(data):
    policy = tiny_cogact()
    staged = stage(policy)
    wanted = [("guidance", {"full_steps": 2}), ("step_schedule", {"n_steps": 5})]
    plan = calibrate(staged, fingerprint(policy, staged.spec.block_ids), data, wanted)
    assert [technique.kind for technique in plan.techniques] == ["step_schedule", "guidance"]
    assert len(plan.techniques[1].steps) == 5
    assert replace(accelerate(staged, plan)).sampler.steps[0].index == 0
