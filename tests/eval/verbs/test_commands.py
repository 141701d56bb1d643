"""The verbs, run as a user runs them, on a miniature policy and the real simulator."""

import contextlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vivace.accel.techniques import compile
from vivace.accel.techniques.compile import compile_execution
from vivace.eval import cli
from vivace.eval.cli import VERBS, main
from vivace.eval.observations.gather import CALIBRATION_SEED
from vivace.eval.scale import workforce

pytestmark = pytest.mark.sim

STAGES = {"prepare", "encode", "denoise", "finish"}

QUICK = ("--env.task=reach-moving", "--env.max_steps=25", "--eval.n_episodes=3", "--eval.lineup=false",
         "--eval.curve=[0.0,0.2]", "--eval.video=false", "--bench.repeats=2", "--accel.episodes=1",
         "--accel.samples=2", "--eval.timed_chunks=2", "--accel.judged_episodes=1",
         "--accel.judged_samples=2")  # fmt: skip


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def timeless(results: dict) -> dict:
    return {key: value for key, value in results.items() if key not in ("created", "wall", "command")}


@pytest.fixture(scope="module")
def evaluated(checkpoint, tmp_path_factory) -> Path:
    """A working folder in which `first` is an evaluation."""
    folder = tmp_path_factory.mktemp("evaluated")
    with contextlib.chdir(folder):
        assert main(["eval", f"--policy.path={checkpoint}", "--output_dir=first", *QUICK]) == 0
    return folder


def test_eval_writes_results_report_and_trace_and_repeats_itself(checkpoint, evaluated, monkeypatch, capsys):
    monkeypatch.chdir(evaluated)
    assert main(["eval", f"--policy.path={checkpoint}", "--output_dir=second", *QUICK]) == 0
    tmp_path, summary = evaluated, last_line(capsys)
    assert set(summary["runs"]) == {"plain", "accelerated", "fewer_steps", "fewer_steps_dpm"}
    first, second = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("first", "second")
    )
    assert timeless(first) == timeless(second)
    assert [len(run["episodes"]) for run in first["runs"]] == [3, 3, 3, 3]
    assert first["runs"][0]["latency"]["p50_s"] > 0
    assert [(run["latency"]["n"], run["latency"]["p99_s"]) for run in first["runs"]] == [(2, None)] * 4
    assert len(first["runs"][0]["latencies_s"]) > 2, "draws are no measurements"
    rivals = {rival["name"]: rival for rival in first["baselines"]}
    labels = {run["name"]: run["label"] for run in first["runs"]}
    for name, sampler in (("fewer_steps", "DDIM"), ("fewer_steps_dpm", "DPM-Solver++")):
        n_steps, ratio = rivals[name]["n_steps"], rivals[name]["latency_ratio"]
        steps = "1 step" if n_steps == 1 else f"{n_steps} steps"
        assert labels[name].startswith(f"{sampler} {steps}, {ratio:.2f}x the latency")
    assert first["left_out"] == {}
    assert all(set(row["stages_s"]) == STAGES for row in first["pareto"])
    assert first["threads"]["used"] == first["machine"]["threads"]
    assert [p["latency_s"] for p in first["curve"]["accelerated"]["points"]] == [0.0, 0.2]
    assert sum(first["runs"][1]["ticks"].values()) == 75
    page = (tmp_path / "first" / "report.html").read_text()
    assert first["shown_seed"] == first["seed"] == 100_000
    assert f"This is episode 100000, {first['shown_because']}. " in page
    assert not set(first["observations"]["fitted"]["seeds"]) & set(first["observations"]["judged"]["seeds"])
    assert "Success under latency" in page
    assert "Schedule" in page
    assert "Where the time of a chunk goes" in page
    events = json.loads((tmp_path / "first" / "trace.json").read_text())["traceEvents"]
    assert {"chunk", "fallback", "inference"} <= {event["name"] for event in events if event["ph"] == "X"}


