"""What every technique promises on every policy."""

import pytest
import torch

from vivace.accel import technique
from vivace.accel.apply import accelerate, calibrate
from vivace.accel.explain import explain, grid
from vivace.accel.flops import count_flops
from vivace.accel.plan import AccelerationPlan
from vivace.policies.errors import PlanMismatch, UnknownBlock, UnsupportedPolicy
from vivace.policies.noise import EpisodeNoise
from vivace.policies.staged import Execution, sample

TECHNIQUES = {
    "hoist": [("hoist", {})],
    "bac": [("block_cache", {"updates": 4, "bubbling": 2})],
    "bac-consecutive": [
        ("block_cache", {"updates": 4, "bubbling": 1, "objective": "consecutive", "force_last": True})
    ],
    "shared": [("block_cache", {"method": "shared", "updates": 4})],
    "uniform": [("block_cache", {"method": "uniform", "updates": 5})],
    "deepcache": [("block_cache", {"method": "deepcache", "updates": 5})],
    **{
        f"taylor{order}": [("forecast", {"method": "uniform", "updates": 5, "order": order})]
        for order in range(5)
    },
    "adams_bashforth": [("forecast", {"updates": 5, "rule": "adams_bashforth", "order": 2, "bubbling": 0})],
    "fused": [("forecast", {"updates": 5, "rule": "fused", "bubbling": 0})],
    "steps": [("step_schedule", {"n_steps": 5})],
    "all": [("block_cache", {"updates": 2, "bubbling": 1}), ("hoist", {}), ("step_schedule", {"n_steps": 5})],
}
LANGUAGE_TECHNIQUES = {
    "mlps": [("mlp_prune", {"sparsity": 0.5})],
    "mlps-compensated": [("mlp_prune", {"sparsity": 0.5, "rank": 2})],
    "layers": [("layer_skip", {"n_dropped": 1})],
    "layers-greedy": [("layer_skip", {"n_dropped": 2, "rule": "greedy"})],
    "layers-uniform": [("layer_skip", {"n_dropped": 2, "rule": "uniform"})],
    **{
        f"tokens-{method}": [("token_select", {"k_final": 6, "k_key": 2, "method": method})]
        for method in ("efficientvla", "fastv", "random", "uniform")
    },
    "tokens-per-camera": [("token_select", {"k_final": 6, "k_key": 1, "per_camera": True})],
    "tokens-cognition": [("token_select", {"k_final": 6, "source": "cognition", "layer": 0})],
    "language": [
        ("token_select", {"k_final": 6}),
        ("layer_skip", {"n_dropped": 1}),
        ("mlp_prune", {"rank": 2}),
    ],
}
"""Those that need a language stage."""
EFFICIENTVLA = {
    "efficientvla": [
        ("token_select", {"k_final": 6}),
        ("block_cache", {"method": "uniform", "updates": 2}),
        ("hoist", {}),
        ("layer_skip", {"n_dropped": 1}),
        ("mlp_prune", {"rank": 2}),
    ],
}
"""Those that need a language stage and a denoiser."""
TOKEN_TECHNIQUES = {
    "greedy": [("greedy_executed", {})],
    "jacobi": [("jacobi", {})],
    "jacobi-marginal": [("jacobi", {"init": "marginal", "freeze": False})],
    "jacobi-exit": [("jacobi", {"max_iterations": 2})],
    "sjd": [("sjd", {})],
    "recycling": [("token_recycling", {"k": 3, "nodes": 6})],
    "stand": [("stand", {"nodes": 6})],
    "ceed": [
        ("token_select", {"k_final": 6}),
        ("layer_skip", {"n_dropped": 1}),
        ("mlp_prune", {"rank": 2}),
        ("jacobi", {"max_iterations": 3, "until": "executed"}),
    ],
}
"""Those that need a policy that writes tokens."""
GUIDANCE_TECHNIQUES = {
    "guidance": [("guidance", {"full_steps": 4})],
    "guidance-linear": [("guidance", {"method": "linear"})],
    "guidance-cached": [
        ("guidance", {"full_steps": 4}),
        ("block_cache", {"updates": 3, "bubbling": 1}),
        ("hoist", {}),
    ],
    "guidance-forecast": [
        ("guidance", {"full_steps": 3}),
        ("forecast", {"method": "uniform", "updates": 4, "order": 1}),
    ],
}
"""Those that need classifier-free guidance."""
EVERYTHING = TECHNIQUES | LANGUAGE_TECHNIQUES | EFFICIENTVLA | GUIDANCE_TECHNIQUES | TOKEN_TECHNIQUES


def test_every_technique_there_is_is_tested():
    assert {kind for wanted in EVERYTHING.values() for kind, _ in wanted} == set(technique.TECHNIQUES)


@pytest.mark.parametrize("name", list(LANGUAGE_TECHNIQUES))
def test_a_policy_without_a_language_stage_refuses_by_name(subject, name):
    if hasattr(subject.staged, "language"):
        pytest.skip("it has one")
    kind, options = LANGUAGE_TECHNIQUES[name][0]
    with pytest.raises(UnsupportedPolicy, match=f"{kind} .* policy '{subject.staged.spec.type}' has none"):
        calibrate(subject.staged, subject.mark, subject.data, [(kind, options)])


def test_a_policy_without_guidance_refuses_by_name(subject):
    if getattr(subject.staged, "has_guidance", False):
        pytest.skip("it has guidance")
    with pytest.raises(UnsupportedPolicy, match=f"guidance .* policy '{subject.staged.spec.type}'"):
        calibrate(subject.staged, subject.mark, subject.data, [("guidance", {})])


