"""Where the time of a chunk goes, plan by plan, in the terminal and in the report."""

from collections.abc import Mapping, Sequence
from typing import Any

from vivace.eval.terminal import FoldingTable, milliseconds
from vivace.policies.stopwatch import STAGES

TEXT = (
    "Medians. Prepare: pictures, text and state made ready; vision: all until the first language layer "
    "begins; finish: actions back in the robot's units. A policy without a language stage, and one that is "
    "compiled, has both in encode; one without an adapter does everything in one stage."
)


def stage_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and cells of a table of the rows whose stages were told apart."""
    told = [row for row in rows if row.get("stages_s")]
    stages = [stage for stage in STAGES if any(stage in row["stages_s"] for row in told)]
    head = ("plan", *(f"{stage} [ms]" for stage in stages), "whole [ms]")
    cells = [
        (
            row["label"],
            *(milliseconds(row["stages_s"].get(stage), 1) for stage in stages),
            milliseconds(row["latency_s"], 1),
        )
        for row in told
    ]
    return head, cells


def stage_table(rows: Sequence[Mapping[str, Any]]) -> FoldingTable:
    """The same as a table a person reads."""
    return FoldingTable("where the time of a chunk goes, medians", *stage_rows(rows))
