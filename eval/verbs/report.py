"""`vivace report`: the pages of a results.json, written again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivace.eval.output import read_json
from vivace.eval.report.results import write_pages


@dataclass(kw_only=True)
class ReportCommand:
    """Write report.html and trace.json again from a results.json.

    Example: vivace report --results=outputs/eval/2026-11-23/10-00-00_eval/results.json
    """

    results: str


def run(command: ReportCommand) -> tuple[dict[str, Any], bool]:
    """Write report.html and trace.json again from a results.json."""
    path = Path(command.results)
    path = path / "results.json" if path.is_dir() else path
    results = read_json(path, "results.json of vivace eval, bench or run")
    return {"report": str(write_pages(path.parent, results))}, True
