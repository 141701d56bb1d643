"""`vivace bench --bench.profile` writes what `vivace tune --budget.device` reads; nothing is timed then."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.eval.cli import main
from vivace.eval.measure import latencies
from vivace.eval.profile import measuring, memory
from vivace.eval.profile.ledger import counted
from vivace.eval.profile.profile import Profile, way_of
from vivace.eval.tune import search
from vivace.eval.tune.candidate import Origin, Status
from vivace.eval.tune.store import Store
from vivace.policies.load import load_policy
from vivace.policies.session import Session

TUNE = ("--accel.samples=2", "--tune.samples=2", "--tune.candidates=12", "--tune.timed=4",
        "--tune.finalists=1", "--tune.threads=1", "--tune.techniques=[step_schedule]")  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Six episodes of four moments."""
    file = tmp_path_factory.mktemp("data") / "obs.npz"
    states = np.random.default_rng(0).uniform(-1, 1, (24, 39)).astype(np.float32)
    np.savez(file, **{"observation.state": states}, episode=np.repeat(np.arange(6), 4))
    return file


def bench(checkpoint: Path, data: Path, file: Path, *more: str) -> int:
    """Profile this machine, briefly."""
    asked = ["bench", f"--policy.path={checkpoint}", f"--data.file={data}", f"--bench.profile={file}",
             "--bench.repeats=2", "--bench.threads=1", "--accel.samples=2",
             "--accel.judged_samples=1"]  # fmt: skip
    return main([*asked, *more])


@pytest.fixture(scope="module")
def written(bare_checkpoint, data, tmp_path_factory) -> Path:
    """A profile of this machine."""
    file = tmp_path_factory.mktemp("profile") / "here.json"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measuring, "_SPREAD", 4)
        patched.setattr(measuring, "_CHECKS", 5)
        assert bench(bare_checkpoint, data, file) == 0
    return file


@pytest.fixture
def tune(bare_checkpoint, data, capsys, monkeypatch, tmp_path):
    """Run the verb without a clock; returns its exit code, its last line, and what it told."""
    monkeypatch.setattr(search, "MANY", 10)
    monkeypatch.chdir(tmp_path)

    def never(*args, **more):
        raise AssertionError("nothing is timed here")

    def run(*more: str):
        monkeypatch.setattr(latencies, "interleaved", never)
        asked = ["tune", f"--policy.path={bare_checkpoint}", f"--data.file={data}", "--output_dir=out"]
        capsys.readouterr()
        code = main([*asked, *TUNE, *more])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if captured.out else None, " ".join(captured.err.split())

    return run


def planted(written: Path, step_s: float) -> Path:
    """The profile of a machine on which a step takes so long, and nothing else takes any time."""
    data = json.loads(written.read_text())
    for parts in data["ways"].values():
        for name, points in parts.items():
            parts[name] = [[flops, step_s if name == "denoise" else 0.0] for flops, _ in points]
    data |= {
        "spread": [0.9, *[1.0] * 98, 1.1],
        "checks": [{"label": "x", "predicted_s": 1.0, "measured_s": 1.2}],
    }
    file = Path("planted.json")
    file.write_text(json.dumps(data))
    return file


def test_a_machine_is_profiled_part_by_part_and_held_against_whole_chunks(written, bare_checkpoint):
    profile = Profile.load(written)
    blocks = load_policy(bare_checkpoint).staged.spec.block_ids
    exact = max(profile.ways.values(), key=len)
    assert {f"denoise/{name}" for name in blocks} | {"prepare", "encode", "denoise", "finish"} <= set(exact)
    assert any("precision" in way for way in profile.ways)
    assert profile.machine["threads"] == 1
    assert len(profile.checks) == 5
    assert len(profile.spread) == 4
    assert profile.memory_mb > 1
    assert profile.first_over_later
    assert not list(written.parent.glob("*partial*"))


