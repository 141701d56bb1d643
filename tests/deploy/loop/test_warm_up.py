"""What a policy takes is known before the robot moves, and a rate it cannot keep is refused."""

import re

import numpy as np
import pytest

from vivace.deploy.loop.clock import VirtualClock
from vivace.deploy.loop.guard import ActionGuard
from vivace.deploy.loop.loop import build_loop
from vivace.deploy.loop.settings import LoopSettings, Mode
from vivace.deploy.loop.warm_up import check_rate, warm_up
from vivace.deploy.workers.worker import BatchedInference, SimulatedWorker
from vivace.policies.errors import BadSetting
from vivace.policies.spec import ActionKind, Chunk, Observation, PolicySpec

KEY = "observation.state"
SPEC = PolicySpec(
    type="fake",
    action_dim=2,
    horizon=9,
    n_obs_steps=2,
    n_action_steps=4,
    observation_shapes={KEY: (3,)},
    action_kinds=(ActionKind.DELTA,) * 2,
    blocks=(),
)
HZ = 10.0


class Worker:
    """There at once; keeps what it was asked."""

    errors: tuple[str, ...] = ()

    def __init__(self):
        self.asked = []

    def submit(self, request):
        self.asked.append(request)

    def poll(self, now):
        return Chunk(np.zeros((4, 2)), 0, self.asked[-1].time_s + 0.25)


def test_a_chunk_is_cut_short_where_the_loop_would_cut_it():
    for anytime in (False, True):
        worker = Worker()
        assert warm_up(worker, SPEC, "go", 3, anytime=anytime) == pytest.approx([0.25] * 3)
        assert [request.deadline_s is not None for request in worker.asked] == [anytime] * 3
        assert {request.task for request in worker.asked} == {"go"}
        assert worker.asked[0].observations[KEY].shape == (2, 3)


def misses(latency_s, n_action_steps):
    """Deadlines that a loop misses at that latency, after the first chunk."""

    class Still:
        def observe(self):
            return Observation({KEY: np.zeros(3)}, 0, 0.0)

        def act(self, action):
            pass

    settings = LoopSettings(mode=Mode.ASYNC, n_action_steps=n_action_steps)
    inference = BatchedInference(lambda observations, keys: np.zeros((1, 8, 2), np.float32))
    loop = build_loop(
        Still(), SimulatedWorker(inference, lambda n, request: latency_s), ActionGuard(), VirtualClock(),
        settings, SPEC, control_hz=HZ,
    )  # fmt: skip
    for _ in range(60):
        loop.tick()
    return loop.budget.misses - 1


@pytest.mark.parametrize("n_action_steps", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("latency_s", [0.05, 0.1, 0.15, 0.2, 0.21, 0.25, 0.4, 0.41, 0.9])
def test_what_is_refused_is_what_would_miss_every_deadline(n_action_steps, latency_s):
    settings = LoopSettings(mode=Mode.ASYNC, n_action_steps=n_action_steps)
    missed = misses(latency_s, n_action_steps)
    if missed:
        with pytest.raises(BadSetting, match="10 Hz cannot be met: a chunk takes"):
            check_rate(latency_s, HZ, settings, SPEC)
    else:
        check_rate(latency_s, HZ, settings, SPEC)


def test_the_line_says_what_would_help():
    settings = LoopSettings(mode=Mode.RTC, n_action_steps=4)
    with pytest.raises(BadSetting) as raised:
        check_rate(0.3, HZ, settings, SPEC)
    said = str(raised.value)
    assert "a chunk takes 3 ticks (300.0 ms at best), so its 4 fresh actions are used up" in said
    assert "n_action_steps, up to 8" in said
    highest = float(re.search(r"take ([\d.]+) Hz at most", said)[1])
    check_rate(0.3, highest - 0.01, settings, SPEC)
    one = LoopSettings(mode=Mode.ASYNC, n_action_steps=1)
    with pytest.raises(BadSetting, match="take more actions of a chunk"):
        check_rate(0.001, HZ, one, SPEC)


def test_a_loop_that_waits_for_its_chunks_can_act_at_any_rate():
    check_rate(9.0, HZ, LoopSettings(mode=Mode.SYNC, n_action_steps=1), SPEC)
