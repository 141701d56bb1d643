"""What is timed is what the loop asks for, has nothing left to compile, and is known under what it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import checkpoint
from lerobot_itself import moments
from lerobot_policies import TASK

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.technique import CalibrationData
from vivace.eval import identity
from vivace.eval.identity import describe_run, source_digest
from vivace.eval.measure import latencies
from vivace.eval.measure.latencies import (
    Measured,
    Notes,
    asked,
    chunk_latencies,
    measured_latencies,
    warm_up,
    with_first,
)
from vivace.eval.measure.timing import Rounds
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.execution import Execution, as_trained, call_denoiser, executing, launched
from vivace.policies.language.decoding import greedy
from vivace.policies.load import load_policy, stage
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.session import Session
from vivace.policies.spec import DELAY, PREVIOUS
from vivace.policies.tiny.policies import tiny_dp_transformer, tiny_token_vla

STATE = "observation.state"


def test_graphs_are_compiled_on_every_observation():
    seen = []

    def watched(policy, prompt, noise, draft=None, run=None):
        seen.append(prompt.ids.tolist())
        return greedy(policy, prompt, noise, draft)

    policy = stage(tiny_token_vla(language_layers=1, horizon=2, n_action_steps=2))
    tokens = torch.arange(48).reshape(3, 16)
    batch = {
        "observation.images.front": torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        "observation.language.tokens": tokens,
        "observation.language.attention_mask": torch.ones(3, 16, dtype=torch.bool),
    }
    data = CalibrationData(batch, [(0, 0), (0, 1), (0, 2)], None)
    execution = as_trained(policy)
    warm_up(replace(execution, decoder=watched), data)
    assert seen == []  # nothing is compiled
    warm_up(launched(execution, decoder=watched), data)
    assert seen == [[row] for row in tokens.tolist()]


def test_code_that_computes_otherwise_than_what_it_was_made_of_is_refused():
    staged = stage(tiny_dp_transformer(n_layer=1))
    execution = as_trained(staged)

    def wrong(execution, step, x, context, cache):
        out, cache = call_denoiser(execution, step, x, context, cache)
        return -out, cache

    data = CalibrationData({"observation.state": torch.rand(2, 2, 5)}, [(0, 0), (0, 1)])
    with pytest.raises(UnsupportedPolicy, match="compiled or captured, its actions are .* leave it out"):
        warm_up(launched(execution, call=wrong), data)
    warm_up(launched(execution, call=lambda *args: call_denoiser(*args)), data)


def observations(loaded, seed=0, n=2) -> CalibrationData:
    """Two of them; the chunk before is known of the second."""
    random = np.random.default_rng(seed)
    previous = np.full((n, 8, 3), np.nan, np.float32)
    previous[1:, :4] = random.uniform(10, 30, (n - 1, 4, 3))
    raw = {
        STATE: random.uniform(-2, 2, (n, 2, 5)).astype(np.float32),
        PREVIOUS: previous,
        "task": ["push it"] * n,
    }
    keys = tuple((seed, i) for i in range(n))
    return CalibrationData(Session(loaded).inputs(raw).batch, keys, None, raw)


def test_a_chunk_is_timed_from_robots_units_to_robots_units(tiny_loaded):
    data = observations(tiny_loaded)
    seen = {"before": [], "after": 0, "bundle": [], "continued": []}

    class Before:
        steps = tiny_loaded.preprocess.steps

        def __call__(self, values):
            seen["before"].append({key: np.shape(value) for key, value in values.items()})
            return tiny_loaded.preprocess(values)

    def after(actions):
        seen["after"] += 1
        return tiny_loaded.postprocess(actions)

    session = Session(
        replace(tiny_loaded, preprocess=Before(), postprocess=after),
        chunking=RealTimeChunking(jacobian="exact"),
    )
    seen["before"].clear()  # of what it tries when it is made
    normalised = session._normalised

    def continued(actions):
        seen["continued"].append(tuple(actions.shape))
        return normalised(actions)

    session._normalised = continued
    runs = {"plain": session, "bundle": lambda one: seen["bundle"].append(one.raw[STATE])}
    found = chunk_latencies(runs, data, Rounds(repeats=3))
    assert seen["after"] == 4, "one round to warm up"
    assert len(seen["before"]) == 4 * 2, "of each moment once, of a continued chunk too"
    assert seen["continued"] == [(1, 8, 3)] * 2, "of two observations the first continues nothing"
    assert [len(found.times_s[name]) for name in runs] == [3, 3]
    assert set(found.stages_s) == {"plain"}
    assert set(found.stages_s["plain"]) == {"prepare", "encode", "denoise", "finish"}
    assert np.array_equal(np.concatenate(seen["bundle"][:2]), data.raw[STATE])


def test_a_stage_is_never_longer_than_the_whole(tiny_loaded):
    found = chunk_latencies({"plain": Session(tiny_loaded)}, observations(tiny_loaded), Rounds(repeats=5))
    assert all(time_s > 0 for time_s in found.stages_s["plain"].values())
    assert max(found.stages_s["plain"].values()) < max(found.times_s["plain"])


@pytest.mark.parametrize(("kind", "after"), [("cogact", "denoise"), ("token_vla", "decode")])
def test_vision_and_language_are_told_apart_where_there_is_a_language_stage(kind, after):
    loaded = load_policy(checkpoint(kind))
    session = Session(loaded, task=TASK)
    raw = {key: value[:, None] for key, value in moments(session.spec)[0].items()}
    data = CalibrationData(session.prepare(raw), ((1, 0),), raw=raw)
    found = chunk_latencies({"plain": session}, data, Rounds(repeats=2))
    stages = found.stages_s["plain"]
    assert list(stages) == ["prepare", "vision", "language", after, "finish"]
    assert all(time_s > 0 for time_s in stages.values())


def test_the_loop_leaves_out_what_it_does_not_know(tiny_loaded):
    first, second = observations(tiny_loaded).ones()
    assert set(asked(first)) == {STATE, "task"}
    assert set(asked(second)) == {STATE, "task", PREVIOUS, DELAY}


def test_a_chunk_that_follows_none_is_timed_apart_where_it_takes_longer(tiny_loaded):
    data = observations(tiny_loaded)
    plan = calibrate(tiny_loaded.staged, tiny_loaded.fingerprint, data, [("warm_start", {"share": 0.1})])
    warm, ran = accelerate(tiny_loaded.staged, plan), []
    call = warm.call

    def told(execution, step, *args):
        ran.append(step.index)
        return call(execution, step, *args)

    runs = {"plain": Session(tiny_loaded), "warm": Session(tiny_loaded, replace(warm, call=told))}
    found = with_first(runs, data, Rounds(repeats=3, more={"warm": 5}, limit_s=60.0))
    assert {name: len(times) for name, times in found.times_s.items()} == {"plain": 3, "warm": 5}
    assert {name: len(times) for name, times in found.first_s.items()} == {"warm": 3}
    assert set(found.stages_s) == {"plain", "warm"}
    # to prepare: two observations, each a chunk in full and one that follows; then as many as were timed
    assert ran.count(0) == 2 + (1 + 3)
    assert ran.count(len(warm.sampler) - 1) == 4 + (1 + 3) + (1 + 5)


@pytest.fixture
def measuring(tmp_path, monkeypatch):
    """Latencies are the number of the measurement, and are kept in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    done = []

    def measure(runs, data, rounds):
        done.append(tuple(runs))
        return Measured({name: [float(len(done))] for name in runs}, {name: {} for name in runs})

    monkeypatch.setattr(latencies, "chunk_latencies", measure)
    return done


