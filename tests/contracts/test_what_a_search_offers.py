"""What a search may choose can be calibrated and run: techniques that exclude each other are not offered."""

import zlib

import numpy as np
import optuna
import pytest
from policy_cases import KEYS, POLICIES, observations

from vivace.accel.apply import Calibrator
from vivace.accel.technique import CalibrationData
from vivace.eval.tune.space import space_of
from vivace.policies.execution import sample
from vivace.policies.load import stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.spec import Fingerprint
from vivace.policies.tiny.policies import tiny_clip

QUICK = {"dp_transformer": 12, "cogact": 12, "token_vla": 8}
MANY = 60


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("miniature"))


@pytest.mark.parametrize(
    ("name", "n"),
    [*QUICK.items(), *(pytest.param(name, MANY, marks=pytest.mark.long) for name in POLICIES)],
)
def test_no_candidate_of_a_search_is_refused(clip, name: str, n: int) -> None:
    policy = POLICIES[name][0](clip)
    staged = stage(policy)
    data = CalibrationData(observations(policy), KEYS)
    calibrator = Calibrator(staged, Fingerprint(staged.spec.type, "", "", "", ()), data)
    space, seed = space_of(staged), zlib.crc32(name.encode())
    study = optuna.create_study(directions=["minimize"] * 2, sampler=optuna.samplers.RandomSampler(seed=seed))
    drawn = [space.suggest(study.ask()) for _ in range(n // 2)]
    random = np.random.default_rng(seed)
    bred = [space.bred(parent, random) for parent in drawn]
    refused = {}
    for candidate in (*drawn, *bred):
        try:
            _, execution = calibrator.plan(candidate.requests)
            sample(execution, data.batch, EpisodeNoise(KEYS), data.draft)
        except Exception as error:
            refused[candidate.requests and str(candidate.requests)] = f"{type(error).__name__}: {error}"
    assert not refused
