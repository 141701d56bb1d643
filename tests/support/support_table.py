"""The support tables of policies/README.md, made of what tests are marked to show.

A test says by `@pytest.mark.shows(row, by="kind")` that it shows what the table has in this row, of the
policy type that its parameter `kind` names ("type" or "type-of a kind"), or by `of=` of one type. `says` is
what the cell says of it. So a cell says nothing that no test is there for, and what no test shows is missing.
"""

from collections.abc import Iterable
from typing import Any

import pytest

Cells = dict[tuple[str, str], str]
"""(row, type) -> what the table says."""
YES, LACKS = "yes", "–"
"""It works; and the policy lacks what it works on, and refuses it by name."""


def shows(row: str, of: str, says: str = YES) -> pytest.MarkDecorator:
    """The mark of one parameter of a test."""
    return pytest.mark.shows(row, of=of, says=says)


def shown(items: Iterable[Any]) -> Cells:
    """What collected tests show.

    Of a type that is tried in several forms, one that works is enough.

    Raises:
        pytest.UsageError: two tests say different things of one cell.
    """
    cells: Cells = {}
    for item in items:
        for mark in item.iter_markers("shows"):
            cell, says = _read(item, *mark.args, **mark.kwargs)
            other = cells.get(cell, LACKS)
            if LACKS not in (says, other) and says != other:
                raise pytest.UsageError(f"{item.nodeid} says {says!r} of {cell}, another test {other!r}")
            cells[cell] = says if other == LACKS else other
    return cells


def _read(
    item: Any, row: str, of: str | None = None, by: str = "kind", says: str = YES
) -> tuple[tuple[str, str], str]:
    return (row, of or str(item.callspec.params[by]).split("-")[0]), says


def lacking(cells: Cells, rows: Iterable[str], types: Iterable[str]) -> list[str]:
    """Cells that no test shows anything of, in words."""
    types = tuple(types)
    return [f"{row} of {kind}" for row in rows for kind in types if (row, kind) not in cells]


def by_row(cells: Cells, rows: dict[str, str], types: Iterable[str]) -> str:
    """A table with a row for each thing and a column for each type.

    Args:
        cells: what is shown.
        rows: row -> how it is called.
        types: policy types.
    """
    types = tuple(types)
    return _markdown(
        ["", *(f"`{kind}`" for kind in types)],
        [[name, *(cells[row, kind] for kind in types)] for row, name in rows.items()],
    )


def by_type(cells: Cells, rows: dict[str, str], types: Iterable[str]) -> str:
    """The same turned: a row for each type."""
    return _markdown(
        ["type", *rows.values()], [[f"`{kind}`", *(cells[row, kind] for row in rows)] for kind in types]
    )


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(it) + " |" for it in (head, ["---"] * len(head), *lines))


def rewritten(text: str, name: str, table: str) -> str:
    """A file's text with a table between `<!-- name -->` and `<!-- end of name -->`."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise pytest.UsageError(f"there is no {begin} … {end}")
    return f"{before}{begin}\n{table}\n{end}{after}"
