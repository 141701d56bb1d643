"""Which recorded episodes are for calibration, and which for judgement."""

from types import SimpleNamespace

import pytest

from vivace.eval.recordings.recording import halves
from vivace.policies.errors import BadSetting


def recording(n: int) -> SimpleNamespace:
    return SimpleNamespace(name="cups", episodes=tuple(range(n)))


@pytest.mark.parametrize("n", [2, 3, 10])
def test_no_episode_is_on_both_sides_and_none_is_left_out(n):
    fitted, judged = halves(recording(n), [], seed=1)
    assert sorted(fitted + judged) == list(range(n))
    assert abs(len(fitted) - len(judged)) <= 1
    assert halves(recording(n), [], seed=1) == (fitted, judged)
    assert n < 10 or halves(recording(n), [], seed=2) != (fitted, judged)


def test_only_those_named_are_taken():
    fitted, judged = halves(recording(10), [4, 2, 9], seed=0)
    assert sorted(fitted + judged) == [2, 4, 9]


@pytest.mark.parametrize(("n", "chosen", "message"), [
    (10, [3, 12], "names episode 12; cups has 10, from 0 to 9"),
    (1, [], "cups gives 1 episode, and what a plan is fitted to it is not judged on; 2 or more are needed"),
    (10, [3], "cups gives 1 episode"),
])  # fmt: skip
def test_too_few_episodes_are_refused(n, chosen, message):
    with pytest.raises(BadSetting, match=message):
        halves(recording(n), chosen, seed=0)
