"""A search on a machine that waits for its host, as a large GPU does: work says nothing of time there.

The machine is made up. A step takes as long whatever it computes, until what a step launches is launched at
once; only then half the bits take less time, too. Every seventh chunk takes half as long again.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from planted import STATE, planted_checkpoint

from vivace.accel import registry
from vivace.accel.technique import Seam, Technique
from vivace.eval.measure.latencies import Measured
from vivace.eval.options import DataOptions, PolicyOptions
from vivace.eval.tune.budget import BudgetOptions, tail
from vivace.eval.tune.store import Store
from vivace.eval.verbs.tune import TuneCommand, TuneOptions, run
from vivace.policies.execution import Execution


@dataclass(frozen=True, kw_only=True)
class _Planted(Technique):
    """Computes the same; how long that takes is the made-up clock's."""

    is_static: ClassVar[bool] = True
    saves_flops: ClassVar[bool] = False

    @property
    def is_exact(self) -> bool:
        return True

    def apply(self, execution: Execution) -> Execution:
        return execution


@dataclass(frozen=True, kw_only=True)
class AtOnce(_Planted):
    kind: ClassVar[str] = "at_once"
    seam: ClassVar[Seam] = Seam.LAUNCH
    label: ClassVar[str] = "launched at once"


@dataclass(frozen=True, kw_only=True)
class Halved(_Planted):
    kind: ClassVar[str] = "halved"
    seam: ClassVar[Seam] = Seam.WEIGHTS
    label: ClassVar[str] = "half the bits"


@dataclass(frozen=True, kw_only=True)
class Idle(_Planted):
    kind: ClassVar[str] = "idle"
    seam: ClassVar[Seam] = Seam.EXACT
    label: ClassVar[str] = "good for nothing here"


PLANTED = (AtOnce, Halved, Idle)
READING_S, LAUNCHED_S, AT_ONCE_S, HALVED_S = 0.04, 0.015, 0.003, 0.015


def chunk_s(execution: Execution) -> float:
    """Reading what is seen, and steps."""
    kinds = {one.kind for one in execution.plan.techniques} if execution.plan else set()
    if "at_once" not in kinds:
        return READING_S + LAUNCHED_S * len(execution.sampler.steps)
    return (HALVED_S if "halved" in kinds else READING_S) + AT_ONCE_S * len(execution.sampler.steps)


def measured(runs: Any, data: Any, rounds: Any) -> Measured:
    """As a clock of that machine would."""
    return Measured(
        {
            key: [chunk_s(run.execution) * (1.5 if n % 7 == 3 else 1) for n in range(rounds.more[key])]
            for key, run in runs.items()
        },
        {},
    )


@pytest.fixture
def planted_techniques(monkeypatch) -> None:
    for one in PLANTED:
        monkeypatch.setitem(registry._KNOWN, one.kind, one)


@pytest.mark.usefixtures("planted_techniques")
def test_what_a_gpu_needs_together_is_found(tmp_path: Path) -> None:
    """60 ms, of which every seventh chunk leaves 40: launched at once in half the bits up to 8 steps keep it.

    Nothing else does, for reading alone takes 40 ms; and alone half the bits gain nothing.
    """
    states = np.random.default_rng(0).uniform(-1, 1, (24, 2)).astype(np.float32)
    np.savez(tmp_path / "obs.npz", **{STATE: states}, episode=np.repeat(np.arange(6), 4))
    command = TuneCommand(
        policy=PolicyOptions(path=str(planted_checkpoint(tmp_path / "policy"))),
        data=DataOptions(file=str(tmp_path / "obs.npz")),
        budget=BudgetOptions(ms=60),
        output_dir=str(tmp_path / "out"),
        tune=TuneOptions(
            minutes=1000,
            threads=1,
            samples=4,
            candidates=60,
            techniques=["step_schedule", *(one.kind for one in PLANTED)],
        ),
    )
    last, is_kept = run(command, measured)
    assert is_kept, last["sentence"]
    trials = Store(tmp_path / "out").trials
    winner = trials[last["winner"]["key"]]
    assert {"at_once", "halved", "step_schedule"} <= set(winner.candidate.kinds)
    assert tail(winner.latencies_s) == (99.0, pytest.approx(winner.latencies_s[3]))
    keeping = [one for one in trials.values() if one.latencies_s and tail(one.latencies_s)[1] <= 0.06]
    assert all({"at_once", "halved"} <= set(one.candidate.kinds) for one in keeping)
    assert winner.passes
    assert 5 <= winner.passes <= 8
