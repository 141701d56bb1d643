"""Results as Markdown tables, as README files show them, with a line that says where they were measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vivace.eval.report.bench_table import score_cells, spread_text
from vivace.eval.report.bundle_table import HEAD, bundle_cells
from vivace.eval.report.stage_table import stage_rows
from vivace.eval.terminal import BEST_SCORE, lateness, lateness_head, milliseconds, score_text
from vivace.policies.errors import BadSetting

Results = Mapping[str, Any]
Cells = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Head, and rows."""


@dataclass(frozen=True)
class TableKind:
    """One kind of table."""

    verbs: tuple[str, ...]
    """Verbs whose results.json it is made of."""
    cells: Callable[[Results], Cells]
    joins: bool = False
    """Whether several results make one table, one below the other."""


def markdown(name: str, found: Sequence[Results]) -> str:
    """Return a table of results, and beneath it where, when and by which command they were measured.

    Args:
        name: one of `TABLES`.
        found: contents of results.json, one or more.

    Raises:
        BadSetting: there is no such table, it is not made of these results, or there is nothing to show.
    """
    if name not in TABLES:
        raise BadSetting(f"table {name!r} does not exist; the tables: {', '.join(TABLES)}")
    kind = TABLES[name]
    if len(found) > 1 and not kind.joins:
        raise BadSetting(f"table {name!r} is made of one results.json; {len(found)} were given")
    head: Sequence[str] = ()
    rows: list[Sequence[str]] = []
    for results in found:
        verb = results.get("kind") if isinstance(results, Mapping) else None
        if verb not in kind.verbs:
            raise BadSetting(
                f"table {name!r} is made of results of vivace {' or '.join(kind.verbs)}, not of {verb!r}"
            )
        try:
            head, cells = kind.cells(results)
        except (KeyError, TypeError, IndexError) as error:
            raise BadSetting(
                f"results.json is incomplete ({type(error).__name__}: {error}); run again"
            ) from error
        rows += cells
    if not rows:
        raise BadSetting(f"these results have nothing for table {name!r}")
    return "\n".join([*_lines(head, rows), "", stamp(found)])


def stamp(found: Sequence[Results]) -> str:
    """Where, when, with which code and by which commands; what older results lack is left out."""
    places = dict.fromkeys(_place(results) for results in found)
    commands = dict.fromkeys(f"`{results['command']}`" for results in found)
    sources = dict.fromkeys(source for results in found if (source := _source(results)))
    told = f" Observations: {'; '.join(sources)}." if sources else ""
    return f"Measured on {'; '.join(places)}: {'; '.join(commands)}.{told}"


def _source(results: Results) -> str:
    """Where the observations are from that plans were compared on, as far as results say it."""
    return str(results.get("observations", {}).get("judged", {}).get("from", ""))


def _place(results: Results) -> str:
    machine = results["machine"]
    counted = [_counted(machine[key], key) for key in ("cores", "threads") if key in machine]
    device = machine.get("device", "cpu")
    parts = [machine["cpu"], *counted, *([] if device == "cpu" else [device])]
    parts += [machine["dtype"]] if "dtype" in machine else []
    made = datetime.fromisoformat(results["created"])
    commit, _, changes = (results.get("commit") or "").partition("+")
    parts.append(f"{made.day} {made:%B %Y}")
    if commit:
        parts.append(f"commit {commit[:10]}{' with changes' if changes else ''}")
    return ", ".join(map(str, parts))


def _counted(n: int, things: str) -> str:
    return f"{n} {things.removesuffix('s') if n == 1 else things}"


