"""Chunks that are made in the place of lerobot's own: the same actions, by lerobot's own queues."""

import copy
from itertools import islice

import pytest
import torch
from policy_cases import POLICIES, observations

from vivace.accel.techniques.warm_start import begin_warm
from vivace.deploy.lerobot.chunks import Chunks, drops_in
from vivace.policies.execution import Denoising, as_trained, call_denoiser
from vivace.policies.load import stage
from vivace.policies.tiny.policies import tiny_clip, tiny_dp_transformer


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


def plain(policy):
    return as_trained(stage(policy))


def hooked(policy):
    """A copy whose chunks are made by us, everything computed."""
    twin = copy.deepcopy(policy)
    return twin, Chunks(twin, stage(twin).chunk_method, plain)


def moments(policy):
    """What the preprocessor returns of each time step (B, ...), endlessly."""
    seen, own = observations(policy), set(policy.config.input_features)
    t = 0
    while True:
        yield {
            key: value[:, t % value.shape[1]] + 0.1 * (t // value.shape[1]) if key in own else value
            for key, value in seen.items()
        } | {"action": None, "task": ["reach"] * 3}
        t += 1


def executed(policy, n):
    torch.manual_seed(3)
    policy.reset()
    return torch.stack([policy.select_action(dict(one)) for one in islice(moments(policy), n)])


@pytest.mark.parametrize("name", POLICIES)
def test_lerobots_own_loop_executes_the_same_actions(name, clip):
    policy = POLICIES[name][0](clip)
    assert drops_in(stage(policy))
    ours, chunks = hooked(policy)
    n = policy.config.n_action_steps + 2
    theirs = executed(policy, n)
    assert torch.equal(executed(ours, n), theirs)
    assert chunks.present is not None
    assert theirs.abs().max() > 0


def test_chunks_in_turn_follow_each_other_until_the_reset():
    policy = tiny_dp_transformer()
    staged = stage(policy)
    sampler = staged.resample("ddim", 4)
    ran = []

    def told(execution, step, *args):
        ran.append(step.index)
        return call_denoiser(execution, step, *args)

    def warm(policy):
        return Denoising(stage(policy), sampler, call=told, begin=begin_warm, first=3)

    chunks = Chunks(policy, staged.chunk_method, warm)
    n = policy.config.n_action_steps

    def run(actions):
        ran.clear()
        for one in islice(moments(policy), actions):
            policy.select_action(dict(one))
        return list(ran)

    full, last = [0, 1, 2, 3], [3]
    assert run(2 * n) == full + full, "nobody says how many of the actions were executed"
    policy.reset()
    chunks.forget()
    with chunks.in_turn():
        assert run(3 * n) == full + last + last
        policy.reset()
        chunks.forget()
        assert run(n) == full
