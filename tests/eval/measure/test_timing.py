"""Interleaved timing, by a clock that the test turns."""

import pytest

from vivace.eval.measure.timing import Rounds, interleaved, shared
from vivace.policies.errors import BadSetting


class Clock:
    """Time passes only in what is timed."""

    def __init__(self):
        self.now_s, self.calls = 0.0, []

    def run(self, name, seconds):
        def timed():
            self.calls.append(name)
            self.now_s += seconds

        return timed

    def times(self, seconds, rounds, **options):
        runs = {name: self.run(name, each) for name, each in seconds.items()}
        return interleaved(runs, rounds, now=lambda: self.now_s, **options)


def test_every_run_is_timed_once_a_round():
    clock = Clock()
    times = clock.times({"slow": 3.0, "fast": 1.0}, Rounds(repeats=4))
    assert times == {"slow": [3.0] * 4, "fast": [1.0] * 4}
    assert [sorted(clock.calls[i : i + 2]) for i in range(0, 10, 2)] == [["fast", "slow"]] * 5


def test_a_p99_is_measured_as_far_as_time_allows():
    clock = Clock()
    seconds = {"plain": 1.0, "accelerated": 0.1, "row": 0.5}
    rounds = Rounds(repeats=5, more={"plain": 100, "accelerated": 100}, limit_s=20.0)
    times = clock.times(seconds, rounds)
    assert {name: len(found) for name, found in times.items()} == {"plain": 20, "accelerated": 100, "row": 5}
    assert clock.now_s < 2 * 20 + 6, "slow rows do not make it endless"
    very_slow = Clock().times({"plain": 60.0}, Rounds(repeats=5, more={"plain": 100}, limit_s=20.0))
    assert len(very_slow["plain"]) == 5
    assert rounds.most == 100


def test_two_runs_are_compared_in_the_rounds_they_share():
    assert shared([1.0, 2.0, 3.0], [4.0, 5.0]) == ([1.0, 2.0], [4.0, 5.0])


def test_nothing_timed_is_refused():
    with pytest.raises(BadSetting, match="bench.repeats=0; at least 1 timed round is needed"):
        Rounds(repeats=0)