def test_planted_times_choose_the_plan_and_no_clock_does(tune, written, tmp_path):
    """A step takes 10 ms there; 45 ms with 20 % to spare are three steps."""
    code, last, told = tune("--budget.ms=45", f"--budget.device={planted(written, 0.01)}")
    assert code == 0
    plan = AccelerationPlan.load(Path("out"))
    found = Store(Path("out")).trials
    winner = found[last["winner"]["key"]]
    steps = dict(winner.candidate.requests)["step_schedule"]["n_steps"]
    assert steps <= 3
    assert np.median(winner.latencies_s) == pytest.approx(0.01 * steps, rel=1e-6)
    trained = next(one for one in found.values() if one.candidate.origin is Origin.TRAINED)
    assert np.median(trained.latencies_s) > 0.045
    assert "latencies are predicted for" in last["sentence"]
    assert "with 20% to spare" in last["sentence"]
    assert plan.measurements["predicted"].startswith("latencies are predicted for")
    assert "latencies are predicted for" in json.loads(Path("out/results.json").read_text())["sentence"]
    assert "latencies are predicted for" in told


def test_on_a_fast_machine_nothing_is_approximated(tune, written):
    code, last, _ = tune("--budget.ms=45", f"--budget.device={planted(written, 1e-6)}")
    assert code == 0
    assert last["measured"]["action_error"] < 1e-4


@pytest.mark.long
def test_on_a_slow_one_no_plan_keeps_it(tune, written):
    code, last, told = tune("--budget.ms=45", f"--budget.device={planted(written, 10.0)}")
    assert (code, last["plan"]) == (1, None)
    assert "no plan keeps 45 ms" in told


@pytest.mark.long
def test_what_cannot_be_predicted_is_left_out_by_name(tune, written):
    file = planted(written, 0.001)
    data = json.loads(file.read_text())
    data["ways"] = {way: parts for way, parts in data["ways"].items() if "bfloat16" not in way}
    file.write_text(json.dumps(data))
    asked = ("--tune.techniques=[step_schedule,precision]", "--tune.compile=true", "--tune.candidates=20")
    code, last, told = tune("--budget.ms=45", f"--budget.device={file}", *asked)
    assert code == 0
    assert any("bfloat16" in label for label in last["left_out"])
    assert all("the profile has no times of precision" in reason for reason in last["left_out"].values())
    assert "left out: torch.compile" in told


@pytest.mark.parametrize(
    ("change", "flags", "told"),
    [
        ({"version": 7}, [], "is a profile of version 7, this vivace reads 1"),
        ({"fingerprint": {"weights": "0"}}, [], "is a profile of another policy (it differs in weights)"),
        ({"machine": {"dtype": "bfloat16"}}, [], "give --policy.dtype=bfloat16"),
        ({"continues": True}, [], "measure it with no --loop.mode=rtc"),
    ],
)
def test_a_profile_of_something_else_is_refused(tune, written, change, flags, told):
    data = json.loads(written.read_text())
    file = Path("other.json")
    merged = {
        name: data[name] | value if isinstance(value, dict) else value for name, value in change.items()
    }
    file.write_text(json.dumps(data | merged))
    code, last, err = tune("--budget.ms=45", f"--budget.device={file}", *flags)
    assert (code, last) == (2, None)
    assert told in err
    assert not Path("out").exists()


@pytest.mark.long
def test_chunks_that_continue_others_are_profiled_and_planned_for(tune, bare_checkpoint, data, monkeypatch):
    monkeypatch.setattr(measuring, "_SPREAD", 4)
    monkeypatch.setattr(measuring, "_CHECKS", 1)
    with monkeypatch.context() as patched:  # few plans are enough
        patched.setattr(measuring, "_fitted", lambda space: [*space.starters()[:4]])
        assert bench(bare_checkpoint, data, Path("rtc.json"), "--loop.mode=rtc") == 0
    assert json.loads(Path("rtc.json").read_text())["continues"]
    code, _, told = tune("--budget.ms=5000", "--budget.device=rtc.json")
    assert (code, "measure it with no --loop.mode=rtc" in told) == (2, True)
    code, _, _ = tune("--budget.ms=5000", "--budget.device=rtc.json", "--loop.mode=rtc")
    assert code == 0
    assert AccelerationPlan.load(Path("out")).execution.mode == "rtc"


