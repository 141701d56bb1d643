"""What `vivace` says when something is in the way, and what its help says (issue 17, section 5; G18)."""

import json
import tempfile
from importlib import import_module

import pytest

from vivace.eval import cli
from vivace.eval.cli import VERBS, main
from vivace.eval.help import groups, help_page, usage
from vivace.policies.errors import BadSetting


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("VIVACE_TRACEBACK", raising=False)


def ended(monkeypatch, capsys, error: BaseException, *flags: str) -> tuple[int, str]:
    """Run a verb that raises; returns exit code and what it said."""

    def fail(command):
        raise error

    monkeypatch.setattr("vivace.eval.verbs.calibrate.run", fail)
    code = main(["calibrate", *flags])
    told = capsys.readouterr()
    assert told.out == ""
    assert "Traceback" not in told.err
    assert len(told.err.splitlines()) == 1
    return code, told.err


def test_an_error_nobody_foresaw_is_a_line_and_results_stay(tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "begun").write_text("kept")
    code, told = ended(monkeypatch, capsys, RuntimeError("what [now]?"), "--output_dir=out")
    assert code == 1
    assert told.startswith(
        "vivace calibrate: ended by an unexpected RuntimeError (what [now]?); its trace is in "
    )
    begun, trace = sorted((tmp_path / "out").iterdir())
    assert (begun.read_text(), trace.name[:17]) == ("kept", "vivace-calibrate-")
    assert "in fail" in trace.read_text()


def of(code: int, filename: str | None = None) -> OSError:
    return OSError(code, "it cannot be", filename)


@pytest.mark.parametrize(("error", "code", "told"), [
    (BadSetting("x=1; 2 is needed"), 2, "vivace calibrate: x=1; 2 is needed"),
    (ModuleNotFoundError("No", name="onnx"), 2, "no package 'onnx' in "),
    (of(28, "out/x"), 2, "vivace calibrate: out/x: it cannot be; make room, get access to it"),
    (of(13), 2, "vivace calibrate: it cannot be; make room"),
    (of(5), 1, "ended by an unexpected OSError"),
    (BrokenPipeError(), 2, "nobody reads its output any more"),
    (MemoryError(), 1, "ended by an unexpected MemoryError; its trace"),
    (KeyboardInterrupt(), 130, "interrupted; run the same command with the same --output_dir to continue"),
])  # fmt: skip
def test_what_a_user_can_mend_is_told_as_such(error, code, told, monkeypatch, capsys):
    found, line = ended(monkeypatch, capsys, error)
    assert found == code
    assert told in line


def test_the_stack_on_request(monkeypatch, capsys):
    def fail(command):
        raise BadSetting("x=1; 2 is needed")

    monkeypatch.setattr("vivace.eval.verbs.calibrate.run", fail)
    monkeypatch.setenv("VIVACE_TRACEBACK", "1")
    assert main(["calibrate"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("Traceback (most recent call last)")
    assert told.splitlines()[-1] == "vivace calibrate: x=1; 2 is needed"


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_has_a_text_and_says_its_default(verb):
    """G18. A flag without a text needs a string under its field."""
    module = import_module(f"vivace.eval.verbs.{verb}")
    command = getattr(module, f"{verb.title()}Command")
    command = command.complete({}) if hasattr(command, "complete") else command
    seen = [flag for _, flags in groups(command) for flag in flags]
    silent = [
        flag for flag, _, told in seen if not told.partition("(default")[0].partition("(needed")[0].strip()
    ]
    assert not silent, f"vivace {verb} --help says nothing of {silent}"
    assert [flag for flag, _, told in seen if not told.endswith(")")] == []
    page = help_page(verb, command)
    assert f"Example: vivace {verb}" in page
    texts = [line for line in page.splitlines() if line.startswith(" " * 8)]
    assert max(map(len, texts), default=0) <= 80


def test_defaults_are_those_that_count(capsys):
    """G18: of classes that change a default, of kinds that are picked, and in the form they are typed."""
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for text in (
        "--eval.n_episodes int Episodes that every run meets, the same for all. (default: 20)",
        "--env.type str Ours; lerobot's,",
        "beside the checkpoint was calibrated. (default: none)",
        "--eval.curve list[float] Constant latencies [s] of the success-versus-latency curve; empty leaves "
        "it out. (default: [0.0, 0.25, 0.5, 1.0])",
        "--loop.mode {sync,async,rtc} sync: act, then think;",
        "--latency.type {none,constant,measured,bursty,trace,profile} Which of the following it is. "
        "(default: measured)",
        "latency.type=constant: Every chunk takes the same time. --latency.seconds float Of every chunk [s]. "
        "(default: 0.1)",
        "--bench.repeats int Timed rounds; every plan runs once a round. (default: 5)",
        "--eval.lineup bool Time every baseline and compare its actions (the Pareto plot). (default: true)",
    ):
        assert text in told, text
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    assert "as the bundle's plan says, else async. (default: none)" in " ".join(
        capsys.readouterr().out.split()
    )


def test_the_first_page_leads_from_nothing_to_a_robot(capsys):
    """G18; every command of it is one that can be typed."""
    assert main(["--help"]) == 0
    page = capsys.readouterr().out
    assert page.rstrip("\n") == usage(VERBS)
    steps = page.partition("From nothing to a robot")[2]
    assert max(map(len, steps.splitlines())) <= 81
    steps = steps.replace("\\\n", " ")
    commands = [line.split() for line in steps.splitlines() if line.startswith("  vivace ")]
    assert [words[1] for words in commands] == ["collect", "train", "calibrate", "eval", "export", "run"]
    for _, verb, *flags in commands:
        asked = cli._parse(verb, [flag.replace("'", "") for flag in flags])
        assert type(asked).__name__ == f"{verb.title()}Command"


def test_a_last_line_is_json_or_nothing(monkeypatch, capsys):
    monkeypatch.setattr("vivace.eval.verbs.calibrate.run", lambda command: ({"a": 1}, False))
    assert main(["calibrate"]) == 1
    assert json.loads(capsys.readouterr().out) == {"a": 1}
