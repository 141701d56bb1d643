"""`vivace tune` without a world: what it finds, how it goes on, and what it refuses."""

import errno
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from vivace.accel import registry
from vivace.accel.apply import accelerate
from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.accel.technique import Need, Seam, Technique
from vivace.eval.cli import main
from vivace.eval.tune import search, store
from vivace.eval.tune.candidate import Candidate, Status, Trial
from vivace.eval.tune.counting import Counting
from vivace.eval.tune.store import Store
from vivace.policies.load import load_policy

QUICK = ("--accel.samples=2", "--tune.samples=2", "--tune.candidates=12", "--tune.timed=2",
         "--tune.finalists=1", "--tune.threads=1", "--tune.techniques=[step_schedule]")  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six episodes of four moments."""
    file = tmp_path_factory.mktemp("data") / "obs.npz"
    states = np.random.default_rng(0).uniform(-1, 1, (24, 39)).astype(np.float32)
    np.savez(file, **{"observation.state": states}, episode=np.repeat(np.arange(6), 4))
    return file


@pytest.fixture(autouse=True)
def brief(monkeypatch, tmp_path):
    """A p90 takes ten rounds; outputs go to a folder of their own."""
    monkeypatch.setattr(search, "MANY", 10)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tune(bare_checkpoint, data, capsys):
    """Run the verb; returns its exit code, its last line, and what it told."""

    def run(*more: str, out: str = "out", is_data: bool = True):
        asked = ["tune", f"--policy.path={bare_checkpoint}", f"--output_dir={out}", *QUICK, *more]
        code = main([*asked, f"--data.file={data}"] if is_data else asked)
        captured = capsys.readouterr()
        last = json.loads(captured.out) if captured.out else None
        return code, last, captured.err

    return run


def test_without_a_world_the_nearest_actions_that_keep_the_budget_are_the_plan(tune, bare_checkpoint):
    code, last, told = tune("--budget.ms=100000")
    assert code == 0
    plan = AccelerationPlan.load(Path("out"))
    assert plan.measurements["judged_by"] == "action error"
    assert plan.measurements["action_error"] < 1e-4, "with all the time there is nothing is approximated"
    loaded = load_policy(bare_checkpoint)
    accelerate(loaded.staged, plan, loaded.fingerprint)
    assert not (bare_checkpoint / FILE_NAME).exists()
    assert "success was not judged" in " ".join(told.split())
    assert "success was not judged" in last["sentence"]
    results = json.loads(Path("out/results.json").read_text())
    assert results["kind"] == "tune"
    trials = {trial["key"]: trial for trial in results["trials"]}
    assert len(trials) >= 12
    winner = trials[last["winner"]["key"]]
    assert winner["keeps_budget"]
    assert all(trial["label"] for trial in trials.values())
    assert results["on_front"]["step_schedule"] in (True, False)


@pytest.mark.long
def test_a_tight_budget_takes_approximation(tune):
    """Less than exact work takes: the plan has fewer steps, and the nearest that keep it."""
    _, last, _ = tune("--budget.ms=100000")
    trials = {key: trial for key, trial in Store(Path("out")).trials.items() if trial.latencies_s}
    exact = next(trial for trial in trials.values() if trial.candidate.kinds == ("hoist",))
    budget_ms = 0.7e3 * float(np.median(exact.latencies_s))
    code, last, _ = tune(f"--budget.ms={budget_ms}")
    assert code == 0
    found = Store(Path("out")).trials[last["winner"]["key"]]
    assert "step_schedule" in found.candidate.kinds
    assert last["measured"]["flop_ratio"] < 0.8


@pytest.mark.long
def test_what_is_compiled_is_timed_like_any_other_and_may_be_the_plan(tune):
    code, last, _ = tune("--budget.ms=100000", "--tune.compile=true")
    assert code == 0
    trials = Store(Path("out")).trials.values()
    late = [one for one in trials if one.candidate.starts_late and one.latencies_s]
    assert "as trained, torch.compile" in {one.candidate.label for one in late}
    assert all(one.action_error is not None for one in late)
    assert len(late) >= 2  # with exact work removed, too


def test_a_budget_below_the_fastest_names_it_and_writes_no_plan(tune, bare_checkpoint):
    code, last, told = tune("--budget.ms=0.001")
    assert code == 1
    assert last["plan"] is None
    assert last["fastest"]["label"] in last["sentence"]
    assert last["fastest"]["latency"]["p50_s"] > 1e-6
    assert "no plan keeps 0.001 ms" in " ".join(told.split())
    written = {"results.json", "report.html", store.FILE_NAME, store.CHOSEN, "pace.json", "job.json"}
    assert {file.name for file in Path("out").iterdir()} == written
    assert list(bare_checkpoint.glob("acceleration*")) == []


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--budget.ms=50", "--budget.hz=20"], "budget.ms and budget.hz are both given"),
        (["--budget.ms=0"], "budget.ms=0.0; a number above 0 is needed"),
        (["--budget.hz=20", "--env.control_hz=10"], "are one rate; give one of them"),
        (["--tune.minutes=0"], "tune.minutes=0.0; a number above 0 is needed"),
        (["--tune.techniques=[]"], "tune.techniques is empty"),
        (["--tune.techniques=[jacobi]"], "no technique of --tune.techniques fits policy 'dp_transformer'"),
    ],
)
def test_what_cannot_be_searched_is_refused(tune, flags, told):
    code, last, err = tune(*flags)
    assert (code, last) == (2, None)
    assert told in " ".join(err.split())
    assert not Path("out").exists()


def test_neither_data_nor_a_world_is_refused(tune):
    code, _, err = tune("--budget.hz=20", is_data=False)
    assert code == 2
    assert "a plan is found on observations, and none are named" in " ".join(err.split())


@pytest.fixture(scope="module")
def whole(bare_checkpoint, data, tmp_path_factory):
    """The folder of a search that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "whole"
    asked = ["tune", f"--policy.path={bare_checkpoint}", f"--data.file={data}", "--budget.ms=100000"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(search, "MANY", 10)
        assert main([*asked, *QUICK, f"--output_dir={folder}"]) == 0
    return folder


@pytest.fixture
def uninterrupted(whole):
    """Keys of its candidates; a copy of it is in the working folder."""
    shutil.copytree(whole, "whole")
    return list(Store(whole).trials)


@pytest.mark.parametrize("after", [pytest.param(1, marks=pytest.mark.long), 11])
def test_killed_at_any_moment_it_goes_on_to_the_same_candidates(tune, monkeypatch, uninterrupted, after):
    original, calls = Counting.trial, []

    def killed(self, candidate, known):
        calls.append(candidate)
        if len(calls) > after:
            raise KeyboardInterrupt
        return original(self, candidate, known)

    with monkeypatch.context() as patched:
        patched.setattr(Counting, "trial", killed)
        assert tune("--budget.ms=100000")[0] == 130
    assert len(Store(Path("out")).trials) == after
    assert tune("--budget.ms=100000")[0] == 0
    assert list(Store(Path("out")).trials) == uninterrupted


def test_what_is_known_is_not_counted_again_and_what_was_measured_stays(tune, monkeypatch, uninterrupted):
    def never(*args):
        raise AssertionError("it is known")

    before = dict(Store(Path("whole")).trials)
    monkeypatch.setattr(Counting, "trial", never)
    code, last, _ = tune("--budget.ms=100000", out="whole")
    assert code == 0
    assert last["candidates"].keys() <= {"counted", "timed", "failed", "dropped"}
    after = Store(Path("whole")).trials
    assert list(after) == list(before)
    for key, trial in before.items():
        assert after[key].latencies_s[: len(trial.latencies_s)] == trial.latencies_s


def test_another_search_in_the_same_folder_is_refused(tune, uninterrupted):
    code, _, err = tune("--budget.ms=100000", "--seed=5", out="whole")
    assert code == 2
    assert "holds results of another job (it differs in seed)" in " ".join(err.split())


@pytest.mark.long
def test_a_trial_that_raises_is_recorded_skipped_and_named(tune, monkeypatch):
    monkeypatch.setattr(registry, "_KNOWN", dict(registry.techniques()))

    @registry.register
    @dataclass(frozen=True, kw_only=True)
    class Broken(Technique):
        kind: ClassVar[str] = "broken"
        seam: ClassVar[Seam] = Seam.BLOCKS
        label: ClassVar[str] = "one that breaks"
        needs: ClassVar[tuple[Need, ...]] = (Need.DENOISER,)
        is_static: ClassVar[bool] = True

        @classmethod
        def calibrate(cls, execution, data, options):
            raise ZeroDivisionError("nothing is divided by nothing")

    asked = ("--tune.techniques=[broken,step_schedule]", "--tune.candidates=40")
    code, last, told = tune("--budget.ms=100000", *asked)
    assert code == 0
    failed = [one for one in Store(Path("out")).trials.values() if one.status is Status.FAILED]
    assert failed
    assert all("broken" in one.candidate.kinds for one in failed)
    assert {one.reason for one in failed} == {"ZeroDivisionError: nothing is divided by nothing"}
    assert "left out: one that breaks" in " ".join(told.split())
    assert last["candidates"]["failed"] == len(failed)


def test_a_full_disk_is_told_in_a_line_and_what_was_stored_is_kept(tune, monkeypatch, uninterrupted):
    original, calls = Store.add, []

    class Full:
        """A file on a disk that takes no more."""

        def open(self, mode):
            raise OSError(errno.ENOSPC, "No space left on device")

        def __str__(self):
            return "trials.jsonl"

    def add(self, trial):
        calls.append(trial)
        if len(calls) > 4:
            self._file = Full()
        return original(self, trial)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "add", add)
        code, last, err = tune("--budget.ms=100000")
    assert (code, last) == (2, None)
    assert "(No space left on device); make room and run the same command again" in " ".join(err.split())
    assert len(Store(Path("out")).trials) == 4
    assert tune("--budget.ms=100000")[0] == 0
    assert list(Store(Path("out")).trials) == uninterrupted


def test_a_line_that_was_cut_off_is_tried_again_and_the_next_stands_alone(tmp_path):
    one, two = (
        Trial(candidate=Candidate((("hoist", {"n": n}),)), status=Status.COUNTED, flops=n) for n in (1, 2)
    )
    Store(tmp_path).add(one)
    file = tmp_path / store.FILE_NAME
    file.write_bytes(file.read_bytes() + b'{"candidate": {"requ')
    known = Store(tmp_path)
    assert list(known.trials) == [one.key]
    known.add(two)
    known.add(one.became(Status.TIMED, latencies_s=(0.5,)))
    again = Store(tmp_path).trials
    assert list(again) == [one.key, two.key]
    assert again[one.key].latencies_s == (0.5,)
