"""From observations to chunks: read once, and its time told stage by stage."""

from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from vivace.policies.batch import tensors
from vivace.policies.execution import as_trained
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.families.token_vla.policy import make_token_vla_pre_post_processors
from vivace.policies.fingerprint import fingerprint
from vivace.policies.language.tokenize import train_tokenizer
from vivace.policies.load import LoadedPolicy, stage
from vivace.policies.sampling.real_time_chunking import RealTimeChunking, continuation
from vivace.policies.session import Session
from vivace.policies.spec import DELAY, PREVIOUS
from vivace.policies.stopwatch import STAGES, StageWatch
from vivace.policies.tiny.policies import tiny_dp_transformer, tiny_token_vla

STATE, CAMERA = "observation.state", "observation.images.front"
TASK = "Open the drawer"


def dp_policy() -> LoadedPolicy:
    """A policy with state and image, its actions between 10 and 30."""
    policy = tiny_dp_transformer(images=True)
    stats = {
        STATE: {"min": torch.full((5,), -2.0), "max": torch.full((5,), 2.0)},
        "action": {"min": torch.full((3,), 10.0), "max": torch.full((3,), 30.0)},
        CAMERA: {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)},
    }
    pre, post = make_dp_transformer_pre_post_processors(policy.config, stats)
    return LoadedPolicy(Path(), policy, stage(policy), pre, post, fingerprint(policy, ()))


def token_policy() -> LoadedPolicy:
    policy = tiny_token_vla()
    stats = {"action": {"q01": np.full(3, -2.0, np.float32), "q99": np.full(3, 2.0, np.float32)}}
    pre, post = make_token_vla_pre_post_processors(policy.config, stats, train_tokenizer([TASK]))
    return LoadedPolicy(Path(), policy, stage(policy), pre, post, fingerprint(policy, ()))


def dp_observation() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    previous = random.uniform(10, 30, (1, 7, 3)).astype(np.float32)
    previous[:, 5:] = np.nan
    return {
        STATE: random.uniform(-2, 2, (1, 2, 5)).astype(np.float32),
        CAMERA: random.integers(0, 256, (1, 2, 64, 64, 3), dtype=np.uint8),
        PREVIOUS: previous,
        DELAY: np.array([2]),
    }


def token_observation() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    previous = np.full((1, 4, 3), np.nan, np.float32)
    previous[:, :2] = random.uniform(-2, 2, (1, 2, 3))
    return {CAMERA: random.integers(0, 256, (1, 1, 32, 32, 3), dtype=np.uint8), PREVIOUS: previous}


def counted(loaded: LoadedPolicy) -> tuple[LoadedPolicy, list[dict]]:
    """Return the policy, and what its pipeline is asked from now on."""
    asked: list[dict] = []

    class Counted:
        steps = loaded.preprocess.steps

        def __call__(self, values):
            asked.append(values)
            return loaded.preprocess(values)

    return replace(loaded, preprocess=Counted()), asked


def test_a_continued_chunk_is_read_once():
    loaded, asked = counted(dp_policy())
    settings = RealTimeChunking()
    session = Session(loaded, chunking=settings)
    asked.clear()  # it tried once how actions are normalised
    values = dp_observation()
    inputs = session.inputs(values)
    assert len(asked) == 2, "one moment at a time, each once"
    assert [set(one) for one in asked] == [{STATE, CAMERA, "task"}] * 2
    assert [one[STATE].shape for one in asked] == [(1, 5)] * 2
    alone = Session(loaded).inputs({key: values[key] for key in (STATE, CAMERA)})
    assert all(torch.equal(inputs.batch[key], value) for key, value in tensors(alone.batch).items())
    assert inputs.batch.keys() == alone.batch.keys()
    actions, weights = continuation(settings, values[PREVIOUS], values[DELAY], 1, 8)
    known = loaded.preprocess({STATE: torch.zeros(1, 2, 5), "action": torch.from_numpy(actions)})["action"]
    assert torch.equal(inputs.follow.actions, known)
    assert torch.equal(inputs.follow.weights, torch.from_numpy(weights))
    assert inputs.draft is None
    asked.clear()
    session.predict(values, [(0, 0)])
    assert len(asked) == 2


