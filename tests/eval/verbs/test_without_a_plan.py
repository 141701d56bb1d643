"""Policies that have no plan, opaque ones above all: evaluated and timed all the same. Faults G6, G11."""

import json

import pytest
from any_world import world_of
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot_policies import saved

from vivace.accel.techniques import compile
from vivace.accel.techniques.compile import compile_execution
from vivace.eval.cli import main

FEW = ["--accel.episodes=1", "--accel.samples=1", "--accel.judged_episodes=1", "--accel.judged_samples=2",
       "--bench.repeats=1", "--bench.threads=1", "--env.max_steps=4"]  # fmt: skip


STATES = {
    "observation.state": PolicyFeature(FeatureType.STATE, (5,)),
    "observation.environment_state": PolicyFeature(FeatureType.ENV, (4,)),
}
"""Without cameras, whose networks take long to compile."""


def asked(verb: str, kind: str, folder, *more: str) -> list[str]:
    checkpoint = saved(kind, **({"input_features": STATES} if kind == "act" else {}))
    path = [f"--policy.path={checkpoint}", f"--output_dir={folder}"]
    return [verb, *path, *world_of(checkpoint, kind), *FEW, *more]


def results(folder) -> dict:
    found: dict = json.loads((folder / "results.json").read_text())
    return found


SHORT = ("--eval.n_episodes=2", "--eval.timed_chunks=1", "--eval.video=false")


@pytest.mark.parametrize("kind", ["gaussian_actor", "diffusion"])
def test_eval_without_a_plan_is_as_trained_alone(kind, tmp_path, capsys):
    """G6: a policy that cannot have a plan, and one that has none yet; a curve and a report all the same."""
    assert main(asked("eval", kind, tmp_path, *SHORT, "--eval.curve=[0.0]", "--latency.type=none")) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "no plan beside the checkpoint: as trained alone" in said
    assert ("is opaque, so there is nothing to calibrate" if kind != "diffusion" else "make one") in said
    found = results(tmp_path)
    assert [run["name"] for run in found["runs"]] == [row["name"] for row in found["pareto"]] == ["plain"]
    assert found["pareto"][0]["action_error"] == 0
    assert (list(found["curve"]), found["comparisons"], found["plan"]) == (["plain"], [], [])
    assert "as trained" in (tmp_path / "report.html").read_text()


def test_calibrate_says_that_nothing_comes_apart_and_saves_a_plan_of_nothing(tmp_path, capsys):
    """The plan runs as any other; what was asked for by name is refused."""
    checkpoint = f"--policy.path={saved('gaussian_actor')}"
    assert main(["calibrate", checkpoint, f"--output_dir={tmp_path}"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "'gaussian_actor' is opaque: it has no blocks, steps or layers that come apart" in said
    plan = json.loads((tmp_path / "acceleration.json").read_text())
    assert (plan["techniques"], plan["measurements"]["action_error"]) == ([], 0.0)
    assert main(["explain", checkpoint, f"--accel.path={tmp_path}"]) == 0
    assert main(["calibrate", checkpoint, "--accel.techniques=[hoist]"]) == 2
    assert "so there is nothing to calibrate" in capsys.readouterr().err


def test_what_only_a_plan_could_reach_is_refused_before_anything_is_measured(tmp_path, capsys):
    """G6: a target of a run that there will not be."""
    more = [*SHORT, "--require=[accelerated.success>=0.5]"]
    assert main(asked("eval", "gaussian_actor", tmp_path, *more)) == 2
    assert "requirement 'accelerated.success>=0.5' cannot be read" in capsys.readouterr().err
    assert main(asked("eval", "gaussian_actor", tmp_path, *SHORT, "--accel.path=nowhere")) == 2
    assert "no plan at nowhere" in capsys.readouterr().err


@pytest.mark.long
def test_bench_times_the_whole_policy_compiled(tmp_path, monkeypatch):
    """G6: one that is no graph, or does not compile, is left out by name."""
    eager = "--accel.compile.backend=eager"
    assert main(asked("bench", "act", tmp_path / "act", "--bench.only=[compile]", eager)) == 0
    assert [row["name"] for row in results(tmp_path / "act")["pareto"]] == ["plain", "compile"]
    assert main(asked("bench", "gaussian_actor", tmp_path / "single", eager)) == 0
    found = results(tmp_path / "single")
    assert [row["name"] for row in found["pareto"]] == ["plain"]
    assert "asked by its own select_action, whose queues are not compiled" in found["left_out"]["compile"]

    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(compile, "compile_execution", lambda it, _: compile_execution(it, broken))
    assert main(asked("bench", "act", tmp_path / "broken", "--bench.only=[compile]")) == 0
    found = results(tmp_path / "broken")
    assert [row["name"] for row in found["pareto"]] == ["plain"]
    assert "it cannot be compiled or captured here" in found["left_out"]["compile"]


def test_a_row_that_cannot_be_does_not_end_the_table(tmp_path):
    """G11: more blocks were asked for than there are; the row says what to do, the others are timed."""
    more = ["--accel.block_cache.bubbling=9", "--bench.only=[bac,uniform]", "--bench.compile=false"]
    assert main(asked("bench", "multi_task_dit", tmp_path, *more)) == 0
    found = results(tmp_path)
    assert [row["name"] for row in found["pareto"]] == ["plain", "uniform"]
    assert found["left_out"]["bac"] == "bubbling=9, but the policy has 4 blocks; choose 0..4, or leave it out"