def cached(loaded, data, updates) -> Execution:
    wanted = [("hoist", {}), ("block_cache", {"method": "uniform", "updates": updates})]
    return accelerate(loaded.staged, calibrate(loaded.staged, loaded.fingerprint, data, wanted))


def test_rows_of_one_name_are_known_by_what_they_do(tiny_loaded, measuring):
    """A row "uniform" with 2 updates once answered for 50."""
    data, rounds = observations(tiny_loaded), Rounds(repeats=5)
    two, five = (Session(tiny_loaded, cached(tiny_loaded, data, n)) for n in (2, 5))
    assert measured_latencies({"uniform": two}, data, rounds).median_s("uniform") == 1
    assert measured_latencies({"uniform": five}, data, rounds).median_s("uniform") == 2
    again = Session(tiny_loaded, cached(tiny_loaded, data, 2))
    assert measured_latencies({"uniform": again}, data, rounds).median_s("uniform") == 1
    assert len(measuring) == 2
    assert measured_latencies({"uniform": two}, data, rounds, Notes(refresh=True)).median_s("uniform") == 3


CHANGES = {
    "chunking": lambda loaded, data: (Session(loaded, chunking=RealTimeChunking()), data),
    "jacobian": lambda loaded, data: (Session(loaded, chunking=RealTimeChunking(jacobian="exact")), data),
    "task": lambda loaded, data: (Session(loaded, task="pull it"), data),
    "n_action_steps": lambda loaded, data: (Session(loaded, as_trained(executing(loaded.staged, 1))), data),
    "observations": lambda loaded, data: (Session(loaded), observations(loaded, seed=1)),
    "a row's task": lambda loaded, data: (
        Session(loaded), replace(data, raw={**data.raw, "task": ["pull it"] * 2})),
    "a row's state": lambda loaded, data: (
        Session(loaded), replace(data, raw={**data.raw, STATE: data.raw[STATE] + 1})),
    "weights": lambda loaded, data: (
        Session(replace(loaded, fingerprint=replace(loaded.fingerprint, weights="others"))), data),
    "processors": lambda loaded, data: (Session(_with_other_processor(loaded)), data),
}  # fmt: skip


