"""The shell of a report and what its sections are made of: HTML that needs nothing beside it."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

_STYLE = """
:root { --ink: #1d2530; --soft: #667085; --line: #e4e8ee; --good: #0b8f7d; --bad: #d64545; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7fa; color: var(--ink); font: 15px/1.55 Inter, system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 20px 80px; }
header .kicker { color: var(--good); font-weight: 600; letter-spacing: .08em; text-transform: uppercase;
  font-size: 12px; }
h1 { font-size: 30px; line-height: 1.2; margin: 6px 0 8px; }
h2 { font-size: 19px; margin: 0 0 4px; }
p { margin: 4px 0 12px; color: var(--soft); max-width: 76ch; }
section { background: #fff; border: 1px solid var(--line); border-radius: 12px;
  padding: 22px 24px; margin: 18px 0; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px;
  margin: 22px 0; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px; }
.card .name { color: var(--soft); font-size: 13px; }
.card .value { font-size: 26px; font-weight: 650; margin-top: 2px; }
.card .value small { color: var(--soft); font-weight: 400; font-size: 15px; }
.card .note { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 7px 10px; text-align: right; border-bottom: 1px solid var(--line); }
td:not(:first-child) { white-space: nowrap; }
th { color: var(--soft); font-weight: 500; }
th:first-child, td:first-child { text-align: left; }
tr.ours td { font-weight: 600; color: var(--good); }
.wide { overflow-x: auto; }
video { width: 100%; border-radius: 8px; background: #000; }
code { background: #eef1f5; padding: 2px 6px; border-radius: 5px; font-size: 13px; word-break: break-all; }
"""


def page(title: str, body: str, results: Mapping[str, Any]) -> str:
    """Return a whole page; its foot says how the results were made."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
        f"<script>{get_plotlyjs()}</script></head><body><main>{body}{_footer(results)}</main></body></html>"
    )


def header(kicker: str, title: str, lead: str) -> str:
    """Return a title, what kind of page it is, and what it shows."""
    kicker = f'<div class="kicker">vivace · {kicker}</div>'
    return f"<header>{kicker}<h1>{html.escape(title)}</h1><p>{lead}</p></header>"


def section(title: str, text: str, *parts: str) -> str:
    """Return a box: title, text, and parts that are HTML already."""
    return f"<section><h2>{title}</h2><p>{text}</p>{''.join(parts)}</section>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], ours: Sequence[bool] = ()) -> str:
    """Return a table of texts; `ours` marks the rows that stand out."""
    marked = list(ours) or [False] * len(rows)
    top = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(
        f'<tr class="{"ours" if mark else ""}">'
        + "".join(f"<td>{html.escape(c)}</td>" for c in row)
        + "</tr>"
        for row, mark in zip(rows, marked, strict=True)
    )
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def cards_row(cards: Sequence[tuple[str, str, str]]) -> str:
    """Return large figures side by side; a card is (name, value, note)."""
    inner = "".join(
        f'<div class="card"><div class="name">{name}</div><div class="value">{value}</div>'
        f'<div class="note">{note}</div></div>'
        for name, value, note in cards
    )
    return f'<div class="cards">{inner}</div>'


def figure(figure: go.Figure) -> str:
    """Return an interactive figure."""
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})


def video(path: Path) -> str:
    """Return a film, embedded; a line saying so if it is gone."""
    if not path.is_file():
        return "<p>The video is not in this folder any more.</p>"
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<video controls autoplay muted loop src="data:video/mp4;base64,{data}"></video>'


def _footer(results: Mapping[str, Any]) -> str:
    commit = {"commit": results["commit"]} if results.get("commit") else {}
    made = {**results["machine"], **results["versions"], **commit, "seed": results["seed"]}
    facts = ", ".join(f"{html.escape(str(key))} {html.escape(str(value))}" for key, value in made.items())
    return (
        f"<section><h2>How this was made</h2><p><code>{html.escape(results['command'])}</code></p>"
        f"<p>{facts}. {html.escape(results.get('created', ''))}</p></section>"
    )
