"""Tables of README files, made of stored results: what runs measured, cut to what a table reads."""

import json
import subprocess
from pathlib import Path

import pytest

from vivace.eval import machine
from vivace.eval.cli import main
from vivace.eval.report.tables import TABLES, markdown
from vivace.policies.errors import BadSetting

STORED = Path(__file__).parent / "results"


def stored(name: str) -> dict:
    return json.loads((STORED / f"{name}.json").read_text())


def row(name, **others) -> dict:
    usual = {"name": name, "label": name, "latency_s": 0.0415, "ratio": 2.0, "gflop": 1.234,
             "ratio_interval": [1.94, 2.06], "action_error": 0.05, "action_error_spread": [0.01, 0.1],
             "stages_s": {}}  # fmt: skip
    return usual | others


def bench(*rows) -> dict:
    where = {"cpu": "AMD EPYC", "cores": 2, "threads": 1, "device": "NVIDIA H100", "dtype": "bfloat16"}
    return {"kind": "bench", "pareto": list(rows), "machine": where, "command": "vivace bench",
            "created": "2026-11-26T16:20:03+00:00", "commit": "0123456789abcdef+changes",
            "policy": {"path": "zoo/reach"}}  # fmt: skip


def test_runs_of_an_evaluation_are_compared_with_the_accelerated_one_or_with_a_ladder():
    results = stored("ladder")
    results["runs"][1]["latency"]["p99_s"] = 0.6
    told = markdown("eval", [results]).splitlines()
    assert told[0] == (
        "| run | chunk latency p50 / p99 [ms] | deadlines missed | success under it (95 %) | fresh ticks | "
        "accelerated − run (95 %), exact McNemar |"
    )
    assert told[1] == "|---|--:|--:|--:|--:|--:|"
    assert told[2] == (
        "| as trained | 1611 / – (3 measured) | 3 of 3 | 0/1 (0 … 79 %) | 0 % | "
        "+0 points (-65 … +65), p = 1 |"
    )
    assert told[3] == "| accelerated | 508 / 600 | 8 of 8 | 0/1 (0 … 79 %) | 0 % |  |"
    where = f"Measured on AMD EPYC, 1 thread, float32, 26 November 2026: `{results['command']}`."
    assert told[-2:] == ["", where]
    told = markdown("ladder", [results]).splitlines()
    assert told[0].startswith("| plan |")
    assert "ladder − plan" in told[0]
    assert told[2].endswith("| +100 points (-51 … +100), p = 1 |")
    assert told[5].startswith("| ladder of ")
    assert told[5].endswith("| 89 % |  |")
    results["runs"].pop()
    with pytest.raises(BadSetting, match="this evaluation has no run 'ladder'"):
        markdown("ladder", [results])


def test_a_curve_has_a_column_a_mode():
    results = stored("ladder")
    line = results["curve"]["accelerated"]
    results["curve"]["accelerated_sync"] = line | {"mode": "sync"}
    line["points"][0]["seam_jump"] = None
    assert markdown("curve", [results]).splitlines()[:4] == [
        "| chunk latency | async | sync |",
        "|---|--:|--:|",
        "| 0 ms | 1/1 | 1/1 |",
        "| 250 ms | 1/1 (1.39) | 1/1 (1.39) |",
    ]


def test_bench_shows_success_where_it_was_judged():
    plain = row("plain", latency_s=0.7434, ratio=1.0, ratio_interval=[1, 1])
    compiled = row("a|b", action_error=None, gflop=None)
    told = markdown("bench", [bench(plain, compiled)]).splitlines()
    assert told[2] == "| plain | 743 | 1.00 (1.00 … 1.00) | 1.23 | 0.050 (0.010 … 0.100) |"
    assert told[3] == "| a\\|b | 42 | 2.00 (1.94 … 2.06) |  | as eager |"
    assert told[-1] == (
        "Measured on AMD EPYC, 2 cores, 1 thread, NVIDIA H100, bfloat16, 26 November 2026, "
        "commit 0123456789 with changes: `vivace bench`."
    )
    judged = {"successes": 97, "n": 102, "interval": [0.89, 0.98], "difference": -0.029}
    told = markdown("bench", [bench(plain | judged, row("fast", **judged), compiled)]).splitlines()
    assert told[0].endswith("| success (95 %) | − plain, points |")
    assert told[2].endswith("| 97/102 (89 … 98 %) |  |")
    assert told[3].endswith("| 97/102 (89 … 98 %) | -2.9 |")
    assert told[4].endswith("| as eager |  |  |")


