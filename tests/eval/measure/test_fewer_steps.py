"""The honest baseline takes as many steps as the accelerated run gives it time for, and no more."""

import pytest
import torch

from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.accel.techniques.hoist import Hoist
from vivace.eval.measure.fewer_steps import Rival, accepted, find_rival, latency_ratio, most_steps, samplers
from vivace.eval.measure.latencies import Measured
from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.execution import as_trained
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import LoadedPolicy, stage
from vivace.policies.sampling.samplers import make_flow_sampler
from vivace.policies.tiny.policies import tiny_cogact, tiny_dp_transformer

FIXED_MS, STEP_MS = 40.0, 15.0
"""What a chunk costs once, and what every step adds."""


@pytest.mark.parametrize(
    ("accelerated_ms", "wanted"),
    [(178.0, 9), (175.0, 9), (174.9, 8), (55.0, 1), (10.0, 1), (1541.0, 100)],
)
def test_the_most_steps_that_are_not_slower(accelerated_ms, wanted):
    asked = []

    def ratio(n):
        asked.append(n)
        return (FIXED_MS + STEP_MS * n) / accelerated_ms

    assert most_steps(range(1, 101), ratio) == wanted
    assert len(asked) == len(set(asked)) <= 5


def test_only_steps_that_the_policy_takes_are_tried():
    counts = [1, 2, 4, 5, 10, 20, 25, 50]
    asked = []

    def ratio(n):
        asked.append(n)
        return (FIXED_MS + STEP_MS * n) / 300

    assert most_steps(counts, ratio) == 10
    assert set(asked) <= set(counts)
    assert most_steps([7], lambda n: 3.0) == 7


@pytest.fixture(scope="module")
def loaded():
    policy = tiny_dp_transformer()
    return LoadedPolicy(None, policy, stage(policy), None, None, fingerprint(policy, ()))


@pytest.fixture(scope="module")
def data():
    state = torch.rand(2, 2, 5, generator=torch.Generator().manual_seed(0))
    return CalibrationData({"observation.state": state}, ((1, 0), (1, 1)))


def find(loaded, data, accelerated_ms, sampler="ddim", plan=None, confirmed_ms=None):
    rounds = []

    def ratio(execution, repeats):
        rounds.append(repeats)
        limit_ms = accelerated_ms if repeats == 5 or confirmed_ms is None else confirmed_ms
        return (FIXED_MS + STEP_MS * len(execution.sampler)) / limit_ms

    plan = plan or AccelerationPlan(loaded.fingerprint)
    return find_rival("fewer_steps", sampler, loaded, plan, data, ratio, 5), rounds


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
def test_a_rival_is_found_and_confirmed(loaded, data, sampler):
    found, rounds = find(loaded, data, 90.0, sampler)
    assert (found.n_steps, found.is_fewest) == (3, False)
    assert len(found.execution.sampler) == 3
    assert found.execution.sampler.name == sampler
    assert rounds[-1] == 20, "the choice is confirmed in more rounds than it was found in"
    closer, _ = find(loaded, data, 90.0, sampler, confirmed_ms=80.0)
    assert closer.n_steps == 2, "what is slower after all is left for fewer steps"


def test_a_rival_is_hoisted_if_the_plan_is(loaded, data):
    hoisted, _ = find(loaded, data, 90.0, plan=AccelerationPlan(loaded.fingerprint, (Hoist(),)))
    bare, _ = find(loaded, data, 90.0)
    assert [t.kind for t in hoisted.execution.plan.techniques] == ["step_schedule", "hoist"]
    assert [t.kind for t in bare.execution.plan.techniques] == ["step_schedule"]


def test_the_label_says_the_latency_as_it_was_measured():
    rival = Rival("fewer_steps", "ddim", 9, False, None)
    assert rival.labelled(0.974).label == "DDIM 9 steps, 0.97x the latency"
    assert rival.labelled(1.31).label == "DDIM 9 steps, 1.31x the latency"
    alone = Rival("fewer_steps", "ddim", 1, True, None)
    assert alone.labelled(1.31).label == "DDIM 1 step, 1.31x the latency (fewer there are not)"
    measured = Measured({"fewer_steps": [1.0, 2.0, 9.0], "accelerated": [2.0, 4.0]}, {})
    assert latency_ratio(measured, "fewer_steps", "accelerated") == 0.5


def test_steps_that_the_policy_refuses_are_left_out():
    policy = stage(tiny_cogact())
    n = len(policy.sampler)
    counts = accepted(policy, "ddim")
    assert counts[0] == 1
    assert set(counts) <= set(range(1, n + 1))
    for count in counts:
        policy.resample("ddim", count)


def test_a_sampler_that_the_policy_lacks_is_refused_with_the_reason(loaded, data):
    class Flow:
        class spec:  # noqa: N801
            type = "flow"

        sampler = make_flow_sampler("euler", 4)

        def resample(self, name, n_steps):
            return make_flow_sampler(name, n_steps)

    with pytest.raises(BadSetting, match="policy 'flow' takes no number of ddim steps: .*ddim"):
        accepted(Flow(), "ddim")
    assert samplers(as_trained(Flow())) == {"fewer_steps": "euler"}
    assert samplers(as_trained(loaded.staged)) == {"fewer_steps": "ddim", "fewer_steps_dpm": "dpmsolver++"}

    class Closed(Flow):
        def resample(self, name, n_steps):
            raise UnsupportedPolicy("its loop is its own")

    with pytest.raises(BadSetting, match="takes no number of euler steps: its loop is its own"):
        accepted(Closed(), "euler")
