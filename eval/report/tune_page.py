"""The page of a search: what it found, what was on a front, who was dropped when and why, what mattered."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from vivace.accel.registry import techniques
from vivace.accel.variant import GREY
from vivace.eval.report.figures import pareto_figure
from vivace.eval.report.page import cards_row, figure, header, section, table
from vivace.eval.terminal import milliseconds

Row = Mapping[str, Any]
_SHOWN = 8
"""Choices whose importance is shown."""
_OURS, _RIVAL = "#0b8f7d", "#d9822b"
_RIVALS = ("as trained", "exact", "baseline")
"""Origins of what a technique has to beat."""


def tune_page(folder: Path, results: Mapping[str, Any]) -> tuple[str, str]:
    """Return title and body."""
    rows = results["trials"]
    title = f"A plan for {results['policy']['path']}"
    lead = f"{results['sentence']}. Budget: {results['budget']['told']}."
    parts = [header("tune", title, lead), _cards(results), _fronts(results), _techniques(results)]
    parts += _confirmed(results) + _lineup(results) + _race(results) + _importance(results)
    parts.append(_dropped(rows))
    return title, "".join(parts)


def _cards(results: Mapping[str, Any]) -> str:
    """Latency before and after, success before and after, and how much was tried."""
    rows, measured = results["trials"], results.get("measured")
    tried = (f"{len(rows)}", f"{sum('latency' in row for row in rows)} timed, {_n(rows, 'raced')} raced")
    cards = [("candidates", *tried)]
    why = (measured or {}).get("as_trained_failed")
    failed = f"as trained it failed: {why}" if why else ""
    if measured:
        now_s = measured["latency"]["p50_s"]
        value, beside = f"{milliseconds(now_s)} <small>ms</small>", failed
        if before := measured.get("latency_as_trained"):
            value = f"{milliseconds(before['p50_s'])} → {value}"
            beside = f"{before['p50_s'] / now_s:.1f} times as fast as trained"
        cards.insert(0, ("chunk latency (median)", value, beside))
    if measured and "success" in measured:
        now, beside = measured["success"], failed
        if (before := measured.get("success_as_trained")) and not failed:
            beside = f"{before['successes']} of {before['n']} as trained, each under its own latency"
        cards.insert(1, ("success", f"{now['successes']} <small>of {now['n']}</small>", beside))
    return cards_row(cards)


def _n(rows: Sequence[Row], what: str) -> int:
    return sum(bool(row[what]) for row in rows)


def _fronts(results: Mapping[str, Any]) -> str:
    """Latency against action error and, where there was a race, against success."""
    winner = results.get("winner", {}).get("key")
    points = [
        {
            "name": "accelerated" if row["key"] == winner else "",
            "label": row["label"],
            "colour": _colour(row, winner),
            "latency_s": row["latency"]["p50_s"],
            "action_error": row["action_error"],
            **_success(row),
        }
        for row in results["trials"]
        if "latency" in row
    ]
    text = (
        "Every candidate that was timed; the plan is green, what has to be beaten orange. Those who raced "
        "have their success under their own latency, of the episodes they met: one dropped early met few."
    )
    return section("Latency against action error, and against success", text, figure(pareto_figure(points)))


def _success(row: Row) -> dict[str, int]:
    """Episodes solved and met: fresh ones if there are, else those of the race."""
    met = row["confirmed"] or row["raced"]
    return {"successes": sum(success for _, success in met), "n": len(met)} if met else {}


def _colour(row: Row, winner: str | None) -> str:
    if row["key"] == winner:
        return _OURS
    return _RIVAL if row["candidate"]["origin"] in _RIVALS else GREY


def front(rows: Sequence[Row], worth: Callable[[Row], float | None]) -> set[str]:
    """Keys of those that no other one beats in latency and worth.

    Args:
        rows: trials as plain data.
        worth: the more the better; None: not known, and such a row is on no front.
    """
    able = [row for row in rows if "latency" in row and row["status"] != "failed"]
    known = [(row["key"], row["latency"]["p50_s"], worth(row)) for row in able]
    points = [(key, time_s, value) for key, time_s, value in known if value is not None]
    return {
        key
        for key, time_s, value in points
        if not any(
            other_s <= time_s and other >= value and (other_s, other) != (time_s, value)
            for _, other_s, other in points
        )
    }


def _techniques(results: Mapping[str, Any]) -> str:
    """For every technique: how often it was tried, and whether it ever was on a front."""
    rows, known = results["trials"], techniques()
    near = front(rows, lambda row: None if row["action_error"] is None else -round(row["action_error"], 4))
    solving = front(rows, _rate)
    plan = results.get("winner", {}).get("key")
    kinds = sorted({kind for row in rows for kind, _ in row["candidate"]["requests"]})
    lines = []
    for kind in kinds:
        mine = [row for row in rows if kind in {name for name, _ in row["candidate"]["requests"]}]
        keys = {row["key"] for row in mine}
        lines.append(
            (
                known[kind].label if kind in known else kind,
                f"{len(mine)}",
                f"{sum('latency' in row for row in mine)}",
                "yes" if keys & near else "no",
                ("yes" if keys & solving else "no") if solving else "not judged",
                "yes" if plan in keys else "no",
            )
        )
    head = ("technique", "candidates", "timed", "front of action error", "front of success", "in the plan")
    text = (
        "Whether a technique ever helped: a candidate is on a front if none is faster and as good, or better."
    )
    marks = [line[-1] == "yes" for line in lines]
    return section("Did it ever help?", text, table(head, lines, marks))


def _rate(row: Row) -> float | None:
    """Share of the race's episodes that a candidate solved; None if it was in no race, or was dropped."""
    met = row["raced"]
    return sum(success for _, success in met) / len(met) if met and not row["reason"] else None