@pytest.mark.long
def test_a_curve_has_a_line_for_each_mode(checkpoint, tmp_path, capsys):
    command = ["eval", f"--policy.path={checkpoint}", "--output_dir=out", *QUICK, "--eval.curve=[0.0]"]
    assert main([*command, "--loop.mode=async", "--eval.curve_modes=[sync,async,rtc]"]) == 0
    curve = json.loads((tmp_path / "out" / "results.json").read_text())["curve"]
    assert [(key, line["mode"]) for key, line in curve.items()] == [
        ("accelerated_sync", "sync"),
        ("accelerated", "async"),
        ("accelerated_rtc", "rtc"),
    ]
    jumps = {key: line["points"][0]["seam_jump"] for key, line in curve.items()}
    assert jumps["accelerated_sync"] == jumps["accelerated"], "nothing is late"
    assert jumps["accelerated_rtc"] < jumps["accelerated"]
    assert main([*command, "--eval.curve_modes=[turbo]"]) == 2
    assert "eval.curve_modes names 'turbo'; the modes: sync, async, rtc" in capsys.readouterr().err


@pytest.mark.long
def test_a_ladder_is_compared_with_the_plans_on_it(checkpoint, tmp_path, capsys):
    command = ["eval", f"--policy.path={checkpoint}", "--output_dir=out", *QUICK, "--eval.curve=[]",
               "--eval.timed_chunks=100", "--loop.ladder=[plain,accelerated]",
               "--latency.type=bursty"]  # fmt: skip
    assert main([*command, "--loop.mode=async", "--latency.scale=10"]) == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    *others, ladder = found["runs"]
    assert ladder["name"] == "ladder"
    assert sum(ladder["choices"].values()) == ladder["chunks"]
    assert set(ladder["choices"]) <= {"plain", "accelerated"}
    assert not any(run["choices"] for run in others)
    names = [run["name"] for run in others]
    assert [pair["first"] for pair in found["comparisons"] if pair["second"] == "ladder"] == names
    assert "plan the ladder chose" in (tmp_path / "out" / "report.html").read_text()
    assert main([*command, "--loop.mode=sync"]) == 2
    assert "a ladder needs time to choose by" in capsys.readouterr().err
    few = [*command, "--loop.mode=async", "--eval.timed_chunks=2", "--output_dir=few"]
    assert main(few) == 2
    assert "chooses by the p99 of every plan, but one has 2 measurements; 100 are" in capsys.readouterr().err


def test_an_interrupted_eval_continues(checkpoint, evaluated, monkeypatch):
    monkeypatch.chdir(evaluated)
    tmp_path = evaluated
    command = ["eval", f"--policy.path={checkpoint}", "--output_dir=out", *QUICK]
    calls = 0

    def interrupt(*args):
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return append(*args)

    append = workforce.append_result
    monkeypatch.setattr(workforce, "append_result", interrupt)
    assert main(command) == 130
    assert not (tmp_path / "out" / "results.json").exists()
    stored = sum(len(f.read_text().splitlines()) for f in (tmp_path / "out" / "episodes").glob("*.jsonl"))
    assert stored == 4
    monkeypatch.setattr(workforce, "append_result", append)
    assert main(command) == 0
    continued, whole = (json.loads((tmp_path / n / "results.json").read_text()) for n in ("out", "first"))
    for run, expected in zip(continued["runs"], whole["runs"], strict=True):
        assert run["episodes"] == expected["episodes"]


def test_a_folder_of_another_job_is_refused(checkpoint, evaluated, monkeypatch, capsys):
    monkeypatch.chdir(evaluated)
    command = ["eval", f"--policy.path={checkpoint}", "--output_dir=first", *QUICK]
    assert main([*command, "--seed=7"]) == 2
    assert "holds results of another job (it differs in seed)" in capsys.readouterr().err


@pytest.mark.long
def test_latency_can_be_given(checkpoint, evaluated, monkeypatch):
    monkeypatch.chdir(evaluated)  # where the choice of threads is known
    tmp_path = evaluated
    (tmp_path / "latency.json").write_text(
        json.dumps({"plain": [0.5], "accelerated": [0.1], "fewer_steps": [0.1], "fewer_steps_dpm": [0.1]})
    )
    trace = ["--latency.type=trace", "--latency.path=latency.json", "--latency.column=per_run"]
    assert main(["eval", f"--policy.path={checkpoint}", "--output_dir=trace", *QUICK, *trace]) == 0
    runs = json.loads((tmp_path / "trace" / "results.json").read_text())["runs"]
    assert [run["latency"]["p50_s"] for run in runs] == pytest.approx([0.5, 0.1, 0.1, 0.1])
    frozen = ["eval", f"--policy.path={checkpoint}", "--output_dir=frozen", *QUICK, "--latency.type=none"]
    assert main(frozen) == 0
    runs = json.loads((tmp_path / "frozen" / "results.json").read_text())["runs"]
    assert {run["ticks"]["fallback"] for run in runs} == {0}