@pytest.mark.long
def test_a_killed_measurement_leaves_the_profile_as_it_was(
    written, bare_checkpoint, data, monkeypatch, tmp_path
):
    file = tmp_path / "p.json"
    file.write_bytes(written.read_bytes())

    def killed(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(measuring, "interleaved", killed)
    assert bench(bare_checkpoint, data, file) == 130
    assert file.read_bytes() == written.read_bytes()


@pytest.mark.long
def test_a_search_by_one_machine_is_not_continued_by_another(tune, written):
    assert tune("--budget.ms=45", f"--budget.device={planted(written, 0.01)}")[0] == 0
    before = Store(Path("out")).trials
    code, _, err = tune("--budget.ms=45", f"--budget.device={planted(written, 0.02)}")
    assert code == 2
    assert "it differs in device" in err
    assert tune("--budget.ms=45", f"--budget.device={planted(written, 0.01)}")[0] == 0
    assert Store(Path("out")).trials == before


def test_what_takes_too_much_memory_is_left_out_by_name(tune, written, monkeypatch):
    def peak_mb(session, data):
        """All but fewer steps take too much."""
        return 50.0 if "step_schedule" in [one.kind for one in session.execution.plan.techniques] else 200.0

    monkeypatch.setattr(memory, "peak_mb", peak_mb)
    device = f"--budget.device={planted(written, 1e-6)}"
    code, last, told = tune("--budget.ms=45", device, "--budget.memory_mb=100")
    assert code == 0
    assert "step_schedule" in Store(Path("out")).trials[last["winner"]["key"]].candidate.kinds
    assert last["left_out"]["as trained"] == "it takes 200 MB of memory, budget.memory_mb=100"
    assert "left out: as trained: it takes 200 MB" in told
    trials = Store(Path("out")).trials.values()
    dropped = [one for one in trials if one.status is Status.DROPPED and one.stage is Status.TIMED]
    assert dropped
    assert all(one.latencies_s for one in dropped)


@pytest.mark.long
def test_where_nothing_fits_into_memory_it_says_what_is_needed(tune, written):
    code, last, told = tune(
        "--budget.ms=45", f"--budget.device={planted(written, 1e-6)}", "--budget.memory_mb=0.01"
    )
    assert (code, last["plan"]) == (1, None)
    assert "as trained: it takes" in last["sentence"]
    assert not Path("out/acceleration.json").exists()
    assert Path("out/results.json").is_file()


@pytest.fixture
def loaded(bare_checkpoint):
    return load_policy(bare_checkpoint)


def one_observation(loaded) -> tuple[Session, CalibrationData]:
    session = Session(loaded)
    raw = session.blank_observation()
    return session, CalibrationData(session.prepare(raw), ((0, 0),), raw=raw)


def test_memory_is_that_of_weights_in_their_dtypes_and_of_a_chunk(loaded):
    session, data = one_observation(loaded)
    held = [*loaded.policy.parameters(), *loaded.policy.buffers()]
    assert memory.weights_bytes(session.execution) == sum(one.numel() * one.element_size() for one in held)
    chunk = memory.chunk_bytes(session, data)
    assert 0 < chunk < 10e6
    plan = calibrate(loaded.staged, loaded.fingerprint, data, [("precision", {"action": "bfloat16"})])
    assert memory.weights_bytes(accelerate(loaded.staged, plan)) < memory.weights_bytes(session.execution)


def test_scratch_inside_of_a_chunk_is_seen(loaded):
    """A block that holds 40 MB for a moment costs 40 MB."""
    session, data = one_observation(loaded)
    before = memory.chunk_bytes(session, data)
    first = session.execution.policy.blocks[0]

    def greedy(*args):
        torch.zeros(10_000_000)
        return first.fn(*args)

    policy = session.execution.policy.with_blocks(
        lambda block: replace(block, fn=greedy) if block.id == first.id else block
    )
    greedier = Session(loaded, replace(session.execution, policy=policy))
    assert memory.chunk_bytes(greedier, data) - before > 39e6


def test_calls_are_counted_as_they_are_made(loaded):
    session, data = one_observation(loaded)
    parts = {part.name: part for part in counted(session, data).values()}
    n = len(loaded.staged.sampler)
    for name in loaded.staged.spec.block_ids:
        assert parts[f"denoise/{name}"].calls == n
        assert parts[f"denoise/{name}"].flops > 0
    assert parts["denoise"].calls == n
    assert parts["prepare"].calls == 1
    plan = calibrate(loaded.staged, loaded.fingerprint, data, [("step_schedule", {"n_steps": 2})])
    fewer = Session(loaded, accelerate(loaded.staged, plan))
    assert all(part.calls <= 2 for part in counted(fewer, data).values())
    assert way_of(fewer.execution) == way_of(session.execution) == "[]"
