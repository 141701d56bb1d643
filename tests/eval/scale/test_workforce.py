"""Wherever episodes are run, and whoever dies meanwhile, their results are the same bit for bit."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import drifting_world
import gymnasium
import numpy as np
import psutil
import pytest

from vivace.eval.scale.job import Job
from vivace.eval.scale.options import ScaleOptions
from vivace.eval.scale.workforce import Workforce
from vivace.eval.simulation.episode import load_results
from vivace.eval.simulation.rollout import RolloutSettings
from vivace.policies.errors import NonFiniteActions
from vivace.policies.spec import ActionKind, PolicySpec

SPEC = PolicySpec(
    type="fake", action_dim=2, horizon=8, n_obs_steps=1, n_action_steps=4,
    observation_shapes={"observation.state": (2,)}, action_kinds=(ActionKind.ABSOLUTE,) * 2, blocks=(),
)  # fmt: skip


class Drift(gymnasium.Env):
    """It ends after a number of steps that the seed decides."""

    control_hz = 20.0

    def reset(self, *, seed=None, options=None):
        random = np.random.default_rng(seed)
        self.state, self.left = random.normal(size=2), random.integers(9, 25)
        return {"observation.state": self.state}, {}

    def step(self, action):
        self.state, self.left = self.state + 0.1 * action, self.left - 1
        return {"observation.state": self.state}, 0.0, False, self.left == 0, {"is_success": False}


def predict(observations, keys):
    return np.stack([np.random.default_rng(key).normal(size=(8, 2)) for key in keys])


OF_TIME = ("command", "commit", "created", "wall", "scale", "shares")
DIES = "--env.kwargs={{dies_at: {seed}, lives: '{file}'}}"


def results(home, name):
    found = json.loads((home / name / "results.json").read_text())
    for row in found["pareto"]:
        for key in ("latency_s", "latency_spread", "ratio", "ratio_interval", "stages_s"):
            del row[key]
    return {key: value for key, value in found.items() if key not in OF_TIME}


def without_rivals(found):
    """What does not follow from latencies, which were measured twice: not how many steps a rival takes."""
    known = ("plain", "accelerated")
    return {
        **{key: value for key, value in found.items() if key != "baselines"},
        "runs": [run for run in found["runs"] if run["name"] in known],
        "pareto": [row for row in found["pareto"] if row["name"] in known],
        "comparisons": [pair for pair in found["comparisons"] if pair["first"] in known],
    }


def test_chunks_that_failed_are_kept_stored_and_told(tmp_path, capsys):
    def sometimes(observations, keys):
        if len(keys) > 1 or keys[0] == (7, 0):
            raise NonFiniteActions("an action is NaN")
        return predict(observations, keys)

    acting = SimpleNamespace(predict=sometimes, spec=SPEC, eagerly=lambda: acting)
    job = Job("run", "as trained", acting, Drift, RolloutSettings(n_episodes=3, seed=6))
    with Workforce(ScaleOptions(), lambda: None) as workforce:
        found = workforce.run([job], tmp_path / "episodes")["run"]
    assert [result.errors for result in found] == [(), ("an action is NaN",), ()]
    stored = load_results(tmp_path / "episodes" / "run.jsonl")
    assert [result.errors for result in stored] == [result.errors for result in found]
    asked = sum(len(result.latencies_s) for result in found)
    told = " ".join(capsys.readouterr().err.split())
    assert f"as trained: 1 of {asked} chunks failed, the fallback acted; the first: an action is NaN" in told


def test_in_virtual_time_what_was_compiled_runs_operation_by_operation(tmp_path):
    """Its latency is given, and graphs are made for one chunk at a time."""

    def compiled(observations, keys):
        raise AssertionError("a graph for every number of rows would be made")

    eager = SimpleNamespace(predict=predict, spec=SPEC)
    acting = SimpleNamespace(predict=compiled, spec=SPEC, eagerly=lambda: eager)
    job = Job("run", "compiled", acting, Drift, RolloutSettings(n_episodes=2, seed=6))
    with Workforce(ScaleOptions(), lambda: None) as workforce:
        found = workforce.run([job], tmp_path / "episodes")["run"]
    assert [result.errors for result in found] == [(), ()]


def test_a_unit_that_was_interrupted_runs_again_whole_and_what_was_stored_stands(tmp_path):
    sizes = []

    def count(observations, keys):
        sizes.append(len(keys))
        return predict(observations, keys)

    def run(name, **settings):
        sizes.clear()
        acting = SimpleNamespace(predict=count, spec=SPEC, eagerly=lambda: acting)
        job = Job("run", "as trained", acting, Drift, RolloutSettings(batch_size=3, **settings))
        return Workforce(ScaleOptions(), lambda: None).run([job], tmp_path / name)["run"]

    whole = run("whole", n_episodes=6)
    lines = (tmp_path / "whole" / "run.jsonl").read_text().splitlines(keepends=True)
    run("second", seed=100_003, n_episodes=3)
    second, file = list(sizes), tmp_path / "part" / "run.jsonl"
    file.parent.mkdir()
    file.write_text("".join(lines[:4]))
    assert run("part", n_episodes=6) == whole
    assert file.read_text().splitlines(keepends=True)[:4] == lines[:4]
    assert sorted(file.read_text().splitlines(keepends=True)) == sorted(lines), "none is stored twice"
    assert sizes == second, "as many rows are computed at once as the first time"
    assert max(sizes) == 3


@pytest.mark.long
def test_two_workers_one_of_which_is_killed_give_what_one_process_gives(home, evaluated, tmp_path):
    assert evaluated("alone", "--bench.threads=1")[0] == 0
    file = tmp_path / "lives"
    file.write_text("1")
    dies = DIES.format(seed=100_005, file=file)
    code, said = evaluated("killed", "--scale.workers=2", "--bench.threads=1", dies)
    assert code == 0
    assert "a worker died of episodes 100004 to 100005 of plain (was ended by SIGKILL" in " ".join(
        said.split()
    )
    assert file.read_text() == "0"
    alone, killed = results(home, "alone"), results(home, "killed")
    assert killed == alone
    assert 0 < alone["runs"][0]["successes"] < 8


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_gives_the_same(workers, home, evaluated):
    if not (home / "of-one" / "results.json").is_file():
        assert evaluated("of-one", "--bench.threads=1")[0] == 0
    assert evaluated(f"workers-{workers}", f"--scale.workers={workers}")[0] == 0
    assert results(home, f"workers-{workers}") == results(home, "of-one")


@pytest.mark.long
def test_shares_joined_give_the_same(home, evaluated, capsys):
    assert evaluated("unshared")[0] == 0
    assert evaluated("shared", "--scale.shard=1/3")[0] == 2
    assert evaluated("shared", "--scale.shard=0/3")[0] == 0
    for i in (1, 2, 3):
        assert evaluated("shared", f"--scale.shard={i}/3", *["--scale.workers=2"] * (i == 2))[0] == 0
    assert evaluated("shared", "--scale.shard=2/3")[0] == 0, "what is done is done"
    assert len(list((home / "shared").glob("shard-*-of-3/shard.json"))) == 3
    from vivace.eval.cli import main

    from_shares = home / "shared"
    assert main(["report", f"--merge={from_shares}"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["shares"] == 3
    merged, whole = (without_rivals(results(home, name)) for name in ("shared", "unshared"))
    assert merged == whole
    assert [run["n"] for run in merged["runs"]] == [8, 8]
    assert (from_shares / "report.html").is_file()


@pytest.mark.long
def test_a_unit_that_kills_two_workers_is_named_and_the_others_are_kept(home, evaluated, tmp_path):
    file = tmp_path / "lives"
    file.write_text("2")
    dies = DIES.format(seed=100_002, file=file)
    flags = ("--scale.workers=2", "--eval.curve=[]", "--bench.threads=1", dies)
    code, said = evaluated("deadly", *flags)
    assert code == 2
    last = said.strip().splitlines()[-1]
    assert last.startswith(
        "vivace eval: episodes 100002 to 100003 of plain killed two workers each (was ended by"
    )
    stored = load_results(home / "deadly" / "episodes" / "plain.jsonl")
    assert {e.seed for e in stored} >= set(range(100_000, 100_008)) - {100_002, 100_003}
    assert len(load_results(home / "deadly" / "episodes" / "accelerated.jsonl")) == 8
    assert evaluated("deadly", *flags)[0] == 0, "it lives now"
    assert evaluated("lively", "--eval.curve=[]", "--bench.threads=1")[0] == 0
    assert results(home, "deadly") == results(home, "lively")


@pytest.mark.long
def test_an_interrupted_run_on_workers_continues_and_leaves_none_behind(home, evaluated):
    flags = ("--scale.workers=2", "--bench.threads=1")
    stored = home / "stopped" / "episodes"

    def stop():
        while sum(len(file.read_text().splitlines()) for file in stored.glob("*.jsonl")) < 3:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=stop, daemon=True).start()
    code, said = evaluated("stopped", *flags, episodes=40)
    assert code == 130
    assert "run the same command with the same --output_dir to continue" in said
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    n = sum(len(file.read_text().splitlines()) for file in stored.glob("*.jsonl"))
    assert 3 <= n < 120
    assert evaluated("stopped", *flags, episodes=40)[0] == 0
    assert evaluated("unstopped", "--bench.threads=1", episodes=40)[0] == 0
    assert results(home, "stopped") == results(home, "unstopped")


@pytest.mark.long
def test_ray_gives_the_same_though_an_actor_is_killed(home, evaluated, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'vivace[ray]'")
    here = Path(drifting_world.__file__).parent  # a cluster's processes find what PYTHONPATH says
    monkeypatch.setenv("PYTHONPATH", f"{here}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    file = tmp_path / "lives"
    file.write_text("1")
    with ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False):
        dies = DIES.format(seed=100_005, file=file)
        code, said = evaluated("ray", "--scale.ray=auto", dies)
    assert code == 0, said
    assert "a worker died of episodes 100004 to 100005 of plain (was lost" in " ".join(said.split())
    assert evaluated("not-ray", "--bench.threads=1")[0] == 0
    assert results(home, "ray") == results(home, "not-ray")
