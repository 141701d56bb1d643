"""Policies without an adapter: whose noise it is, what they continue, and what is refused in one line."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot_itself import moments
from lerobot_policies import TASK, saved

from vivace.policies.adapters.opaque import OpaquePolicy
from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.execution import as_trained, sample
from vivace.policies.features import as_the_robot_has_them
from vivace.policies.load import LoadedPolicy, load_policy
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.session import Session
from vivace.policies.spec import DELAY, PREVIOUS

STATE = "observation.state"
KEY = (1, 7)


def load_opaque(kind: str) -> LoadedPolicy:
    """A checkpoint as one opaque piece, whether its type has an adapter or not."""
    loaded = load_policy(saved(kind))
    staged = OpaquePolicy(loaded.policy)
    staged.spec = as_the_robot_has_them(staged.spec, loaded.policy.config, loaded.preprocess)
    return replace(loaded, staged=staged)


def seen_by(session: Session) -> dict[str, np.ndarray]:
    """One observation as a robot gives it, key -> (1, 1, ...)."""
    (moment,) = moments(session.spec)
    return {key: value[:, None] for key, value in moment.items()}


def given_to(session: Session, seen: dict[str, np.ndarray]) -> dict:
    """The same as lerobot's policy is given it, key -> (1, ...)."""
    own = session.loaded.policy.config.input_features
    batch = session.prepare(seen)
    return {key: value[:, 0] if key in own else value for key, value in batch.items()}


@pytest.mark.parametrize("kind", ["smolvla"])
def test_the_noise_of_a_key_is_the_policys_own_starting_noise(kind):
    """G5: through `noise=`, of the shape that is denoised."""
    session = Session(load_opaque(kind), task=TASK)
    seen = seen_by(session)
    config = session.loaded.policy.config
    noise = EpisodeNoise([KEY])((1, config.chunk_size, config.max_action_dim), torch.empty(0))
    with torch.no_grad():
        wanted = session.loaded.policy.predict_action_chunk(given_to(session, seen), noise=noise)
    found = session.predict(seen, [KEY])
    np.testing.assert_array_equal(found, session.loaded.postprocess(wanted).numpy())


@pytest.mark.parametrize(
    ("kind", "schedule"),
    [("smolvla", "exp"), ("smolvla", "linear"), ("smolvla", "ones"), ("smolvla", "zeros")],
)
def test_chunks_continue_by_lerobots_own_real_time_chunking(kind, schedule):
    """G10: what lerobot-rollout's engine asks its policy, and the same answer."""
    loaded = load_opaque(kind)
    session = Session(loaded, task=TASK, chunking=RealTimeChunking(schedule=schedule, execution_horizon=3))
    seen = seen_by(session)
    before = session.predict(seen, [(1, 0)])[:, 2:]
    told = seen | {PREVIOUS: before, DELAY: np.array([1])}
    found = session.predict(told, [KEY])
    assert loaded.policy.config.rtc_config is None, "it is set while a chunk is computed, and no longer"

    policy = loaded.policy
    left_over = session.inputs(told).follow.actions[0, :3]  # the engine cuts it to its execution horizon
    noise = EpisodeNoise([KEY])((1, *session.spec.latent_shape), torch.empty(0))
    batch = given_to(session, seen)
    policy.config.rtc_config = RTCConfig(
        prefix_attention_schedule=RTCAttentionSchedule[schedule.upper()], execution_horizon=3
    )
    policy.init_rtc_processor()
    with torch.no_grad():
        wanted = policy.predict_action_chunk(
            batch, inference_delay=1, prev_chunk_left_over=left_over, noise=noise
        )
    policy.config.rtc_config = None
    np.testing.assert_array_equal(found, loaded.postprocess(wanted).numpy())
    assert np.abs(found - session.predict(seen, [KEY])).max() > 0.1


