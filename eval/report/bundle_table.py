"""What is said of the bundles among the rows of `vivace bench`, in the terminal and in the report."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

HEAD = ("bundle", "graphs", "MB", "largest error of a chunk", "cold start [s]")


def bundle_cells(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """What a table under `HEAD` says of the rows that are bundles."""
    return [
        (
            row["name"].removeprefix("ort:"),
            str(row["bundle"]["graphs"]),
            f"{row['bundle']['megabytes']:.0f}",
            f"{row['bundle']['chunk_error']:.0e}",
            f"{row['bundle']['cold_start_s']:.2f}",
        )
        for row in rows
        if "bundle" in row
    ]


def bundle_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The bundles among rows, as a table a person reads."""
    out = Table(title="exported bundles; cold start: a new process, to its first chunk")
    for name in HEAD:
        out.add_column(escape(name), justify="left" if name == HEAD[0] else "right")
    for cells in bundle_cells(rows):
        out.add_row(*cells)
    return out