@pytest.mark.parametrize("name", list(TOKEN_TECHNIQUES))
def test_a_policy_that_writes_no_tokens_refuses_by_name(subject, name):
    if writes_tokens(subject):
        pytest.skip("it writes some")
    kind, options = TOKEN_TECHNIQUES[name][-1]
    with pytest.raises(UnsupportedPolicy, match=f"{kind} .* policy '{subject.staged.spec.type}' writes none"):
        calibrate(subject.staged, subject.mark, subject.data, [(kind, options)])


@pytest.mark.parametrize("name", list(TECHNIQUES))
def test_a_policy_that_does_not_denoise_refuses_by_name(subject, name):
    if not writes_tokens(subject):
        pytest.skip("it denoises")
    for kind, options in TECHNIQUES[name]:
        with pytest.raises(UnsupportedPolicy, match=f"policy '{subject.staged.spec.type}' writes tokens"):
            calibrate(subject.staged, subject.mark, subject.data, [(kind, options)])


def writes_tokens(subject) -> bool:
    return Execution.of(subject.staged).writes_tokens


def fits(subject, name) -> bool:
    if name in LANGUAGE_TECHNIQUES:
        return hasattr(subject.staged, "language")
    if name in TOKEN_TECHNIQUES:
        return writes_tokens(subject)
    if name in GUIDANCE_TECHNIQUES:
        return getattr(subject.staged, "has_guidance", False)
    return not writes_tokens(subject) and (name in TECHNIQUES or hasattr(subject.staged, "language"))


@pytest.fixture(params=list(EVERYTHING))
def plan(request, subject) -> AccelerationPlan:
    if not fits(subject, request.param):
        pytest.skip("refused, see above")
    wanted = [(kind, dict(options)) for kind, options in EVERYTHING[request.param]]
    for kind, options in wanted:
        if kind == "step_schedule":
            options["sampler"] = "euler" if subject.staged.sampler.name == "euler" else "ddim"
    return calibrate(subject.staged, subject.mark, subject.data, wanted)


def run(execution, subject) -> torch.Tensor:
    return sample(execution, subject.data.batch, EpisodeNoise(subject.data.noise_keys))


def test_a_plan_keeps_its_promises(subject, plan, tmp_path):
    plain = Execution.of(subject.staged)
    before = {name: value.clone() for name, value in subject.policy.state_dict().items()}
    reference = run(plain, subject)
    execution = accelerate(subject.staged, plan, subject.mark)
    actions = run(execution, subject)
    assert actions.shape == reference.shape
    assert actions.isfinite().all()
    assert torch.equal(actions, run(execution, subject)), "not deterministic"
    assert torch.equal(reference, run(plain, subject)), "the policy itself was changed"
    after = subject.policy.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    plan.save(tmp_path)
    restored = AccelerationPlan.load(tmp_path)
    assert restored == plan
    assert torch.equal(actions, run(accelerate(subject.staged, restored, subject.mark), subject))
    costs = count_flops(plain, subject.data.one), count_flops(execution, subject.data.one)
    if not writes_tokens(subject):  # there it depends on how many guesses are right
        assert costs[1].total < costs[0].total
    text = explain(plan, execution, *costs)
    assert all(
        name in text and len(marks) == len(execution.sampler) for name, marks in grid(execution).items()
    )


def test_a_plan_of_other_weights_is_refused(subject, plan):
    from dataclasses import replace

    foreign = replace(plan, fingerprint=replace(plan.fingerprint, weights="0" * 64))
    with pytest.raises(PlanMismatch, match=r"its weights differ; recalibrate"):
        accelerate(subject.staged, foreign, subject.mark)


def test_the_identity_plan_is_no_plan_bit_for_bit(subject):
    plain = run(Execution.of(subject.staged), subject)
    assert torch.equal(plain, run(accelerate(subject.staged, AccelerationPlan(subject.mark)), subject))


@pytest.mark.parametrize("kind", ["block_cache", "forecast"])
def test_computing_every_step_is_the_plain_loop_bit_for_bit(subject, kind):
    if writes_tokens(subject):
        pytest.skip("it does not denoise")
    options = {"method": "uniform", "updates": len(subject.staged.sampler)}
    plan = calibrate(subject.staged, subject.mark, subject.data, [(kind, options)])
    execution = accelerate(subject.staged, plan)
    assert torch.equal(run(Execution.of(subject.staged), subject), run(execution, subject))


def test_hoisting_changes_rounding_only(subject):
    if writes_tokens(subject):
        pytest.skip("it does not denoise")
    plan = calibrate(subject.staged, subject.mark, subject.data, [("hoist", {})])
    hoisted = run(accelerate(subject.staged, plan), subject)
    torch.testing.assert_close(hoisted, run(Execution.of(subject.staged), subject), atol=1e-5, rtol=0)


def test_a_block_of_another_policy_is_named(subject):
    if writes_tokens(subject):
        pytest.skip("it does not denoise")
    plan = calibrate(
        subject.staged, subject.mark, subject.data, [("block_cache", {"updates": 3, "bubbling": 0})]
    )
    data = plan.to_json()
    data["techniques"][0]["updates"]["language.7.attn"] = [0, 3]
    with pytest.raises(UnknownBlock, match=r"names block 'language\.7\.attn', but policy '.*' has action\."):
        accelerate(subject.staged, AccelerationPlan.from_json(data))
