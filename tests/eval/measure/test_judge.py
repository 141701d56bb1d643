"""What is chosen among many is run again on fresh seeds, and said so."""

import pytest

from vivace.eval.measure.judge import add_success, check_judging, chosen
from vivace.eval.options import EnvOptions
from vivace.eval.report.bench_table import confirmations, spread_text, table
from vivace.eval.verbs.bench import BenchCommand, BenchOptions
from vivace.policies.errors import BadSetting

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
    plain = {("a", 1): True, ("a", 2): False, ("b", 1): False}
    add_success(rows, {"plain": plain, "bac": plain | {("b", 1): True}})
    assert [(found["successes"], found["n"], found["tasks"]) for found in rows] == [
        (1, 3, {"a": 1, "b": 0}),
        (2, 3, {"a": 1, "b": 1}),
    ]
    assert rows[1]["difference"] == pytest.approx(1 / 3)


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
