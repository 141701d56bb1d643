"""`vivace report`: the pages and tables of a results.json."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivace.eval.output import read_json
from vivace.eval.report.results import write_pages
from vivace.eval.report.tables import markdown
from vivace.policies.errors import BadSetting
from vivace.policies.files import replacing


@dataclass(kw_only=True)
class ReportCommand:
    """Write the pages of a results.json again, or print a table of it as Markdown.

    Example: vivace report --results=outputs/eval/2026-11-23/10-00-00_eval/results.json --table=eval
    """

    results: str = ""
    """A results.json, or its folder; several, separated by commas, for a table that joins them."""
    table: str = ""
    """Print this table: eval, ladder, curve, bench, tokens, stages, bundles, lateness."""
    into: str = ""
    """Instead, fill the tables of a Markdown file: what stands between a line
    `<!-- table: NAME results=PATH -->` and the next `<!-- end -->`, where there are results at PATH."""


def run(command: ReportCommand) -> tuple[dict[str, Any], bool]:
    """Write the pages, print a table, or fill the tables of a file."""
    if command.into:
        if command.results or command.table:
            raise BadSetting("--into reads tables and results from the file; leave --results and --table out")
        return _fill(Path(command.into)), True
    if not command.results:
        raise BadSetting("nothing was said to report on; give --results, or --into")
    if command.table:
        print(_table(command.table, command.results))
        return {"table": command.table, "results": command.results}, True
    path = _file(command.results)
    return {"report": str(write_pages(path.parent, _read(path)))}, True


def _file(place: str) -> Path:
    path = Path(place)
    return path / "results.json" if path.is_dir() else path


def _read(path: Path) -> Any:
    return read_json(path, "results.json of vivace eval, bench or run")


def _table(name: str, places: str) -> str:
    return markdown(name, [_read(_file(place)) for place in places.split(",")])


_MARKED = re.compile(r"(<!-- table: (\S+) results=(\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def _fill(path: Path) -> dict[str, Any]:
    """Put a fresh table between every pair of marks whose results are there; say which were and were not."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadSetting(f"{path} cannot be read ({error.strerror}); give a Markdown file") from error
    filled, missing = [], []

    def fresh(mark: re.Match[str]) -> str:
        begin, name, places, _, end = mark.groups()
        if not all(_file(place).is_file() for place in places.split(",")):
            missing.append(places)
            return mark.group()
        filled.append(places)
        return f"{begin}{_table(name, places)}\n{end}"

    changed = _MARKED.sub(fresh, text)
    if not filled and not missing:
        raise BadSetting(f"{path} has no line <!-- table: NAME results=PATH --> with an <!-- end -->")
    with replacing(path) as file:
        file.write_text(changed, encoding="utf-8")
    return {"into": str(path), "filled": filled, "missing": missing}
