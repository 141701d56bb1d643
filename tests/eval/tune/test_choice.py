"""Who is timed and who races: what follows chunks before has an error that says nothing."""

from types import SimpleNamespace

import pytest

from vivace.eval.tune.candidate import Candidate, Origin, Status, Trial
from vivace.eval.tune.choice import Rule
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


def test_a_study_does_not_learn_from_errors_that_say_nothing():
    study = Study(SimpleNamespace(choices_of=lambda _: {}), seed=0)  # type: ignore[arg-type]
    for one in (*FOLLOWING, PLAIN[0]):
        study.tell(one)
    assert len(study._study.best_trials) == 1
    assert study._told == {one.key for one in (*FOLLOWING, PLAIN[0])}, "but it does not ask for them again"
