"""The report's figures: plotly, one function a figure, from the plain data of results.json."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from vivace.eval.measure.statistics import wilson_interval
from vivace.eval.simulation.trace import stretches

_OURS, _BASELINE, _OTHER = "#0b8f7d", "#d9822b", "#444444"
SOURCES = {"chunk": "#0b8f7d", "stale": "#e6a23c", "fallback": "#d64545"}
_FADE = 0.18
_DASHES = {"sync": "dot", "async": "dash", "rtc": "solid"}
_EXACT = 1e-4
"""Smaller action errors are rounding, and drawn here."""


def curve_figure(curve: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Success against constant latency with Wilson intervals; each run marked at its own latency."""
    figure = go.Figure()
    for line in curve.values():
        points = line["points"]
        x = [1e3 * p["latency_s"] for p in points]
        y = [100 * p["successes"] / p["n"] for p in points]
        bounds = [wilson_interval(p["successes"], p["n"]) for p in points]
        colour = line.get("colour", _OTHER)
        figure.add_scatter(
            x=[*x, *reversed(x)],
            y=[*(100 * high for _, high in bounds), *(100 * low for low, _ in reversed(bounds))],
            mode="lines",
            fill="toself",
            fillcolor=_rgba(colour, _FADE),
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
        label = f"{line['label']}: at a constant latency"
        figure.add_scatter(x=x, y=y, mode="lines+markers", name=label, line=_line_of(line))
    for run in runs:
        rate = run["successes"] / run["n"]
        figure.add_scatter(
            x=[1e3 * run["latency"]["p50_s"]],
            y=[100 * rate],
            error_y=_error_bar(rate, run["interval"]),
            mode="markers",
            marker={"size": 14, "symbol": "diamond", "color": run.get("colour", _OTHER)},
            name=f"{run['label']}: at its own latency",
        )
    return _styled(figure, "latency of a chunk [ms]", "success [%]", y_range=(-3, 103))


def seam_figure(curve: Mapping[str, Any]) -> go.Figure:
    """Mean jump of the action against constant latency: where the chunk changes; thinner, inside chunks."""
    figure = go.Figure()
    for line in curve.values():
        x = [1e3 * p["latency_s"] for p in line["points"]]
        style = _line_of(line)
        seams, inner = ([p[key] for p in line["points"]] for key in ("seam_jump", "inner_jump"))
        figure.add_scatter(x=x, y=seams, mode="lines+markers", name=f"{line['label']}: seams", line=style)
        figure.add_scatter(
            x=x,
            y=inner,
            mode="lines",
            line=style | {"width": 1},
            opacity=0.5,
            name=f"{line['label']}: inside",
        )
    return _styled(figure, "latency of a chunk [ms]", "mean jump of the action")


def pareto_figure(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Action error, and success where it was measured, against latency, all plans."""
    judged = [row for row in rows if "n" in row]
    figure = make_subplots(
        rows=1,
        cols=2 if judged else 1,
        subplot_titles=("action error against the plain loop", "success") if judged else None,
    )
    for row in rows:
        if row.get("action_error") is None:
            continue
        colour, x = row.get("colour", _OTHER), 1e3 * row["latency_s"]
        marker = {"color": colour, "size": 13 if row["name"] == "accelerated" else 9}
        figure.add_scatter(
            x=[x],
            y=[max(row["action_error"], _EXACT)],
            error_y=_spread_bar(row),
            mode="markers+text",
            text=row["name"],
            textposition="top center",
            textfont={"size": 9, "color": colour},
            marker=marker,
            name=row["label"],
            hovertemplate=f"{row['label']}<br>%{{x:.0f}} ms, error %{{y:.2g}}<extra></extra>",
            showlegend=False,
            row=1,
            col=1,
        )
        if "n" in row:
            rate = row["successes"] / row["n"]
            figure.add_scatter(
                x=[x],
                y=[100 * rate],
                error_y=_error_bar(rate, wilson_interval(row["successes"], row["n"])),
                mode="markers+text",
                text=row["name"],
                textposition="top right",
                textfont={"size": 9, "color": colour},
                marker=marker,
                hovertemplate=f"{row['label']}<br>%{{x:.0f}} ms, %{{y:.0f}} %<extra></extra>",
                showlegend=False,
                row=1,
                col=2,
            )
    _styled(figure, "latency of a chunk [ms]", f"mean absolute error ({_EXACT:g}: exact)")
    figure.update_xaxes(type="log", title_text="latency of a chunk [ms], log")
    figure.update_yaxes(type="log", row=1, col=1)
    if judged:
        figure.update_yaxes(title_text="success [%]", row=1, col=2)
    return figure


def _spread_bar(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """From the 10th to the 90th percentile of a row's action error; none of an exact one or where unknown."""
    if "action_error_spread" not in row or row["action_error"] <= _EXACT:
        return None
    low, high = (max(value, _EXACT) for value in row["action_error_spread"])
    error = row["action_error"]
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, high - error)],
        "arrayminus": [max(0.0, error - low)],
        "thickness": 1,
    }


