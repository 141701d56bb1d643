"""The rows of `vivace bench` as a table a person reads."""

from collections.abc import Mapping, Sequence
from typing import Any

from vivace.eval.terminal import BEST_SCORE, FoldingTable, score_text

_TITLE = (
    "chunk latency at batch 1, interleaved; ratio of medians with its 95 % interval; action error and "
    "passes: mean (10th to 90th percentile) over observations that no plan was fitted to; steady state: of a "
    "chunk that follows another"
)


def table(rows: Sequence[Mapping[str, Any]], left_out: Mapping[str, str], source: str = "") -> FoldingTable:
    """Return the table; beneath it what was chosen and run again, and the rows that are not there.

    Args:
        rows: as `bench.pareto_row` gives them.
        left_out: name of a row that does not fit the policy -> the reason.
        source: where the observations are from that rows are compared on, in words.
    """
    judged = any("n" in row for row in rows)
    writes = any("tokens_per_s" in row for row in rows)
    names = ["plan", "ms", "ratio", "95 %", "action error", "GFLOP"]
    stands_beside = any("over_lerobot" in row for row in rows)
    names += ["over lerobot"] if stands_beside else []
    names += ["passes", "tokens/s"] if writes else []
    has_score = any("score" in row for row in rows)
    names += ["success", "95 % interval", "- plain"] if judged else []
    names += [BEST_SCORE, "- plain (95 %)"] if has_score else []
    cells = []
    for row in rows:
        line = _measured_cells(row)
        if stands_beside:
            line.append(f"{row['over_lerobot']:.2f}" if "over_lerobot" in row else "")
        line += _token_cells(row) if writes else []
        line += _judged_cells(row) if judged else []
        line += score_cells(row) if has_score else []
        cells.append(line)
    notes = [f"observations: {source}"] if source else []
    notes += confirmations(rows) + [f"left out: {name}: {reason}" for name, reason in left_out.items()]
    return FoldingTable(_TITLE, names, cells, notes)


def spread_text(row: Mapping[str, Any], name: str, digits: int) -> str:
    """Mean of a row's quantity and, where it is known, from the 10th to the 90th percentile."""
    if row.get(name) is None:
        if row.get("follows"):
            return "none: chunks follow others"
        return "own noise" if row["name"] == "lerobot" else "as eager"
    if f"{name}_spread" not in row:
        return f"{row[name]:.{digits}f}"
    low, high = row[f"{name}_spread"]
    return f"{row[name]:.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"


def confirmations(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each row that was chosen and run again."""
    again_by_name = {row["name"]: row["confirmed"] for row in rows if "confirmed" in row}
    plain = again_by_name.get("plain", {})
    return [
        f"{row['label']}: best of {again['tried']} tried: {row['successes']} of {row['n']} when chosen, "
        f"{again['successes']} of {again['n']} confirmed on fresh seeds from {again['seed']} "
        f"(plain {plain['successes']} of {plain['n']}, difference {again['difference']:+.1%}, "
        f"p = {again['p_value']:.2g}{_score_again(again)})"
        for row in rows
        if (again := again_by_name.get(row["name"])) and row["name"] != "plain"
    ]


def _measured_cells(row: Mapping[str, Any]) -> list[str]:
    low, high = row["ratio_interval"]
    return [
        row["label"],
        f"{1e3 * row['latency_s']:.1f}",
        f"{row['ratio']:.2f}",
        f"[{low:.2f} … {high:.2f}]",
        spread_text(row, "action_error", 4),
        "" if row["gflop"] is None else f"{row['gflop']:.2f}",
    ]


def _token_cells(row: Mapping[str, Any]) -> list[str]:
    if "tokens_per_s" not in row:
        return ["", ""]
    return [spread_text(row, "passes", 1), f"{row['tokens_per_s']:.0f}"]


def _judged_cells(row: Mapping[str, Any]) -> list[str]:
    if "interval" not in row:
        return ["", "", ""]
    low, high = row["interval"]
    return [f"{row['successes']}/{row['n']}", f"{low:.1%} … {high:.1%}", f"{row['difference']:+.1%}"]


def _score_again(again: Mapping[str, Any]) -> str:
    if "score" not in again:
        return ""
    pair = again["score_difference"]
    return f"; score {again['score']['mean']:.3f}, {_signed(pair)} to plain, p = {pair['p_value']:.2g}"


def score_cells(row: Mapping[str, Any]) -> list[str]:
    """Mean best score of a row and its paired difference to the plain loop's, in words; empty of others."""
    return [score_text(row["score"]), _signed(row["score_difference"])] if "score" in row else ["", ""]


def _signed(pair: Mapping[str, Any]) -> str:
    """Return a paired difference of scores with its interval in words."""
    if pair["interval"] is None:
        return f"{pair['difference']:+.3f}"
    low, high = pair["interval"]
    return f"{pair['difference']:+.3f} ({low:+.3f} … {high:+.3f})"