def test_tokens_stages_and_bundles_are_tables_of_bench():
    counted = {"tokens_per_s": 200.0, "passes": 8.2, "passes_spread": [5, 10], "latency_max_s": 0.05}
    fast = counted | {"tokens_per_s": 500.0}
    told = markdown("tokens", [bench(row("plain", **counted), row("exit", **fast))])
    assert told.splitlines()[3] == "| exit | 8.2 (5.0 … 10.0) | 42 / 50 | 500 (2.5) |  |"
    told = markdown("stages", [bench(row("plain", stages_s={"encode": 0.01, "denoise": 0.02}))])
    assert told.splitlines()[2] == "| plain | 10.0 | 20.0 | 41.5 |"
    exported = {"graphs": 2, "megabytes": 47.9, "chunk_error": 5e-7, "cold_start_s": 0.7}
    found = bench(
        row("plain"),
        row("accelerated"),
        row("ort:out/reach#plain", bundle=exported, latency_s=0.02, ratio=4),
        row("ort:out/reach#own", bundle=exported),
        row("ort:out/reach#other", bundle=exported),
    )
    told = markdown("bundles", [found, found]).splitlines()
    assert told[2] == "| zoo/reach, as trained | 2 | 48 | 5e-07 | 0.70 | 42 (2.0) |  | 20 (4.0) |"
    assert told[4] == "| zoo/reach, other | 2 | 48 | 5e-07 | 0.70 |  |  | 42 (2.0) |"
    assert len(told) == 2 + 6 + 2
    with pytest.raises(BadSetting, match="these results have nothing for table 'bundles'"):
        markdown("bundles", [bench(row("plain"))])


def test_runs_in_wall_clock_time_stand_below_each_other():
    told = markdown("lateness", [stored("run-fifo"), stored("run-plain")]).splitlines()
    assert told[2] == (
        "| switch interval 0.0005 s, no garbage collection, locked memory, SCHED_FIFO 50, 600 s | 59870 | "
        "0 | 0.02 / 0.06 / 0.48 / 6.46 | 0 | 32 / 59 | 528 of 5699 |"
    )
    assert "600 s | 59049 | 647 | 0.09 / 10.20 / 15.84 / 24.85 |" in told[3]
    assert told[-1].count("`vivace run") == 2


def test_what_no_table_can_be_made_of_is_refused():
    with pytest.raises(BadSetting, match="table 'odd' does not exist; the tables: eval, ladder"):
        markdown("odd", [bench()])
    with pytest.raises(BadSetting, match="table 'eval' is made of results of vivace eval, not of 'bench'"):
        markdown("eval", [bench()])
    with pytest.raises(BadSetting, match="table 'eval' is made of one results.json; 2 were given"):
        markdown("eval", [stored("ladder")] * 2)
    with pytest.raises(BadSetting, match=r"results.json is incomplete \(KeyError: 'ratio_interval'\)"):
        markdown("bench", [bench({"name": "plain"})])
    with pytest.raises(BadSetting, match="made of results of vivace run, not of None"):
        markdown("lateness", [[]])


def test_report_prints_a_table_and_fills_a_file(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("results.json").write_text((STORED / "ladder.json").read_text())
    assert main(["report", "--results=.", "--table=curve"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("| chunk latency | async |\n")
    page = Path("PAGE.md")
    page.write_text(
        "Before.\n<!-- table: curve results=results.json -->\nold\n<!-- end -->\nBetween.\n"
        "<!-- table: eval results=gone -->\nstays\n<!-- end -->\n"
    )
    assert main(["report", "--into=PAGE.md"]) == 0
    summary = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert summary == {"into": "PAGE.md", "filled": ["results.json"], "missing": ["gone"]}
    table = printed.rpartition("{")[0]
    assert page.read_text() == (
        f"Before.\n<!-- table: curve results=results.json -->\n{table}<!-- end -->\nBetween.\n"
        "<!-- table: eval results=gone -->\nstays\n<!-- end -->\n"
    )
    for asked, said in (
        (["--into=PAGE.md", "--table=eval"], "leave --results and --table out"),
        (["--into=gone.md"], "gone.md cannot be read"),
        (["--into=results.json"], "has no line <!-- table: NAME results=PATH -->"),
        ([], "give --results, --into or --merge"),
    ):
        assert main(["report", *asked]) == 2
        assert said in capsys.readouterr().err


def test_every_table_of_our_readme_files_exists():
    source = Path(__file__).parents[3]
    folders = (".", "policies", "accel", "envs", "eval", "deploy")
    lines = [line for f in folders for line in (source / f / "README.md").read_text().splitlines()]
    asked = [line.split()[2] for line in lines if line.startswith("<!-- table:")]
    assert len(asked) > 5
    assert set(asked) <= set(TABLES)


def git(folder, *arguments):
    who = ("-c", "user.name=n", "-c", "user.email=e")
    subprocess.run(["git", "-C", str(folder), *who, *arguments], check=True)


def test_results_name_the_commit_of_a_checkout_and_of_nothing_else(tmp_path, monkeypatch):
    code = tmp_path / "eval" / "machine.py"
    code.parent.mkdir()
    code.write_text("1")
    monkeypatch.setattr(machine, "__file__", str(code))
    assert machine.commit() is None, "no repository"
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    clean = machine.commit()
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "outputs.json").write_text("new files are no changes")
    assert machine.commit() == clean
    code.write_text("2")
    assert machine.commit() == clean + "+changes"
    inside = tmp_path / "venv" / "eval" / "machine.py"
    monkeypatch.setattr(machine, "__file__", str(inside))
    inside.parent.mkdir(parents=True)
    assert machine.commit() is None, "a wheel inside somebody's repository"
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(machine, "__file__", str(code))
    assert machine.commit() is None, "no git"
