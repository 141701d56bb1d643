"""What an evaluation says once its episodes are there, wherever they were run."""

from collections.abc import Mapping, Sequence
from typing import Any

from vivace.eval.measure.statistics import curve_area
from vivace.eval.report.summary import comparisons, run_summary
from vivace.eval.simulation.episode import EpisodeResult, mean_jump

LADDER = "ladder"
"""Name of the run that chooses among plans."""

Episodes = Mapping[str, Sequence[EpisodeResult]]
"""Name of a job -> what came of its episodes."""


def with_episodes(results: Mapping[str, Any], episodes: Episodes, ours: str) -> dict[str, Any]:
    """Return results.json of an evaluation.

    Args:
        results: everything else, "runs" as of `Trial.told` and "curve" as of `Trials.curve`.
        episodes: of every run and of every point of the curve.
        ours: name of the run that it is about.

    Returns:
        The results with summaries of the runs, paired comparisons, points of the curve, and success in the
        rows of "pareto".
    """
    hz = results["environment"]["control_hz"]
    runs = [run_summary(run, episodes[run["name"]], hz) for run in results["runs"]]
    found = {run["name"]: episodes[run["name"]] for run in runs}
    alone = {name: those for name, those in found.items() if name != LADDER}
    pairs = comparisons(alone, ours)
    if LADDER in found:
        pairs += comparisons(found, LADDER)
    return {
        **results,
        "runs": runs,
        "comparisons": pairs,
        "curve": {name: _line(line, episodes) for name, line in results["curve"].items()},
        "pareto": [row | _successes(found.get(row["name"])) for row in results["pareto"]],
    }


def _successes(episodes: Sequence[EpisodeResult] | None) -> dict[str, int]:
    return {} if episodes is None else {"successes": sum(e.success for e in episodes), "n": len(episodes)}


def _line(line: Mapping[str, Any], episodes: Episodes) -> dict[str, Any]:
    """One line of the curve, and the area under it."""
    points = [
        {
            "latency_s": point["latency_s"],
            **_successes(found := episodes[point["episodes"]]),
            "seam_jump": mean_jump(e.seam_jumps for e in found),
            "inner_jump": mean_jump(e.inner_jumps for e in found),
        }
        for point in line["points"]
    ]
    rates = [point["successes"] / point["n"] for point in points]
    return {**line, "points": points, "area": curve_area([point["latency_s"] for point in points], rates)}
