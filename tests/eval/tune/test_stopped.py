"""Stopped anywhere, by SIGKILL or a full disk, a search goes on to what it would have found."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import planted
import pytest

from vivace.eval.cli import main
from vivace.eval.options import EnvOptions, PolicyOptions
from vivace.eval.simulation.episode import load_results
from vivace.eval.tune.budget import BudgetOptions
from vivace.eval.tune.store import FILE_NAME, Store
from vivace.eval.verbs import tune as verb
from vivace.eval.verbs.tune import TuneCommand, TuneOptions, run

SEED = 200_000
RACE, FRESH = SEED, SEED + 20


def command(checkpoint: Path, folder: Path) -> TuneCommand:
    """A search of which no clock decides anything."""
    return TuneCommand(
        policy=PolicyOptions(path=str(checkpoint)),
        env=EnvOptions(type="planted", task="follow"),
        budget=BudgetOptions(ms=1e3 / planted.HZ),
        seed=SEED,
        output_dir=str(folder),
        tune=TuneOptions(minutes=1000, threads=1, candidates=40, samples=2, n_episodes=20, confirm=20,
                         techniques=["step_schedule", "block_cache"]),
    )  # fmt: skip


def search(checkpoint: str, folder: str) -> dict[str, Any]:
    """Run it; the last line."""
    planted.planted_checkpoint(Path(checkpoint))
    return run(command(Path(checkpoint), Path(folder)), planted.planted_latencies)[0]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """The folder of a search that nothing stopped, the checkpoint beside it, and its last line."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, search(str(folder / "policy"), str(folder / "out"))


def is_timing(out: Path) -> bool:
    return '"status": "timed"' in (out / FILE_NAME).read_text() if (out / FILE_NAME).is_file() else False


def is_racing(out: Path) -> bool:
    return any((out / "episodes").glob(f"*.from_{RACE}.jsonl"))


def is_confirming(out: Path) -> bool:
    return any((out / "episodes").glob(f"*.from_{FRESH}.jsonl"))


def lines(out: Path) -> dict[str, bytes]:
    """Of every file that is appended to, the lines that are whole."""
    found = {file.name: file.read_bytes() for file in (out / FILE_NAME, *(out / "episodes").glob("*.jsonl"))}
    return {name: text[: text.rfind(b"\n") + 1] for name, text in found.items()}


def check_went_on(whole: tuple[Path, dict[str, Any]], out: Path, before: dict[str, bytes]) -> None:
    """It comes out as if nothing had stopped it, and what was stored stands."""
    folder, last = whole
    found = search(str(folder / "policy"), str(out))
    after = lines(out)
    assert all(after[name].startswith(text) for name, text in before.items())
    trials, again = (Store(place).trials for place in (folder / "out", out))
    assert list(again) == list(trials)
    assert {key: replace(trial, latencies_s=()) for key, trial in again.items()} == {
        key: replace(trial, latencies_s=()) for key, trial in trials.items()
    }
    assert found["winner"] == last["winner"]
    assert found["confirmed"] == last["confirmed"]
    for name in after.keys() - {FILE_NAME}:
        seeds = [result.seed for result in load_results(out / "episodes" / name)]
        assert len(seeds) == len(set(seeds)), "no episode is stored twice"


@pytest.mark.long
@pytest.mark.parametrize("is_there", [is_timing, is_racing, is_confirming])
def test_killed_at_any_stage_it_goes_on_and_comes_out_the_same(
    whole: tuple[Path, dict[str, Any]], tmp_path: Path, is_there: Callable[[Path], bool]
) -> None:
    out = tmp_path / "out"
    asked = f"import test_stopped; test_stopped.search({str(whole[0] / 'policy')!r}, {str(out)!r})"
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(planted.__file__).parent), *sys.path])
    process = subprocess.Popen([sys.executable, "-c", asked], env=os.environ | {"PYTHONPATH": paths})
    while process.poll() is None and not is_there(out):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    check_went_on(whole, out, lines(out))


class Full:
    """A file on a disk that is full in the middle of a line."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def __enter__(self) -> "Full":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        self._file.write(data[: len(data) // 2])
        self._file.flush()
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("file", ["episodes", pytest.param(FILE_NAME, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "is_there", [is_racing, pytest.param(is_confirming, marks=pytest.mark.long)], ids=["racing", "confirming"]
)
def test_a_full_disk_in_the_race_is_told_in_a_line_and_what_was_stored_stands(
    whole, tmp_path, monkeypatch, capsys, file, is_there
) -> None:
    out, original, n = tmp_path / "out", Path.open, []

    def opened(self, mode="r", *args, **more):
        found = original(self, mode, *args, **more)
        if mode != "ab+" or file not in str(self) or not is_there(out):
            return found
        n.append(self)
        return Full(found) if len(n) > 3 else found

    with monkeypatch.context() as full:
        full.setattr(Path, "open", opened)
        full.setattr(verb, "run", lambda _: (search(str(whole[0] / "policy"), str(out)), True))
        assert main(["tune", f"--policy.path={whole[0] / 'policy'}"]) == 2
    said = capsys.readouterr()
    assert not said.out
    told = " ".join(said.err.split())
    assert "cannot be written (No space left on device); make room and run the same command again" in told
    assert "left out" not in told, "it is no candidate's fault"
    check_went_on(whole, out, lines(out))
