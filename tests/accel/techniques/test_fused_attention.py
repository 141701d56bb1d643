"""Attention in one kernel: the same numbers, taken where it is measured to be faster."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lerobot_policies import build
from policy_cases import KEYS, observations

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.accel.techniques import fused_attention
from vivace.accel.techniques.fused_attention import FusedAttention
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.execution import as_trained, sample
from vivace.policies.fingerprint import fingerprint
from vivace.policies.language.attention import FUSED
from vivace.policies.load import stage
from vivace.policies.sampling.noise import EpisodeNoise

ALWAYS = ("fused_attention", {"measure": False})


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    return stage(build("smolvla", tmp_path_factory.mktemp("smolvla"), num_vlm_layers=4))


@pytest.fixture(scope="module")
def data(staged):
    seen = observations(staged.policy)
    seen["observation.language.attention_mask"][0, 9:] = False  # rows that see nobody
    return CalibrationData(seen, KEYS)


def planned(staged, data, *wanted):
    mark = fingerprint(staged.policy, staged.spec.block_ids)
    return calibrate(staged, mark, data, wanted)


def chunks(execution, data):
    return sample(execution, data.batch, EpisodeNoise(KEYS))


def test_by_hand():
    """Two keys that are alike share the weight; a third is masked, or it would have a third of it."""
    keys = torch.tensor([[[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]]])
    values = torch.tensor([[[[2.0, 0.0], [4.0, 2.0], [90.0, 90.0]]]])
    mask = torch.tensor([[[[True, True, False]]]])
    module = SimpleNamespace(num_key_value_groups=1)
    found = FUSED.look(module, torch.ones(1, 1, 1, 2), keys, values, mask)
    torch.testing.assert_close(found, torch.tensor([[[3.0, 1.0]]]))


@pytest.mark.parametrize(
    "more",
    [
        (),
        (("dead_work", {}), ("hoist", {})),
        (("layer_skip", {"n_dropped": 1}), ("patch_select", {"k_final": 12, "early": "drop"})),
    ],
    ids=["alone", "exact", "fewer layers and patches"],
)
def test_rounding_alone_changes(staged, data, more):
    found = chunks(accelerate(staged, planned(staged, data, ALWAYS, *more)), data)
    wanted = chunks(accelerate(staged, planned(staged, data, *more)), data)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert not torch.equal(found, wanted), "it is not the kernel that looks"


@pytest.mark.parametrize("is_faster", [True, False])
def test_the_faster_of_the_two_is_kept(staged, data, monkeypatch, is_faster):
    timed = []

    def measure(look, given):
        timed.append((tuple(given[1].shape), tuple(given[2].shape)))
        # the expert looks three times as often as the language model, of which the opposite is true
        return (2.0, 1.0) if (timed[-1][0][2] == staged.spec.horizon) == is_faster else (1.0, 2.0)

    monkeypatch.setattr(fused_attention, "_timed", measure)
    plan = planned(staged, data, ("fused_attention", {}))
    (technique,) = plan.techniques
    assert technique.is_fused == is_faster
    assert technique.measured_ms.keys() == {f"{q} x {k}" for q, k in timed}
    assert {q[0] for q, _ in timed} == {1}, "of one observation"
    assert len(timed) == 3, "the language model's rows, and both ways of the expert"
    execution = accelerate(staged, plan)
    assert (execution.policy is staged) == (not is_faster)
    assert technique.remark == ("" if is_faster else "not faster, left out")
    assert AccelerationPlan.from_json(plan.to_json()) == plan


def test_both_are_timed_on_what_is_there(staged, data):
    (technique,) = planned(staged, data, ("fused_attention", {})).techniques
    assert all(time_ms > 0 for both in technique.measured_ms.values() for time_ms in both)
    assert technique.device == "cpu"


def test_blocks_that_were_replaced_are_not_lost_in_silence(staged):
    twin = staged.with_blocks(lambda block: replace(block))
    with pytest.raises(UnsupportedPolicy, match="choose how it looks at keys before they are replaced"):
        FusedAttention(is_fused=True, device="cpu").apply(as_trained(twin))
