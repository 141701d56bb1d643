"""Torch's threads are chosen by what was measured, and told."""

import pytest
import torch

from vivace.eval.measure import threads
from vivace.eval.measure.latencies import Notes
from vivace.eval.measure.threads import choose_threads, restored_threads, thread_counts
from vivace.policies.session import Session


@pytest.fixture(autouse=True)
def _eight_cores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where measurements are kept
    with restored_threads():
        torch.set_num_threads(8)
        yield


def measured(seconds, asked):
    """Stands for `interleaved`; times come from the test."""

    def time_them(runs, rounds, synchronise):
        asked.append(sorted(runs))
        for run in runs.values():
            run()
        return {name: [seconds[name]] * rounds.repeats for name in runs}

    return time_them


BUSY = {"plain 1": 15.0, "plain 2": 22.0, "plain 4": 40.0, "plain 8": 89.0,
        "accelerated 1": 3.0, "accelerated 2": 4.0, "accelerated 4": 6.0, "accelerated 8": 9.0}  # fmt: skip


def test_the_accelerated_run_decides_and_the_choice_is_kept(tiny_loaded, capsys):
    sessions, asked = {name: Session(tiny_loaded) for name in ("plain", "accelerated")}, []
    found = choose_threads(sessions, None, time_them=measured(BUSY, asked))
    assert (found["used"], torch.get_num_threads()) == (1, 1)
    assert found["latency_s"]["accelerated"] == {"1": 3.0, "2": 4.0, "4": 6.0, "8": 9.0}
    assert "torch threads: 1 (a chunk of accelerated with 1: 3000.0 ms, 2: 4000.0" in capsys.readouterr().err
    assert asked == [sorted(BUSY)]
    torch.set_num_threads(8)
    assert choose_threads(sessions, None, time_them=measured({}, asked)) == found
    assert len(asked) == 1, "a second run meets the same threads"
    torch.set_num_threads(8)
    idle = BUSY | {"accelerated 2": 1.0}
    assert choose_threads(sessions, None, Notes(refresh=True), measured(idle, asked))["used"] == 2


def test_slow_chunks_are_timed_once_and_quick_ones_a_few_times(tiny_loaded):
    given = []

    def time_them(runs, rounds, synchronise):
        given.append(rounds)
        return {name: [1.0] for name in runs}

    choose_threads({"plain": Session(tiny_loaded)}, None, time_them=time_them)
    (rounds,) = given
    assert rounds.warmup == 0
    assert rounds.are_over("plain 1", [9.0])
    assert [rounds.are_over("plain 1", [0.01] * n) for n in (1, 3, 4)] == [False, False, True]


def test_fewer_threads_win_a_draw(tiny_loaded):
    times = dict.fromkeys(BUSY, 1.0)
    assert choose_threads({"plain": Session(tiny_loaded)}, None, time_them=measured(times, []))["used"] == 1


def test_what_is_asked_for_is_used_unmeasured(tiny_loaded):
    asked = []
    found = choose_threads({"plain": Session(tiny_loaded)}, 3, time_them=measured({}, asked))
    assert (found, torch.get_num_threads(), asked) == ({"used": 3, "latency_s": {}}, 3, [])


@pytest.mark.parametrize(("cores", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])])
def test_no_more_threads_than_torch_has_cores_are_tried(cores, counts, tiny_loaded):
    torch.set_num_threads(cores)
    assert thread_counts() == counts
    if cores == 1:  # nothing to choose from
        found = threads.choose_threads({"plain": Session(tiny_loaded)}, None, time_them=measured({}, []))
        assert found == {"used": 1, "latency_s": {}}


def test_threads_are_left_as_they_were():
    with restored_threads():
        torch.set_num_threads(2)
    assert torch.get_num_threads() == 8
