"""Work is counted without computing it; what goes by values is run, and nothing of it stays behind."""

import pytest
import torch
from lerobot_policies import build

from vivace.accel import flops
from vivace.accel.flops import count_by_shapes, count_flops
from vivace.accel.shapes import ShapesAlone, without_values
from vivace.policies.errors import PlanMismatch
from vivace.policies.execution import as_trained, sample
from vivace.policies.load import stage
from vivace.policies.sampling.noise import EpisodeNoise


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """A miniature act, and what it observed."""
    policy = build("act", tmp_path_factory.mktemp("act"))
    random = torch.Generator().manual_seed(0)
    shapes = {key: feature.shape for key, feature in policy.config.input_features.items()}
    return as_trained(stage(policy)), {
        key: torch.rand(1, 1, *shape, generator=random) for key, shape in shapes.items()
    }


def test_what_meets_an_observation_of_shapes_is_not_computed_and_all_else_is(seen):
    execution, batch = seen
    with ShapesAlone():
        one = without_values(batch)
        assert all(value.is_meta for value in one.values())
        found = execution.policy.encode(one)
        assert (torch.ones(2) + 1).tolist() == [2, 2]
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(found) if isinstance(leaf, torch.Tensor)]
    assert any(leaf.is_meta for leaf in leaves)


def test_prompts_and_masks_keep_their_values():
    batch = {"tokens": torch.arange(3)[None], "mask": torch.ones(1, 3, dtype=torch.bool), "task": ["lift it"]}
    assert without_values(batch) == batch


def test_it_counts_as_running_does_and_leaves_the_policy_as_it_was(seen, monkeypatch):
    execution, batch = seen
    before, counted = sample(execution, batch, EpisodeNoise([(0, 0)])), count_flops(execution, batch)
    asked = []

    def once(execution, batch):
        asked.append(1)
        return count_flops(execution, batch)

    monkeypatch.setattr(flops, "count_flops", once)
    assert count_by_shapes(execution, batch) == counted
    assert len(asked) == 1, "it was not run after all"
    assert torch.equal(sample(execution, batch, EpisodeNoise([(0, 0)])), before)


@pytest.mark.parametrize(
    "ask", [lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x[x > 0], lambda x: x.numpy()]
)
def test_what_goes_by_values_is_run_after_all(seen, monkeypatch, ask):
    execution, batch = seen
    monkeypatch.setattr(flops, "count_flops", lambda execution, batch: ask(next(iter(batch.values()))))
    assert ask(next(iter(batch.values()))) is not None
    assert count_by_shapes(execution, batch) is not None


def test_what_is_wrong_with_the_policy_is_not_run_twice(seen, monkeypatch):
    def refuse(execution, batch):
        raise PlanMismatch("it does not fit")

    monkeypatch.setattr(flops, "count_flops", refuse)
    with pytest.raises(PlanMismatch, match="it does not fit"):
        count_by_shapes(*seen)