@pytest.mark.long
def test_of_a_plan_that_compiles_one_chunk_at_a_time_is_compiled(checkpoint, evaluated, monkeypatch):
    """Observations, comparisons, pages and episodes run what it was made of."""
    monkeypatch.chdir(evaluated)
    wanted = ["--accel.techniques=[hoist,block_cache,compile]", "--accel.block_cache.updates=4"]
    few = ["--accel.episodes=1", "--accel.samples=2", "--accel.judged_episodes=1", "--accel.judged_samples=2"]
    out = ["--env.task=reach-moving", "--accel.block_cache.bubbling=2", "--output_dir=compiled"]
    assert main(["calibrate", f"--policy.path={checkpoint}", *wanted, *few, *out]) == 0
    rows = []

    def seen(graph, inputs):
        rows.extend(it.shape[0] for it in inputs if isinstance(it, torch.Tensor) and it.ndim == 3)
        return graph

    monkeypatch.setattr(compile, "compile_execution", lambda it, _: compile_execution(it, seen))
    plan = ["--accel.path=compiled", "--output_dir=of_compiled", *QUICK]
    assert main(["eval", f"--policy.path={checkpoint}", *plan]) == 0
    assert set(rows) == {1}
    table = json.loads((evaluated / "of_compiled" / "results.json").read_text())["pareto"]
    row = next(row for row in table if row["name"] == "accelerated")
    assert 0 < row["action_error"] < 1, "of what it was made of"
    assert row["gflop"] < table[0]["gflop"]


@pytest.mark.long
def test_a_missed_target_is_exit_code_1(checkpoint, evaluated, monkeypatch, capsys):
    monkeypatch.chdir(evaluated)
    command = ["eval", f"--policy.path={checkpoint}", "--output_dir=first", *QUICK]
    assert main([*command, "--require=[accelerated.success>=0.0]"]) == 0
    assert main([*command, "--require=[accelerated.success>=0.99]"]) == 1
    assert "missed: accelerated.success>=0.99" in capsys.readouterr().err


def test_bench_ends_in_one_json_line_and_judges(checkpoint, tmp_path, capsys):
    command = ["bench", f"--policy.path={checkpoint}", "--env.task=reach-v3", "--env.max_steps=20",
               "--bench.only=[hoist,bac,ddim-2,accelerated]", "--bench.repeats=3", "--bench.n_episodes=2",
               "--accel.block_cache.updates=4", "--accel.block_cache.bubbling=2", "--accel.episodes=1",
               "--accel.samples=2",
               "--accel.judged_episodes=1",
               "--accel.judged_samples=2",
               "--output_dir=out"]  # fmt: skip
    assert main(command) == 0
    plans = last_line(capsys)["plans"]
    assert list(plans) == ["plain", "ddim-2", "hoist", "bac", "accelerated"]
    assert plans["plain"]["ratio"] == 1
    assert plans["plain"]["action_error"] == 0
    assert plans["hoist"]["action_error"] < 1e-5
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["pareto"]
    assert all(row["n"] == 2 for row in rows)
    assert all(set(row["stages_s"]) == STAGES for row in rows)
    assert [row["latency_spread"] for row in rows] == [[None, None]] * 5, "of three measurements"
    assert rows[3]["gflop"] < rows[2]["gflop"] < rows[0]["gflop"]


BENCH = ("--env.task=reach-v3", "--env.max_steps=20", "--bench.repeats=1", "--bench.compile=false",
         "--accel.block_cache.updates=4", "--accel.block_cache.bubbling=2", "--accel.episodes=1",
         "--accel.samples=2",
         "--accel.judged_episodes=2", "--accel.judged_samples=3", "--output_dir=out")  # fmt: skip


