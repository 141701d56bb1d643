"""What is made in the path of a chunk is made where the policy is, once, and is what it was."""

import pytest
import torch

from vivace.policies.execution import as_trained, sample
from vivace.policies.language.action_bins import ActionBins
from vivace.policies.load import stage
from vivace.policies.placement import Placement, dtype_name, most_weights, synchroniser
from vivace.policies.sampling.noise import ChunkNoise, EpisodeNoise, GlobalNoise
from vivace.policies.sampling.noise_schedule import NoiseSchedule
from vivace.policies.sampling.samplers import make_flow_sampler, make_sampler
from vivace.policies.tiny.policies import tiny_dp_transformer

KEYS = ((1, 0), (2, 7), (3, 1))
SHAPE = (3, 5, 2)


def test_noise_drawn_ahead_is_the_noise_drawn_step_by_step():
    like, one_by_one = torch.empty(0), EpisodeNoise(KEYS)
    wanted = [one_by_one(SHAPE, like) for _ in range(4)]
    found = EpisodeNoise(KEYS).ahead(4, SHAPE, like)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))
    assert all(draw.is_contiguous() for draw in found), "as if drawn alone: what multiplies it sees no stride"
    chunk = ChunkNoise(EpisodeNoise(KEYS), 2, SHAPE, like)
    assert all(torch.equal(chunk(SHAPE, like), draw) for draw in wanted), "two of them ahead, the rest behind"


def test_a_stream_of_the_device_is_drawn_from_as_it_is_asked():
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    like = torch.empty(0)
    chunk = ChunkNoise(GlobalNoise(generators[0]), 3, SHAPE, like)
    plain = GlobalNoise(generators[1])
    assert all(torch.equal(chunk(SHAPE, like), plain(SHAPE, like)) for _ in range(3))


@pytest.mark.parametrize(("name", "draws"), [("ddpm", 10), ("ddim", 1), ("dpmsolver++", 1)])
def test_a_sampler_knows_what_a_chunk_draws(name, draws):
    policy = stage(tiny_dp_transformer())
    sampler = policy.resample(name, 10)
    assert sampler.n_draws == draws
    asked = []

    def noise(shape, like):
        asked.append(shape)
        return torch.zeros(shape)

    policy.sampler = sampler
    sample(as_trained(policy), {"observation.state": torch.zeros(1, 2, 5)}, noise)
    assert len(asked) == draws


@pytest.mark.parametrize("sampler", [make_sampler("ddpm", 4, NoiseSchedule()), make_flow_sampler("rk4", 2)])
def test_a_sampler_is_moved_whole_and_once(sampler):
    there = sampler.on(torch.device("meta"))
    assert {step.t.device.type for step in there.steps} == {"meta"}
    assert [step.table for step in there.steps] == [step.table for step in sampler.steps]
    assert there.on(torch.device("meta")) is there
    assert sampler.on(torch.device("cpu")) is sampler


def test_a_placement_is_that_of_the_weights():
    policy = torch.nn.Linear(2, 2).to(torch.bfloat16)
    placement = Placement.of(policy)
    assert placement == Placement(torch.device("cpu"), torch.bfloat16)
    assert str(placement) == "bfloat16 on cpu"
    assert placement.wide == placement.like.dtype == torch.float32
    assert Placement(dtype=torch.float64).wide == torch.float64
    assert Placement.of(object()) == Placement()
    assert dtype_name(torch.float16) == "float16"
    assert synchroniser(placement.device)() is None


def test_weights_are_said_to_be_in_what_most_of_them_are_in():
    """lerobot keeps embeddings and norms of a pi0.5 in bfloat16 in float32, and they come first."""
    halves = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 8).to(torch.bfloat16))
    assert Placement.of(halves).dtype == torch.float32
    assert most_weights(halves.parameters()) == torch.bfloat16
    assert most_weights([torch.zeros(2, dtype=torch.int8)]) == torch.float32


def test_bins_on_a_device_are_the_bins():
    bins, actions = ActionBins(256, 640), torch.linspace(-1.2, 1.2, 77)
    table = bins.on(torch.device("cpu"))
    assert torch.equal(table.encode(actions), bins.encode(actions))
    assert torch.equal(table.decode(bins.encode(actions)), bins.decode(bins.encode(actions)))
