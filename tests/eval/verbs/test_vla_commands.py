"""The verbs on a policy that sees and reads, run as a user runs them."""

import json
from weakref import WeakValueDictionary

import pytest
from checkpoints import checkpoint

from vivace.accel.techniques import precision
from vivace.eval.cli import main

pytestmark = pytest.mark.sim

TASK = (
    "--env.task=drawer-open-halfway",
    "--env.max_steps=10",
    "--accel.episodes=1",
    "--accel.samples=2",
    "--accel.judged_episodes=1",
    "--accel.judged_samples=2",
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_a_plans_own_weights_are_made_once(tmp_path, monkeypatch):
    """Of a language model in int8 they are gigabytes."""
    made: list[tuple[int, ...]] = []
    kinds, make = precision._MAKERS["int8"]

    def watched(layer):
        made.append((*layer.weight.shape, hash(layer.weight.detach().numpy().tobytes())))
        return make(layer)

    monkeypatch.setitem(precision._MAKERS, "int8", (kinds, watched))
    monkeypatch.setattr(precision, "_NARROW", WeakValueDictionary())
    command = ["calibrate", f"--policy.path={checkpoint('smolvla')}",
               "--accel.techniques=[dead_work,precision]", "--accel.precision.vision=own",
               "--accel.precision.language=int8", "--accel.samples=1",
               "--accel.judged_samples=1", f"--output_dir={tmp_path}"]  # fmt: skip
    assert main(command) == 0
    assert len(made) == len(set(made)) > 0


@pytest.mark.long
def test_eval_shows_what_was_kept(vla_checkpoint, tmp_path, capsys):
    command = ["eval", f"--policy.path={vla_checkpoint}", *TASK, "--eval.n_episodes=2", "--eval.lineup=false",
               "--eval.curve=[]", "--bench.repeats=2", "--eval.timed_chunks=2",
               "--output_dir=out"]  # fmt: skip
    assert main(command) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert len(results["layers"]["importance"]) == 4
    assert len(results["layers"]["kept"]) == 3
    assert (tmp_path / "out" / results["patches"]).stat().st_size > 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Patches that were kept" in page
    assert "Layer importance" in page


@pytest.mark.long
def test_bench_has_the_ablation_and_its_baselines(vla_checkpoint, capsys):
    command = ["bench", f"--policy.path={vla_checkpoint}", *TASK, "--bench.repeats=1",
               "--bench.compile=false", "--output_dir=out"]  # fmt: skip
    assert main(command) == 0
    plans = last_line(capsys)["plans"]
    ablation = {"plain", "tokens", "cache", "layers", "layers+mlp", "layers+mlp+cache", "tokens+cache", "all"}
    baselines = {"fastv", "random", "uniform-layers", "ddim-2", "ddim-5", "guidance", "linear-guidance"}
    assert ablation | baselines <= set(plans)
    assert plans["all"]["action_error"] > 0


@pytest.mark.long
def test_bench_judges_several_tasks_in_one_table(vla_checkpoint, tmp_path, capsys):
    tasks = ["drawer-open-halfway", "drawer-close-halfway"]
    command = ["bench", f"--policy.path={vla_checkpoint}", *TASK, "--env.task=" + ",".join(tasks),
               "--bench.repeats=1", "--bench.compile=false", "--bench.n_episodes=2", "--bench.only=[cache]",
               "--output_dir=out"]  # fmt: skip
    assert main(command) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    row = next(row for row in results["pareto"] if row["name"] == "cache")
    assert row["n"] == 4
    assert list(row["tasks"]) == tasks
    assert results["layer_curve"]["importance"][0]["action_error"] == 0
    assert main(["eval", f"--policy.path={vla_checkpoint}", "--env.task=" + ",".join(tasks)]) == 2
    assert "eval takes one task" in capsys.readouterr().err


@pytest.mark.long
def test_the_instruction_can_be_another_one(vla_checkpoint, tmp_path):
    command = ["bench", f"--policy.path={vla_checkpoint}", *TASK, "--bench.repeats=1",
               "--bench.compile=false", "--bench.n_episodes=1", "--bench.only=[cache]"]  # fmt: skip
    assert main([*command, "--output_dir=right"]) == 0
    assert main([*command, "--output_dir=wrong", "--env.instruction=Close the window"]) == 0
    assert main([*command, "--output_dir=long", "--env.instruction=" + "open " * 60]) == 2
    assert not (tmp_path / "long" / "results.json").exists()


def test_explain_says_what_a_plan_does(vla_checkpoint, capsys):
    assert main(["explain", f"--policy.path={vla_checkpoint}", *TASK]) == 0
    out = capsys.readouterr().out
    for kind in ("mlp_prune", "layer_skip", "patch_select", "block_cache", "language"):
        assert kind in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--accel.techniques=[patch_select]", "--accel.patch_select.k_final=17"],
            "keeps 17 patches, the policy has 16",
        ),
        (
            ["--accel.techniques=[layer_skip]", "--accel.layer_skip.n_dropped=4"],
            "drop 4 of 4 language layers",
        ),
        (
            ["--env.task=reach-v3", "--accel.techniques=[mlp_prune]", "--accel.mlp_prune.sparsity=1.0"],
            "sparsity=1.0",
        ),
    ],
)
def test_impossible_plans_are_refused(vla_checkpoint, flags, message, capsys):
    before = (vla_checkpoint / "acceleration.json").read_bytes()
    assert main(["calibrate", f"--policy.path={vla_checkpoint}", *TASK, *flags]) == 2
    assert message in capsys.readouterr().err
    assert (vla_checkpoint / "acceleration.json").read_bytes() == before
