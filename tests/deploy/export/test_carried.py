"""Bundles whose chunks make use of those before: as torch does, over whole episodes, without torch."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.technique import CalibrationData
from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.bundle.checks import check_contents
from vivace.deploy.export.export import check_exportable, export
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.deploy.workers.process_worker import Bundles
from vivace.deploy.workers.worker import Request
from vivace.eval.measure.bundle_rows import BundleRun
from vivace.eval.training.fit import save
from vivace.eval.training.recipe import statistics
from vivace.policies.carry import FOLLOWED, SLOTS, Slot
from vivace.policies.errors import BadBundle, UnsupportedPolicy
from vivace.policies.execution import begin_with_noise
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.load import load_policy
from vivace.policies.session import Session
from vivace.policies.tiny.policies import tiny_dp_transformer

STATE, CAMERA = "observation.state", "observation.images.front"
FEW = ("step_schedule", {"sampler": "dpmsolver++", "n_steps": 4, "spacing": "linspace"})
PLANS = {
    "warm": [FEW, ("hoist", {}), ("warm_start", {})],
    "looks": [FEW, ("hoist", {}), ("frame_cache", {})],
    "both": [FEW, ("hoist", {}), ("warm_start", {}), ("frame_cache", {"every": 3})],
}


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A checkpoint with a camera, observations, and its plans."""
    folder = tmp_path_factory.mktemp("carried") / "dp"
    random = np.random.default_rng(0)
    made = tiny_dp_transformer(images=True)
    low = {STATE: (5,), "action": (3,)}
    stats = {
        key: statistics(random.uniform(-1, 1, (50, *shape)).astype(np.float32)) for key, shape in low.items()
    }
    stats[CAMERA] = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)}
    save(made, *make_dp_transformer_pre_post_processors(made.config, stats), folder)
    loaded = load_policy(folder)
    raw = seen(2, 0) | {"task": ["", ""]}
    data = CalibrationData(Session(loaded).prepare(raw), ((1, 0), (2, 8)), raw=raw)
    fitted = replace(data, noise_keys=((3, 0), (4, 0)))
    plans = {
        name: calibrate(loaded.staged, loaded.fingerprint, fitted, wanted) for name, wanted in PLANS.items()
    }
    return loaded, data, plans


def seen(rows: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        STATE: random.uniform(-1, 1, (rows, 2, 5)).astype(np.float32),
        CAMERA: random.integers(0, 256, (rows, 2, 64, 64, 3), dtype=np.uint8),
    }


@pytest.fixture(scope="module")
def bundle(policy, tmp_path_factory) -> Bundle:
    loaded, data, plans = policy
    return export(loaded, plans, data, tmp_path_factory.mktemp("bundles") / "dp")


@pytest.mark.long
def test_what_is_not_run_for_every_chunk_is_a_graph_of_its_own(bundle):
    assert [graph.origin.part for graph in bundle.graphs] == ["encode", "step", "see", "perceive"]
    see, perceive = bundle.graphs[2:]
    assert set(see.inputs) == {CAMERA}
    assert set(perceive.inputs) == {STATE, "seen.0"}
    told = {name: (plan.first, plan.looks_every) for name, plan in bundle.plans.items()}
    assert told == {"warm": (2, 1), "looks": (None, 2), "both": (2, 3)}
    for plan in bundle.plans.values():
        assert plan.receipt["chunk_error"] <= 1e-5
        assert (plan.receipt["observations"], plan.receipt["chunks"]) == (2, 3)
    assert all(golden.after is not None for golden in bundle.goldens.values())


@pytest.mark.long
@pytest.mark.parametrize("name", PLANS)
def test_an_episode_is_the_one_of_torch_with_resets_and_chunks_that_came_late(policy, bundle, name):
    loaded, _, plans = policy
    session = Session(loaded, accelerate(loaded.staged, plans[name], loaded.fingerprint))
    ours = OrtPolicy(f"{bundle.folder}#{name}")
    fresh = OrtPolicy(f"{bundle.folder}#{name}")
    before = [-1, 0, 4, -1, 12, 12, 20, 24]  # reset, late, or never executed: at 12 and 20
    for number, one in enumerate(before):
        asked, key = seen(1, number) | {FOLLOWED: np.array([[one, 3]])}, [(7, 4 * number)]
        found = ours.predict(asked, key)
        np.testing.assert_allclose(found, session.predict(asked, key), atol=1e-4)
        is_fresh = np.allclose(found, fresh.predict(seen(1, number), key), atol=1e-4)
        if number == 0 or one != 4 * (number - 1):
            assert is_fresh, "there is nothing to follow"
        elif number == 1:
            assert not is_fresh


def test_episodes_side_by_side_have_slots_of_their_own(policy, bundle):
    both, alone = OrtPolicy(f"{bundle.folder}#both"), [OrtPolicy(f"{bundle.folder}#both") for _ in range(2)]
    slots = [Slot(), Slot()]
    for number, before in enumerate([(-1, -1), (0, -1), (1, 1)]):
        follows, keys = np.array([[one, 3] for one in before]), [(7, number), (8, number)]
        asked = seen(2, number) | {FOLLOWED: follows}
        found = both.predict(asked | {SLOTS: slots}, keys)
        for row, single in enumerate(alone):
            one = {key: value[row : row + 1] for key, value in asked.items()}
            np.testing.assert_array_equal(single.predict(one, [keys[row]])[0], found[row])


def test_the_inference_process_holds_what_was_left_until_it_is_told_otherwise(bundle):
    infer = Bundles.__new__(Bundles)
    infer._policies = {"dp": OrtPolicy(f"{bundle.folder}#both")}
    alone = OrtPolicy(f"{bundle.folder}#both")
    for tick, before in ((0, None), (4, (0, 4)), (8, None), (12, (4, 8))):
        values = {key: value[0] for key, value in seen(1, tick).items()}
        request = Request(values, tick, 0.0, (7, tick), followed=before)
        said = {} if before is None else {FOLLOWED: np.array([before])}
        np.testing.assert_array_equal(infer(request), alone.predict(seen(1, tick) | said, [(7, tick)])[0])


def test_a_chunk_that_follows_is_what_is_timed_of_a_bundle(policy, bundle):
    loaded, data, _ = policy
    run = BundleRun(f"{bundle.folder}#looks", loaded, None)
    looks, encode = [], run.policy._encode
    run.policy._encode = lambda given: (looks.append(1), encode(given))[1]
    run.policy._encode.inputs = encode.inputs
    for one in data.ones():
        run(one)
    assert (run.cycle, len(looks)) == (2, 2), "two chunks each, one of which looks"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"first": 5}, "beginning at step 5; needed: one of 4, or none"),
        ({"perceive": None}, "a look every 3 chunks; needed: a graph that perceives"),
        ({"perceive": 1}, "read by"),
    ],
    ids=["no such step", "no such graph", "another graph"],
)
def test_a_manifest_that_cannot_be_is_refused(bundle, change, message):
    plans = {**bundle.plans, "both": replace(bundle.plans["both"], **change)}
    with pytest.raises(BadBundle, match=message):
        check_contents(replace(bundle, plans=plans))


def test_what_a_bundle_cannot_carry_is_refused_before_anything_is_exported(policy, monkeypatch):
    loaded, data, plans = policy
    monkeypatch.setattr("vivace.accel.techniques.warm_start.begin_warm", lambda *_: begin_with_noise(*_))
    with pytest.raises(
        UnsupportedPolicy, match="carries something from chunk to chunk that a bundle does not"
    ):
        check_exportable(loaded, {"warm": plans["warm"]}, data.one)
