"""`vivace accelerate CKPT OUT`, as a user types it."""

import json
from pathlib import Path

import pytest
from lerobot_commands import pusht_checkpoint
from lerobot_policies import saved

from vivace.eval.cli import main


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pusht_checkpoint(tmp_path_factory.mktemp("pusht") / "checkpoint", n_obs_steps=1)


def told(capsys) -> tuple[dict, str]:
    said = capsys.readouterr()
    return json.loads(said.out.splitlines()[-1]), " ".join(said.err.split())


def test_without_a_plan_exact_work_is_left_out(base, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["accelerate", str(base), str(out)]) == 0
    summary, said = told(capsys)
    assert summary == {
        "policy": str(out),
        "base": "diffusion",
        "techniques": ["hoist"],
        "weights": "hard links",
    }
    assert "exact work left out: actions change by" in said
    assert [it["kind"] for it in json.loads((out / "acceleration.json").read_text())["techniques"]] == [
        "hoist"
    ]
    assert main(["accelerate", str(base), str(out)]) == 2
    assert "is there already; give a folder that is not, or remove it" in capsys.readouterr().err
    assert main(["accelerate", str(out), str(tmp_path / "again")]) == 0
    assert told(capsys)[0]["techniques"] == ["hoist"], "of the plan beside it"


def test_a_plan_is_made_if_asked_for(base, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--calibrate=true", "--accel.techniques=[hoist, block_cache]", "--accel.block_cache.updates=5"]
    few = ["--accel.samples=1", "--accel.judged_samples=1"]
    assert main(["accelerate", f"--policy.path={base}", f"--output_dir={out}", *flags, *few]) == 0
    assert told(capsys)[0]["techniques"] == ["hoist", "block_cache"]
    assert not (base / "acceleration.json").exists()
    assert main(["accelerate", str(base), str(tmp_path / "other"), f"--accel.path={out}"]) == 0
    assert told(capsys)[0]["techniques"] == ["hoist", "block_cache"]


@pytest.mark.parametrize(("arguments", "line"), [
    ([], "vivace accelerate needs a folder to write: vivace accelerate CKPT OUT"),
    (["{tmp}/out", "more"], "unrecognized arguments: more"),
    (["{tmp}/out", "--accel.path={tmp}"], "no plan at {tmp}/acceleration.json; make one: vivace calibrate"),
    (["{tmp}"], "{tmp} is there already; give a folder that is not, or remove it"),
])  # fmt: skip
def test_what_is_wrong_is_told_in_a_line(base, arguments, line, tmp_path, capsys):
    wanted = [argument.format(tmp=tmp_path) for argument in arguments]
    assert main(["accelerate", str(base), *wanted]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert line.format(tmp=tmp_path) in said


def test_what_does_not_come_apart_is_refused(tmp_path, capsys):
    assert main(["accelerate", str(saved("gaussian_actor")), str(tmp_path / "out")]) == 2
    assert "'gaussian_actor' does not come apart, so there is nothing to acc" in capsys.readouterr().err
    assert not list(Path(tmp_path).iterdir())
