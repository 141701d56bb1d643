"""The time that the loop leaves a chunk, by rate, by how chunks are executed, by what a user allows."""

import pytest

from vivace.deploy.loop.settings import LoopSettings
from vivace.eval.tune.budget import Budget
from vivace.eval.tune.candidate import Candidate
from vivace.eval.tune.space import space_of
from vivace.policies.errors import BadSetting
from vivace.policies.load import stage
from vivace.policies.spec import ChunkExecution
from vivace.policies.tiny.policies import tiny_dp_transformer

HZ = 20.0


@pytest.fixture(scope="module")
def staged():
    """Seven actions of a chunk, of which four are executed."""
    return stage(tiny_dp_transformer())


def left(staged, mode="async", seconds=None, hz=HZ, loop=None, **execution):
    """Seconds that a chunk may take."""
    budget = Budget(LoopSettings(mode=mode, **(loop or {})), staged.spec, seconds, hz)
    return budget.of(Candidate((), ChunkExecution(**execution)))


@pytest.mark.parametrize(
    ("execution", "ticks"),
    [
        ({}, 2),
        ({"n_action_steps": 1}, 0),
        ({"n_action_steps": 2}, 1),
        ({"n_action_steps": 7}, 3),
        ({"request_at": 4}, 2),
        ({"request_at": 1}, 1),
        ({"n_action_steps": 6, "request_at": 2}, 2),
    ],
)
def test_a_rate_leaves_a_chunk_half_of_its_fresh_actions(staged, execution, ticks):
    assert left(staged, **execution) == ticks / HZ
    own = execution.get("n_action_steps", 4)
    ways = [one for one in space_of(staged).executions(is_sync=False) if one.n_action_steps == own]
    assert ticks or not ways, "a way that leaves no time is not offered"


def test_a_way_to_execute_chunks_that_is_chosen_keeps_the_rate_whatever_the_budget_is(staged):
    """One action a chunk, the next asked for at once: all are stale, and vivace run refuses such a plan."""
    assert left(staged, seconds=0.5) == 0.5, "the policy's own way is the user's business"
    assert left(staged, seconds=0.5, n_action_steps=1) == 0
    assert left(staged, seconds=0.5, request_at=4) == 2 / HZ
    assert left(staged, seconds=0.03, request_at=4) == 0.03
    assert left(staged, seconds=0.5, hz=None, n_action_steps=1) == 0.5, "nobody says a rate"
    assert left(staged, mode="sync", seconds=0.5, n_action_steps=1) == 0.5, "the robot waits"
    assert left(staged, mode="sync", n_action_steps=1) == 1 / HZ
    assert left(staged, seconds=0.5, loop={"n_action_steps": 1}) == 0.5, "asked for by name"
    assert ChunkExecution(n_action_steps=1) in space_of(staged).executions(is_sync=True)
    with pytest.raises(BadSetting, match="nobody says at which rate"):
        Budget(LoopSettings(), staged.spec)
