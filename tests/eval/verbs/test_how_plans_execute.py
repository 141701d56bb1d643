"""A plan that says how its chunks are executed is run so by every verb, unless the user says otherwise."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from planted import planted_checkpoint

from vivace.accel.apply import accelerate
from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.eval.cli import main
from vivace.eval.identity import describe_run
from vivace.eval.options import CommonOptions, EnvOptions, PolicyOptions
from vivace.eval.scale.job import Actor
from vivace.eval.subject import session
from vivace.eval.tune.former import former
from vivace.policies.load import load_policy
from vivace.policies.session import Session
from vivace.policies.spec import ChunkExecution, Mode

MODES = ((Mode.ASYNC, Mode.RTC), (Mode.ASYNC,), (Mode.RTC,))
WORLD = ("--env.type=planted", "--env.task=follow")
FEW = ("--accel.samples=2", "--accel.episodes=1", "--accel.judged_episodes=1", "--accel.judged_samples=2",
       "--accel.techniques=[hoist]")  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Its chunks have six actions, of which it executes four."""
    return planted_checkpoint(tmp_path_factory.mktemp("executed") / "planted")


@pytest.fixture(scope="module")
def plans(checkpoint, tmp_path_factory):
    """The same techniques, calibrated for one action of a chunk, and for the policy's own number."""
    folder = tmp_path_factory.mktemp("plans")
    for name, more in (("one", ["--loop.n_action_steps=1"]), ("own", [])):
        asked = ["calibrate", f"--policy.path={checkpoint}", f"--output_dir={folder / name}", *WORLD, *FEW]
        assert main([*asked, *more]) == 0
    return folder


def evaluated(checkpoint, plan, folder, *more):
    """What an evaluation says of the run under a plan, and of the plan; as trained is beside it."""
    asked = ["eval", f"--policy.path={checkpoint}", f"--accel.path={plan}", f"--output_dir={folder}", *WORLD]
    few = ["--eval.n_episodes=3", "--eval.timed_chunks=1", "--eval.video=false", "--eval.lineup=false",
           "--eval.curve=[]", "--bench.repeats=1", "--bench.threads=1", "--latency.type=none"]  # fmt: skip
    assert main([*asked, *FEW[:4], *few, *more]) == 0
    found = json.loads((Path(folder) / "results.json").read_text())
    told = {
        run["name"]: [{k: v for k, v in one.items() if "_s" not in k} for one in run["episodes"]]
        for run in found["runs"]
    }
    return told["plain"], told["accelerated"], found["plan"]


def test_eval_executes_chunks_as_the_plan_says_and_as_the_user_says_before(checkpoint, plans, tmp_path):
    assert json.loads((plans / "one" / FILE_NAME).read_text())["execution"] == {"n_action_steps": 1}
    assert AccelerationPlan.load(plans / "own").execution == ChunkExecution()
    own_plain, own, _ = evaluated(checkpoint, plans / "own", tmp_path / "own")
    plain, one, told = evaluated(checkpoint, plans / "one", tmp_path / "one")
    assert told[-1] == {"kind": "chunks", "n_action_steps": 1}
    assert plain == own_plain, "as trained is executed as trained"
    assert one != own
    flagged = evaluated(checkpoint, plans / "own", tmp_path / "flagged", "--loop.n_action_steps=1")
    assert one == flagged[1]
    undone = evaluated(checkpoint, plans / "one", tmp_path / "undone", "--loop.n_action_steps=4")
    assert undone[1] == own


def test_eval_runs_all_in_the_mode_that_the_plan_says_unless_the_user_says_one(checkpoint, plans, tmp_path):
    plan = AccelerationPlan.load(plans / "own").executed(ChunkExecution(mode=Mode.RTC))
    (tmp_path / "rtc").mkdir()
    plan.save(tmp_path / "rtc")
    late = ("--latency.type=constant", "--latency.seconds=0.1")
    modes, found = {}, {}
    for name, at, more in (
        ("silent", plans / "own", []),
        ("said", tmp_path / "rtc", []),
        ("flagged", plans / "own", ["--loop.mode=rtc"]),
        ("undone", tmp_path / "rtc", ["--loop.mode=async"]),
    ):
        found[name] = evaluated(checkpoint, at, tmp_path / name, *late, *more)
        results = json.loads((tmp_path / name / "results.json").read_text())
        modes[name] = results["environment"]["mode"]
    assert modes == {"silent": "sync", "said": "rtc", "flagged": "rtc", "undone": "async"}
    assert found["said"][:2] == found["flagged"][:2]
    assert found["said"][1] != found["silent"][1]


def test_a_session_continues_chunks_where_the_plan_says_so(checkpoint, plans):
    """So a bench of it times what the loop asks for."""
    loaded = load_policy(checkpoint)
    asked = CommonOptions(
        policy=PolicyOptions(path=str(checkpoint)), env=EnvOptions(type="planted", task="follow")
    )
    for mode in (None, Mode.ASYNC, Mode.RTC):
        plan = AccelerationPlan.load(plans / "own").executed(ChunkExecution(mode=mode))
        runner = session(asked, loaded, accelerate(loaded.staged, plan))
        assert (runner.chunking is not None) == (mode == Mode.RTC)


def test_it_is_executed_so_in_another_process_too(checkpoint, plans):
    loaded = load_policy(checkpoint)
    plan = AccelerationPlan.load(plans / "one").executed(ChunkExecution(request_at=0))
    here = Session(loaded, accelerate(loaded.staged, plan))
    assert (here.spec.n_action_steps, here.spec.request_at) == (1, 0)
    there = Actor.of(here).session(load_policy(checkpoint))
    assert there.spec == here.spec
    assert describe_run(there) == describe_run(here)
    otherwise = accelerate(loaded.staged, replace(plan, execution=ChunkExecution()))
    assert describe_run(there) != describe_run(Session(loaded, otherwise))


def test_a_search_holds_the_plan_beside_a_checkpoint_as_it_is_executed(checkpoint, plans):
    loaded = load_policy(checkpoint)
    plan = AccelerationPlan.load(plans / "one")
    plan.save(checkpoint)
    try:
        (found,) = former(loaded)
    finally:
        (checkpoint / FILE_NAME).unlink()
    assert found.execution == ChunkExecution(n_action_steps=1)
    rtc = plan.executed(ChunkExecution(mode=Mode.RTC))
    rtc.save(checkpoint)
    try:
        ways = [former(loaded, (), modes)[0].execution.mode for modes in MODES]
    finally:
        (checkpoint / FILE_NAME).unlink()
    assert ways == [Mode.RTC, None, None], "in the loop's own mode where it is that, or where it is not tried"
    assert found.requests == (("hoist", {}),)


def test_a_plan_that_a_search_found_says_how_it_was_executed(checkpoint, tmp_path):
    asked = ["tune", f"--policy.path={checkpoint}", f"--output_dir={tmp_path}", *WORLD, *FEW[:3],
             "--budget.ms=10000", "--tune.samples=2", "--tune.candidates=3", "--tune.timed=1",
             "--tune.finalists=1", "--tune.threads=1", "--tune.techniques=[step_schedule]",
             "--tune.n_episodes=2", "--tune.confirm=2", "--loop.n_action_steps=3"]  # fmt: skip
    assert main(asked) == 0
    plan = AccelerationPlan.load(tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    won = next(trial for trial in results["trials"] if trial["key"] == results["winner"]["key"])
    assert plan.execution.n_action_steps == (won["candidate"]["execution"]["n_action_steps"] or 3)
