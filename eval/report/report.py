"""The report: one self-contained HTML page made from results.json alone (and the video beside it)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vivace.deploy.loop.settings import Mode
from vivace.eval.report.bench_table import spread_text
from vivace.eval.report.bundle_table import HEAD, bundle_cells
from vivace.eval.report.choice_page import pareto_sections
from vivace.eval.report.figures import (
    curve_figure,
    importance_figure,
    latency_figure,
    layer_curve_figure,
    passes_figure,
    schedule_figure,
    seam_figure,
    settled_figure,
    similarity_figure,
    timeline_figure,
)
from vivace.eval.report.page import cards_row, figure, header, page, section, table, video
from vivace.eval.report.run_page import run_page
from vivace.eval.report.stage_table import TEXT, stage_rows
from vivace.eval.report.tune_page import tune_page
from vivace.eval.terminal import lateness, lateness_head, milliseconds, score_text
from vivace.policies.errors import BadSetting
from vivace.policies.files import replacing


def write_report(folder: Path, results: Mapping[str, Any]) -> Path:
    """Write report.html into the folder of a results.json; returns its path.

    Raises:
        BadSetting: the results are of another program or version.
    """
    if not isinstance(results, Mapping) or results.get("format") != 1 or results.get("kind") not in _PAGES:
        raise BadSetting(
            "these are not results of vivace eval, bench, run or tune, format 1; run the command again"
        )
    try:
        title, body = _PAGES[results["kind"]](folder, results)
    except (KeyError, TypeError, IndexError) as error:
        raise BadSetting(
            f"results.json is incomplete ({type(error).__name__}: {error}); run again"
        ) from error
    target = folder / "report.html"
    with replacing(target) as file:
        file.write_text(page(title, body, results), encoding="utf-8")
    return target


def _eval_page(folder: Path, results: Mapping[str, Any]) -> tuple[str, str]:
    environment, policy, runs = results["environment"], results["policy"], results["runs"]
    title = f"{policy['path']} on {environment['task']}"
    lead = (
        f"The world moves on by {1e3 / environment['control_hz']:g} ms of physics a tick, "
        f"{environment['control_hz']:g} ticks a second, whether or not the policy has "
        f"finished thinking ({environment['mode']} mode). Every run meets the same {runs[0]['n']} episodes."
    )
    parts = [header("evaluation in a world that does not wait", title, lead), _eval_cards(results)]
    parts.append(
        section(
            "Success under latency",
            _runs_text(results),
            _runs_table(results),
            _pairs_table(results) if results["comparisons"] else "",
            _choices_table(runs),
        )
    )
    if results.get("video"):
        text = f"Under every run, {_shown(results)}; the bar says what the robot executes."
        parts.append(section("Side by side", text, video(folder / results["video"])))
    shown = {
        r["name"]: (r["label"], next(e for e in r["episodes"] if e["seed"] == results["shown_seed"]))
        for r in runs
    }
    parts.append(
        section(
            "One episode, tick by tick",
            f"This is {_shown(results)}. "
            "Fresh: an action as young as in a world that waits. Stale: an older one. Fallback: no "
            "action was there, so displacements are zero and targets hold. "
            "The same as a trace: trace.json, for ui.perfetto.dev.",
            figure(timeline_figure(shown, environment["control_hz"])),
        )
    )
    parts += _curve_sections(results["curve"], runs)
    parts.append(
        section(
            "Latency",
            "Of one chunk at batch 1 as the loop asks for it, robot's units to robot's units, timed "
            f"interleaved in one process{_threads_text(results)}; the loop draws from these. "
            "A percentile p needs 1 / (1 − p) measurements.",
            _latency_table(runs),
            figure(latency_figure(runs, 1 / environment["control_hz"])),
        )
    )
    parts += _stage_sections(results)
    parts += pareto_sections(results)
    parts += _language_sections(folder, results)
    parts += _calibration_sections(results.get("calibration"))
    return title, "".join(parts)


def _shown(results: Mapping[str, Any]) -> str:
    """Which episode is filmed and drawn, and how it was chosen."""
    how = results.get(
        "shown_because", "which earlier versions chose after the runs: one that tells them apart"
    )
    return f"episode {results['shown_seed']}, {how}"


def _curve_sections(curve: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> list[str]:
    if not curve:
        return []
    return [
        section(
            "Success against latency",
            "Lines: every chunk takes the latency on the axis, bands are 95 % Wilson intervals. "
            "Diamonds: each run at its own latency.",
            figure(curve_figure(curve, runs)),
            _curve_table(curve),
        ),
        section(
            "Jumps against latency",
            "How far the action jumps where one chunk takes over from another or the robot stops to "
            "think, and from tick to tick inside chunks. Real-time chunking is there to keep the "
            "first near the second.",
            figure(seam_figure(curve)),
        ),
    ]


def _bench_page(folder: Path, results: Mapping[str, Any]) -> tuple[str, str]:
    title = (
        f"{results['policy']['path']}: {results['policy']['sampler'].upper()}-{results['policy']['n_steps']}"
    )
    lead = "Every plan timed interleaved in one process, batch 1, on the machine named below."
    sections = [header("benchmark", title, lead), *pareto_sections(results), *_stage_sections(results)]
    sections += _token_sections(results)
    if results.get("layer_curve"):
        text = "Error of the cognition feature and of the actions when language layers are dropped."
        sections.append(section("Layers dropped", text, figure(layer_curve_figure(results["layer_curve"]))))
    exported = bundle_cells(results["pareto"])
    if exported:
        text = "Cold start: from starting a new process, as vivace run does, to its first chunk."
        sections.append(section("Exported bundles", text, table(HEAD, exported)))
    return title, "".join(sections)


_PAGES = {"eval": _eval_page, "bench": _bench_page, "run": run_page, "tune": tune_page}


def _eval_cards(results: Mapping[str, Any]) -> str:
    runs, where = results["runs"], results["environment"]
    plain = runs[0]
    ours = next((r for r in runs if r["name"] == "accelerated"), None)
    if ours is None:
        return _plain_cards(plain)
    before, after = plain["latency"]["p50_s"], ours["latency"]["p50_s"]
    faster = f"{before / after:.1f}× faster" if after else "the world waits"
    cards = [
        (
            "chunk latency, p50",
            f"{1e3 * before:.0f} → {1e3 * after:.0f} <small>ms</small>",
            faster,
        ),
        ("success under it", f"{_rate(plain)} → {_rate(ours)}", f"{ours['n']} paired episodes"),
        (
            "ticks without a fresh action",
            f"{1 - _fresh(plain):.0%} → {1 - _fresh(ours):.0%}",
            "stale or fallback",
        ),
        (
            lateness_head(where["mode"]),
            " → ".join(lateness(run, where["mode"], where["control_hz"]) for run in (plain, ours)),
            "of the time" if where["mode"] == Mode.SYNC else "chunks",
        ),
    ]
    return cards_row(cards)


def _plain_cards(run: Mapping[str, Any]) -> str:
    """Of an evaluation as trained alone."""
    return cards_row(
        [
            ("chunk latency, p50", f"{1e3 * run['latency']['p50_s']:.0f} <small>ms</small>", "as trained"),
            ("success under it", _rate(run), f"{run['n']} episodes"),
            ("ticks without a fresh action", f"{1 - _fresh(run):.0%}", "stale or fallback"),
            ("deadline misses", f"{run['deadline_misses']}", f"of {run['chunks']} chunks"),
        ]
    )


def _rate(run: Mapping[str, Any]) -> str:
    return f"{run['successes'] / run['n']:.0%}"


def _fresh(run: Mapping[str, Any]) -> float:
    return run["ticks"]["chunk"] / sum(run["ticks"].values())


def _runs_text(results: Mapping[str, Any]) -> str:
    return (
        "Intervals are Wilson's at 95 %. Differences are paired on seeds, with Agresti and Min's interval "
        "and the exact McNemar test. Runs with fewer steps are the honest baselines: as many steps of a "
        "plain sampler as took no longer than the accelerated run, side by side, hoisted too if the plan is; "
        "their names say how long they took in the end."
    )


AT = ("seam", "inner")
"""Where actions jump: from chunk to chunk, and within one."""


def _runs_table(results: Mapping[str, Any]) -> str:
    runs, where = results["runs"], results["environment"]
    has_score = any(run.get("score") for run in runs)
    head = (
        "run",
        "success",
        "95 %",
        *(["mean best score (95 %)"] if has_score else []),
        "median time",
        "fresh / stale / fallback",
        lateness_head(where["mode"]),
        "effective",
        "jump at a seam / inside",
        "GFLOP",
    )
    rows = []
    for run in runs:
        total = sum(run["ticks"].values())
        shares = " / ".join(f"{run['ticks'][key] / total:.0%}" for key in ("chunk", "stale", "fallback"))
        took = "–" if run["time_to_success_s"] is None else f"{run['time_to_success_s']:.2f} s"
        low, high = run["interval"]
        rows.append(
            (
                run["label"],
                f"{run['successes']}/{run['n']} = {_rate(run)}",
                f"{low:.0%} … {high:.0%}",
                *([score_text(run.get("score"))] if has_score else []),
                took,
                shares,
                lateness(run, where["mode"], where["control_hz"]),
                f"{run['effective_hz']:.1f} Hz",
                " / ".join("–" if run[f"{at}_jump"] is None else f"{run[f'{at}_jump']:.2f}" for at in AT),
                "–" if run["gflop"] is None else f"{run['gflop']:.2f}",
            )
        )
    return table(head, rows, ours=[run["name"] == "accelerated" for run in runs])


def _pairs_table(results: Mapping[str, Any]) -> str:
    labels = {run["name"]: run["label"] for run in results["runs"]}
    rows = [
        (
            f"{labels[p['second']]} − {labels[p['first']]}",
            f"{p['difference']:+.1%}",
            f"{p['interval'][0]:+.1%} … {p['interval'][1]:+.1%}",
            f"{p['gained']}",
            f"{p['lost']}",
            f"{p['p_value']:.2g}",
        )
        for p in results["comparisons"]
    ]
    return table(
        ("difference", "success", "95 %", "only the first", "only the other", "McNemar p"),
        rows,
    )


def _choices_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """How often a ladder chose each of its plans; nothing without one."""
    labels = {run["name"]: run["label"] for run in runs}
    rows = [
        (labels[plan], f"{n} of {run['chunks']}", f"{n / run['chunks']:.0%}")
        for run in runs
        for plan, n in run["choices"].items()
    ]
    return table(("plan the ladder chose", "chunks", ""), rows) if rows else ""


def _curve_table(curve: Mapping[str, Any]) -> str:
    rows = [(line["label"], f"{line['area']:.0%}") for line in curve.values()]
    return table(("run", "mean success over the latencies above"), rows)


def _latency_table(runs: Sequence[Mapping[str, Any]]) -> str:
    keys = ("p50_s", "p90_s", "p95_s", "p99_s", "p99.9_s", "jitter_s")
    rows = [
        (run["label"], *(milliseconds(run["latency"][key], 1) for key in keys), f"{run['latency']['n']}")
        for run in runs
    ]
    head = ("run", *(f"{key.removesuffix('_s')} [ms]" for key in keys), "of n")
    return table(head, rows, ours=[run["name"] == "accelerated" for run in runs])


def _threads_text(results: Mapping[str, Any]) -> str:
    if "threads" not in results:  # of an earlier version
        return ""
    used = results["threads"]["used"]
    return f" with {used} torch thread" + ("" if used == 1 else "s")


def _stage_sections(results: Mapping[str, Any]) -> list[str]:
    head, cells = stage_rows(results["pareto"])
    return [section("Where the time of a chunk goes", TEXT, table(head, cells))] if cells else []


def _language_sections(folder: Path, results: Mapping[str, Any]) -> list[str]:
    sections = []
    if results.get("patches"):
        text = (
            "One frame an inference: bright patches go on through the language model, dark ones are dropped."
        )
        sections.append(section("Patches that were kept", text, video(folder / results["patches"])))
    if results.get("layers"):
        text = (
            "1 − cosine similarity between what enters and what leaves a language layer, on calibration "
            "observations; light ones are dropped."
        )
        sections.append(section("Layer importance", text, figure(importance_figure(results["layers"]))))
    return sections


def _token_sections(results: Mapping[str, Any]) -> list[str]:
    rows = [row for row in results["pareto"] if "tokens_per_s" in row]
    if not rows:
        return []
    counted = [row for row in rows if "passes" in row]
    head = ("plan", "p50 [ms]", "p95 [ms]", "max [ms]", "passes", "tokens/s")
    cells = [
        (
            row["label"],
            *(milliseconds(row[key], 1) for key in ("latency_s", "latency_p95_s", "latency_max_s")),
            spread_text(row, "passes", 1),
            f"{row['tokens_per_s']:.0f}",
        )
        for row in rows
    ]
    text = (
        "Forward passes after the prompt's, over several observations. Tokens a second count the whole "
        "chunk, cameras and prompt included."
    )
    settled = "The pass in which each token of the chunk changed for the last time; dark tokens settle first."
    return [
        section("Decoding", text, table(head, cells), figure(passes_figure(counted))),
        section("Which tokens settle when", settled, figure(settled_figure(counted))),
    ]


def _calibration_sections(calibration: Mapping[str, Any] | None) -> list[str]:
    if not calibration:
        return []
    text = (
        f"Dark: computed; light: reused; between: forecast. {calibration['distinct_steps']} of "
        f"{len(next(iter(calibration['grid'].values())))} steps are distinct programs."
    )
    return [
        section("Schedule", text, figure(schedule_figure(calibration["grid"]))),
        section(
            "What the schedule rests on",
            "Cosine similarity of each block's output between denoising steps, every block computed: bright "
            "squares along the diagonal are stretches in which an output may be reused.",
            figure(similarity_figure(calibration)),
        ),
    ]