def _confirmed(results: Mapping[str, Any]) -> list[str]:
    """Who was run again on fresh episodes, and whether the winner held."""
    if not results.get("confirmed"):
        return []
    lines = []
    for row in results["confirmed"]:
        (low, high), (less, more) = row["interval"], row["difference_interval"]
        own = row["is_plan"]
        lines.append(
            (
                row["label"],
                milliseconds(row["latency_s"], 1),
                "yes" if row["keeps_budget"] else "no",
                f"{row['successes']}/{row['n']}",
                f"{low:.0%} … {high:.0%}",
                "the plan" if own else f"{row['difference']:+.0%} ({less:+.0%} … {more:+.0%})",
                row["lost_to"],
            )
        )
    head = ("plan", "median [ms]", "keeps the budget", "solved", "95 %", "plan − this (95 %)",
            "why the winner of the race gave way")  # fmt: skip
    text = (
        "The best of many is too good by chance, so the winner of the race, what is as trained, exact work "
        "removed and the best of the simple baselines met episodes that no choice was made on. The winner "
        "has to hold against each that keeps the budget: better, or faster and not worse."
    )
    own = [row["is_plan"] for row in results["confirmed"]]
    return [section("Confirmed on fresh episodes", text, table(head, lines, own))]


def _lineup(results: Mapping[str, Any]) -> list[str]:
    """The plan beside each technique alone and each baseline, on the same fresh episodes."""
    found = results.get("lineup")
    if not found:
        return []
    lines, marks = [], []
    for row in found["rows"]:
        less, more = row["difference_interval"]
        lines.append(
            (
                row["label"],
                milliseconds(row["latency_s"], 1),
                "yes" if row["keeps_budget"] else "no",
                f"{row['successes']}/{row['n']}",
                f"{row['difference']:+.0%} ({less:+.0%} … {more:+.0%})",
                "better" if row["is_beaten"] else "as good" if row["is_matched"] else "not shown as good",
            )
        )
        marks.append(row["is_matched"])
    head = (
        "without a search",
        "median [ms]",
        "keeps the budget",
        "solved",
        "plan − this (95 %)",
        "the plan is",
    )
    text = f"On the fresh episodes: {found['told']}."
    return [section("Beside each technique alone", text, table(head, lines, marks))]


def _race(results: Mapping[str, Any]) -> list[str]:
    """Who raced, how far, and who was dropped by whom."""
    if not results.get("race"):
        return []
    by_key = {row["key"]: row for row in results["trials"]}
    racing = [by_key[key] for key in results["race"]["entrants"]]
    met = sorted(racing, key=lambda row: (-len(row["raced"]), -sum(success for _, success in row["raced"])))
    lines = [
        (
            row["label"],
            milliseconds(row["latency"]["p50_s"], 1),
            f"{sum(success for _, success in row['raced'])}/{len(row['raced'])}",
            row["reason"] or "stayed",
        )
        for row in met
    ]
    text = (
        f"All on the same episodes, each under its own latency. It ended: {results['race']['ending']}. The "
        "best is dropped, or left behind by a race that ends early, in at most 5 of 100 races."
    )
    head = ("candidate", "median [ms]", "solved", "dropped")
    return [section("The race", text, table(head, lines, [not row["reason"] for row in met]))]


def _importance(results: Mapping[str, Any]) -> list[str]:
    """What mattered for work and for action error."""
    found = results.get("importance")
    if not found:
        return []
    lines = [
        (choice if i else f"{target}: {choice}", f"{share:.0%}")
        for target, shares in found.items()
        for i, (choice, share) in enumerate(list(shares.items())[:_SHOWN])
        if share >= 0.005
    ]
    text = (
        "Share of each choice in what sets the best tenth of the candidates apart (PED-ANOVA): of the work "
        "of a chunk, and of how near its actions are to those as trained."
    )
    return [section("What mattered", text, table(("choice", "share"), lines))]


def _dropped(rows: Sequence[Row]) -> str:
    """How far candidates came, and of what they failed."""
    gone = [row for row in rows if row["status"] in ("dropped", "failed")]
    failed = sorted((row for row in gone if row["status"] == "failed"), key=_alike)
    lines = []
    for _, some in groupby(failed, key=_alike):
        first, *more = some
        others = f" and {len(more)} more" if more else ""
        lines.append((f"{first['label']}{others}", f"{first['stage']}", first["reason"]))
    text = (
        f"{len(rows)} candidates, of which {len(gone) - len(failed)} were dropped and {len(failed)} failed."
    )
    left_out = [row for row in gone if row["status"] == "dropped" and row["stage"] == "timed"]
    lines += [(row["label"], "within what there is", row["reason"]) for row in left_out]
    inner = table(("candidate", "failed to be", "reason"), lines) if lines else ""
    return section("How far they came", text, inner)


def _alike(row: Row) -> tuple[str, str]:
    """Those that failed alike while they were counted are many, and told by one; others by themselves."""
    return str(row["reason"]), "" if row["stage"] == "counted" else str(row["key"])
