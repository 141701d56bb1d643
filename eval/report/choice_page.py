"""What the report says of how plans were compared, chosen and left out."""

from collections.abc import Mapping
from typing import Any

from vivace.eval.report.bench_table import confirmations, spread_text
from vivace.eval.report.figures import pareto_figure
from vivace.eval.report.page import figure, section, table


def pareto_sections(results: Mapping[str, Any]) -> list[str]:
    """All plans and baselines side by side, and what was chosen of them."""
    rows = results["pareto"]
    if len(rows) < 2:
        return []
    judged = any("difference" in row for row in rows)
    head: tuple[str, ...] = ("plan", "latency [ms]", "ratio to plain", "95 %", "action error", "GFLOP")
    head += ("success", "95 %", "− plain", "McNemar p") if judged else ()
    cells = []
    for row in rows:
        low, high = row["ratio_interval"]
        gflop = "–" if row["gflop"] is None else f"{row['gflop']:.2f}"
        line: tuple[str, ...] = (
            row["label"],
            f"{1e3 * row['latency_s']:.1f}",
            f"{row['ratio']:.2f}",
            f"{low:.2f} … {high:.2f}",
            spread_text(row, "action_error", 4),
            gflop,
        )
        if judged and "interval" not in row:
            line += ("as eager", "", "", "")
        elif judged:
            low, high = row["interval"]
            line += (
                f"{row['successes']}/{row['n']}",
                f"{low:.0%} … {high:.0%}",
                f"{row['difference']:+.1%}",
                f"{row['p_value']:.2g}",
            )
        cells.append(line)
    text = (
        "Lower left is better on the left, upper left on the right. Action error is the mean absolute "
        f"difference of normalised actions from the plain loop's, same observations and noise"
        f"{_judged_on(results)}; samplers other than the plain one draw other actions by right, so between "
        "samplers success decides, not this error."
    )
    ours = [row["name"] == "accelerated" for row in rows]
    sections = [
        section("All plans and baselines", text, figure(pareto_figure(rows)), table(head, cells, ours))
    ]
    return sections + _choice_sections(results)


def _judged_on(results: Mapping[str, Any]) -> str:
    """On how many observations plans are compared; nothing of results that do not say."""
    if "observations" not in results:
        return ""
    judged = results["observations"]["judged"]
    source = f": {judged['from']}" if judged.get("from") else ""  # older results do not say
    return (
        f" (mean, and 10th to 90th percentile, over {judged['n']} observations of episodes that no plan was "
        f"fitted to{source})"
    )


def _choice_sections(results: Mapping[str, Any]) -> list[str]:
    """What was chosen and run again, and the rows that are not there."""
    sections = []
    lines = confirmations(results["pareto"])
    if lines:
        text = "The best of many is too good by chance; those on the front were run again on fresh seeds."
        sections.append(section("Chosen, and confirmed", text, table(("plan",), [(line,) for line in lines])))
    left_out = results.get("left_out")
    if left_out:
        text = "Rows of the usual table that do not fit this policy or these settings."
        sections.append(section("Left out", text, table(("row", "reason"), list(left_out.items()))))
    return sections
