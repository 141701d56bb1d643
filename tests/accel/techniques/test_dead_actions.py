"""Actions that nobody executes: not computed, not missed, and refused to those who would need them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_policies import build, statistics
from policy_cases import KEYS, observations

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.flops import count_flops
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.accel.techniques.dead_actions import DeadActions
from vivace.accel.techniques.warm_start import WarmStart
from vivace.deploy.loop.settings import LoopSettings
from vivace.eval.measure.action_error import action_errors, sample_all
from vivace.policies.errors import BadSetting, PlanMismatch, UnsupportedPolicy
from vivace.policies.execution import as_trained, check_continuing, executing, sample
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import LoadedPolicy, stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.session import Session
from vivace.policies.tiny.policies import tiny_dp_transformer

EXACT = (("dead_work", {}), ("hoist", {}))


@pytest.fixture(scope="module")
def smolvla(tmp_path_factory):
    return build("smolvla", tmp_path_factory.mktemp("smolvla"))


@pytest.fixture(scope="module")
def transformer():
    return tiny_dp_transformer(horizon=16, n_action_steps=8)


def subject(policy, n_action_steps=None):
    """A staged policy, its mark, and what it sees."""
    staged = executing(stage(policy), n_action_steps)
    data = CalibrationData(observations(policy), KEYS)
    return staged, fingerprint(policy, staged.spec.block_ids), data


def shortened(policy, actions, *more, n_action_steps=None):
    staged, mark, data = subject(policy, n_action_steps)
    wanted = [("dead_actions", {"actions": actions}), *more]
    return accelerate(staged, calibrate(staged, mark, data, wanted)), as_trained(staged), data


@pytest.mark.parametrize("more", [(), EXACT], ids=["alone", "exact"])
@pytest.mark.parametrize("actions", [1, 4, 5])
def test_what_is_left_of_a_smolvla_chunk_is_what_it_was(smolvla, actions, more):
    short, plain, data = shortened(smolvla, actions, *more, n_action_steps=1)
    found, whole = sample_all(short, data), sample_all(plain, data)
    assert (found.shape[1], whole.shape[1]) == (actions, 6)
    torch.testing.assert_close(found, whole[:, :actions], atol=1e-5, rtol=0)
    assert max(action_errors(short, whole, data)) < 1e-5


@pytest.mark.parametrize("more", [(), EXACT[1:]], ids=["alone", "hoisted"])
def test_a_transformer_keeps_nine_of_sixteen_tokens(transformer, more):
    short, plain, data = shortened(transformer, 8, *more)
    found, whole = sample_all(short, data), sample_all(plain, data)
    assert short.policy.spec.horizon == 9, "one more belongs to the observation before the newest"
    torch.testing.assert_close(found, whole[:, :9], atol=1e-5, rtol=0)
    before, after = count_flops(plain, data.one), count_flops(short, data.one)
    assert after.blocks["action.0.mlp"] * 16 == before.blocks["action.0.mlp"] * 9
    assert after.blocks["action.0.self"] * 16 < before.blocks["action.0.self"] * 9
    assert after.denoise < 0.6 * before.denoise


def test_the_noise_of_the_others_is_drawn_and_not_looked_at(transformer):
    short, plain, data = shortened(transformer, 8)

    def other_noise():
        usual = EpisodeNoise(KEYS)

        def noise(shape, like):
            drawn = usual(shape, like)
            drawn[:, 9:] *= 100
            return drawn

        return noise

    assert short.policy.spec.latent_shape == plain.policy.spec.latent_shape
    for execution in (short, plain):
        usual = sample(execution, data.batch, EpisodeNoise(KEYS))[:, :9]
        torch.testing.assert_close(sample(execution, data.batch, other_noise())[:, :9], usual)


def test_by_default_what_is_executed_is_left(transformer):
    staged, mark, data = subject(transformer)
    plan = calibrate(staged, mark, data, [("dead_actions", {})])
    assert plan.techniques == (DeadActions(actions=8),)
    few = executing(staged, 3)
    assert calibrate(few, mark, data, [("dead_actions", {})]).techniques == (DeadActions(actions=3),)


def test_a_session_and_the_loop_know_how_many_there_are(transformer):
    staged, mark, _ = subject(transformer)
    pre, post = make_dp_transformer_pre_post_processors(transformer.config, statistics(transformer.config))
    loaded = LoadedPolicy(Path(), transformer, staged, pre, post, mark)
    short = accelerate(staged, AccelerationPlan(mark, (DeadActions(actions=10),)))
    session, whole = Session(loaded, short), Session(loaded)
    seen = {key: np.ones_like(value) for key, value in whole.blank_observation().items()}
    found, wanted = (one.predict(seen, [(3, 0)]) for one in (session, whole))
    assert (found.shape[1], wanted.shape[1]) == (10, 15)
    np.testing.assert_allclose(found, wanted[:, :10], atol=1e-4)
    with pytest.raises(BadSetting, match="n_action_steps=11, but a chunk has 10 actions"):
        LoopSettings(n_action_steps=11).fresh_actions(session.spec)
    with pytest.raises(UnsupportedPolicy, match="the first actions alone are computed; leave dead_actions"):
        Session(loaded, short, chunking=RealTimeChunking())


def test_nothing_continues_what_is_not_there(transformer):
    staged, mark, data = subject(transformer)
    short, _, _ = shortened(transformer, 8)
    with pytest.raises(UnsupportedPolicy, match="of policy 'dp_transformer' the first actions alone"):
        check_continuing(short, RealTimeChunking())
    both = AccelerationPlan(mark, (DeadActions(actions=8), WarmStart()))
    with pytest.raises(PlanMismatch, match="warm_start begins with what is left of the chunk before, which"):
        accelerate(staged, both)
    mean = executing(staged, 8)
    mean.spec = replace(mean.spec, temporal_ensemble=0.01)
    with pytest.raises(PlanMismatch, match="executes the mean of what all chunks say .* leave dead_actions"):
        accelerate(mean, AccelerationPlan(mark, (DeadActions(actions=8),)))


@pytest.mark.parametrize("actions", [7, 15])
def test_no_fewer_than_are_executed_and_not_all(transformer, actions):
    staged, mark, _ = subject(transformer)
    with pytest.raises(PlanMismatch, match=rf"first {actions} actions of a chunk of 15, .* needed: 8\.\.14"):
        accelerate(staged, AccelerationPlan(mark, (DeadActions(actions=actions),)))
    with pytest.raises(BadSetting, match="dead_actions actions=-1; needed: 1 or more, or 0"):
        DeadActions.read_options({"actions": -1})


def test_a_policy_that_looks_ahead_or_executes_all_is_refused(transformer):
    plan = (DeadActions(actions=8),)
    for policy, n in ((tiny_dp_transformer(causal_attn=False), None), (transformer, 15)):
        staged, mark, _ = subject(policy, n)
        with pytest.raises(UnsupportedPolicy, match="dead_actions leaves out actions behind .* has none, or"):
            accelerate(staged, AccelerationPlan(mark, plan))
