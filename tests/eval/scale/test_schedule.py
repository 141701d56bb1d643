"""No unit is lost and none is run twice, however many workers die, at the size of a cluster."""

import heapq
import random
from collections import Counter

import pytest

from vivace.eval.scale.schedule import Died, Done, Failed, Ready, Result, Schedule
from vivace.policies.errors import WorkerLost

EPISODES = 10


class MadeUpCrew:
    """Workers in virtual time: each unit takes a while, and now and then a worker dies in it.

    Args:
        seed: of the times and the deaths.
        odds: of dying in a unit.
        killers: units that kill whoever runs them.
        stillborn: how many workers die while they load.
    """

    def __init__(self, seed, odds=0.0, killers=(), stillborn=0):
        self.random, self.odds, self.killers, self.stillborn = random.Random(seed), odds, killers, stillborn
        self.events, self.time_s, self.begun, self.busy = [], 0.0, 0, {}
        self.most_at_work = 0

    def at(self, delay_s, worker, news):
        heapq.heappush(self.events, (self.time_s + delay_s, self.begun, len(self.events), worker, news))

    def begin(self):
        self.begun += 1
        lives = self.begun > self.stillborn
        self.at(self.random.uniform(5, 20), self.begun, Ready() if lives else Died("was ended by SIGKILL"))
        return self.begun

    def give(self, worker, unit):
        assert worker not in self.busy, "one unit at a time"
        self.busy[worker] = unit
        self.most_at_work = max(self.most_at_work, len(self.busy))
        dies = unit in self.killers or self.random.random() < self.odds
        end_s, n = self.random.expovariate(1 / 60), self.random.randrange(EPISODES) if dies else EPISODES
        for i in range(n):
            self.at(end_s * (i + 1) / (EPISODES + 1), worker, Result((unit, i)))
        self.at(end_s, worker, Died("was ended by SIGKILL") if dies else Done(end_s))

    def news(self):
        self.time_s, _, _, worker, news = heapq.heappop(self.events)
        if isinstance(news, Done | Died):
            self.busy.pop(worker, None)
        return [(worker, news)]

    def close(self): ...


def run(crew, n_workers, n_units):
    found, done = Counter(), Counter()

    def on_news(unit, what):
        if isinstance(what, tuple):
            assert what[0] == unit, "a result of another unit"
            found[what] += 1
        else:
            done[unit] += 1

    lines = []
    given_up = Schedule(crew, n_workers, lines.append).run(range(n_units), on_news)
    return found, done, given_up, lines


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2))])
def test_a_thousand_workers_with_random_deaths(seed):
    crew = MadeUpCrew(seed, odds=0.02, stillborn=5)
    found, done, given_up, lines = run(crew, 1000, 8000)
    assert set(done) | set(given_up) == set(range(8000))
    assert not set(done) & set(given_up)
    assert set(done.values()) == {1}, "none is done twice"
    assert len(given_up) <= 15, "0.02 of them die, and 0.02 of these again"
    assert all(found[unit, i] >= 1 for unit in done for i in range(EPISODES))
    assert 980 <= crew.most_at_work <= 995, "five did not live to begin"
    assert sum("while it loaded the policy" in line for line in lines) >= 5


def test_a_unit_that_kills_its_worker_twice_is_given_up_and_the_others_are_not():
    crew = MadeUpCrew(0, killers={3, 17})
    _, done, given_up, lines = run(crew, 4, 40)
    assert given_up == {3: "was ended by SIGKILL", 17: "was ended by SIGKILL"}
    assert sorted(done) == sorted(set(range(40)) - {3, 17})
    assert lines == [
        f"a worker died of {unit} (was ended by SIGKILL); another one runs them" for unit in (3, 17)
    ]
    assert crew.begun == 4 + 4, "each of the dead was replaced"


def test_workers_stay_for_the_next_units():
    crew = MadeUpCrew(0)
    schedule, done = Schedule(crew, 3), Counter()
    for _ in range(5):
        assert schedule.run(range(7), lambda unit, what: done.update([unit] * isinstance(what, float))) == {}
    assert (crew.begun, set(done.values())) == (3, {5})


def test_without_any_worker_that_lives_the_run_ends():
    with pytest.raises(WorkerLost, match="no worker lived to run an episode, the last one was ended by SIGK"):
        run(MadeUpCrew(0, stillborn=100), 4, 10)


def test_what_a_unit_raises_is_raised():
    class Refusing(MadeUpCrew):
        def give(self, worker, unit):
            self.at(1, worker, Failed(ValueError(f"unit {unit}")))

    with pytest.raises(ValueError, match="unit 0"):
        run(Refusing(0), 2, 5)