def _lines(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    told = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    rule = "|---|" + "--:|" * (len(head) - 1)
    return [f"| {' | '.join(told[0])} |", rule, *(f"| {' | '.join(row)} |" for row in told[1:])]


def _ms(time_s: float) -> str:
    return milliseconds(time_s, 0 if time_s >= 0.01 else 1)


def _rate(successes: int, n: int, interval: Sequence[float]) -> str:
    return f"{successes}/{n} ({100 * interval[0]:.0f} … {100 * interval[1]:.0f} %)"


def _latency(latency: Mapping[str, Any]) -> str:
    few = f" ({latency['n']} measured)" if latency["p99_s"] is None else ""
    return f"{milliseconds(latency['p50_s'])} / {milliseconds(latency['p99_s'])}{few}"


def _compared(ours: str, other: str) -> Callable[[Results], Cells]:
    """Runs of an evaluation, and one of them against each other one."""

    def cells(results: Results) -> Cells:
        if ours not in [run["name"] for run in results["runs"]]:
            raise BadSetting(f"this evaluation has no run {ours!r}")
        where = results["environment"]
        mode = where.get("mode", "")  # bench has none
        pairs = {pair["first"]: pair for pair in results["comparisons"] if pair["second"] == ours}
        has_score = any(run.get("score") for run in results["runs"])
        rows = []
        for run in results["runs"]:
            pair = pairs.get(run["name"])
            against = "" if pair is None else _difference(pair)
            rows.append(
                (
                    run["label"],
                    _latency(run["latency"]),
                    lateness(run, mode, where["control_hz"]),
                    _rate(run["successes"], run["n"], run["interval"]),
                    *([score_text(run.get("score"))] if has_score else []),
                    f"{100 * run['ticks']['chunk'] / sum(run['ticks'].values()):.0f} %",
                    against,
                )
            )
        score = [BEST_SCORE] if has_score else []
        head = (other, "chunk latency p50 / p99 [ms]", lateness_head(mode), "success under it (95 %)", *score,
                "fresh ticks", f"{ours} − {other} (95 %), exact McNemar")  # fmt: skip
        return head, rows

    return cells


def _difference(pair: Mapping[str, Any]) -> str:
    low, high = (100 * end for end in pair["interval"])
    return f"{100 * pair['difference']:+.0f} points ({low:+.0f} … {high:+.0f}), p = {pair['p_value']:.2g}"


def _curve(results: Results) -> Cells:
    """Success against constant latency, a column a line of the curve; in brackets the jumps at seams."""
    lines = list(results["curve"].values())
    modes = len({line["mode"] for line in lines}) == len(lines)
    head = ["chunk latency", *(line["mode"] if modes else line["label"] for line in lines)]
    rows = []
    for points in zip(*(line["points"] for line in lines), strict=True):
        cells = (
            f"{point['successes']}/{point['n']}"
            + ("" if point["seam_jump"] is None else f" ({point['seam_jump']:.2f})")
            for point in points
        )
        rows.append((f"{1e3 * points[0]['latency_s']:.0f} ms", *cells))
    return head, rows


def _bench(results: Results) -> Cells:
    """Latency, work and action error of every plan, and success where it was judged."""
    rows = results["pareto"]
    judged = any("interval" in row for row in rows)
    head = ["plan", "latency [ms]", "ratio (95 %)", "GFLOP", "action error"]
    head += ["success (95 %)", "− plain, points"] if judged else []
    has_score = any("score" in row for row in rows)
    head += [BEST_SCORE, "− plain (95 %)"] if has_score else []
    cells = []
    for row in rows:
        low, high = row["ratio_interval"]
        line = [
            row["label"],
            _ms(row["latency_s"]),
            f"{row['ratio']:.2f} ({low:.2f} … {high:.2f})",
            "" if row["gflop"] is None else f"{row['gflop']:.2f}",
            spread_text(row, "action_error", 3),
        ]
        line += _judged(row) if judged else []
        cells.append(line + (score_cells(row) if has_score else []))
    return head, cells


def _judged(row: Mapping[str, Any]) -> list[str]:
    if "interval" not in row:
        return ["", ""]
    difference = "" if row["name"] == "plain" else f"{100 * row['difference']:+.1f}"
    return [_rate(row["successes"], row["n"], row["interval"]), difference]


def _tokens(results: Results) -> Cells:
    """Passes and tokens a second of every decoding, beside greedy's."""
    rows = [row for row in results["pareto"] if "tokens_per_s" in row]
    plain = next((row["tokens_per_s"] for row in rows if row["name"] == "plain"), None)
    cells = []
    for row in rows:
        beside = "" if plain is None else f" ({row['tokens_per_s'] / plain:.1f})"
        cells.append(
            (
                row["label"],
                spread_text(row, "passes", 1) if "passes" in row else "",
                f"{_ms(row['latency_s'])} / {_ms(row['latency_max_s'])}",
                f"{row['tokens_per_s']:.0f}{beside}",
                _judged(row)[0],
            )
        )
    return ("decoding", "passes", "latency p50 / max [ms]", "tokens/s", "success (95 %)"), cells


_TORCH = {
    "plain": ("plain", "compile", "as trained"),
    "own": ("accelerated", "accelerated-compile", "its plan"),
}
"""Plan of a bundle -> rows of the same plan under torch, as it is and compiled, and what it is called."""


def _bundles(results: Results) -> Cells:
    """Bundles beside torch, with the same plan."""
    rows = {row["name"]: row for row in results["pareto"]}
    exported = [row for row in rows.values() if "bundle" in row]
    cells = []
    for row, (_, *told) in zip(exported, bundle_cells(exported), strict=True):
        plan = row["name"].partition("#")[2]
        eager, compiled, name = _TORCH.get(plan, ("", "", plan or row["label"]))
        torch = [_timed(rows[each]) if each in rows else "" for each in (eager, compiled)]
        cells.append((f"{results['policy']['path']}, {name}", *told, *torch, _timed(row)))
    head = ("policy, plan", *HEAD[1:], "torch [ms]", "torch.compile [ms]", "ONNX Runtime [ms]")
    return head, cells


def _timed(row: Mapping[str, Any]) -> str:
    return f"{_ms(row['latency_s'])} ({row['ratio']:.1f})"


def _lateness(results: Results) -> Cells:
    """How late the ticks of a run in wall-clock time were."""
    run, settings = results["run"], results["settings"]
    mode = settings["mode"]
    granted = ", ".join(grant["what"] for grant in results["realtime"] if grant["is_granted"])
    late = (milliseconds(run["jitter"][f"{key}_s"], 2) for key in ("p50", "p99", "p99.9", "max"))
    latency = (milliseconds(run["latency"][f"{key}_s"]) for key in ("p50", "p99"))
    head = ("scheduling", "ticks", "skipped", "lateness of a tick p50 / p99 / p99.9 / max [ms]",
            "ticks without a decision", "chunk latency p50 / p99 [ms]", lateness_head(mode))  # fmt: skip
    row = (
        f"{granted or 'an ordinary process'}, {results['duration_s']:.0f} s",
        f"{run['ticks']}",
        f"{run['skipped_deadlines']}",
        " / ".join(late),
        f"{run['undecided_ticks']}",
        " / ".join(latency),
        lateness({**run, "ticks": run["sources"], "chunks": run["requests"]}, mode, settings["control_hz"]),
    )
    return head, [row]


def _tuned(results: Results) -> Cells:
    """One searched plan: budget, what it takes and solves, and how it stands to what needs no search."""
    measured, found = results["measured"], results["lineup"]["rows"]
    now, asked_s = measured["success"], results["budget"]["seconds"]  # a way to execute chunks may leave less
    kept = [row for row in found if row["keeps_budget"]]
    best = max(kept, key=lambda row: (row["successes"], -row["latency_s"]), default=None)
    beside = (
        ""
        if best is None
        else (f"{best['label']}: {milliseconds(best['latency_s'])} ms, {best['successes']}/{best['n']}")
    )
    cells = (
        f"{results['policy']['path']}, {measured['env']}",
        f"{milliseconds(measured['budget_s'] if asked_s is None else asked_s)}",
        _before(measured),
        f"{milliseconds(measured['latency']['p50_s'])}, {now['successes']}/{now['n']}",
        results["winner"]["label"],
        f"{sum(row['is_matched'] for row in kept)} of {len(kept)}",
        f"{sum(row['is_beaten'] for row in kept)} of {len(kept)}",
        beside,
    )
    head = ("policy, world", "budget [ms]", "as trained [ms, solved]", "plan [ms, solved]", "the plan",
            "as good as", "better than", "best without a search")  # fmt: skip
    return head, [cells]


def _before(measured: Mapping[str, Any]) -> str:
    """Latency and success as trained; a dash where that failed."""
    took, solved = measured.get("latency_as_trained"), measured.get("success_as_trained")
    told = f"{solved['successes']}/{solved['n']}" if solved else "–"
    return f"{milliseconds(took['p50_s']) if took else '–'}, {told}"


TABLES = {
    "eval": TableKind(("eval",), _compared("accelerated", "run")),
    "ladder": TableKind(("eval",), _compared("ladder", "plan")),
    "curve": TableKind(("eval",), _curve),
    "bench": TableKind(("bench", "eval"), _bench),
    "tokens": TableKind(("bench",), _tokens),
    "stages": TableKind(("bench", "eval"), lambda results: stage_rows(results["pareto"])),
    "bundles": TableKind(("bench",), _bundles, joins=True),
    "tuned": TableKind(("tune",), _tuned, joins=True),
    "lateness": TableKind(("run",), _lateness, joins=True),
}
"""Name of a table -> what it is made of."""
