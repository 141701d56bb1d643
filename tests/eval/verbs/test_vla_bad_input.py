"""What a user of a VLA gets wrong: one clear line, exit code 2, nothing half-written."""

import json
import shutil

import numpy as np
import pytest

from vivace.eval.cli import main
from vivace.policies.errors import ObservationMismatch
from vivace.policies.load import load_policy
from vivace.policies.session import Session

pytestmark = pytest.mark.sim

CAMERA = "observation.images.close_up"


@pytest.fixture
def copy(vla_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(vla_checkpoint, tmp_path / "policy")
    return tmp_path / "policy"


def refused(capsys, *arguments):
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err.strip().splitlines()[-1]


def test_a_camera_the_world_does_not_have(copy, capsys, tmp_path):
    config = json.loads((copy / "config.json").read_text())
    config["input_features"]["observation.images.left"] = config["input_features"].pop(CAMERA)
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "acceleration.json").unlink()
    command = ("bench", "--policy.path=policy", "--env.task=drawer-open-halfway", "--output_dir=out")
    assert "no camera 'left'; its cameras:" in refused(capsys, *command)
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        ({}, f"observation has keys \\[\\], but the policy needs '{CAMERA}'"),
        ({CAMERA: np.zeros((1, 1, 48, 64, 1), np.uint8)}, r"has shape \(1, 1, 48, 64, 1\), needed is"),
    ],
)
def test_a_camera_missing_or_of_another_kind(copy, observation, message):
    session = Session(load_policy(copy), task="open the drawer")
    with pytest.raises(ObservationMismatch, match=message):
        session.predict(observation, [(0, 0)])


def test_an_instruction_too_long_and_none_at_all(copy, capsys):
    command = ("bench", "--policy.path=policy", "--env.task=drawer-open-halfway", "--output_dir=out")
    assert "reads at most 40; shorten it" in refused(capsys, *command, "--env.instruction=" + "open " * 60)
    session = Session(load_policy(copy))
    with pytest.raises(Exception, match="reads an instruction, but none was given"):
        session.predict({CAMERA: np.zeros((1, 1, 32, 32, 3), np.uint8)}, [(0, 0)])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--accel.techniques=[jacobi]"], "jacobi decodes action tokens, but policy 'cogact' writes none"),
        (
            ["--accel.techniques=[patch_select]", "--accel.patch_select.k_final=17"],
            "keeps 17 patches, the policy has 16",
        ),
        (
            ["--accel.techniques=[layer_skip]", "--accel.layer_skip.n_dropped=9"],
            "drop 9 of 4 language layers",
        ),
    ],
)
def test_plans_that_do_not_fit(copy, capsys, flags, message):
    before = (copy / "acceleration.json").read_bytes()
    command = ("calibrate", "--policy.path=policy", "--env.task=drawer-open-halfway", "--env.max_steps=8",
               "--accel.episodes=1", "--accel.samples=1", "--accel.judged_episodes=1",
               "--accel.judged_samples=2")  # fmt: skip
    assert message in refused(capsys, *command, *flags)
    assert (copy / "acceleration.json").read_bytes() == before


def test_folders_that_are_no_originals(copy, capsys, tmp_path):
    (tmp_path / "run").mkdir()
    command = ("convert", "--run=run", "--tokenizer=none.json", "--output_dir=out")
    assert "none.json is not a tokenizer.json" in refused(capsys, *command)
    assert not (tmp_path / "out").exists()
