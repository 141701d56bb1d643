"""G17: how many threads compute a chunk is measured, and said."""

import pytest

from vivace.eval.live.settings import InferenceOptions, RunCommand
from vivace.eval.live.threads import choose_threads, fastest
from vivace.policies.errors import BadSetting


def test_as_many_as_are_fastest_and_what_was_measured_is_told():
    times = {1: [0.02, 0.9, 0.021], 2: [0.03, 0.03, 0.03]}
    found = fastest([1, 2], times.__getitem__)
    assert (found.n, found.latency_s) == (1, {1: 0.021, 2: 0.03})
    assert found.told == "measured (1: 21.0 ms, 2: 30.0 ms); --inference.threads says another"
    assert fastest([1, 2], lambda n: [0.5]).n == 1, "the fewest of equals"


def test_a_number_with_which_a_chunk_takes_too_long_is_left_out_unless_all_do():
    def timed(n):
        if n < 4:
            raise BadSetting("a chunk took more than 5.0 s")
        return [4.0]

    assert fastest([1, 2, 4], timed).latency_s == {4: 4.0}
    with pytest.raises(BadSetting, match="took more than 5"):
        fastest([1, 2], timed)


def test_what_is_given_is_taken_and_one_core_needs_no_measuring(monkeypatch):
    given = RunCommand(bundle="B", inference=InferenceOptions(threads=3))
    assert (choose_threads(given, {}).n, choose_threads(given, {}).told) == (3, "as given")
    monkeypatch.setattr("vivace.eval.live.threads.cores", lambda: 1)
    assert choose_threads(RunCommand(bundle="B"), {}).n == 1


@pytest.mark.long
def test_each_number_runs_the_bundle_in_a_process_of_its_own(bundle, monkeypatch):
    from vivace.deploy.bundle.bundle import Bundle

    monkeypatch.setattr("vivace.eval.live.threads.cores", lambda: 2)
    found = choose_threads(RunCommand(bundle=str(bundle)), {str(bundle): Bundle.load(bundle)})
    assert set(found.latency_s) == {1, 2}
    assert found.n in (1, 2)
