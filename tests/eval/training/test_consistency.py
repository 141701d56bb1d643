"""Consistency training: labels mix teacher and demonstration; a student settles sooner."""

import copy

import pytest
import torch

from vivace.accel.techniques.jacobi import Jacobi
from vivace.eval.training.consistency import ConsistencySettings, consistency_loss, mixed_labels
from vivace.policies.errors import BadSetting
from vivace.policies.families.token_vla.policy import TokenVLAPolicy
from vivace.policies.families.token_vla.staged import StagedTokenVLA
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.tiny.policies import tiny_token_vla

KEYS = ((1, 0), (2, 0), (3, 0), (4, 0))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return {
        "observation.images.front": torch.rand(4, 3, 32, 32, generator=generator),
        "observation.language.tokens": torch.arange(16).expand(4, 16),
        "observation.language.attention_mask": torch.ones(4, 16, dtype=torch.bool),
    }


def trajectory(policy, batch):
    """All states (passes + 1, B, n), and the passes of each row."""
    states = []
    with torch.inference_mode():
        staged = StagedTokenVLA(policy)
        found = Jacobi(freeze=False)(staged, staged.encode(batch), EpisodeNoise(KEYS), watch=states.append)
    return torch.stack(states).clone(), found.passes


def test_labels_are_the_teachers_where_it_is_close():
    policy = tiny_token_vla()
    answer = torch.randint(385, 640, (2, 12), generator=torch.Generator().manual_seed(0))
    actions = policy.detokenize(answer)
    actions[1] = -actions[1]
    labels = mixed_labels(policy, answer, actions, 0.05)
    assert torch.equal(labels[0], answer[0])
    assert torch.equal(labels[1], policy.tokenize(actions)[1])


@pytest.mark.parametrize("target", ["self", "average", "teacher"])
def test_the_loss_is_zero_at_the_answer_of_the_target(target, batch):
    policy = tiny_token_vla()
    answer = trajectory(policy, batch)[0][-1]
    settings = ConsistencySettings(target=target, ar_weight=0.0)
    who = None if target == "self" else copy.deepcopy(policy)

    def loss(state):
        return consistency_loss(policy, batch, state, answer, answer, settings, who).item()

    assert loss(answer) == pytest.approx(0, abs=1e-5)
    assert loss(answer.roll(1, 0)) > 1e-3


def test_the_target_has_no_gradient(batch):
    policy = tiny_token_vla()
    answer = trajectory(policy, batch)[0][-1]
    loss = consistency_loss(policy, batch, answer, answer, answer, ConsistencySettings(ar_weight=0.0))
    loss.backward()
    assert max(p.grad.abs().max() for p in policy.parameters() if p.grad is not None) < 1e-3


def improve(policy, loss, steps):
    optimiser = torch.optim.AdamW(policy.train().parameters(), lr=2e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(policy).backward()
        optimiser.step()
    return policy.eval()


@pytest.mark.long
def test_a_student_settles_sooner_on_the_same_answer(batch):
    torch.manual_seed(0)
    actions = torch.rand(4, 4, 3) * 2 - 1
    teacher = improve(TokenVLAPolicy(tiny_token_vla().config), lambda it: it.loss(batch, actions)[0], 150)
    states, before = trajectory(teacher, batch)
    settings = ConsistencySettings(target="teacher")

    def loss(student):
        state = states[torch.randint(len(states), (4,)), torch.arange(4)]
        return consistency_loss(student, batch, state, states[-1], states[-1], settings, teacher)

    student = improve(copy.deepcopy(teacher), loss, 100)
    again, after = trajectory(student, batch)
    assert after.float().mean() < 0.6 * before.float().mean()
    assert (again[-1] == states[-1]).float().mean() > 0.9


def test_unknown_targets_are_refused():
    with pytest.raises(BadSetting, match="target='ema'"):
        ConsistencySettings(target="ema")
