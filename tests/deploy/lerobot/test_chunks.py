"""Chunks that are made in the place of lerobot's own: the same actions, by lerobot's own queues."""

import copy
import inspect
from itertools import islice

import pytest
import torch
from policy_cases import POLICIES, observations

from vivace.deploy.lerobot.chunks import Chunks, drops_in
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.execution import as_trained
from vivace.policies.load import stage
from vivace.policies.tiny.policies import tiny_clip, tiny_diffusion


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


def chunk(policy, one, **said):
    torch.manual_seed(5)
    policy.reset()
    return policy.predict_action_chunk(dict(one), **said)


@pytest.fixture
def diffusion():
    """Of one observation, so that a chunk can be asked for directly, and that moment."""
    policy = tiny_diffusion(n_obs_steps=1)
    seen = observations(policy)
    return policy, {key: value for key, value in seen.items()}


@torch.no_grad()
def double(policy):
    """Change weights in place, as an optimiser's step does."""
    policy.diffusion.unet.final_conv[1].weight.mul_(2)


def test_signature_and_noise_are_lerobots(diffusion):
    policy, one = diffusion
    ours, _ = hooked(policy)
    assert inspect.signature(ours.diffusion.generate_actions) == inspect.signature(
        policy.diffusion.generate_actions
    )
    noise = torch.randn(3, 8, 3)
    theirs = chunk(policy, one, noise=noise)
    assert torch.equal(chunk(ours, one, noise=noise), theirs)
    assert not torch.equal(chunk(ours, one), theirs)
    with pytest.raises(UnsupportedPolicy, match="was asked for with num_steps, known are noise, inference_d"):
        ours.diffusion.generate_actions(one, num_steps=3)


def test_what_was_made_of_other_weights_is_made_again(diffusion):
    policy, one = diffusion
    ours, chunks = hooked(policy)
    chunk(ours, one)
    made = chunks.present
    assert made is not None
    assert chunks.present is made
    for both in (policy, ours):
        double(both)
    assert chunks.present is None
    assert torch.equal(chunk(ours, one), chunk(policy, one))
    ours.load_state_dict({name: value * 0.5 for name, value in policy.state_dict().items()})
    assert chunks.present is None
    chunk(ours, one)
    ours.to(torch.float64)
    assert chunks.present is None
    chunk(ours.float(), one)
    ours.config.num_inference_steps = 3
    assert chunks.present is None


def test_a_copy_runs_its_own_weights(diffusion):
    policy, one = diffusion
    ours, _ = hooked(policy)
    before = chunk(ours, one)
    twin = copy.deepcopy(ours)
    double(twin)
    assert not torch.equal(chunk(twin, one), before)
    assert torch.equal(chunk(ours, one), before)


def test_layers_of_an_adapter_are_refused(diffusion):
    peft = pytest.importorskip("peft")
    policy, one = diffusion
    ours, _ = hooked(policy)
    wrapped = peft.get_peft_model(ours, peft.LoraConfig(target_modules=["diffusion_step_encoder.1"]))
    with pytest.raises(
        UnsupportedPolicy, match=r"'diffusion' has layers of an adapter \(peft\) that is not m"
    ):
        wrapped.predict_action_chunk(dict(one))


def test_it_is_left_alone_by_torch_compile(diffusion):
    policy, one = diffusion
    ours, _ = hooked(policy)
    before = chunk(ours, one)
    ours.predict_action_chunk = torch.compile(ours.predict_action_chunk, backend="eager")
    assert torch.equal(chunk(ours, one), before)
