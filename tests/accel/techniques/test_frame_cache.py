"""Cameras read for every second chunk: who looks when, what is fresh in between, and what that costs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot_policies import build
from policy_cases import KEYS, observations

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.flops import count_flops
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.accel.techniques.frame_cache import FrameCache
from vivace.eval.measure.latencies import chunk_latencies
from vivace.eval.measure.timing import Rounds
from vivace.policies.batch import take
from vivace.policies.carry import FOLLOWED, NOTHING, PAST, SLOTS, Slot
from vivace.policies.errors import BadSetting, PlanMismatch, UnsupportedPolicy
from vivace.policies.execution import Denoising, as_trained, sample, sample_after
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import LoadedPolicy, stage
from vivace.policies.sampling.noise import EpisodeNoise
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


@pytest.fixture(scope="module")
def two_cameras(tmp_path_factory):
    """A flow VLA with two cameras."""
    staged = stage(build("smolvla", tmp_path_factory.mktemp("rates"), num_vlm_layers=2, num_steps=2))
    return staged, fingerprint(staged.policy, staged.spec.block_ids), observations(staged.policy)


@pytest.mark.parametrize("rates", [(1, 3), (2, 4)])
def test_cameras_are_read_at_rates_of_their_own(two_cameras, rates):
    staged, mark, batch = two_cameras
    cameras = staged.cameras
    technique = FrameCache(every=rates[1], cameras={cameras[0]: rates[0]})
    execution = accelerate(staged, AccelerationPlan(mark, (technique,)))
    carry = NOTHING
    pictures = [{camera: torch.full_like(batch[camera], n / 5) for camera in cameras} for n in range(5)]
    for n in range(5):
        last = [n - n % rate for rate in rates]  # when each camera was read
        shown = {camera: pictures[i][camera] for camera, i in zip(cameras, last, strict=True)}
        felt = batch | {STATE: batch[STATE] + n}
        carry = {**carry, PAST: torch.tensor([1] * len(KEYS))} if carry else carry
        found, carry = sample_after(execution, felt | pictures[n], EpisodeNoise(KEYS), carry)
        wanted = sample(as_trained(staged), felt | shown, EpisodeNoise(KEYS))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    assert technique.remark == (
        f"every {rates[1]}, {cameras[0].rpartition('.')[2]} every {rates[0]}, mean of {rates[1]} chunks"
    )


def test_a_camera_that_is_read_seldom_saves_its_tower_alone(two_cameras):
    staged, mark, batch = two_cameras
    one = take(batch, [0])
    plain = count_flops(as_trained(staged), one)
    cached = accelerate(staged, AccelerationPlan(mark, (FrameCache(cameras={staged.cameras[0]: 1}),)))
    found = count_flops(cached, one)
    assert found.language == pytest.approx(plain.language, rel=0.05), "patches are mixed at every chunk"
    tower = (plain.encode - plain.language) / 2
    assert plain.encode - found.encode == pytest.approx(tower / 2, rel=0.2)


def test_rates_that_make_no_sense_are_refused(two_cameras, loaded):
    staged, mark, _ = two_cameras
    front, wrist = staged.cameras
    with pytest.raises(PlanMismatch, match=r"'observation.images.nowhere', which is none; this policy has"):
        accelerate(staged, AccelerationPlan(mark, (FrameCache(cameras={"observation.images.nowhere": 2}),)))
    with pytest.raises(PlanMismatch, match="each at every chunk"):
        accelerate(staged, AccelerationPlan(mark, (FrameCache(cameras={front: 1, wrist: 1}),)))
    with pytest.raises(UnsupportedPolicy, match="frame_cache looks at several cameras in one call, but"):
        planned(loaded, ("frame_cache", {"cameras": {CAMERA: 3}}))
    with pytest.raises(BadSetting, match=f"reads {front} every 0; needed: 1"):
        FrameCache(cameras={front: 0})
    with pytest.raises(BadSetting, match=r"every 7, 11 chunks, which meet not within 64"):
        FrameCache(every=7, cameras={front: 11})
