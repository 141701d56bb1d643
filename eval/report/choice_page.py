"""What the report says of how plans were compared, chosen and left out."""

from collections.abc import Mapping
from typing import Any

from vivace.eval.report.bench_table import confirmations
from vivace.eval.report.page import section, table


def judged_on(results: Mapping[str, Any]) -> str:
    """On how many observations plans are compared; nothing of results that do not say."""
    if "observations" not in results:
        return ""
    judged = results["observations"]["judged"]
    source = f": {judged['from']}" if judged.get("from") else ""  # older results do not say
    return (
        f" (mean, and 10th to 90th percentile, over {judged['n']} observations of episodes that no plan was "
        f"fitted to{source})"
    )


def choice_sections(results: Mapping[str, Any]) -> list[str]:
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
