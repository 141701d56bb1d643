"""What came of the runs of an evaluation, summed up for results.json and for a person."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vivace.eval.measure.statistics import (
    mean_score,
    paired_difference,
    percentiles,
    wilson_interval,
)
from vivace.eval.simulation.episode import EpisodeResult, mean_jump
from vivace.eval.terminal import BEST_SCORE, FoldingTable, lateness, lateness_head, milliseconds, score_text


def run_summary(
    run: Mapping[str, Any], episodes: Sequence[EpisodeResult], control_hz: float
) -> dict[str, Any]:
    """Success and score with their intervals, latency percentiles, what the ticks executed, every episode.

    Args:
        run: "name", "label", "colour", "gflop", and "n_measurements", of which its latencies are drawn.
        episodes: what came of it.
        control_hz: control rate [Hz].
    """
    successes, steps = sum(e.success for e in episodes), sum(e.steps for e in episodes)
    times = [e.time_to_success_s for e in episodes if e.time_to_success_s is not None]
    scores = [e.score for e in episodes if e.score is not None]
    latencies = [latency for e in episodes for latency in e.latencies_s]
    return {
        **{key: run[key] for key in ("name", "label", "colour", "gflop")},
        "latency": percentiles(latencies, run["n_measurements"]),
        "latencies_s": latencies,
        "successes": successes,
        "n": len(episodes),
        "interval": wilson_interval(successes, len(episodes)),
        "score": mean_score(scores) if scores else None,
        "time_to_success_s": float(np.median(times)) if times else None,
        "ticks": {key: sum(e.ticks[key] for e in episodes) for key in episodes[0].ticks},
        "deadline_misses": sum(e.deadline_misses for e in episodes),
        "stood_still_s": sum(e.ticks["fallback"] for e in episodes) / control_hz,
        "chunks": len(latencies),
        "effective_hz": control_hz * sum(e.fresh_share * e.steps for e in episodes) / steps,
        "seam_jump": mean_jump(e.seam_jumps for e in episodes),
        "inner_jump": mean_jump(e.inner_jumps for e in episodes),
        "choices": dict(sum((Counter(e.choices) for e in episodes), Counter())),
        "episodes": [e.to_json() for e in episodes],
    }


def comparisons(episodes: Mapping[str, Sequence[EpisodeResult]], ours: str) -> list[dict[str, Any]]:
    """Compare the run named `ours` with each other run on the same seeds."""
    mine = {e.seed: e.success for e in episodes[ours]}
    return [
        {"first": name, "second": ours, **vars(paired_difference({e.seed: e.success for e in others}, mine))}
        for name, others in episodes.items()
        if name != ours
    ]


def table(results: dict[str, Any]) -> FoldingTable:
    """The runs as a table a person reads."""
    environment = results["environment"]
    trained_hz = environment["trained_hz"]
    other = "" if trained_hz in (None, environment["control_hz"]) else f"policy trained at {trained_hz:g} Hz"
    physics = "" if environment["physics_hz"] is None else f"physics {environment['physics_hz']:g} Hz"
    rates = ", ".join(filter(None, (physics, other)))
    title = (
        f"{environment['task']} at {environment['control_hz']:g} Hz{f' ({rates})' if rates else ''}, "
        f"{environment['mode']}, world moving"
    )
    mode, hz = environment["mode"], environment["control_hz"]
    has_score = any(entry.get("score") for entry in results["runs"])
    head = ("run", "chunk latency p50 / p99 [ms]", "of", "success under it", "95 % interval",
            *([BEST_SCORE] if has_score else []), lateness_head(mode))  # fmt: skip
    rows = [
        (
            entry["label"],
            f"{milliseconds(entry['latency']['p50_s'])} / {milliseconds(entry['latency']['p99_s'])}",
            str(entry["latency"]["n"]),
            f"{entry['successes']}/{entry['n']} = {entry['successes'] / entry['n']:.0%}",
            f"{entry['interval'][0]:.0%} … {entry['interval'][1]:.0%}",
            *([score_text(entry.get("score"))] if has_score else []),
            lateness(entry, mode, hz),
        )
        for entry in results["runs"]
    ]
    notes = [
        f"{pair['second']} - {pair['first']}: {pair['difference']:+.0%} "
        f"[{pair['interval'][0]:+.0%}, {pair['interval'][1]:+.0%}], McNemar p = {pair['p_value']:.2g}"
        for pair in results["comparisons"]
    ]
    notes += [f"left out: {name}: {reason}" for name, reason in results["left_out"].items()]
    return FoldingTable(title, head, rows, notes)
