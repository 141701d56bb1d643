"""Channels that matter stay, everything else is shared, and the compensation is the best of its rank."""

import pytest
import torch

from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.accel.techniques.mlp_prune import MlpPrune, compensation, copy_sharing_tensors
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import as_trained
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.tiny.policies import tiny_cogact


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    batch = {
        "observation.images.front": torch.rand(4, 1, 3, 32, 32, generator=generator),
        "observation.language.tokens": torch.arange(96).view(4, 24),
        "observation.language.attention_mask": torch.ones(4, 24, dtype=torch.bool),
    }
    return CalibrationData(batch, tuple((0, i) for i in range(4)))


def test_dead_channels_go_first_and_cost_nothing(data):
    policy = tiny_cogact()
    dead = torch.arange(0, 48, 4)  # a quarter of 48
    with torch.no_grad():
        for layer in policy.language.layers:
            layer.mlp.down_proj.weight[:, dead] = 0.0
    execution = as_trained(stage(policy))
    technique = MlpPrune.calibrate(execution, data, {"sparsity": 0.25})
    assert all(set(range(48)) - set(stays) == set(dead.tolist()) for stays in technique.kept)
    pruned = technique.apply(execution).policy
    torch.testing.assert_close(
        pruned.encode(data.batch), execution.policy.encode(data.batch), atol=1e-5, rtol=0
    )
    assert pruned.policy.language.layers[0].mlp.down_proj.weight.shape == (32, 36)


def test_what_is_not_cut_is_shared_and_the_policy_is_untouched(data):
    policy = tiny_cogact()
    execution = as_trained(stage(policy))
    twin = MlpPrune.calibrate(execution, data, {}).apply(execution).policy.policy
    cut = ("gate_proj", "up_proj", "down_proj")
    for name, tensor in twin.named_parameters():
        if not any(part in name for part in cut):
            assert tensor is policy.get_parameter(name), name
    assert policy.language.layers[0].mlp.down_proj.weight.shape == (32, 48)


def test_cutting_nothing_changes_nothing(data):
    execution = as_trained(stage(tiny_cogact()))
    same = MlpPrune.calibrate(execution, data, {"sparsity": 0.0}).apply(execution)
    assert torch.equal(same.policy.encode(data.batch), execution.policy.encode(data.batch))


def test_compensation_is_least_squares_at_full_rank_and_the_best_at_a_lower_one():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    lost = x @ torch.randn(6, 6, generator=generator) + 0.1 * torch.randn(200, 6, generator=generator)

    def residual(rank):
        up, down = compensation(x, lost, rank)
        assert up.shape == (6, rank)
        assert down.shape == (rank, 6)
        return float((lost - x @ down.T @ up.T).norm())

    best = torch.linalg.lstsq(x, lost).solution
    assert residual(6) == pytest.approx(float((lost - x @ best).norm()), rel=1e-4)
    fitted = x @ best
    u, s, v = torch.linalg.svd(fitted, full_matrices=False)
    for rank in (1, 2, 4):
        nearest = (u[:, :rank] * s[:rank]) @ v[:rank]  # reduced-rank regression's own optimum
        assert residual(rank) == pytest.approx(float((lost - nearest).norm()), rel=1e-3)


def test_compensation_brings_the_output_back(data):
    execution = as_trained(stage(tiny_cogact()))
    reference = execution.policy.encode(data.batch)
    errors = [
        float(
            (
                MlpPrune.calibrate(execution, data, {"sparsity": 0.5, "rank": rank})
                .apply(execution)
                .policy.encode(data.batch)
                - reference
            )
            .abs()
            .mean()
        )
        for rank in (0, 8, 32)
    ]
    assert errors[2] < errors[0]
    assert errors[1] < errors[0]


def test_tensors_travel_beside_the_plan(data, tmp_path):
    policy = tiny_cogact()
    staged = stage(policy)
    technique = MlpPrune.calibrate(as_trained(staged), data, {"rank": 2})
    plan = AccelerationPlan(fingerprint(policy, staged.spec.block_ids), (technique,))
    plan.save(tmp_path)
    restored = AccelerationPlan.load(tmp_path).techniques[0]
    assert restored.tensors.keys() == technique.tensors.keys()
    assert all(torch.equal(restored.tensors[name], technique.tensors[name]) for name in technique.tensors)
    (tmp_path / "acceleration.safetensors").unlink()
    with pytest.raises(PlanMismatch, match="copy acceleration.safetensors"):
        AccelerationPlan.load(tmp_path).techniques[0].check(as_trained(staged))
    (tmp_path / "acceleration.safetensors").write_bytes(b"short")
    with pytest.raises(PlanMismatch, match="truncated or not safetensors"):
        AccelerationPlan.load(tmp_path)


@pytest.mark.parametrize("options", [{"sparsity": 1.0}, {"sparsity": -0.1}, {"rank": -1}])
def test_bad_options_are_refused(data, options):
    with pytest.raises(BadSetting, match="mlp_prune"):
        MlpPrune.calibrate(as_trained(stage(tiny_cogact())), data, options)


@pytest.mark.parametrize("kept", [((0, 1),) * 3, ((0, 48),) * 4, ((),) * 4])
def test_channels_that_do_not_exist_are_refused(kept):
    with pytest.raises(PlanMismatch, match="the language model has 4"):
        MlpPrune(kept=kept).check(as_trained(stage(tiny_cogact())))


def test_a_copy_shares_every_tensor():
    policy = tiny_cogact()
    twin = copy_sharing_tensors(policy)
    assert twin is not policy
    assert all(twin.get_parameter(name) is tensor for name, tensor in policy.named_parameters())
