"""A policy that denoises more numbers than its robot has, as pi0 and smolvla do: 8 for an action of 3."""

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.flops import count_flops
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.deploy.bundle.bundle import MANIFEST, Bundle
from vivace.deploy.bundle.checks import check_contents
from vivace.deploy.export.export import export
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.eval.training.fit import save
from vivace.eval.training.recipe import statistics
from vivace.policies.errors import BadBundle, BadSetting
from vivace.policies.execution import Execution, as_trained, sample
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.families.dp_transformer.staged import StagedDPTransformer
from vivace.policies.load import LoadedPolicy, load_policy
from vivace.policies.plain_data import plain
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.real_time_chunking import METHODS, Continuation, RealTimeChunking
from vivace.policies.session import Session
from vivace.policies.spec import DELAY, PREVIOUS, PolicySpec
from vivace.policies.tiny.policies import tiny_dp_transformer

LATENT, ACTION = 8, 3
KEYS = ((1, 0), (2, 8))
CACHED = [("hoist", {}), ("block_cache", {"updates": 4, "bubbling": 2})]


class Wide(StagedDPTransformer):
    """A policy of 8 numbers an action, 3 of which the robot has."""

    def __init__(self, policy: Any, action_kinds: Any = ()):
        super().__init__(policy)
        kinds = self.spec.action_kinds[:ACTION]
        self.spec = replace(self.spec, action_dim=ACTION, action_kinds=kinds, latent_dim=LATENT)


@dataclass(frozen=True)
class Subject:
    """The policy, and the same with all its numbers as its action."""

    loaded: LoadedPolicy
    wide: Wide
    whole: StagedDPTransformer
    data: CalibrationData

    def sampled(self, execution: Execution, follow: Continuation | None = None) -> torch.Tensor:
        return sample(execution, self.data.batch, EpisodeNoise(KEYS), follow=follow)


def raw(spec: PolicySpec) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {
        key: random.uniform(-1, 1, (2, spec.n_obs_steps, *shape)).astype(np.float32)
        for key, shape in spec.observation_shapes.items()
    }


@pytest.fixture(scope="module")
def subject(tmp_path_factory) -> Subject:
    folder, random = tmp_path_factory.mktemp("wide") / "policy", np.random.default_rng(0)
    narrow = tiny_dp_transformer()
    stats = {
        key: statistics(random.uniform(-1, 1, (50, *feature.shape)).astype(np.float32))
        for key, feature in {**narrow.config.input_features, **narrow.config.output_features}.items()
    }
    save(narrow, *make_dp_transformer_pre_post_processors(narrow.config, stats), folder)
    policy = tiny_dp_transformer(output_features={"action": PolicyFeature(FeatureType.ACTION, (LATENT,))})
    own = policy.predict_action_chunk
    policy.predict_action_chunk = lambda *given, **more: own(*given, **more)[..., :ACTION]  # as pi0 cuts
    wide = Wide(policy)
    loaded = replace(load_policy(folder), policy=policy, staged=wide)
    data = CalibrationData(Session(loaded).prepare(raw(wide.spec)), KEYS)
    return Subject(loaded, wide, StagedDPTransformer(policy), data)


@pytest.fixture(scope="module")
def plan(subject) -> AccelerationPlan:
    fitted = replace(subject.data, noise_keys=((3, 0), (4, 0)))
    return calibrate(subject.wide, subject.loaded.fingerprint, fitted, CACHED)


@pytest.fixture(scope="module")
def folder(subject, plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    export(subject.loaded, plan, subject.data, folder)
    return folder


def test_it_is_sampled_wide_and_cut(subject):
    found, whole = (subject.sampled(as_trained(staged)) for staged in (subject.wide, subject.whole))
    assert whole.shape == (2, 8, LATENT)
    assert torch.equal(found, whole[..., :ACTION])


def test_its_work_is_that_of_what_it_denoises(subject):
    wide, whole = (count_flops(as_trained(s), subject.data.one) for s in (subject.wide, subject.whole))
    assert wide == whole


def test_it_is_cached_as_what_it_denoises(subject, plan):
    found = subject.sampled(accelerate(subject.wide, plan))
    whole = subject.sampled(accelerate(subject.whole, plan))
    assert torch.equal(found, whole[..., :ACTION])
    assert not torch.equal(found, subject.sampled(as_trained(subject.wide)))


@pytest.mark.parametrize("jacobian", ["identity", "exact"])
@pytest.mark.parametrize("method", METHODS)
def test_a_chunk_continues_another_whose_missing_numbers_are_0(subject, plan, method, jacobian):
    """As lerobot's policies are trained, and as its own real-time chunking has it."""
    settings = RealTimeChunking(method=method, jacobian=jacobian)
    wish, weights = torch.full((2, 8, ACTION), 0.3), torch.zeros(2, 8, 1)
    weights[:, :3] = 1
    follow = Continuation(settings, wish, weights)
    found = subject.sampled(accelerate(subject.wide, plan), follow)
    wider = Continuation(settings, torch.nn.functional.pad(wish, (0, LATENT - ACTION)), weights)
    assert torch.equal(found, subject.sampled(accelerate(subject.whole, plan), wider)[..., :ACTION])
    free = subject.sampled(accelerate(subject.wide, plan))
    assert (found - wish)[:, :3].abs().mean() < (free - wish)[:, :3].abs().mean()


@pytest.mark.parametrize("method", [None, *METHODS])
def test_its_bundle_acts_and_continues_as_it_does(subject, plan, folder, method):
    chunking = None if method is None else RealTimeChunking(method=method)
    session = Session(subject.loaded, accelerate(subject.wide, plan), chunking=chunking)
    policy, seen = OrtPolicy(folder, chunking=chunking), raw(subject.wide.spec)
    seen |= {PREVIOUS: np.zeros((2, 3, ACTION), np.float32), DELAY: np.array([2, 1])}
    found = policy.predict(seen, KEYS)
    assert found.shape == (2, 7, ACTION)
    np.testing.assert_allclose(found, session.predict(seen, KEYS), atol=1e-4)


def test_its_manifest_says_so_and_others_say_nothing_new(subject, folder):
    assert json.loads((folder / MANIFEST).read_text())["vivace"]["spec"]["latent_dim"] == LATENT
    assert Bundle.load(folder).spec.latent_shape == (8, LATENT)
    assert "latent_dim" not in plain(subject.whole.spec)
    assert subject.whole.spec.latent_shape == (8, LATENT)


def test_a_bundle_that_nobody_cuts_is_refused(folder):
    bundle = Bundle.load(folder)
    uncut = {name: replace(program, finish=None) for name, program in bundle.plans.items()}
    with pytest.raises(BadBundle, match=r"a chunk of shape \(1, 8, 8\) and no graph that finishes"):
        check_contents(replace(bundle, plans=uncut))


def test_a_latent_narrower_than_its_action_is_refused(subject):
    with pytest.raises(BadSetting, match="latent_dim=2, but actions have 3 numbers"):
        replace(subject.wide.spec, latent_dim=2)
