"""A stranger's robot, data and checkpoint through the command line, on a computer without a simulator."""

import json
import os
import subprocess
import sys
from pathlib import Path

import lerobot_policies
import numpy as np
import pytest
import strangers_robot
from any_world import world_of

from vivace.deploy.bundle.bundle import Bundle
from vivace.eval.cli import main
from vivace.eval.machine import cores

pytestmark = pytest.mark.long
ABSENT = '''
"""Python finds no simulator here."""
import importlib.machinery

_find = importlib.machinery.PathFinder.find_spec
_ABSENT = ("metaworld", "mujoco", "gym_pusht", "gym_aloha", "libero")


def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in _ABSENT else _find(name, path, target)


importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)
'''
VERBS = """
import json, sys
from vivace.eval.cli import main

if __name__ == "__main__":  # processes that are begun from here read this file, too
    for arguments in json.loads(sys.argv[1]):
        if code := main(arguments):
            sys.exit(f"{arguments[0]}: {code}")
    sys.exit("simulators: " + str([name for name in ("metaworld", "mujoco") if name in sys.modules]))
"""


@pytest.fixture(scope="module")
def done(strangers_policy, recordings, tmp_path_factory) -> Path:
    """The folder in which every verb has run, one after the other."""
    folder = tmp_path_factory.mktemp("done")
    (folder / "absent").mkdir()
    (folder / "absent" / "sitecustomize.py").write_text(ABSENT)
    (folder / "verbs.py").write_text(VERBS)
    policy, data = f"--policy.path={strangers_policy}", f"--data.repo={recordings}"
    few = ["--accel.samples=2", "--accel.judged_samples=2"]
    plan = ["--accel.path=plan"]
    played = f"--robot.options={{repo: {recordings}, episodes: [3]}}"
    asked = [
        ["explain", policy],
        ["calibrate", policy, data, *few, "--accel.block_cache.updates=4", "--accel.block_cache.bubbling=2",
         "--output_dir=plan"],
        ["explain", policy, data, *plan],
        ["export", policy, data, *plan, "--export.samples=1", "--output_dir=bundle"],
        ["bench", policy, data, *few, *plan, "--bench.only=[accelerated]", "--bench.compile=false",
         "--bench.repeats=2", "--bench.threads=1", "--bench.bundles=[bundle#plan]", "--output_dir=bench"],
        ["report", "--results=bench/results.json", "--table=bench"],
        ["run", "--bundle=bundle", "--robot.type=dataset",
         played,
         "--watchdog.misses=0", "--inference.stall_s=60", "--live=false", "--draw=true", "--output_dir=run"],
        ["calibrate", policy, *few, "--accel.techniques=[hoist]", "--output_dir=unseen"],
    ]  # fmt: skip
    path = os.pathsep.join([str(folder / "absent"), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = subprocess.run(
        [sys.executable, "verbs.py", json.dumps(asked)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stderr.strip().endswith("simulators: []"), found.stdout + found.stderr
    (folder / "said").write_text(found.stdout + found.stderr)
    return folder


def said(done: Path) -> list[dict]:
    """The last line of every verb."""
    return [json.loads(line) for line in (done / "said").read_text().splitlines() if line.startswith('{"')]


def test_every_output_says_where_observations_are_from(done, recordings):
    unseen, calibrated, explained, exported, *_ = said(done)
    seen = f"2 frames of 2 episodes of {recordings}"
    assert unseen["observations"] == "from shapes (zeros)"
    assert (calibrated["observations_from"], calibrated["judged_from"]) == (seen, seen)
    assert explained["observations"] == exported["observations"]
    assert exported["observations"] == f"1 frame of 1 episode of {recordings}"
    text = (done / "said").read_text()
    assert f"observations: {seen}; calibrated on" in " ".join(text.split())
    assert f"Observations: {seen}." in text, "beneath the table of a README"
    plan = json.loads((done / "plan" / "acceleration.json").read_text())["measurements"]
    assert (plan["observations_from"], plan["env"]) == (seen, "")
    results = json.loads((done / "bench" / "results.json").read_text())
    assert results["observations"]["judged"]["from"] == seen
    assert seen in (done / "bench" / "report.html").read_text()
    assert not set(results["observations"]["fitted"]["seeds"]) & set(
        results["observations"]["judged"]["seeds"]
    )
    receipt = Bundle.load(done / "bundle").receipt
    assert receipt["observations_from"] == exported["observations"]
    unseen = json.loads((done / "unseen" / "acceleration.json").read_text())["measurements"]
    assert unseen["judged_from"] == "from shapes (2 made up, none seen)"


def test_the_bundle_knows_its_robot_by_the_data(done):
    """C7: a policy of one's own robot is exported without a simulator."""
    spec = Bundle.load(done / "bundle").spec
    assert spec.control_hz == 10
    assert {kind.value for kind in spec.action_kinds} == {"absolute"}
    assert spec.action_range.step_from.endswith("of the range")
    assert "frame of 1 episode of" in spec.action_range.step_from


def test_bench_times_plan_and_bundle_beside_the_plain_loop(done):
    plans = said(done)[4]["plans"]
    assert set(plans) == {"plain", "accelerated", "ort:bundle#plan"}
    assert plans["ort:bundle#plan"]["action_error"] == pytest.approx(
        plans["accelerated"]["action_error"], abs=1e-4
    )


def test_the_bundle_is_replayed_against_what_was_recorded(done):
    results = json.loads((done / "run" / "results.json").read_text())
    assert results["run"]["sources"]["chunk"] > 0
    assert results["run"]["latency"]["p50_s"] > 0
    n, why = (results["machine"][name] for name in ("threads", "threads_from"))
    assert 1 <= n <= cores(), "G17"
    assert why.startswith("measured (1: " if cores() > 1 else "one for every core it may use")
    assert f"ONNX Runtime threads: {n}, {why}" in " ".join((done / "said").read_text().split())
    measured = results["measured"]
    assert (measured["episodes"], measured["actions"]) == ([3], results["run"]["ticks"])
    assert all(found["mean"] > 0 for found in measured["difference"].values()), "its weights are random"
    assert "Commanded and recorded" in (done / "run" / "report.html").read_text()
    assert said(done)[6]["measured"] == measured


FEW = ["--accel.episodes=1", "--accel.samples=2", "--accel.judged_episodes=1", "--accel.judged_samples=2"]


def asked(capsys, *arguments: str) -> dict:
    """Run a verb in this process; returns its last line."""
    capsys.readouterr()
    assert main(list(arguments)) == 0
    found: dict = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_observations_are_taken_from_a_file(strangers_policy, tmp_path, capsys):
    rows = [(episode, index) for episode in range(2) for index in range(3)]
    shown = [strangers_robot.frame(*row) for row in rows]
    arrays = {key: np.stack([one[key] for one in shown]) for key in shown[0]}
    file = tmp_path / "obs.npz"
    np.savez(file, episode=[episode for episode, _ in rows], **arrays)
    flags = [f"--policy.path={strangers_policy}", f"--data.file={file}", "--accel.techniques=[hoist]"]
    found = asked(capsys, "calibrate", *flags, *FEW, f"--output_dir={tmp_path / 'plan'}")
    assert found["observations_from"] == found["judged_from"] == f"2 rows of 1 episode of {file}"


def test_a_camera_of_the_recordings_is_the_policys_by_another_name(recordings, tmp_path, capsys):
    """A13: refused by the name that is missing, and taken once it is said."""
    folder = strangers_robot.train(recordings, tmp_path / "policy", {"top": "above"})
    flags = ["calibrate", f"--policy.path={folder}", f"--data.repo={recordings}", *FEW,
             "--accel.techniques=[hoist]", f"--output_dir={tmp_path / 'plan'}"]  # fmt: skip
    assert main(flags) == 2
    assert "the policy needs 'observation.images.above'" in capsys.readouterr().err
    renamed = '--rename_map={"observation.images.top": "observation.images.above"}'
    assert asked(capsys, *flags, renamed)["judged_from"] == f"2 frames of 1 episode of {recordings}"


def test_an_evaluation_takes_its_observations_from_the_data_and_its_episodes_from_the_world(
    strangers_policy, recordings, tmp_path, capsys
):
    found = asked(
        capsys, "eval", f"--policy.path={strangers_policy}", f"--data.repo={recordings}", *FEW,
        *world_of(strangers_policy, "cups"), "--env.max_steps=5", "--eval.n_episodes=1", "--eval.curve=[]",
        "--eval.timed_chunks=1", "--eval.video=false", "--eval.lineup=false", "--bench.threads=1",
        "--bench.repeats=1", "--latency.type=none", f"--output_dir={tmp_path}",
    )  # fmt: skip
    results = json.loads((tmp_path / "results.json").read_text())
    observed = results["observations"]
    assert {one["from"] for one in observed.values()} == {f"2 frames of 1 episode of {recordings}"}
    assert not set(observed["fitted"]["seeds"]) & set(observed["judged"]["seeds"])
    assert (results["environment"]["type"], results["environment"]["task"]) == ("any", "cups")
    assert found["runs"]["plain"]["success"] == 0


def test_doctor_holds_a_strangers_checkpoint_against_lerobots_own_path(
    strangers_policy, recordings, capsys, monkeypatch
):
    """Made up and recorded; neither text nor observation is of a world. Bad input is no failed check."""
    monkeypatch.setattr("vivace.envs.registry.describe", None)
    flags = ["doctor", f"--policy.path={strangers_policy}"]
    for more, source in (
        ([], "an observation made up"),
        ([f"--data.repo={recordings}"], f"the first frame of episode 0 of {recordings}"),
    ):
        checks = asked(capsys, *flags, *more)["checks"]
        assert list(checks) == [str(strangers_policy)]
        assert checks[str(strangers_policy)].endswith(f" on {source}; no plan")
    act = lerobot_policies.saved("act")
    (told,) = asked(capsys, "doctor", f"--policy.path={act}")["checks"].values()
    assert told.startswith("lerobot's own path within")
    monkeypatch.setattr("vivace.eval.verbs.doctor.path_error", lambda *arguments: 0.5)
    assert main(["doctor", f"--policy.path={act}"]) == 1
    assert "from observation to action it is 0.5 off lerobot's own path" in capsys.readouterr().out
    assert main(["doctor", "--policy.path=nowhere"]) == 2
    assert "no checkpoint folder at nowhere" in capsys.readouterr().err
