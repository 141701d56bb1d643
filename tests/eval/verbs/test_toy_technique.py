"""A technique is one file: it is in help, calibration, explain, bench and the contract tests."""

import json
import sys
from dataclasses import fields
from importlib import import_module

import pytest
from technique_cases import examples, needs

from vivace.accel import registry
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import Need
from vivace.eval.cli import main
from vivace.eval.measure.variants import variants_of
from vivace.policies.load import stage
from vivace.policies.tiny.policies import tiny_dp_transformer, tiny_token_vla

TOY = '''
"""Compute every block at each n-th step only."""

from dataclasses import dataclass, replace
from typing import ClassVar

from vivace.accel.registry import register
from vivace.accel.rows import make_rows
from vivace.accel.technique import Need, Seam, Technique


@dataclass(frozen=True, kw_only=True)
class EveryNthOptions:
    """How often."""

    n: int = 2
    """One step of so many is computed."""


@register
@dataclass(frozen=True, kw_only=True)
class EveryNth(Technique):
    """How often."""

    kind: ClassVar[str] = "every_nth"
    seam: ClassVar[Seam] = Seam.BLOCKS
    label: ClassVar[str] = "every n-th step"
    colour: ClassVar[str] = "#123456"
    needs: ClassVar[tuple[Need, ...]] = (Need.DENOISER,)
    is_static: ClassVar[bool] = True
    Options: ClassVar[type] = EveryNthOptions

    n: int

    def apply(self, execution):
        spec, steps = execution.policy.spec, len(execution.sampler)
        updates = dict.fromkeys(spec.block_ids, tuple(range(0, steps, self.n)))
        return replace(execution, action=make_rows(spec.blocks, updates, steps))
'''
QUICK = ("--env.task=reach-v3", "--env.max_steps=10", "--accel.episodes=1", "--accel.samples=2",
         "--accel.judged_episodes=1", "--accel.judged_samples=2")  # fmt: skip


@pytest.fixture(autouse=True)
def toy(tmp_path, monkeypatch):
    """Register the toy; what is known is restored in the end."""
    monkeypatch.setattr(registry, "_KNOWN", registry.techniques())
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "toy_technique.py").write_text(TOY)
    monkeypatch.delitem(sys.modules, "toy_technique", raising=False)
    return import_module("toy_technique").EveryNth


def test_every_option_of_it_and_all_others_is_in_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(["calibrate", "--help"])
    assert end.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "--accel.every_nth.n int One step of so many is computed. (default: 2)" in told
    assert "Kinds of the techniques to calibrate, in any order;" in told
    for kind, technique in registry.techniques().items():
        for option in fields(technique.Options):
            assert f" --accel.{kind}.{option.name} " in told


def test_it_is_a_row_of_every_table_that_it_fits():
    row = next(row for row in variants_of(stage(tiny_dp_transformer())) if row.name == "every_nth")
    assert (row.label, row.colour, row.wanted) == ("every n-th step", "#123456", (("every_nth", {"n": 2}),))
    assert "every_nth" not in {row.name for row in variants_of(stage(tiny_token_vla()))}


def test_the_contract_tests_run_it():
    assert examples()["every_nth"] == [("every_nth", {})]
    assert needs(["every_nth"]) == {Need.DENOISER}


def test_it_is_calibrated_explained_and_timed(toy, checkpoint, tmp_path, capsys):
    policy = f"--policy.path={checkpoint}"
    asked = ["--accel.techniques=[every_nth]", "--accel.every_nth.n=5", "--output_dir=plan"]
    assert main(["calibrate", policy, *QUICK, *asked]) == 0
    plan = AccelerationPlan.load(tmp_path / "plan")
    assert plan.techniques == (toy(n=5),)
    assert AccelerationPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    capsys.readouterr()
    assert main(["explain", policy, "--env.task=reach-v3", "--accel.path=plan"]) == 0
    out = capsys.readouterr().out
    assert "every_nth      n=5" in out
    assert "#····#····" in out
    timed = ["--bench.repeats=1", "--bench.compile=false", "--accel.block_cache.updates=11"]
    assert main(["bench", policy, *QUICK, *timed, "--accel.every_nth.n=3", "--output_dir=out"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    row = next(row for row in results["pareto"] if row["name"] == "every_nth")
    assert row["colour"] == "#123456"
    assert row["gflop"] < results["pareto"][0]["gflop"]
    assert "every n-th step" in (tmp_path / "out" / "report.html").read_text()
    left_out = results["left_out"]
    offered = {row.name for row in variants_of(stage(tiny_dp_transformer())) if not row.is_compiled}
    assert {row["name"] for row in results["pareto"]} >= offered - set(left_out)
    assert left_out["uniform"] == "updates=11, but the sampler runs 10 steps; choose 1..10"
    assert (
        left_out["guidance"]
        == "works on classifier-free guidance, but policy 'dp_transformer' is sampled without"
    )