def _with_other_processor(loaded):
    file = loaded.path / "policy_preprocessor.json"
    assert file.is_file()
    file.write_text(file.read_text() + "\n")
    return loaded


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_run_otherwise_is_measured_anew(tiny_loaded, measuring, change):
    data, rounds = observations(tiny_loaded), Rounds(repeats=5)
    measured_latencies({"plain": Session(tiny_loaded)}, data, rounds)
    measured_latencies({"plain": Session(tiny_loaded)}, data, rounds)
    assert len(measuring) == 1
    other, seen = CHANGES[change](tiny_loaded, data)
    measured_latencies({"plain": other}, seen, rounds)
    assert len(measuring) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source_digest", lambda: "another vivace"),
        ("versions", lambda: {"torch": "99"}),
        ("machine", lambda device: {"threads": 64}),
    ],
)
def test_other_code_or_another_machine_is_measured_anew(tiny_loaded, measuring, monkeypatch, name, value):
    data, runs = observations(tiny_loaded), {"plain": Session(tiny_loaded)}
    measured_latencies(runs, data, Rounds(repeats=5))
    measured_latencies(runs, data, Rounds(repeats=6))
    assert len(measuring) == 2
    monkeypatch.setattr(latencies, name, value)
    measured_latencies(runs, data, Rounds(repeats=5))
    assert len(measuring) == 3


def test_tensors_of_a_plan_count_too(tiny_loaded):
    data = observations(tiny_loaded)
    session = Session(tiny_loaded, cached(tiny_loaded, data, 2))
    plan = session.execution.plan
    described = describe_run(session)
    assert [entry["kind"] for entry in described["techniques"]] == ["hoist", "block_cache"]

    class WithTensors:
        def __init__(self, value):
            self.tensors = {"weight": torch.tensor([value])}

    class Plan:
        def __init__(self, value):
            self.techniques = (WithTensors(value),)

        def to_json(self):
            return plan.to_json()

    def of(value):
        twin = Session(tiny_loaded, replace(session.execution, plan=Plan(value)))
        return describe_run(twin)["tensors"]

    assert of(1.0) == of(1.0) != of(2.0)


def test_a_change_of_the_code_is_another_source(tmp_path, monkeypatch):
    names = {folder.name for folder in identity.source_folders()}
    assert names == {"policies", "accel", "deploy", "eval"}
    code = tmp_path / "policies"
    (code / "room").mkdir(parents=True)
    (code / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(identity, "source_folders", lambda: [code])
    found = []
    for file, text in (("a.py", "x = 1\n"), ("a.py", "x = 2\n"), ("room/b.py", ""), ("notes.md", "none")):
        (code / file).write_text(text)
        source_digest.cache_clear()
        found.append(source_digest())
    source_digest.cache_clear()
    assert len(set(found)) == 3
    assert found[2] == found[3], "notes are no code"
