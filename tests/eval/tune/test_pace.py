"""Pacing: clocks and costs are made up."""

from dataclasses import replace

import pytest

from vivace.eval.tune.candidate import Candidate, Origin, Status, Trial
from vivace.eval.tune.counting import beaten
from vivace.eval.tune.pace import Deadline, EpisodeCost, affordable, affordable_samples, stakes
from vivace.eval.tune.store import Store


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_what_is_left_of_a_share_and_what_was_cut():
    clock, told = Clock(), []
    deadline = Deadline(600.0, clock, told.append)
    clock.now_s += 150
    assert deadline.left_s() == 450
    assert deadline.left_s(0.35) == 60
    deadline.share_from_now()
    assert deadline.left_s() == 450
    assert deadline.left_s(0.5) == 225, "what was needed to begin is nobody's share"
    deadline.cut("half of it")
    assert deadline.cuts == ["half of it"]
    assert told == ["cut short: half of it"]


@pytest.mark.parametrize(
    ("chunk_s", "left_s", "n"), [(0.1, 600.0, 16), (5.0, 170.0, 2), (5.0, 1.0, 1), (0.0, 1.0, 16)]
)
def test_slow_chunks_are_compared_on_fewer_observations(chunk_s, left_s, n):
    assert affordable_samples(16, chunk_s, left_s) == n


@pytest.mark.parametrize(("left_s", "n"), [(100.0, 8), (20.0, 6), (13.0, 2), (1.0, 1)])
def test_as_many_are_timed_as_time_allows_and_what_has_to_be_beaten_always(left_s, n):
    def choose(places):
        return [8.0, *[2.0] * places]

    assert affordable(choose, 8, lambda cost_s: cost_s, left_s) == choose(n)


def test_an_episode_costs_its_world_and_the_more_the_slower_its_chunks_are():
    cost = EpisodeCost(world_s=0.4, policy_s=0.1, latency_s=0.02)
    assert cost.of(0.02) == pytest.approx(0.5)
    assert cost.of(0.4) == pytest.approx(2.4)
    assert EpisodeCost(**cost.to_json()) == cost


def shared(left_s, **changed):
    asked = dict(rivals_s=[1.0, 1.0], others_s=[1.0] * 8, ways_s=[], confirmed_s=[2.0, 1.0, 1.0], slow_s=[],
                 n_episodes=100, n_confirm=100, at_once=10)  # fmt: skip
    return stakes(left_s, **asked | changed)


def test_with_all_the_time_everyone_races_and_the_confirmation_has_what_it_needs():
    found = shared(10_000)
    assert found.n_others == 8
    assert found.confirm_s == 400
    assert found.last_s == 40


def test_with_less_time_fewer_race_so_that_they_meet_enough_episodes():
    found = shared(600)
    assert found.confirm_s == 300, "at most half of what is left"
    assert found.n_others == 8
    assert [shared(left_s).n_others for left_s in (500, 300, 200)] == [6, 3, 1]
    assert shared(1).n_others == 1, "a race of what has to be beaten alone finds nothing"
    assert shared(200, n_episodes=5).n_others == 8, "they race no longer than there are episodes"


def test_ways_to_execute_chunks_have_their_race_of_what_the_confirmation_leaves():
    assert shared(10_000, ways_s=[2.0] * 4).ways_s == 30 * 8, "as many episodes as tell them apart"
    found = shared(600, ways_s=[2.0] * 4)
    assert found.ways_s == pytest.approx(0.3 * 300)
    assert found.n_others < shared(600).n_others


def test_what_is_too_slow_to_be_the_plan_takes_no_half_of_the_time():
    """Slow as it is, as trained mostly solves little, and is given up after a few episodes."""
    slow = {"slow_s": [40.0]}
    assert shared(100_000, **slow).confirm_s == 100 * (4 + 40), "all episodes where there is time"
    assert shared(6_000, **slow).confirm_s == 400 + 0.25 * 6_000
    assert shared(4_000, **slow).confirm_s == 400 + 30 * 40
    assert shared(1_000, **slow).confirm_s == 500, "half of what is left is the race's"
    assert shared(100_000, **slow).last_s == 10 * (4 + 40)


def drawn(is_drawn: bool, n: int = 0) -> Candidate:
    """A candidate that was drawn by lot, or was not."""
    some = (Candidate((("step_schedule", {"n_steps": 100 * n + i}),)) for i in range(100))
    return next(one for one in some if one.is_drawn == is_drawn)


def counted(n: int, flops: int, error: float, **changed) -> Trial:
    candidate = drawn(False, n)
    trial = Trial(
        candidate=candidate, status=Status.COUNTED, flops=flops, action_error=error, first_error=error
    )
    return replace(trial, **changed)


def test_a_candidate_that_some_others_clearly_beat_is_not_looked_at_further():
    poor = counted(0, 100, 0.2)
    better = [counted(n, 100 - n, 0.1) for n in (1, 2, 3)]
    assert beaten(poor, better).startswith("3 others compute no more and are nearer")
    assert not beaten(poor, better[:2]), "two may be luck"
    assert not beaten(poor, [replace(one, flops=101) for one in better]), "it computes less"
    assert not beaten(poor, [replace(one, first_error=0.19) for one in better]), "not clearly"
    assert not beaten(poor, [replace(one, follows=True) for one in better]), "theirs are of first chunks"
    assert beaten(replace(poor, follows=True), [replace(one, follows=True) for one in better])
    assert not beaten(poor, [replace(one, status=Status.FAILED) for one in better])
    faster = replace(poor, candidate=Candidate((*poor.candidate.requests, ("precision", {}))))
    assert not beaten(faster, better), "it may be faster than they are; a clock knows"
    rival = replace(poor.candidate, origin=Origin.BASELINE)
    assert not beaten(replace(poor, candidate=rival), better), "what has to be beaten is looked at whole"
    assert not beaten(replace(poor, candidate=drawn(True)), better), "nor is one that was drawn by lot"


def test_an_eighth_of_candidates_is_drawn_by_lot():
    some = [Candidate((("step_schedule", {"n_steps": n}),)) for n in range(800)]
    assert 70 <= sum(one.is_drawn for one in some) <= 130


def test_what_a_search_is_paced_by_is_measured_once(tmp_path):
    asked = []

    def measure():
        asked.append(1)
        return {"n": len(asked) - 1} if len(asked) > 1 else {}

    assert Store(tmp_path).settled("samples", measure) == {}, "it could not be told yet"
    assert Store(tmp_path).settled("samples", measure) == {"n": 1}
    assert Store(tmp_path).settled("samples", measure) == {"n": 1}
    assert Store(tmp_path).settled("episode", lambda: {"s": 2.0}) == {"s": 2.0}
    assert Store(tmp_path).settled("samples", measure) == {"n": 1}
