"""Convolutions over time as matrix products: the same numbers, kept where they are measured to be faster."""

from dataclasses import replace

import pytest
import torch
from lerobot_policies import saved
from torch import nn

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData, time_convolutions
from vivace.accel.techniques import convolutions
from vivace.accel.techniques.convolutions import Convolutions, MatrixConv1d
from vivace.deploy.export.export import check_exportable
from vivace.eval.measure.variants import variants_of
from vivace.policies.errors import PlanMismatch, UnsupportedPolicy
from vivace.policies.execution import as_trained, sample
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import load_policy, stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.session import Session
from vivace.policies.tiny.policies import tiny_diffusion, tiny_dp_transformer

KEYS = ((1, 0), (2, 0))
ALL = [("convolutions", {"measure": False})]


@pytest.fixture(scope="module")
def staged():
    return stage(tiny_diffusion())


@pytest.fixture(scope="module")
def data(staged):
    random = torch.Generator().manual_seed(0)
    config = staged.policy.config
    batch = {
        key: torch.rand(2, config.n_obs_steps, *feature.shape, generator=random)
        for key, feature in config.input_features.items()
    }
    return CalibrationData(batch, KEYS)


def plan_of(staged, data, wanted) -> AccelerationPlan:
    return calibrate(staged, fingerprint(staged.policy, staged.spec.block_ids), data, wanted)


def chunks(execution, data):
    return sample(execution, data.batch, EpisodeNoise(KEYS))


@pytest.mark.parametrize("size", [1, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_product_is_the_convolution(size, stride, padding, has_bias):
    torch.manual_seed(0)
    conv = nn.Conv1d(6, 7, size, stride=stride, padding=padding, bias=has_bias)
    x = torch.randn(3, 6, 11)
    found, wanted = MatrixConv1d(conv)(x), conv(x)
    assert found.shape == wanted.shape
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)
    assert MatrixConv1d(conv).weight is conv.weight


def test_by_hand():
    """A moving sum of three: padded with zeros 0 1 2 3 0 gives 3, 6, 5."""
    conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(conv.weight)
    found = MatrixConv1d(conv)(torch.tensor([[[1.0, 2.0, 3.0]]]))
    assert found.tolist() == [[[3.0, 6.0, 5.0]]]


def test_all_of_them_change_rounding_only_and_share_their_weights(staged, data):
    plain, plan = as_trained(staged), plan_of(staged, data, ALL)
    execution = accelerate(staged, plan)
    torch.testing.assert_close(chunks(execution, data), chunks(plain, data), atol=1e-5, rtol=0)
    twin = execution.policy.policy
    kinds = {type(module) for module in twin.diffusion.unet.modules()}
    assert nn.Conv1d not in kinds
    assert MatrixConv1d in kinds
    kept = {tensor.data_ptr() for tensor in staged.policy.state_dict().values() if tensor.numel()}
    assert {tensor.data_ptr() for tensor in twin.state_dict().values() if tensor.numel()} <= kept
    assert not any(isinstance(module, MatrixConv1d) for module in staged.policy.modules())


def test_hoisting_and_caching_go_with_it(staged, data):
    wanted = [*ALL, ("hoist", {}), ("block_cache", {"updates": 3, "bubbling": 0})]
    both = accelerate(staged, plan_of(staged, data, wanted))
    cached = accelerate(staged, plan_of(staged, data, wanted[1:]))
    assert [technique.kind for technique in both.plan.techniques] == ["convolutions", "hoist", "block_cache"]
    assert chunks(both, data).shape == chunks(cached, data).shape


def test_what_is_measured_to_be_faster_is_kept_and_the_measurement_stored(
    staged, data, monkeypatch, tmp_path
):
    """Strides are made slower as products, all others twice as fast; each size is measured once."""
    asked = []

    def timed(conv, x):
        asked.append((str(conv), tuple(x.shape)))
        return (2.0, 1.0) if conv.stride == (1,) else (2.0, 1.9)

    monkeypatch.setattr(convolutions, "_timed", timed)
    plan = plan_of(staged, data, [("convolutions", {})])
    (technique,) = plan.techniques
    known = time_convolutions(staged)
    assert technique.names == tuple(name for name, conv in known.items() if conv.stride == (1,))
    assert 0 < len(technique.names) < len(known)
    assert len(asked) == len(set(asked)) == len(technique.measured_ms) < len(known)
    assert all(shape[0] == 1 for _, shape in asked)
    assert technique.device == "cpu"
    assert technique.remark == f"{len(technique.names)} rewritten"
    plan.save(tmp_path)
    assert AccelerationPlan.load(tmp_path) == plan


def test_where_nothing_is_faster_nothing_is_rewritten(staged, data, monkeypatch):
    monkeypatch.setattr(convolutions, "_timed", lambda conv, x: (1.0, 0.95))
    plan = plan_of(staged, data, [("convolutions", {})])
    assert plan.techniques[0].names == ()
    assert torch.equal(chunks(accelerate(staged, plan), data), chunks(as_trained(staged), data))


def test_a_time_is_measured(staged):
    found = convolutions._timed(nn.Conv1d(4, 4, 3), torch.randn(1, 4, 8))
    assert min(found) > 0


def test_names_of_another_policy_are_refused(staged, data):
    plan = plan_of(staged, data, ALL)
    foreign = replace(plan, techniques=(Convolutions(names=("diffusion.unet.nowhere",), device="cpu"),))
    with pytest.raises(PlanMismatch, match="rewrites 'diffusion.unet.nowhere', this policy has diffusion"):
        accelerate(staged, foreign)
    other = stage(tiny_dp_transformer())
    with pytest.raises(
        UnsupportedPolicy, match="convolutions over time, but policy 'dp_transformer' has none"
    ):
        plan_of(other, data, ALL)


def test_it_has_a_row_alone_and_with_all_exact_work(staged):
    rows = {row.name: [kind for kind, _ in row.wanted] for row in variants_of(staged)}
    assert rows["convolutions"] == ["convolutions"]
    assert rows["exact+convolutions"] == ["hoist", "convolutions"]
    assert not any(
        "convolutions" in name for name in (row.name for row in variants_of(stage(tiny_dp_transformer())))
    )


def test_a_bundle_is_made_without_it():
    loaded = load_policy(saved("diffusion"))
    blank = Session(loaded).blank()
    plan = calibrate(
        loaded.staged, loaded.fingerprint, CalibrationData(blank, ((1, 0),)), [*ALL, ("hoist", {})]
    )
    assert [technique.kind for technique in plan.techniques] == ["convolutions", "hoist"]
    runs, _ = check_exportable(loaded, {"plan": plan}, blank)
    assert [technique.kind for technique in runs["plan"].plan.techniques] == ["hoist"]
    assert not any(isinstance(module, MatrixConv1d) for module in runs["plan"].policy.policy.modules())
