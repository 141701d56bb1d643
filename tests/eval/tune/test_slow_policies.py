"""A search of a policy whose chunks take seconds, with recorded data alone, by a made-up clock."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from planted import STATE, latency_s, planted_checkpoint

from vivace.accel.plan import AccelerationPlan
from vivace.eval.measure import action_error
from vivace.eval.measure.latencies import Measured
from vivace.eval.options import DataOptions, PolicyOptions
from vivace.eval.profile import memory
from vivace.eval.tune import pace
from vivace.eval.tune.budget import BudgetOptions, tail
from vivace.eval.tune.candidate import Origin
from vivace.eval.tune.space import describe
from vivace.eval.tune.store import Store
from vivace.eval.verbs import tune as verb
from vivace.eval.verbs.tune import TuneCommand, TuneOptions
from vivace.policies import session
from vivace.policies.execution import Execution, as_trained, sample

CHUNK_S = 9.0
"""As trained; one that computes less takes as much less."""


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    return planted_checkpoint(tmp_path_factory.mktemp("slow") / "policy")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six episodes of four moments."""
    file = tmp_path_factory.mktemp("data") / "obs.npz"
    states = np.random.default_rng(0).uniform(-1, 1, (24, 2)).astype(np.float32)
    np.savez(file, **{STATE: states}, episode=np.repeat(np.arange(6), 4))
    return file


class SlowClock:
    """What a chunk takes passes, and nothing else does."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def chunk_s(self, execution: Execution) -> float:
        trained = as_trained(execution.policy)
        return CHUNK_S * latency_s(execution, trained) / latency_s(trained, trained)

    def sampled(self, execution: Execution, *args: Any) -> Any:
        self.now_s += len(args[0][STATE]) * self.chunk_s(execution)
        return sample(execution, *args)

    def measured(self, runs: Any, data: Any, rounds: Any) -> Measured:
        """As a clock would; every tenth chunk takes a third longer."""
        times_s: dict[str, list[float]] = {}
        for key, run in runs.items():
            one_s = self.chunk_s(run.execution)
            times_s[key] = [one_s * (4 / 3 if n % 10 == 9 else 1) for n in range(rounds.more[key])]
            self.now_s += sum(times_s[key])
        return Measured(times_s, {})


@pytest.fixture
def clock(monkeypatch) -> SlowClock:
    clock = SlowClock()
    for module in (action_error, session):
        monkeypatch.setattr(module, "sample", clock.sampled)
    monkeypatch.setattr(verb, "Deadline", partial(pace.Deadline, now=clock))
    return clock


@pytest.fixture
def search(policy, data, clock, tmp_path):
    def run(ms: float, **budget: Any) -> tuple[dict[str, Any], bool, Store]:
        command = TuneCommand(
            policy=PolicyOptions(path=str(policy)),
            data=DataOptions(file=str(data)),
            budget=BudgetOptions(ms=ms, **budget),
            output_dir=str(tmp_path / "out"),
            tune=TuneOptions(minutes=5, threads=1),
        )
        last, is_kept = verb.run(command, clock.measured)
        return last, is_kept, Store(tmp_path / "out")

    return run


def test_a_search_ends_in_time_and_chooses_among_several_that_were_timed(search, clock, tmp_path):
    last, is_kept, store = search(ms=4000)
    assert clock.now_s <= 300 + CHUNK_S, "no more than a chunk late"
    assert is_kept
    trials = store.trials
    timed = [trial for trial in trials.values() if trial.latencies_s]
    assert {Origin.TRAINED, Origin.EXACT} & {trial.candidate.origin for trial in timed}
    keeping = [trial for trial in timed if tail(trial.latencies_s)[1] <= 4.0]
    assert len(keeping) >= 3
    assert len(timed) >= 8
    winner = trials[last["winner"]["key"]]
    assert len(winner.latencies_s) >= 3
    percent, tail_s = tail(winner.latencies_s)
    assert tail_s <= 4.0
    assert f"p{percent:g}_s" in last["measured"]["latency"]
    assert winner.action_error == min(
        trial.action_error for trial in keeping if tail(trial.latencies_s)[0] == percent
    )
    assert AccelerationPlan.load(tmp_path / "out").measurements["judged_by"] == "action error"
    told = " ".join(last["cut_short"])
    assert "actions are compared on" in told
    assert "candidates were counted" in told
    assert json.loads((tmp_path / "out" / "results.json").read_text())["cut_short"] == last["cut_short"]


@pytest.mark.long
def test_what_only_a_world_can_judge_takes_no_time(search):
    _, _, store = search(ms=4000)
    assert not any(trial.follows for trial in store.trials.values())


def test_a_budget_that_nothing_keeps_is_told_in_time_with_the_fastest(search, clock, tmp_path):
    last, is_kept, store = search(ms=1)
    assert not is_kept
    assert clock.now_s <= 300 + CHUNK_S
    assert last["plan"] is None
    timed = [trial for trial in store.trials.values() if trial.latencies_s]
    fastest = min(timed, key=lambda trial: tail(trial.latencies_s)[1])
    assert last["fastest"]["label"] == describe(fastest.candidate)
    assert "no plan keeps 1 ms" in last["sentence"]
    assert not (tmp_path / "out" / "acceleration.json").exists()


@pytest.mark.long
def test_looking_at_memory_takes_its_chunks_of_the_time(search, clock, monkeypatch):
    def peak(session, data):
        clock.now_s += memory.CHUNKS * clock.chunk_s(session.execution)
        return 50.0

    monkeypatch.setattr(memory, "peak_mb", peak)
    last, is_kept, _ = search(ms=4000, memory_mb=100)
    assert is_kept
    assert clock.now_s <= 300 + (1 + memory.CHUNKS) * CHUNK_S
    assert last["winner"]
