"""A2: checkpoints without statistics, as pi0's and smolvla's bases are published to be trained further."""

import json
import shutil

import lerobot_policies
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from vivace.deploy.bundle.bundle import Bundle
from vivace.eval.cli import main

FEW = ["--accel.samples=2", "--accel.judged_samples=2"]


@pytest.fixture
def base(strangers_policy, tmp_path):
    """The stranger's policy without statistics."""
    return without_statistics(strangers_policy, tmp_path / "base")


def without_statistics(policy, folder):
    """A copy of a checkpoint as lerobot writes one then."""
    shutil.copytree(policy, folder)
    for file in folder.glob("policy_*.json"):
        pipeline = json.loads(file.read_text())
        for step in pipeline["steps"]:
            step.pop("state_file", None)
        file.write_text(json.dumps(pipeline))
    for file in folder.glob("policy_*.safetensors"):
        file.unlink()
    return folder


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def asked(verb, folder, *more):
    return main([verb, f"--policy.path={folder}", *more])


def refused(capsys, verb, folder, *more):
    assert asked(verb, folder, *more) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vivace")]
    assert len(lines) == 1
    return lines[0]


def said(capsys):
    """What was told beside the results, on one line."""
    return " ".join(capsys.readouterr().err.split())


def test_its_work_is_counted_and_timed_from_shapes(base, capsys, tmp_path):
    assert asked("explain", base) == 0
    assert "nothing is normalised, only work and time mean something" in said(capsys)
    out = tmp_path / "bench"
    assert asked("bench", base, *FEW, "--bench.only=[hoist]", "--bench.compile=false", "--bench.repeats=1",
                 "--bench.threads=1", f"--output_dir={out}") == 0  # fmt: skip
    rows = json.loads((out / "results.json").read_text())["pareto"]
    assert all(row["latency_s"] > 0 for row in rows)
    assert "only work and time mean something" in said(capsys)


@pytest.mark.parametrize(
    ("verb", "more"),
    [
        ("calibrate", ["--output_dir=plan"]),
        ("export", ["--output_dir=bundle"]),
        ("eval", ["--env.task=reach-v3"]),
        ("bench", ["--env.task=reach-v3"]),
        ("accelerate", ["--output_dir=fast"]),
    ],
)
def test_what_needs_its_actions_is_refused(base, capsys, monkeypatch, tmp_path, verb, more):
    monkeypatch.chdir(tmp_path)
    told = refused(capsys, verb, base, *more)
    assert "holds no statistics of" in told
    assert "observation.state" in told
    assert "--data.repo=" in told
    assert "make_pre_post_processors" in told


def test_a_dataset_lends_it_its_own(base, strangers_policy, recordings, capsys, tmp_path):
    """The plan is that of the checkpoint that holds them, and nothing beside the base changes."""
    before = contents(base)
    data = f"--data.repo={recordings}"
    plans = []
    for folder in (base, strangers_policy):
        out = tmp_path / f"plan-{folder.name}"
        assert (
            asked("calibrate", folder, data, *FEW, "--accel.techniques=[hoist]", f"--output_dir={out}") == 0
        )
        told = said(capsys)
        assert (f"normalised by the statistics of {recordings}, for the checkpoint holds none" in told) == (
            folder == base
        )
        plans.append(json.loads((out / "acceleration.json").read_text()))
    assert plans[0]["fingerprint"] == plans[1]["fingerprint"]
    assert contents(base) == before
    assert asked("explain", base, data, f"--accel.path={tmp_path / 'plan-base'}") == 0


@pytest.mark.long
def test_a_bundle_of_it_holds_what_was_lent(base, recordings, strangers_policy, tmp_path):
    data, made = f"--data.repo={recordings}", []
    for folder in (base, strangers_policy):
        out = tmp_path / f"bundle-{folder.name}"
        assert asked("export", folder, data, "--export.samples=1", f"--output_dir={out}") == 0
        made.append(Bundle.load(out))
    lent, own = (bundle.observations["observation.state"] for bundle in made)
    np.testing.assert_array_equal(lent.low, own.low)
    np.testing.assert_array_equal(lent.span, own.span)


@pytest.mark.long
def test_one_of_another_robot_takes_the_datasets_widths(recordings, tmp_path, capsys):
    """Of 5 numbers of state and 4 of actions, padded to 8; the dataset has 7 of both, and other cameras."""
    folder = without_statistics(lerobot_policies.saved("smolvla"), tmp_path / "base")
    flags = [f"--data.repo={recordings}", *FEW, "--accel.techniques=[hoist]",
             '--rename_map={"observation.images.top": "observation.images.front"}']  # fmt: skip
    assert asked("calibrate", folder, *flags, f"--output_dir={tmp_path / 'plan'}") == 0
    assert "it gives out actions of 7 numbers, as there" in said(capsys)
    made = [*flags[:1], *flags[-1:], f"--accel.path={tmp_path / 'plan'}", "--export.samples=1"]
    assert asked("export", folder, *made, f"--output_dir={tmp_path / 'bundle'}") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert max(told["chunk_error"], told["lerobot_error"]) <= 1e-4
    spec = Bundle.load(tmp_path / "bundle").spec
    assert (spec.observation_shapes["observation.state"], spec.action_dim) == ((7,), 7)


def test_a_dataset_of_another_robot_lends_nothing(base, capsys, recordings, tmp_path):
    data = shutil.copytree(recordings, tmp_path / "data")
    file = data / "meta" / "stats.json"
    stats = json.loads(file.read_text())
    stats["action"] = {name: value[:3] for name, value in stats["action"].items()}
    file.write_text(json.dumps(stats))
    told = refused(capsys, "calibrate", base, f"--data.repo={data}", f"--output_dir={tmp_path / 'plan'}")
    assert "but the feature has (7,): statistics of another dataset" in told


def test_a_file_lends_none(base, capsys, tmp_path):
    file = tmp_path / "obs.npz"
    np.savez(file, **{"observation.state": np.zeros((4, 7), np.float32)})
    assert "holds no statistics of" in refused(capsys, "bench", base, f"--data.file={file}")


def test_a_checkpoint_with_its_own_keeps_them(strangers_policy, recordings, tmp_path, capsys):
    folder = shutil.copytree(strangers_policy, tmp_path / "policy")
    for file in folder.glob("policy_*.safetensors"):
        save_file({name: 2 * tensor for name, tensor in load_file(file).items()}, file)
    out = tmp_path / "plan"
    assert asked("calibrate", folder, f"--data.repo={recordings}", *FEW, "--accel.techniques=[hoist]",
                 f"--output_dir={out}") == 0  # fmt: skip
    assert "normalised by the statistics" not in said(capsys)