def test_bench_judges_on_what_nothing_was_fitted_to_and_shows_the_spread(checkpoint, tmp_path, capsys):
    assert main(["bench", f"--policy.path={checkpoint}", *BENCH, "--bench.only=[bac]"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    fitted, judged = results["observations"]["fitted"], results["observations"]["judged"]
    assert (fitted["n"], judged["n"]) == (2, 4 - 1)
    assert not set(fitted["seeds"]) & set(judged["seeds"])
    low, high = results["pareto"][1]["action_error_spread"]
    assert low < results["pareto"][1]["action_error"] < high
    assert (
        "3 observations of episodes that no plan was fitted to" in (tmp_path / "out/report.html").read_text()
    )


def test_bench_refuses_to_judge_on_what_was_fitted_to(checkpoint, monkeypatch, capsys):
    command = ["bench", f"--policy.path={checkpoint}", *BENCH, "--bench.only=[bac]"]
    assert main([*command, "--seed=999999", "--bench.n_episodes=1"]) == 2
    assert "episode 1000000 was calibrated on, and is asked to judge by" in capsys.readouterr().err
    monkeypatch.setattr("vivace.eval.verbs.bench.JUDGEMENT_SEED", CALIBRATION_SEED)
    assert main([*command, "--output_dir=other"]) == 2
    assert "episode 1000000 was calibrated on, and is asked to judge by" in capsys.readouterr().err


def test_bench_runs_its_choice_again_and_names_what_does_not_fit(checkpoint, tmp_path, capsys):
    command = ["bench", f"--policy.path={checkpoint}", *BENCH, "--bench.only=[hoist,bac,ddim-2]",
               "--accel.block_cache.bubbling=50", "--bench.n_episodes=2", "--bench.confirm=3"]  # fmt: skip
    assert main([*command, "--bench.choose=ddim-2"]) == 0
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["left_out"]) == ["bac"]
    assert "bubbling=50, but the policy has" in results["left_out"]["bac"]
    assert "left out: bac: bubbling=50" in out
    assert [row["name"] for row in results["pareto"] if "confirmed" in row] == ["plain", "ddim-2"]
    again = results["pareto"][1]["confirmed"]
    assert (again["n"], again["tried"], again["seed"]) == (3, 2, 100_002)
    assert "best of 2 tried" in out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Chosen, and confirmed" in page
    assert "Left out" in page
    seeds = [
        [json.loads(line)["seed"] for line in (tmp_path / "out/episodes" / name).read_text().splitlines()]
        for name in ("ddim-2.from_100000.jsonl", "ddim-2.from_100002.jsonl")
    ]
    assert [sorted(found) for found in seeds] == [[100_000, 100_001], [100_002, 100_003, 100_004]]


def test_calibrate_measures_on_what_it_did_not_fit_to(checkpoint, tmp_path, capsys):
    command = ["calibrate", f"--policy.path={checkpoint}", "--output_dir=plan", *BENCH[:2], *BENCH[4:-1]]
    assert main(command) == 0
    found = json.loads((tmp_path / "plan" / "acceleration.json").read_text())["measurements"]
    assert found["fitted_seeds"] == [1_000_000]
    assert found["judged_from"] == "3 of 2 episodes of metaworld/reach-v3, seeds from 2000000 on"
    assert (found["observations"], found["judged_observations"]) == (2, 3)
    low, high = found["action_error_spread"]
    assert low < found["action_error"] < high
    capsys.readouterr()
    assert main(["explain", f"--policy.path={checkpoint}", "--accel.path=plan"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "from 2000000 on; calibrated on others: 2 of 1 episodes of metaworld/reach-v3, seeds from 1000000"
        in out
    )


def test_explain_does_not_pass_an_error_in_sample_off_as_one(checkpoint, tmp_path, capsys):
    data = json.loads((checkpoint / "acceleration.json").read_text())
    data["measurements"] = {"action_error": 0.01, "seed": 1_000_000}
    (tmp_path / "acceleration.json").write_text(json.dumps(data))
    assert main(["explain", f"--policy.path={checkpoint}", f"--accel.path={tmp_path}"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "action error 0.0100 on the observations it was calibrated on, too low for others; recalibrate" in out
    )


def test_report_is_rewritten_from_results(evaluated, tmp_path, capsys):
    shutil.copytree(evaluated / "first", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    (tmp_path / "out" / "report.html").unlink()
    assert main(["report", "--results=out"]) == 0
    assert len((tmp_path / "out" / "report.html").read_text()) == pytest.approx(len(page), rel=0.01)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    del results["runs"]
    (tmp_path / "out" / "results.json").write_text(json.dumps(results))
    assert main(["report", "--results=out/results.json"]) == 2
    assert "incomplete (KeyError: 'runs')" in capsys.readouterr().err


def test_explain_draws_the_grid(checkpoint, capsys):
    assert main(["explain", f"--policy.path={checkpoint}", "--env.task=reach-moving"]) == 0
    out = capsys.readouterr().out
    assert "action.0.self" in out
    assert json.loads(out.strip().splitlines()[-1])["flop_ratio"] < 1


def test_collect_and_train_make_a_checkpoint_that_runs(tmp_path, capsys):
    assert main(["collect", "--env.task=reach-v3", "--collect.episodes=2", "--output_dir=data"]) == 0
    train = ["train", "--data=[data]", "--policy.n_layer=1", "--policy.n_emb=32", "--train.batch_size=8",
             "--train.save_every=2", "--output_dir=out"]  # fmt: skip
    assert main([*train, "--train.steps=4"]) == 0
    assert np.isfinite(last_line(capsys)["loss"])
    calibrate = ["calibrate", "--policy.path=out", "--env.task=reach-v3", "--accel.episodes=1",
                 "--accel.samples=1", "--accel.judged_episodes=1",
                 "--accel.judged_samples=2", "--accel.block_cache.bubbling=1"]  # fmt: skip
    assert main(calibrate) == 0
    assert (tmp_path / "out" / "pretrained_model" / "acceleration.json").is_file()
    more = [*train[:2], "--start=out", "--train.steps=1", "--train.lr=1e-9", "--output_dir=more"]
    assert main(more) == 0  # sizes are the checkpoint's, not the options'
    before, after = (
        load_file(tmp_path / name / "pretrained_model" / "model.safetensors") for name in ("out", "more")
    )
    assert all(torch.allclose(value, after[name], atol=1e-6) for name, value in before.items())
    assert main([*more, "--start=zoo/halfway"]) == 2
    assert (
        "holds a policy of type 'cogact', --policy.type asks for 'dp_transformer'" in capsys.readouterr().err
    )


@pytest.mark.long
def test_a_verb_without_a_renderer_still_evaluates(checkpoint, tmp_path, monkeypatch, capsys):
    def fail(self):
        raise RuntimeError("no EGL here")

    monkeypatch.setattr("vivace.envs.metaworld.world.MetaWorld.render", fail)
    quick = [flag for flag in QUICK if "video" not in flag]
    assert main(["eval", f"--policy.path={checkpoint}", "--output_dir=out", *quick]) == 0
    assert "no film videos/side_by_side.mp4: RuntimeError: no EGL here" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "results.json").read_text())["video"] is None


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([verb, "--help"])
    assert exit_info.value.code == 0
    assert f"Example: vivace {verb}" in capsys.readouterr().out


@pytest.mark.long
def test_the_video_shows_the_runs_side_by_side(checkpoint, tmp_path):
    if shutil.which("ffmpeg") is None:
        pytest.importorskip("imageio_ffmpeg")
    import imageio.v3 as imageio

    quick = [flag for flag in QUICK if "video" not in flag]
    assert main(["eval", f"--policy.path={checkpoint}", "--output_dir=out", *quick]) == 0
    frames = imageio.imread(tmp_path / "out" / "videos" / "side_by_side.mp4", plugin="FFMPEG")
    assert frames.shape[0] == 25
    assert frames.shape[2] == 4 * 320


@pytest.mark.parametrize("verb", cli.VERBS)
def test_a_verb_says_the_same_of_itself_in_the_list_and_in_its_help(verb):
    command = cli._load(f"vivace.eval.verbs.{verb}:{verb.title()}Command")
    assert command.__doc__.splitlines()[0] == cli.VERBS[verb]
    assert "Example: vivace " + verb in command.__doc__


def test_an_evaluation_times_its_rows_briefly_whatever_else_is_said_of_them():
    bench = cli._parse("eval", ["--bench.threads=2"]).bench
    assert (bench.threads, bench.repeats, bench.compile) == (2, 5, False)
