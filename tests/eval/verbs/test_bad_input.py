"""What a user gets wrong: one clear line, exit code 2, nothing half-written."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from vivace.accel.plan import FILE_NAME
from vivace.eval.cli import main

pytestmark = pytest.mark.sim


@pytest.fixture
def copy(checkpoint, tmp_path, monkeypatch):
    """A copy to damage, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, tmp_path / "policy")
    return tmp_path / "policy"


def refused(capsys, *arguments: str) -> str:
    """Run a verb that must fail; returns its one line."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    message = next(line for line in reversed(lines) if line.startswith("vivace"))
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return message


def evaluate(capsys, path, *more: str) -> str:
    return refused(
        capsys, "eval", f"--policy.path={path}", "--output_dir=out", "--env.task=reach-moving", *more
    )


def edit_plan(folder, change) -> None:
    plan = json.loads((folder / FILE_NAME).read_text())
    change(plan)
    (folder / FILE_NAME).write_text(json.dumps(plan))


def test_missing_and_foreign_checkpoints(copy, capsys, tmp_path):
    assert (
        "no checkpoint folder at nowhere; give a lerobot checkpoint, its name on the Hub, or one of:"
        in evaluate(capsys, "nowhere")
    )
    (copy / "config.json").write_text('{"type": "rt_1"}')
    assert "policy type 'rt_1'; known types:" in evaluate(capsys, copy)
    (copy / "config.json").write_text("not json")
    assert "is not a JSON object" in evaluate(capsys, copy)
    (copy / "model.safetensors").unlink()
    assert "has no model.safetensors" in evaluate(capsys, copy)
    assert not (tmp_path / "out").exists()


def test_truncated_weights(copy, capsys, tmp_path):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors is truncated or not safetensors" in evaluate(capsys, copy)
    weights.write_bytes(b"\x80\x04pickle")
    assert "is truncated or not safetensors" in evaluate(capsys, copy)
    assert not (tmp_path / "out").exists()


def test_weights_of_another_architecture(copy, capsys):
    config = json.loads((copy / "config.json").read_text())
    config["n_emb"] = 64
    (copy / "config.json").write_text(json.dumps(config))
    assert "model.safetensors does not fit config.json" in evaluate(capsys, copy)


def test_nan_in_the_normaliser(copy, capsys):
    file = next(copy.glob("policy_preprocessor_*.safetensors"))
    tensors = load_file(file)
    name = next(name for name in tensors if "min" in name)
    tensors[name] = torch.full_like(tensors[name], torch.nan)
    save_file(tensors, file)
    assert "holds NaN or infinity; recompute the dataset statistics" in evaluate(capsys, copy)


def test_a_plan_of_another_policy(copy, capsys):
    tensors = load_file(copy / "model.safetensors")
    tensors["model.head.bias"] += 1
    save_file(tensors, copy / "model.safetensors")
    message = evaluate(capsys, copy)
    assert "the plan was calibrated for 'dp_transformer'" in message
    assert "its weights differ; recalibrate: vivace calibrate" in message


def test_unknown_block_and_damaged_plans(copy, capsys):
    def rename(plan):
        updates = plan["techniques"][-1]["updates"]
        updates["action.15.mlp"] = updates.pop("action.1.mlp")

    edit_plan(copy, rename)
    message = evaluate(capsys, copy)
    assert (
        "names block 'action.15.mlp', but policy 'dp_transformer' has action.0.self … action.1.mlp" in message
    )
    edit_plan(copy, lambda plan: plan.update(version=99))
    assert "plan has version 99, this vivace reads 1" in evaluate(capsys, copy)
    edit_plan(copy, lambda plan: plan.pop("fingerprint") and plan.update(version=1))
    assert "plan is malformed: plan lacks 'fingerprint'" in evaluate(capsys, copy)
    (copy / FILE_NAME).write_text("{")
    assert "is not JSON" in evaluate(capsys, copy)
    (copy / FILE_NAME).unlink()
    assert "no plan at" in evaluate(capsys, copy, f"--accel.path={copy}")


@pytest.mark.parametrize(("flags", "message"), [
    (["--accel.block_cache.updates=0"], "updates=0, but the sampler runs 10 steps; choose 1..10"),
    (["--accel.block_cache.updates=101"], "updates=101, but the sampler runs 10 steps"),
    (["--accel.block_cache.updates=4", "--accel.block_cache.bubbling=77"],
     "bubbling=77, but the policy has 6 blocks"),
    (["--accel.updates=4"],
     "--accel.updates is --accel.block_cache.updates or --accel.forecast.updates now"),
    (["--accel.token_method", "fastv"], "--accel.token_method is --accel.patch_select.method now"),
    (["--accel.guidance=linear"], "--accel.guidance is --accel.guidance.method now"),
    (["--accel.sjd=1"], "--accel.sjd is a technique, calibrated by --accel.techniques=[sjd]; its options: "),
    (["--accel.mlp_prune.sparsity=1.5"], "mlp_prune sparsity=1.5, rank=0; needed: 0 <= sparsity < 1"),
    (["--accel.techniques=[token_select]"], "technique 'token_select' is called 'patch_select' now"),
    (["--accel.techniques=[prune]"], "unknown technique 'prune'; known techniques: convolutions, mlp_prune"),
    (["--accel.techniques=[block_cache,forecast]"], "block_cache and forecast both work on the blocks seam"),
    (["--env.task=rech-v3"], "has no task 'rech-v3'; the nearest of its 58 tasks: reach-v3"),
    (["--env.type=gibson"], "environment type 'gibson' does not exist; the types: metaworld"),
    (["--accel.episodes=two"], "two"),
    (["--no.such.flag=1"], "no.such.flag"),
])  # fmt: skip
def test_calibrate_refuses_and_keeps_the_old_plan(copy, capsys, flags, message):
    before = (copy / FILE_NAME).read_bytes()
    quick = [
        "--env.task=reach-v3",
        "--accel.episodes=1",
        "--accel.samples=1",
        "--accel.judged_episodes=1",
        "--accel.judged_samples=2",
        "--env.max_steps=10",
    ]
    assert message in refused(capsys, "calibrate", f"--policy.path={copy}", *quick, *flags)
    assert (copy / FILE_NAME).read_bytes() == before
    assert not list(copy.glob("*.partial"))


def test_a_file_of_settings_too_names_options_with_their_technique(copy, capsys, tmp_path):
    file = tmp_path / "settings.yaml"
    command = ["calibrate", f"--policy.path={copy}", "--env.task=reach-v3", f"--config_path={file}"]
    file.write_text("accel:\n  layer_rule: greedy\n")
    assert "--accel.layer_rule is --accel.layer_skip.rule now" in refused(capsys, *command)
    file.write_text("accel:\n  mlp_prune:\n    sparsity: 2.0\n")
    assert "mlp_prune sparsity=2.0, rank=0; needed: 0 <= sparsity < 1" in refused(capsys, *command)


@pytest.mark.parametrize(("flags", "message"), [
    (["--loop.mode=rtc", "--loop.rtc.method=magic"], "rtc method='magic'; choose one of guidance, inpaint"),
    (["--loop.mode=rtc", "--loop.rtc.method=freeze"], "method='freeze' is called inpaint now"),
    (["--loop.mode=fast"], "mode='fast' is unknown; the modes: sync, async, rtc"),
    (["--eval.mode=async"], "eval.mode is called loop.mode now"),
    (["--rtc.max_guidance=1"], "rtc.max_guidance is called loop.rtc.max_guidance_weight now"),
    (["--eval.n_episodes=0"], "n_episodes=0; a number above 0 is needed"),
    (["--env.control_hz=-5"], "control_hz=-5"),
    (["--latency.type=constant", "--latency.seconds=-1"], "constant latency holds -1"),
    (["--latency.type=trace", "--latency.path=none.json"], "no latency trace at 'none.json'"),
    (["--loop.n_action_steps=99"], "n_action_steps=99, but a chunk has 7 actions"),
    (["--require=[plain.speed>=1]"], "requirement 'plain.speed>=1' cannot be read"),
])  # fmt: skip
def test_eval_refuses_settings_before_it_measures(copy, capsys, tmp_path, flags, message):
    quick = ["--env.max_steps=10", "--eval.lineup=false", "--bench.repeats=1", "--eval.timed_chunks=1",
             "--accel.episodes=1", "--accel.judged_episodes=1"]  # fmt: skip
    assert message in evaluate(capsys, copy, *quick, *flags)
    assert not (tmp_path / "out" / "results.json").exists()


def test_verbs_and_results_that_do_not_exist(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate"]) == 2
    assert "unknown verb 'evaluate'; verbs: eval, bench" in capsys.readouterr().err
    assert "no results.json" in refused(capsys, "report", "--results=nowhere.json")
    (tmp_path / "results.json").write_text("[1]")
    assert "not results of vivace eval, bench, run or tune" in refused(
        capsys, "report", "--results=results.json"
    )