def latency_figure(runs: Sequence[Mapping[str, Any]], period_s: float) -> go.Figure:
    """Distribution of every run's latencies, against the control period."""
    figure = go.Figure()
    for run in runs:
        figure.add_box(
            x=[1e3 * latency for latency in run["latencies_s"]],
            name=run["label"],
            marker_color=run.get("colour", _OTHER),
            boxpoints="outliers",
        )
    every = [1e3 * latency for run in runs for latency in run["latencies_s"] if latency > 0]
    ends = min([*every, 1e3 * period_s]), max([*every, 1e3 * period_s])
    figure.add_vline(x=1e3 * period_s, line_dash="dot")
    _styled(figure, "latency of a chunk [ms], log; dotted: the control period", "")
    figure.update_xaxes(type="log", range=[math.log10(ends[0] / 1.5), math.log10(ends[1] * 1.5)])
    figure.update_layout(showlegend=False, height=90 + 60 * len(runs))
    return figure


def timeline_figure(episodes: Mapping[str, tuple[str, Mapping[str, Any]]], control_hz: float) -> go.Figure:
    """What every tick of one episode executed, a bar per run: fresh, stale or fallback.

    Args:
        episodes: run name -> (label, `EpisodeResult` as plain data).
        control_hz: control rate [Hz].
    """
    figure = go.Figure()
    shown: set[str] = set()
    for label, episode in reversed(list(episodes.values())):
        outcome = "solved" if episode["success"] else "failed"
        for source, tick, length in stretches(episode["timeline"]):
            figure.add_bar(
                y=[f"{label} ({outcome})"],
                x=[length / control_hz],
                base=tick / control_hz,
                orientation="h",
                marker={"color": SOURCES[source], "line": {"width": 0}},
                name={"chunk": "fresh"}.get(source, source),
                legendgroup=source,
                showlegend=source not in shown,
                hovertemplate=f"{source}: %{{base:.2f}} s + %{{x:.2f}} s<extra></extra>",
            )
            shown.add(source)
    _styled(figure, "time of the episode [s]", "")
    figure.update_layout(barmode="stack", height=110 + 55 * len(episodes), bargap=0.35)
    return figure


def schedule_figure(grid: Mapping[str, str]) -> go.Figure:
    """Step by block: computed, reused, forecast or skipped."""
    marks = {"#": 1.0, "~": 0.5, "·": 0.0, "/": 0.25}
    names = list(grid)
    figure = go.Figure(
        go.Heatmap(
            z=[[marks[mark] for mark in grid[name]] for name in names],
            y=names,
            zmin=0,
            zmax=1,
            colorscale=[[0, "#e9edf2"], [0.25, "#c9a7c9"], [0.5, "#8cc9be"], [1, _OURS]],
            showscale=False,
            xgap=1,
            ygap=1,
            hovertemplate="%{y}, step %{x}<extra></extra>",
        )
    )
    _styled(figure, "denoising step", "")
    figure.update_yaxes(autorange="reversed", tickfont={"size": 9})
    figure.update_layout(height=120 + 16 * len(names))
    return figure


