"""What is said of the bundles among the rows of `vivace bench`, in the terminal and in the report."""

from collections.abc import Mapping, Sequence
from typing import Any

from vivace.eval.terminal import FoldingTable

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


def bundle_table(rows: Sequence[Mapping[str, Any]]) -> FoldingTable:
    """The bundles among rows, as a table a person reads."""
    title = "exported bundles; cold start: a new process, to its first chunk"
    return FoldingTable(title, HEAD, bundle_cells(rows))
