"""`vivace report`: the pages and tables of a results.json."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vivace.eval.output import output_folder, read_json
from vivace.eval.report.results import write_pages, write_results
from vivace.eval.report.tables import markdown
from vivace.policies.errors import BadSetting
from vivace.policies.files import replacing


@dataclass(kw_only=True)
class ReportCommand:
    """Write the pages of a results.json again, or print a table of it as Markdown.

    Or join the shares of one that was run with --scale.shard.

    Example: vivace report --results=outputs/eval/2026-11-23/10-00-00_eval/results.json --table=eval
    """

    results: str = ""
    """A results.json, or its folder; several, separated by commas, for a table that joins them."""
    table: str = ""
    """Print this table: eval, ladder, curve, bench, tokens, stages, bundles, lateness."""
    into: str = ""
    """Instead, fill the tables of a Markdown file: what stands between a line
    `<!-- table: NAME results=PATH -->` and the next `<!-- end -->`, where there are results at PATH."""
    merge: str = ""
    """Instead, join the shares that --scale.shard=i/n wrote: the folder they are in, or several folders,
    separated by commas."""
    output_dir: str | None = None
    """Folder of what was joined; that of --merge when not given."""


def run(command: ReportCommand) -> tuple[dict[str, Any], bool]:
    """Write the pages, print a table, or fill the tables of a file."""
    if command.merge:
        if command.results or command.table or command.into:
            raise BadSetting("--merge reads shares and nothing else; leave --results, --table and --into out")
        return _merge([Path(place) for place in command.merge.split(",")], command.output_dir), True
    if command.into:
        if command.results or command.table:
            raise BadSetting("--into reads tables and results from the file; leave --results and --table out")
        return _fill(Path(command.into)), True
    if not command.results:
        raise BadSetting("nothing was said to report on; give --results, --into or --merge")
    if command.table:
        print(_table(command.table, command.results))
        return {"table": command.table, "results": command.results}, True
    path = _file(command.results)
    return {"report": str(write_pages(path.parent, _read(path)))}, True


def _merge(places: list[Path], output_dir: str | None) -> dict[str, Any]:
    """Join shares, and write results and pages as the command would have without shares."""
    from vivace.eval.scale.shard import join  # knows what episodes depend on, torch among it

    if len(places) > 1 and output_dir is None:
        raise BadSetting("--merge names several folders; say by --output_dir where the results are to go")
    joined = join(places)
    folder = output_folder("report", output_dir or str(places[0]), "")
    if (joined.first / "videos").is_dir():
        shutil.copytree(joined.first / "videos", folder / "videos", dirs_exist_ok=True)
    results = _FINISH[joined.results["kind"]](joined.results, joined.episodes)
    write_results(folder, results)
    told = {"report": str(folder / "report.html"), "results": str(folder / "results.json")}
    return {**told, "shares": results["shares"], "episodes": sum(map(len, joined.episodes.values()))}


def _evaluated(results: dict[str, Any], episodes: Mapping[str, Any]) -> dict[str, Any]:
    from vivace.eval.report.outcomes import with_episodes

    ours = results.pop("ours")
    return with_episodes(results, episodes, ours)


def _judged(results: dict[str, Any], episodes: Mapping[str, Any]) -> dict[str, Any]:
    from vivace.eval.measure.judge import Judging, confirm, judge

    for add, judging in zip((judge, confirm), results.pop("judging"), strict=False):
        add(results["pareto"], Judging(**judging), episodes)
    return results


_FINISH = {"eval": _evaluated, "bench": _judged}
"""Verb that ran shares -> what makes its results.json of them."""


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