def importance_figure(layers: Mapping[str, Any]) -> go.Figure:
    """Importance of every language layer, dropped ones light."""
    importance, kept = layers["importance"], set(layers["kept"])
    figure = go.Figure(
        go.Bar(
            x=list(range(len(importance))),
            y=importance,
            marker_color=[_OURS if i in kept else "#d5dbe3" for i in range(len(importance))],
            hovertemplate="layer %{x}: %{y:.4f}<extra></extra>",
        )
    )
    _styled(figure, "language layer", "importance")
    figure.update_layout(height=260)
    return figure


def layer_curve_figure(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> go.Figure:
    """Hidden-state and action error against language layers dropped, a line per rule."""
    figure = make_subplots(rows=1, cols=2, subplot_titles=("cognition feature, 1 - cosine", "actions"))
    for (rule, points), colour in zip(curves.items(), (_OURS, _BASELINE), strict=False):
        x = [point["dropped"] for point in points]
        for column, key in enumerate(("hidden_error", "action_error"), start=1):
            figure.add_scatter(
                x=x,
                y=[point[key] for point in points],
                name=rule,
                mode="lines+markers",
                line={"color": colour},
                showlegend=column == 1,
                row=1,
                col=column,
            )
    return _styled(figure, "language layers dropped", "error")


def passes_figure(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """How many passes a chunk of tokens takes, a histogram a plan."""
    figure = go.Figure()
    for row in rows:
        figure.add_violin(
            x=row["passes_of"],
            name=row["label"],
            line_color=row.get("colour", _OTHER),
            orientation="h",
            side="negative",
            width=1.6,
            points=False,
            spanmode="hard",
            meanline_visible=True,
            showlegend=False,
        )
    _styled(figure, "forward passes for a chunk, after the prompt's", "")
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(height=120 + 34 * len(rows))
    return figure


def settled_figure(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """In which pass each token of a chunk changes for the last time, mean over observations, a row a plan."""
    figure = go.Figure(
        go.Heatmap(
            z=[row["settled"] for row in rows],
            y=[row["label"] for row in rows],
            colorscale="Viridis",
            colorbar={"title": "pass", "thickness": 10},
            hovertemplate="%{y}, token %{x}: pass %{z:.1f}<extra></extra>",
        )
    )
    _styled(figure, "token of the chunk", "")
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(height=120 + 26 * len(rows))
    return figure


def similarity_figure(calibration: Mapping[str, Any]) -> go.Figure:
    """Cosine similarity of every block's output between steps, small multiples."""
    names = list(calibration["similarity"])
    columns = 6
    rows = math.ceil(len(names) / columns)
    figure = make_subplots(
        rows=rows, cols=columns, subplot_titles=names, horizontal_spacing=0.015, vertical_spacing=0.22 / rows
    )
    for i, name in enumerate(names):
        figure.add_heatmap(
            z=calibration["similarity"][name],
            x=calibration["steps"],
            y=calibration["steps"],
            coloraxis="coloraxis",
            hovertemplate=f"{name}: steps %{{x}}, %{{y}}: %{{z}} %<extra></extra>",
            row=i // columns + 1,
            col=i % columns + 1,
        )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, autorange="reversed")
    figure.update_annotations(font_size=10)
    figure.update_layout(
        coloraxis={"colorscale": "Viridis", "colorbar": {"title": "%", "thickness": 10}},
        height=60 + 150 * rows,
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        template="plotly_white",
    )
    return figure


def _styled(
    figure: go.Figure, x_title: str, y_title: str, y_range: tuple[float, float] | None = None
) -> go.Figure:
    figure.update_layout(
        template="plotly_white",
        font={"family": "Inter, system-ui, sans-serif", "size": 13},
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        height=420,
        legend={"orientation": "h", "y": -0.22},
    )
    figure.update_xaxes(title_text=x_title)
    figure.update_yaxes(title_text=y_title)
    if y_range:
        figure.update_yaxes(range=y_range)
    return figure


def _line_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """Colour by run, dashes by mode."""
    return {"color": line.get("colour", _OTHER), "dash": _DASHES[line["mode"]]}


def _error_bar(rate: float, interval: Sequence[float]) -> dict[str, Any]:
    low, high = interval
    return {
        "type": "data",
        "array": [100 * (high - rate)],
        "arrayminus": [100 * (rate - low)],
        "thickness": 1,
    }


def _rgba(colour: str, alpha: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"
