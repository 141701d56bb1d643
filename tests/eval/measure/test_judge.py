"""What is chosen among many is run again on fresh seeds, and said so."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from vivace.eval.measure.judge import add_success, check_judging, chosen
from vivace.eval.options import EnvOptions
from vivace.eval.report.bench_table import confirmations, spread_text, table
from vivace.eval.simulation.episode import EpisodeResult
from vivace.eval.verbs.bench import BenchCommand, BenchOptions
from vivace.policies.errors import BadSetting


def episode(success: bool, score: float | None = None) -> EpisodeResult:
    none = {"time_to_success_s": None, "ticks": {}, "deadline_misses": 0, "interventions": 0}
    return EpisodeResult(seed=0, success=success, steps=1, latencies_s=(), score=score, **none)


WORLD = EnvOptions(type="metaworld")


def row(name: str, latency_s: float, successes: int) -> dict:
    return {"name": name, "label": name.upper(), "latency_s": latency_s, "successes": successes, "n": 10,
            "success": successes / 10}  # fmt: skip


ROWS = [
    row("plain", 1.0, 9),
    row("slow", 0.9, 5),
    row("bac", 0.5, 9),
    row("fast", 0.1, 3),
    row("worse", 0.2, 3),
]


def test_the_front_of_latency_and_success_is_chosen_or_what_is_named():
    assert chosen(ROWS) == ["bac", "fast"]
    assert chosen([ROWS[0], ROWS[3], {**ROWS[3], "name": "twin"}]) == ["plain", "fast", "twin"]
    assert chosen(ROWS, "slow") == ["slow"]


def test_success_is_paired_with_the_plain_loop_on_the_same_seeds():
    rows = [{"name": "plain"}, {"name": "bac"}]
    plain = {("a", 1): episode(True), ("a", 2): episode(False), ("b", 1): episode(False)}
    add_success(rows, {"plain": plain, "bac": plain | {("b", 1): episode(True)}})
    assert [(found["successes"], found["n"], found["tasks"]) for found in rows] == [
        (1, 3, {"a": 1, "b": 0}),
        (2, 3, {"a": 1, "b": 1}),
    ]
    assert rows[1]["difference"] == pytest.approx(1 / 3)
    assert "score" not in rows[1], "the world gives none"


def scored(**scores):
    """Rows by name, each with its scores on the seeds from 0 on; none ever succeeds."""
    rows = [row(name, latency_s, 0) for latency_s, name in zip((1.0, 0.5, 0.1), scores, strict=False)]
    episodes = {
        name: {("pusht", i): episode(False, it) for i, it in enumerate(scores[name])} for name in scores
    }
    add_success(rows, episodes)
    return rows


def test_scores_are_compared_on_the_same_seeds_as_scipy_does():
    plain, bac = [0.1, 0.5, 0.9, 0.3], [0.2, 0.6, 0.95, 0.5]
    rows = scored(plain=plain, bac=bac)
    assert rows[1]["score"]["mean"] == pytest.approx(0.5625)
    pair = rows[1]["score_difference"]
    assert pair["difference"] == pytest.approx(0.1125)
    assert pair["p_value"] == pytest.approx(ttest_rel(bac, plain).pvalue)
    low, high = pair["interval"]
    half = 3.182446 * np.std(np.subtract(bac, plain), ddof=1) / 2  # t of 3 degrees, 97.5 %
    assert (low, high) == pytest.approx((0.1125 - half, 0.1125 + half), rel=1e-5)
    assert rows[0]["score_difference"]["interval"] == (0.0, 0.0)
    assert rows[0]["score_difference"]["p_value"] == 1.0


def test_where_nobody_succeeds_the_score_decides_what_is_chosen():
    rows = scored(plain=[0.5, 0.5], bac=[0.6, 0.6], fast=[0.2, 0.4])
    assert chosen(rows) == ["bac", "fast"]
    rows[0] |= {"successes": 1, "success": 0.5}
    assert chosen(rows) == ["plain", "fast"], "success counts as soon as there is any"


def test_a_score_that_some_episodes_lack_is_none():
    assert not any("score" in one for one in scored(plain=[0.5, None], bac=[0.5, None]))


def test_scores_are_told_in_the_table_and_when_they_are_confirmed():
    measured = {"ratio": 1.0, "ratio_interval": (1.0, 1.0), "action_error": 0.0, "gflop": None}
    rows = [one | measured for one in scored(plain=[0.5, 0.5], bac=[0.6, 0.8])]
    made = table(rows, {})
    assert made.head[-2:] == ["mean best score (95 %)", "- plain (95 %)"]
    assert made.rows[1][-2:] == ["0.700 (-0.571 … 1.971)", "+0.200 (-1.071 … +1.471)"]
    for one, again in zip(rows, scored(plain=[0.5, 0.5], bac=[0.6, 0.8]), strict=True):
        one["confirmed"] = again | {"tried": 1, "seed": 9}
    (line,) = confirmations(rows)
    assert line.endswith("; score 0.700, +0.200 (-1.071 … +1.471) to plain, p = 0.3)")


def test_a_confirmation_tells_both_counts_and_how_many_were_tried():
    again = {"successes": 7, "n": 10, "difference": -0.1, "p_value": 0.5, "tried": 24, "seed": 110}
    rows = [ROWS[0] | {"confirmed": again | {"successes": 8}}, ROWS[2] | {"confirmed": again}, ROWS[3]]
    (line,) = confirmations(rows)
    assert line == (
        "BAC: best of 24 tried: 9 of 10 when chosen, 7 of 10 confirmed on fresh seeds from 110 "
        "(plain 8 of 10, difference -10.0%, p = 0.5)"
    )


@pytest.mark.parametrize(
    ("options", "fitted", "message"),
    [
        ({"n_episodes": 5, "confirm": -1}, [], "bench.confirm=-1; 0"),
        ({"n_episodes": 5, "choose": "bca"}, [], "bench.choose names 'bca'; the plans: plain, bac"),
        ({"choose": "bac"}, [], "none is measured; add --bench.n_episodes"),
        ({"confirm": 5}, [], "none is measured; add --bench.n_episodes"),
        ({"n_episodes": 5}, [1004], "episode 1004 was calibrated on"),
        ({"n_episodes": 5}, [1009], "episode 1009 was calibrated on"),
    ],
)
def test_what_cannot_be_judged_is_refused(options, fitted, message):
    command = BenchCommand(seed=1000, env=WORLD, bench=BenchOptions(**options))
    with pytest.raises(BadSetting, match=message):
        check_judging(command, ["plain", "bac"], fitted)


def test_episodes_beside_those_fitted_to_are_not_refused():
    command = BenchCommand(seed=1000, env=WORLD, bench=BenchOptions(n_episodes=5, confirm=0, choose="bac"))
    check_judging(command, ["plain", "bac"], [999, 1005])


def test_the_table_shows_spreads_and_rows_of_any_policy():
    opaque = ROWS[0] | {"ratio": 1.0, "ratio_interval": (1.0, 1.0), "action_error": 0.0, "gflop": None}
    compiled = opaque | {"name": "compile", "action_error": None, "tokens_per_s": 10.0}
    assert spread_text({"passes": 7.9, "passes_spread": [4, 11]}, "passes", 1) == "7.9 (4.0 … 11.0)"
    assert spread_text(opaque, "action_error", 4) == "0.0000"
    assert spread_text(compiled, "action_error", 4) == "as eager"
    made = table([opaque, compiled], {"bac": "updates=11, but"})
    assert len(made.rows) == 2
    assert made.notes == ["left out: bac: updates=11, but"]
