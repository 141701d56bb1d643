"""Cameras read for every second chunk: who looks when, what is fresh in between, and what that costs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.flops import count_flops
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.accel.techniques.frame_cache import FrameCache
from vivace.eval.measure.latencies import chunk_latencies
from vivace.eval.measure.timing import Rounds
from vivace.policies.carry import FOLLOWED, SLOTS, Slot
from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.execution import Denoising, as_trained
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import LoadedPolicy, stage
from vivace.policies.session import Session
from vivace.policies.tiny.policies import tiny_cogact, tiny_dp_transformer

STATE, CAMERA = "observation.state", "observation.images.front"


@pytest.fixture(scope="module")
def loaded() -> LoadedPolicy:
    """A policy with a camera and a state, sampled in four steps."""
    policy = tiny_dp_transformer(images=True)
    stats = {
        STATE: {"min": torch.full((5,), -2.0), "max": torch.full((5,), 2.0)},
        "action": {"min": torch.full((3,), 10.0), "max": torch.full((3,), 30.0)},
        CAMERA: {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)},
    }
    pre, post = make_dp_transformer_pre_post_processors(policy.config, stats)
    staged = stage(policy)
    staged.sampler = staged.resample("ddim", 4)
    return LoadedPolicy(Path(), policy, staged, pre, post, fingerprint(policy, staged.spec.block_ids))


def seen(rows: int, picture: int, state: int) -> dict[str, np.ndarray]:
    """What is observed: one of some pictures, and one of some states."""
    pictures, states = np.random.default_rng(picture), np.random.default_rng(state)
    return {
        STATE: states.uniform(-2, 2, (rows, 2, 5)).astype(np.float32),
        CAMERA: pictures.integers(0, 256, (rows, 2, 64, 64, 3), dtype=np.uint8),
    }


def planned(loaded: LoadedPolicy, *wanted) -> Denoising:
    data = CalibrationData(Session(loaded).prepare(seen(2, 0, 0)), ((1, 0), (2, 0)))
    return accelerate(loaded.staged, calibrate(loaded.staged, loaded.fingerprint, data, wanted))


def watched(execution: Denoising) -> tuple[Denoising, list[int]]:
    """Return the execution, and how many observations it looked at each time it looked."""
    looks: list[int] = []

    class Watched:
        def __getattr__(self, name):
            return getattr(execution.policy, name)

        def see(self, batch, *args):
            looks.append(len(batch[STATE]))
            return execution.policy.see(batch, *args)

    return replace(execution, policy=Watched()), looks


def follows(*before: int) -> dict[str, np.ndarray]:
    return {FOLLOWED: np.array([[tick, 4] for tick in before])}


@pytest.mark.parametrize("every", [2, 3])
def test_every_nth_chunk_of_an_episode_looks_and_so_does_one_that_follows_nothing(loaded, every):
    execution, looks = watched(planned(loaded, ("frame_cache", {"every": every})))
    session, looked = Session(loaded, execution), []
    before = [-1, 0, 1, 2, 3, 4, -1, 6, 3, 8]  # reset at the seventh, one skipped before the ninth
    for tick, one in enumerate(before):
        session.predict(seen(1, tick, tick) | follows(one), [(7, tick)])
        looked.append(len(looks))
        looks.clear()
    wanted = {2: [1, 0, 1, 0, 1, 0, 1, 0, 1, 0], 3: [1, 0, 0, 1, 0, 0, 1, 0, 1, 0]}
    assert looked == wanted[every]


def test_between_two_looks_the_state_and_the_noise_are_fresh_and_the_picture_is_not(loaded):
    plain = Session(loaded)
    session = Session(loaded, planned(loaded, ("frame_cache", {})))
    first = session.predict(seen(1, 0, 0), [(7, 0)])
    np.testing.assert_array_equal(first, plain.predict(seen(1, 0, 0), [(7, 0)]))
    second = session.predict(seen(1, 1, 1) | follows(0), [(7, 4)])
    np.testing.assert_array_equal(second, plain.predict(seen(1, 0, 1), [(7, 4)]))
    third = session.predict(seen(1, 2, 2) | follows(4), [(7, 8)])
    np.testing.assert_array_equal(third, plain.predict(seen(1, 2, 2), [(7, 8)]))


@pytest.mark.parametrize("more", [(), (("hoist", {}),), (("warm_start", {}),)], ids=len)
def test_episodes_side_by_side_look_each_at_its_own_time(loaded, more):
    execution, looks = watched(planned(loaded, ("frame_cache", {}), *more))
    together, slots = Session(loaded, execution), [Slot() for _ in range(3)]
    alone = [Session(loaded, execution) for _ in range(3)]
    for tick, before in enumerate([(-1, -1, -1), (0, -1, 0), (1, 1, 1)]):
        asked, keys = seen(3, tick, tick) | follows(*before), [(row, tick) for row in range(3)]
        looks.clear()
        found = together.predict(asked | {SLOTS: slots}, keys)
        assert sum(looks) == (3, 1, 2)[tick]
        for row, session in enumerate(alone):
            one = {key: value[row : row + 1] for key, value in asked.items()}
            np.testing.assert_allclose(session.predict(one, [keys[row]])[0], found[row], atol=1e-3)


def test_a_chunk_costs_the_mean_of_a_cycle(loaded):
    batch = Session(loaded).prepare(seen(1, 0, 0))
    plain = count_flops(as_trained(loaded.staged), batch)
    for every in (2, 3):
        found = count_flops(planned(loaded, ("frame_cache", {"every": every})), batch)
        assert found.encode == plain.encode // every, "all of it is looking: what is felt is taken as it is"
        assert found.denoise == plain.denoise


def test_a_cycle_is_timed_at_once_and_shared_out(loaded):
    execution, looks = watched(planned(loaded, ("frame_cache", {})))
    raw = seen(1, 0, 0)
    data = CalibrationData(Session(loaded).prepare(raw), ((1, 0),), raw=raw)
    runs = {"plain": Session(loaded), "cached": Session(loaded, execution)}
    looks.clear()
    found = chunk_latencies(runs, data, Rounds(repeats=4))
    # to prepare: a chunk that looks, one that does not, and one that looks; then five cycles of two chunks
    assert len(looks) == 2 + 5
    assert len(found.times_s["cached"]) == len(found.times_s["plain"]) == 4
    total = sum(found.stages_s["cached"].values())
    assert total < 1.5 * max(found.times_s["cached"])


def test_what_it_does_not_fit_is_refused_by_name(loaded):
    for policy in (tiny_cogact(), tiny_dp_transformer()):
        staged = stage(policy)
        mark = fingerprint(policy, staged.spec.block_ids)
        with pytest.raises(UnsupportedPolicy, match="frame_cache reads cameras apart from the state, but"):
            accelerate(staged, AccelerationPlan(mark, (FrameCache(),)))
    with pytest.raises(BadSetting, match=r"frame_cache every=1; needed: 2\.\.64"):
        planned(loaded, ("frame_cache", {"every": 1}))
