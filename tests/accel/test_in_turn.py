"""Several ways to one result, timed in turn by a made-up clock."""

from types import SimpleNamespace

import pytest
import torch

from vivace.accel import in_turn


@pytest.mark.parametrize(("scale", "calls"), [(1e-4, 4), (1.0, 1)])
def test_what_takes_a_second_is_timed_once_and_what_is_quick_in_rounds(monkeypatch, scale, calls):
    now_s, ran = [0.0], {"slow": 0, "quick": 0}
    monkeypatch.setattr(in_turn, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))

    def way(name, takes_s):
        def run():
            ran[name] += 1
            now_s[0] += scale * (takes_s + 5 * (ran[name] == 1))  # the first call is slower

        return run

    found = in_turn.least_ms(torch.device("cpu"), 3, way("slow", 2.0), way("quick", 1.0))
    assert ran == {"slow": calls, "quick": calls}
    assert found == pytest.approx(
        [1e3 * scale * (2 + 5 * (calls == 1)), 1e3 * scale * (1 + 5 * (calls == 1))]
    )
