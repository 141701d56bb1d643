"""Precision: the layers of a stage and no others compute in fewer bits, by torch's own layers."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.flops import count_by_shapes, count_flops
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.accel.techniques.precision import Narrow, Precision, exchange
from vivace.policies.errors import BadSetting, PlanMismatch, UnsupportedPolicy
from vivace.policies.execution import as_trained, sample
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.placement import Placement
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.tiny.policies import tiny_cogact, tiny_dp_transformer

KEYS = ((1, 0), (2, 0))


@pytest.fixture(scope="module")
def staged():
    return stage(tiny_cogact())


@pytest.fixture(scope="module")
def data(staged):
    generator = torch.Generator().manual_seed(0)
    batch = {
        key: torch.rand(2, 1, *feature.shape, generator=generator)
        for key, feature in staged.policy.config.input_features.items()
    }
    batch["observation.language.tokens"] = torch.arange(16).expand(2, 16)
    batch["observation.language.attention_mask"] = torch.ones(2, 16, dtype=torch.bool)
    return CalibrationData(batch, KEYS)


def chunks(execution, data):
    return sample(execution, data.batch, EpisodeNoise(KEYS))


def narrow(policy: nn.Module) -> list[str]:
    return [name for name, module in policy.named_modules() if isinstance(module, Narrow)]


def plan_of(staged, data, **dtypes) -> AccelerationPlan:
    mark = fingerprint(staged.policy, staged.spec.block_ids)
    return calibrate(staged, mark, data, [("precision", {"vision": "own", "language": "own"} | dtypes)])


@pytest.mark.parametrize("name", ["bfloat16", "int8"])
@pytest.mark.parametrize("where", ["vision", "language", "action"])
def test_the_layers_of_a_stage_compute_in_fewer_bits_and_no_others(staged, data, where, name):
    execution = accelerate(staged, plan_of(staged, data, **{where: name}))
    found = narrow(execution.policy.policy)
    assert found
    assert all(any(layer.startswith(path) for path in staged.stages[where]) for layer in found)
    assert not narrow(staged.policy)
    plain, actions = chunks(as_trained(staged), data), chunks(execution, data)
    assert actions.dtype == plain.dtype
    assert 0 < (actions - plain).abs().mean() < 0.1
    before, after = (count_by_shapes(one, data.one) for one in (as_trained(staged), execution))
    assert count_flops(execution, data.one) == after, "without running it, too"
    assert (before.total, before.blocks) == (after.total, after.blocks)


@pytest.mark.parametrize(("name", "bound"), [("float16", 2**-10), ("bfloat16", 2**-7), ("int8", 1 / 64)])
def test_a_layer_is_as_near_as_its_bits_allow(name, bound):
    torch.manual_seed(0)
    whole = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    twin = nn.Sequential(whole)
    x = torch.randn(5, 64)
    reference = whole(x)
    exchange(twin, "0", name)
    error = (twin(x) - reference).norm() / reference.norm()
    assert 0 < error < bound * 2
    assert twin(x.double().float()).dtype == torch.float32
    assert twin[0][0].weight.dtype == torch.float32


def test_plans_that_run_together_hold_narrow_layers_once(staged, data):
    one, other = (accelerate(staged, plan_of(staged, data, language=name)) for name in ("int8", "int8"))
    halved = accelerate(staged, plan_of(staged, data, language="bfloat16"))
    held = [
        [id(module) for module in it.policy.policy.modules() if isinstance(module, Narrow)]
        for it in (one, other, halved)
    ]
    assert held[0] == held[1]
    assert {*held[0]}.isdisjoint(held[2])
    assert torch.equal(chunks(one, data), chunks(other, data))


def test_what_reads_weights_is_left_as_it_is():
    layer = nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval())
    exchange(layer, "0", "bfloat16")
    assert narrow(layer) == ["0.linear1", "0.linear2"]
    assert layer(torch.randn(1, 3, 16)).isfinite().all()


def test_a_layer_by_its_own_path_is_exchanged():
    whole = nn.ModuleDict({"head": nn.Linear(4, 4)})
    exchange(whole, "head", "int8")
    assert narrow(whole) == ["head"]


def test_bad_settings_are_refused_by_name(staged, data):
    with pytest.raises(BadSetting, match="precision vision='int4' is unknown; choose own, bfloat16"):
        plan_of(staged, data, vision="int4")
    with pytest.raises(BadSetting, match="changes no stage of policy 'cogact'; it has vision, language, a"):
        plan_of(staged, data)
    other = stage(tiny_dp_transformer())
    mark = fingerprint(other.policy, other.spec.block_ids)
    foreign = AccelerationPlan(mark, (Precision(vision="int8", language="own"),))
    with pytest.raises(PlanMismatch, match="is for stage vision, policy 'dp_transformer' has action; re"):
        accelerate(other, foreign)
    other.stages = {}
    with pytest.raises(UnsupportedPolicy, match="precision runs stages in fewer bits.*names none; leave it"):
        accelerate(other, foreign)


def test_a_gpu_is_offered_no_int8(staged):
    """What torch computes in int8 it computes on a CPU: a search elsewhere would try it in vain."""

    def offered(policy) -> set[str]:
        seen: set[str] = set()
        Precision.search(policy, (), lambda stage, dtypes: seen.update(dtypes) or dtypes[0])
        return seen

    there = SimpleNamespace(placement=Placement(torch.device("cuda")), stages=staged.stages)
    assert offered(staged) == {"own", "bfloat16", "int8"}
    assert offered(there) == {"own", "bfloat16"}
