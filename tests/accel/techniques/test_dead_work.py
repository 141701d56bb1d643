"""Dead work: named by a policy, left out by a plan, switched part by part; nothing else changes."""

import copy
from dataclasses import replace

import pytest
import torch

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.flops import count_flops
from vivace.accel.plan import AccelerationPlan
from vivace.accel.registry import defaults, exact_work
from vivace.accel.technique import CalibrationData
from vivace.accel.techniques.dead_work import DeadWork
from vivace.accel.techniques.hoist import Hoist
from vivace.eval.measure.variants import variants_of
from vivace.policies.errors import BadSetting, PlanMismatch, UnsupportedPolicy
from vivace.policies.execution import as_trained, sample
from vivace.policies.families.dp_transformer.staged import StagedDPTransformer
from vivace.policies.fingerprint import fingerprint
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.tiny.policies import tiny_dp_transformer

KEYS = ((1, 0), (2, 0))


class Wasteful(StagedDPTransformer):
    """A policy that also multiplies two matrices nobody needs at every observation."""

    left_out: tuple[str, ...] = ()

    @property
    def dead_work(self):
        return {"first_product": "a product", "second_product": "another one"}

    def without(self, parts):
        twin = copy.copy(self)
        twin.left_out = parts
        return twin

    def encode(self, batch, *rest):
        for part, size in (("first_product", 64), ("second_product", 32)):
            if part not in self.left_out:
                torch.ones(size, size) @ torch.ones(size, size)
        return super().encode(batch, *rest)


@pytest.fixture(scope="module")
def wasteful():
    return Wasteful(tiny_dp_transformer())


@pytest.fixture(scope="module")
def data(wasteful):
    shape = wasteful.policy.config.input_features["observation.state"].shape
    generator = torch.Generator().manual_seed(0)
    state = torch.rand(2, wasteful.spec.n_obs_steps, *shape, generator=generator)
    return CalibrationData({"observation.state": state}, KEYS)


@pytest.fixture(scope="module")
def mark(wasteful):
    return fingerprint(wasteful.policy, wasteful.spec.block_ids)


def flops(execution, data) -> int:
    return count_flops(execution, data.one).encode


def test_all_of_it_goes_unless_parts_are_named(wasteful, data, mark):
    whole = calibrate(wasteful, mark, data, [("dead_work", {})])
    assert whole.techniques == (DeadWork(parts=("first_product", "second_product")),)
    some = calibrate(wasteful, mark, data, [("dead_work", {"parts": ("second_product",)})])
    plain, one, both = (
        flops(execution, data)
        for execution in (as_trained(wasteful), accelerate(wasteful, some), accelerate(wasteful, whole))
    )
    assert (plain - one, one - both) == (2 * 32**3, 2 * 64**3)


def test_it_goes_together_with_hoisting_and_with_the_rivals(wasteful, data, mark):
    assert exact_work(wasteful) == (("dead_work", {}), ("hoist", {}))
    assert [kind for kind, _ in defaults(wasteful)] == ["dead_work", "hoist", "block_cache"]
    rows = {row.name: row for row in variants_of(wasteful)}
    assert [kind for kind, _ in rows["exact"].wanted] == ["dead_work", "hoist"]
    assert [kind for kind, _ in rows["ddim-4"].wanted] == ["step_schedule", "dead_work", "hoist"]
    plan = AccelerationPlan(mark, (Hoist(), DeadWork(parts=("first_product",))))
    assert [technique.kind for technique in plan.techniques] == ["dead_work", "hoist"]
    assert AccelerationPlan.from_json(plan.to_json()) == plan
    found = sample(accelerate(wasteful, plan), data.batch, EpisodeNoise(KEYS))
    plain = sample(as_trained(wasteful), data.batch, EpisodeNoise(KEYS))
    torch.testing.assert_close(found, plain, atol=1e-5, rtol=0)


def test_a_policy_that_wastes_nothing_has_no_such_row(data, mark):
    tidy = StagedDPTransformer(tiny_dp_transformer())
    assert exact_work(tidy) == (("hoist", {}),)
    assert not {"dead_work", "exact"} & {row.name for row in variants_of(tidy)}
    with pytest.raises(UnsupportedPolicy, match="dead_work leaves out work .*has none that is known; leave"):
        accelerate(tidy, AccelerationPlan(mark, (DeadWork(parts=("first_product",)),)))


def test_parts_that_are_not_there_are_named(wasteful, data, mark):
    with pytest.raises(BadSetting, match="names third; what policy 'dp_transformer' has is first_product, s"):
        calibrate(wasteful, mark, data, [("dead_work", {"parts": ("third",)})])
    for parts in (("third",), ()):
        plan = AccelerationPlan(mark, (replace(DeadWork(parts=("x",)), parts=parts),))
        with pytest.raises(PlanMismatch, match=r"of this policy first_product, second_product is dead"):
            accelerate(wasteful, plan)