def test_each_row_continues_its_own_chunk():
    """G10: rows with other delays, and one of which nothing is known."""
    session = Session(load_opaque("smolvla"), task=TASK, chunking=RealTimeChunking())
    seen = seen_by(session)
    before = session.predict(seen, [(1, 0)])[:, 2:]
    unknown = np.full_like(before, np.nan)
    rows = [(before, 1), (before, 3), (unknown, 0)]
    alone = [
        session.predict(seen | {PREVIOUS: previous, DELAY: np.array([delay])}, [KEY])
        for previous, delay in rows
    ]
    three = {key: np.concatenate([value] * 3) for key, value in seen.items()}
    previous, delays = (np.concatenate([p for p, _ in rows]), np.array([d for _, d in rows]))
    together = session.predict(three | {PREVIOUS: previous, DELAY: delays}, [KEY] * 3)
    np.testing.assert_array_equal(together, np.concatenate(alone))
    np.testing.assert_array_equal(alone[2], session.predict(seen, [KEY]))
    assert np.abs(alone[0] - alone[1]).max() > 1e-3


@pytest.mark.parametrize("asked", [{"method": "inpaint"}, {"jacobian": "exact"}])
def test_what_lerobots_real_time_chunking_lacks_is_refused(asked):
    """G10: nothing is done in another way than was asked for."""
    loaded = load_opaque("smolvla")
    with pytest.raises(BadSetting, match="lerobot's own real-time chunking, which is method=guidance"):
        Session(loaded, chunking=RealTimeChunking(**asked))


def test_what_cannot_be_had_row_by_row_is_refused_when_it_is_loaded():
    """B2, G7: memory from chunk to chunk, and what lerobot's own loop does not run either."""
    with pytest.raises(UnsupportedPolicy, match="'tdmpc' keeps something from chunk to chunk: its planner"):
        load_policy(saved("tdmpc", use_mpc=True))
    camera = {"observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 64, 64))}
    state = {STATE: PolicyFeature(FeatureType.STATE, (5,))}
    with pytest.raises(UnsupportedPolicy, match="'tdmpc' reads one camera as observation.image alone"):
        load_policy(saved("tdmpc", input_features=camera | state))


class Scribbler(torch.nn.Module):
    """A policy that writes into what it is given, and draws nothing."""

    def __init__(self, n_given: int = 6, n_obs_steps: int = 1):
        super().__init__()
        self.config = ACTConfig(
            input_features={STATE: PolicyFeature(FeatureType.STATE, (3,))},
            output_features={"action": PolicyFeature(FeatureType.ACTION, (3,))},
            device="cpu", chunk_size=6, n_action_steps=4,
        )  # fmt: skip
        self.config.n_obs_steps, self.n_given = n_obs_steps, n_given

    def reset(self): ...

    def predict_action_chunk(self, batch):
        batch[STATE] *= -1
        return batch[STATE][:, None].repeat(1, self.n_given, 1)


def test_a_policy_may_write_into_what_it_is_given():
    """G5: as smolvla does with adapt_to_pi_aloha; the next chunk is made of the same all the same."""
    execution = as_trained(OpaquePolicy(Scribbler()))
    batch = {STATE: torch.rand(2, 1, 3)}
    before = batch[STATE].clone()
    first, again = (sample(execution, batch, EpisodeNoise([(1, 0), (2, 0)])) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(batch[STATE], before)


def test_chunks_of_another_size_than_the_config_says():
    """Longer ones are cut, shorter ones last as long as they are executed, and no longer."""
    batch = {STATE: torch.rand(1, 1, 3)}

    def chunk(n):
        return sample(as_trained(OpaquePolicy(Scribbler(n))), batch, EpisodeNoise([(1, 0)]))

    assert chunk(9).shape == chunk(4).shape == (1, 6, 3)
    with pytest.raises(UnsupportedPolicy, match="gave 3 actions of 3 numbers; .* says 4 or more"):
        chunk(3)


def test_several_observations_are_refused_where_the_policy_does_not_keep_them():
    with pytest.raises(UnsupportedPolicy, match="takes 2 observations at once, which it does not"):
        OpaquePolicy(Scribbler(n_obs_steps=2))