def test_tokens_of_the_chunk_before_are_read_with_the_observation():
    loaded, asked = counted(token_policy())
    session = Session(loaded, task=TASK)
    values = token_observation()
    session.predict(values, [(0, 0)])
    assert len(asked) == 1
    inputs = session.inputs(values)
    alone = session.inputs({CAMERA: values[CAMERA]})
    assert all(torch.equal(inputs.batch[key], value) for key, value in tensors(alone.batch).items())
    expected = loaded.policy.tokenize(torch.from_numpy(values[PREVIOUS][:, :2]) / 2)
    assert torch.equal(inputs.draft[:, :6], expected)
    assert (inputs.draft[:, 6:] == -1).all()
    assert alone.draft is None
    assert alone.follow is None


@pytest.mark.parametrize(
    ("loaded", "values", "stages"),
    [
        (dp_policy, dp_observation, ("prepare", "encode", "denoise", "finish")),
        (token_policy, token_observation, ("prepare", "encode", "decode", "finish")),
    ],
)
def test_the_stages_of_a_chunk_add_up_to_the_whole(loaded, values, stages):
    clock = count(0, 0.25)
    waited = []
    watch = StageWatch(lambda: waited.append(1), lambda: next(clock))
    session = Session(loaded(), task=TASK)
    for number in range(2):
        watch.start()
        session.predict(values(), [(0, number)], watch)
    assert [tuple(chunk) for chunk in watch.chunks] == [stages] * 2
    assert [sum(chunk.values()) for chunk in watch.chunks] == [0.25 * len(stages)] * 2
    assert len(waited) == 2 * len(stages), "the device is waited for at every boundary"
    assert [name for name in STAGES if name in stages] == list(stages)


def test_vision_ends_where_the_first_language_layer_begins():
    watch = StageWatch(now=count(0, 1.0).__next__)
    watch.start()
    for tell in ("prepare", None, None, "encode", None, "decode", "finish"):
        watch.begins_to_read() if tell is None else watch(tell)
    assert watch.chunks == [dict.fromkeys(("prepare", "vision", "language", "decode", "finish"), 1.0)]
    watch.start()
    for tell in ("prepare", "encode", "denoise", "finish"):
        watch(tell)
    assert watch.chunks[1] == dict.fromkeys(("prepare", "encode", "denoise", "finish"), 1.0)


def test_an_exact_jacobian_is_timed_as_denoising():
    now = [0.0]

    class Costly(torch.autograd.Function):
        """A second to look at, ten to go back through."""

        @staticmethod
        def forward(ctx, x):
            now[0] += 1.0
            return x * 0.5

        @staticmethod
        def backward(ctx, gradient):
            now[0] += 10.0
            return gradient * 0.5

    loaded = dp_policy()
    n_steps = 3
    execution = replace(
        as_trained(loaded.staged),
        sampler=loaded.staged.resample("ddim", n_steps),
        call=lambda execution, step, x, context, cache: (Costly.apply(x), cache),
    )
    found = {}
    for jacobian in ("identity", "exact"):
        watch = StageWatch(now=lambda: now[0])
        watch.start()
        session = Session(loaded, execution, chunking=RealTimeChunking(jacobian=jacobian))
        session.predict(dp_observation(), [(0, 0)], watch)
        found[jacobian] = watch.chunks[0]["denoise"]
    assert found == {"identity": 1.0 * n_steps, "exact": 11.0 * n_steps}


def warnings_of(session, caplog, *observations):
    for seen in observations:
        session.predict(seen, [(0, 0)])
    return [it.message for it in caplog.records if it.name == "vivace"]


def test_a_first_observation_unlike_training_is_told_once(caplog):
    """A5, A7: the bundle's rule; a blank observation, which only has shapes, is none yet."""
    session = Session(dp_policy())
    seen = dp_observation()
    del seen[PREVIOUS], seen[DELAY]
    degrees = seen | {STATE: np.full((1, 2, 5), 57.3, np.float32)}
    blank = session.blank_observation()
    (told,) = warnings_of(session, caplog, blank, degrees, degrees, seen)
    assert "number 0 of observation 'observation.state' is 57.3, training saw -2..2: 13.8 spans" in told
    assert "10 are plausible; check the sensor and its unit" in told


def test_a_first_observation_like_training_is_taken_and_no_later_one_looked_at(caplog):
    session = Session(dp_policy())
    seen = dp_observation()
    del seen[PREVIOUS], seen[DELAY]
    far = seen | {STATE: np.full((1, 2, 5), 41.0, np.float32)}
    assert warnings_of(session, caplog, far, seen | {STATE: np.full((1, 2, 5), 99.0, np.float32)}) == []
