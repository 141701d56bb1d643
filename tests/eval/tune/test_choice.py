"""Who is timed and who races: what follows chunks before has an error that says nothing."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from vivace.eval.tune.candidate import Candidate, Origin, Status, Trial
from vivace.eval.tune.choice import Rule
from vivace.eval.tune.counting import beaten, moments_apart, pointless
from vivace.eval.tune.expected import expectation, tail_over_median
from vivace.eval.tune.study import Study


def trial(name: str, ms: float, error: float, follows: bool = False, origin: Origin = Origin.SEARCH) -> Trial:
    return Trial(
        candidate=Candidate(((name, {}),), origin=origin, label=name),
        status=Status.TIMED,
        flops=int(1e9 * ms),
        action_error=error,
        follows=follows,
        latencies_s=(ms / 1e3,) * 5,
    )


PLAIN = [trial(f"plain {i}", 10 * i, 1 / i) for i in range(1, 9)]
FOLLOWING = [trial(f"following {i}", 5 * i, 0.0, follows=True) for i in range(1, 9)]


@pytest.fixture
def rule() -> Rule:
    budget = SimpleNamespace(of=lambda _: 0.1, is_kept=lambda _, times_s: max(times_s) <= 0.1)
    return Rule(budget, is_world=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", ["first", "finalists"])
def test_what_follows_takes_a_quarter_of_the_places_and_comes_last(rule, stage):
    found = getattr(rule, stage)([*FOLLOWING, *PLAIN], 8)
    names = [one.candidate.label for one in found]
    assert sum(one.follows for one in found) == 2
    assert sum(not one.follows for one in found) >= 6
    assert {"plain 8", "following 1", "following 8"} <= set(names), "both ends of either kind"


def test_some_are_drawn_by_lot_however_they_look(rule):
    """The race meets one that is neither near nor fast, the same that was timed for it."""
    poor = [trial(f"poor {i}", 99, 50.0) for i in range(40)]
    some = [*PLAIN, *poor]
    timed = [one for one in rule.first(some, 8) if one in poor]
    assert len(timed) == 1
    assert timed[0].candidate.is_drawn
    assert [one for one in rule.finalists(some, 8) if one in poor] == timed
    alone = Rule(rule.budget, is_world=False)
    assert not [one for one in alone.finalists(some, 8) if one in poor], "nobody would judge it"


def test_nearest_actions_are_those_of_what_can_be_compared(rule):
    assert [one.follows for one in rule.keeping([*FOLLOWING, *PLAIN])] == [False] * 8 + [True] * 8
    assert rule.keeping([*FOLLOWING, *PLAIN])[0].candidate.label == "plain 8"
    assert all(one.follows for one in rule.finalists(FOLLOWING, 8)), "where there is nothing else they race"


EXACT = ("hoist", {})
IN_INT8, IN_HALVES = (("precision", dict.fromkeys(("vision", "language"), it)) for it in ("int8", "bfloat16"))


def running(
    ms: float | None, error: float, *requests, origin: Origin = Origin.SEARCH, work: float = 0
) -> Trial:
    """A trial that takes so long, if it was timed, and computes as much as takes so long as trained."""
    return replace(
        trial("", work or ms, error, origin=origin),
        candidate=Candidate(requests, origin=origin, label="+".join(kind for kind, _ in requests)),
        latencies_s=() if ms is None else (ms / 1e3,) * 5,
    )


def fewer(n: int):
    return "step_schedule", {"n_steps": n}


SLOW = [
    running(400, 0.0, origin=Origin.TRAINED),
    running(380, 0.0, EXACT, origin=Origin.EXACT),
    running(190, 0.004, EXACT, IN_HALVES, work=380),
    running(95, 0.026, EXACT, IN_INT8, work=380),
    running(180, 0.1, EXACT, fewer(5)),
    running(None, 0.05, EXACT, fewer(8), work=320),
    running(None, 0.9, EXACT, fewer(2), work=140),
]


def test_what_computes_the_same_faster_is_timed_although_others_compute_no_more(rule):
    untimed = [replace(one, latencies_s=()) for one in SLOW]
    assert rule.faster_alone(untimed) == untimed[2:4]
    first = {one.key for one in rule.first(untimed, 4)}
    assert first >= {untimed[i].key for i in (0, 1, 2, 3, 6)}


def test_what_would_keep_the_budget_if_it_were_computed_faster_is_found_nearest_first(rule):
    """The gain of int8 is four, that of halves two; a chunk may take 100 ms."""
    pairs = [(one.candidate.label, row.candidate.requests[-1]) for one, row in rule.faster(SLOW)]
    steps = "hoist+step_schedule"
    assert pairs == [(steps, dtype) for dtype in (IN_INT8, IN_HALVES, IN_INT8, IN_HALVES, IN_INT8)]
    errors = [one.action_error for one, _ in rule.faster(SLOW)]
    assert errors == [0.05, 0.1, 0.1, 0.9, 0.9], "eight steps in halves are too slow"


def test_what_keeps_the_budget_is_as_sure_as_any_of_those_that_keep_it(rule):
    """One that was timed more often and is too slow says nothing of them."""
    few, often = trial("few", 80, 0.1), trial("often", 90, 0.2)
    slow = replace(trial("slow", 300, 0.0), latencies_s=(0.3,) * 100)
    assert rule.sure([slow, few, often]) == [few, often]
    often = replace(often, latencies_s=(0.09,) * 10)
    assert rule.sure([slow, few, often]) == [often]
    assert rule.sure([slow]) == []
    eleven = [replace(trial(f"finalist {i}", 50, 0.3), latencies_s=(0.05,) * 88) for i in range(11)]
    best = replace(trial("best", 90, 0.1), latencies_s=(0.09,) * 100)
    assert rule.sure([*eleven, best]) == [best, *eleven], "time was up before the others had a hundred"
    assert rule.sure([few, *eleven]) == eleven


def test_a_study_does_not_learn_from_errors_that_say_nothing():
    study = Study(SimpleNamespace(choices_of=lambda _: {}), seed=0)  # type: ignore[arg-type]
    for one in (*FOLLOWING, PLAIN[0]):
        study.tell(one)
    assert len(study._study.best_trials) == 1
    assert study._told == {one.key for one in (*FOLLOWING, PLAIN[0])}, "but it does not ask for them again"


def test_passes_that_wait_for_each_other_take_time_that_work_does_not_say():
    """Jacobi computes more than greedy decoding and is faster: it has fewer passes."""

    def counted(name: str, work: float, passes: int, is_timed: bool = True) -> Trial:
        ms = 2 + work + 3 * passes
        one = replace(trial(name, ms, 0.0), flops=int(1e9 * work), passes=passes)
        return one if is_timed else replace(one, latencies_s=())

    timed = [
        counted("greedy", 10, 50),
        counted("jacobi", 25, 10),
        counted("layers", 6, 50),
        counted("exit", 12, 2),
    ]
    expected = expectation(timed)
    for one in (counted("few", 9, 4, is_timed=False), counted("many", 5, 40, is_timed=False)):
        wanted = 1e-3 * (2 + one.flops / 1e9 + 3 * one.passes)
        assert expected(one) == pytest.approx(wanted, rel=1e-3)


def test_who_computes_more_in_fewer_passes_is_not_given_up_early():
    known = [replace(trial(f"greedy {n}", 5, 0.0), flops=5, passes=50, first_error=0.01) for n in range(3)]
    jacobi = replace(trial("jacobi", 9, 0.0), flops=9, passes=10, first_error=0.5)
    assert not beaten(jacobi, known)
    assert beaten(replace(jacobi, passes=50), known)


def test_others_are_bred_from_what_nearly_keeps_the_budget_too(rule):
    """What keeps it is useless here; what needs a little less is not."""
    useless = [running(50 + i, 5.0 + i, ("useless", {"i": i})) for i in range(8)]
    nearly = [running(110 + i, 0.1 + i, ("nearly", {"i": i})) for i in range(8)]
    far = [running(900, 0.0, origin=Origin.TRAINED)]
    labels = [one.candidate.label for one in rule.parents([*useless, *nearly, *far], 6)]
    assert labels == ["useless"] * 3 + ["nearly"] * 3
    assert rule.parents([*useless, *far], 6) == useless[:6], "where nothing is near, what keeps it alone"


def counted(name: str, error: float, **known) -> Trial:
    return replace(trial(name, 5, error), status=Status.COUNTED, first_error=error, passes=1, **known)


def test_settings_that_say_nothing_make_no_other_candidate():
    one, same = counted("one pass", 0.03), counted("one pass, tolerant", 0.03)
    assert pointless(same, [one], np.inf) == "it does what one pass does"
    for other in (
        replace(same, passes=2),
        replace(same, action_error=0.031),
        replace(same, follows=True),
        replace(same, candidate=replace(same.candidate, origin=Origin.DEFAULT)),
        replace(same, candidate=Candidate((("precision", {"vision": "int8"}),))),
    ):
        assert not pointless(other, [one], np.inf)


def test_what_acts_on_nothing_that_is_seen_is_not_timed():
    keys = ((1, 0), (1, 8), (2, 0), (3, 0))
    chunks = torch.tensor([0.0, 9.0, 0.3, 0.6])[:, None, None].expand(4, 2, 3)
    apart = moments_apart(chunks, keys)
    pairs = [0.3, 0.6, 8.7, 8.4, 0.3]
    assert apart == pytest.approx(np.mean(pairs)), "chunks of one episode are not compared"
    assert moments_apart(chunks[:2], keys[:2]) == np.inf
    assert not pointless(counted("far", 1.9), [], 1.0)
    assert "of other moments are nearer" in pointless(counted("blind", 2.1), [], 1.0)
    rival = replace(counted("blind", 2.1), candidate=Candidate((("x", {}),), origin=Origin.BASELINE))
    assert not pointless(rival, [], 1.0)


def test_the_nearest_and_the_fastest_race_in_turn_and_what_follows_comes_last(rule):
    kept = [*(trial(f"plain {i}", 10 * i, 1 / i) for i in range(1, 5)), *FOLLOWING[:1]]
    labels = [one.candidate.label for one in rule.contenders(kept)]
    assert labels == ["plain 4", "plain 1", "plain 3", "plain 2", "following 1"]


LAUNCHED = ("cuda_graph", {})
LAUNCH_BOUND = [
    running(208, 0.0, origin=Origin.TRAINED, work=800),
    running(188, 0.0, EXACT, origin=Origin.EXACT, work=790),
    running(80, 0.0, EXACT, LAUNCHED, work=790),
    running(190, 0.004, EXACT, IN_HALVES, work=790),
    running(185, 0.0, EXACT, ("cameras_together", {}), work=790),
    running(126, 0.07, EXACT, fewer(5), work=760),
]
"""As of a GPU that waits for the host: how long a chunk takes says nothing of its work."""


def passes(trials: list[Trial]) -> list[Trial]:
    """A step is a pass."""
    steps = [dict(one.candidate.requests).get("step_schedule", {"n_steps": 10})["n_steps"] for one in trials]
    return [replace(one, passes=n) for one, n in zip(trials, steps, strict=True)]


def without(one: Trial, request: tuple[str, dict]) -> Candidate:
    """Its candidate without a technique."""
    return replace(one.candidate, requests=tuple(it for it in one.candidate.requests if it != request))


def test_what_is_by_far_the_fastest_alone_is_timed_together_with_the_others(rule):
    """Halves gain nothing until the kernels are launched at once; then they are expected to gain that."""
    trials = passes(LAUNCH_BOUND)
    graph, halves = trials[2], trials[3]
    assert rule.together(trials, 4) == [(graph, trials[4]), (graph, halves)]
    assert rule.together(trials, 1) == [(graph, trials[4])]
    slower = replace(graph, latencies_s=(0.18,) * 5)
    assert not rule.together([slower if one is graph else one for one in trials], 4), "nothing stands out"
    no_exact_work = [trials[0], *(replace(one, candidate=without(one, EXACT)) for one in trials[2:])]
    assert len(rule.together(no_exact_work, 4)) == 2, "a policy of which nothing can be left out"
    both = replace(halves, latencies_s=(), candidate=graph.candidate.computed_as(halves.candidate))
    five = replace(trials[5], latencies_s=(), candidate=trials[5].candidate.computed_as(both.candidate))
    multiplied = expectation(trials)(five)
    timed = replace(both, latencies_s=(0.02,) * 5)
    assert timed in rule.faster_alone([*trials, timed])
    assert multiplied == pytest.approx(0.126 * 80 / 188, rel=0.1)
    assert expectation([*trials, timed])(five) == pytest.approx(0.126 * 20 / 188, rel=0.1)


def test_others_are_bred_from_what_would_fit_if_it_were_computed_faster_at_no_error(rule):
    """Ten steps take 80 ms in graphs, where 100 are allowed; what fits by itself is far off."""
    fits = running(90, 2.0, ("layer_skip", {}), work=300)
    trials = passes([*LAUNCH_BOUND, fits])
    assert [one.action_error for one in rule.parents(trials, 6)][:4] == [0.0, 0.0, 0.07, 2.0]
    plain = [one for one in trials if LAUNCHED not in one.candidate.requests]
    assert rule.parents(plain, 4)[0] == trials[-1], "it is the only one that fits"


def test_a_budget_is_held_against_the_slow_ones_of_twenty_chunks(rule):
    """Every seventh chunk takes 1.6 times as long: what takes 80 ms in the median does not keep 100."""
    shape = np.ones(14)
    shape[[3, 10]] = 1.6

    def noisy(name: str, ms: float, error: float) -> Trial:
        return replace(trial(name, ms, error), latencies_s=tuple(1e-3 * ms * shape))

    some = [noisy("near", 80, 0.1), noisy("far", 60, 0.3), noisy("slow", 130, 0.0)]
    assert tail_over_median(some) == pytest.approx(1.6)
    untimed = [replace(trial(f"untimed {ms}", ms, 0.2), latencies_s=()) for ms in (80, 60)]
    assert rule.fitting(some) == [some[1]]
    assert rule.next([*some, *untimed], 8) == [untimed[1]]
    assert [one.candidate.label for one in rule.finalists(some, 8)] == ["far"]
    even = [replace(one, latencies_s=(one.latencies_s[0],) * 14) for one in some]
    assert tail_over_median(even) == 1
    assert rule.fitting(even) == even[:2]
    assert tail_over_median(replace(one, latencies_s=one.latencies_s[:5]) for one in some) == 1, "too few"
