"""lerobot's pi0 and pi05 in stages: bit-equal to lerobot, and what nobody reads can be left out."""

import copy
import tempfile
from functools import cache
from pathlib import Path

import pytest
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot_policies import build
from torch import nn

from vivace.accel.flops import count_flops
from vivace.policies.dtype import cast_weights
from vivace.policies.errors import ObservationMismatch
from vivace.policies.execution import Denoising, as_trained, sample
from vivace.policies.load import stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.real_time_chunking import Continuation, RealTimeChunking
from vivace.policies.shapes import fixed_shapes

KINDS = ("pi0", "pi05")
ROWS, LENGTH, PATCHES = 2, 14, 16
MASK = "observation.language.attention_mask"
EVERYTHING = ("last_layer", "prompt_padding", "empty_cameras")
every_kind = pytest.mark.parametrize("kind", KINDS)


@cache
def made(kind, **changes):
    """One policy for all tests that do not change it; two cameras, state (5,), actions (4,), latent 8."""
    return build(kind, Path(tempfile.gettempdir()), **changes)


def observed(cameras=("front", "wrist"), lengths=(4, 9)):
    """Two observations whose prompts have so many tokens of 14."""
    generator = torch.Generator().manual_seed(1)
    seen = {
        f"observation.images.{name}": torch.rand(ROWS, 1, 3, 48, 64, generator=generator) for name in cameras
    }
    return seen | {
        "observation.state": torch.rand(ROWS, 1, 5, generator=generator),
        "observation.language.tokens": torch.randint(20, 300, (ROWS, LENGTH), generator=generator),
        MASK: torch.arange(LENGTH) < torch.tensor(lengths)[:, None],
    }


def noise():
    return EpisodeNoise([(row, 0) for row in range(ROWS)])


def lerobots(policy, batch, **asked):
    """lerobot's own chunk, from the same noise."""
    config = policy.config
    drawn = noise()((ROWS, config.chunk_size, config.max_action_dim), torch.empty(0))
    newest = {key: value if "language" in key else value[:, 0] for key, value in batch.items()}
    return policy.predict_action_chunk(newest, noise=drawn, **asked)


def ours(staged, batch, **more):
    execution = staged if isinstance(staged, Denoising) else as_trained(staged)
    return sample(execution, batch, noise(), **more)


@pytest.mark.parametrize(
    ("changes", "cameras"),
    [
        ({}, ("front", "wrist")),
        ({}, ("wrist",)),
        ({"empty_cameras": 2}, ("front", "wrist")),
        ({"num_inference_steps": 1, "chunk_size": 3, "n_action_steps": 2}, ("front",)),
        ({"max_state_dim": 5, "max_action_dim": 4}, ("front", "wrist")),
        ({"min_period": 1e-2, "max_period": 1.0, "n_obs_steps": 2}, ("front", "wrist")),
        ({"dtype": "bfloat16"}, ("front", "wrist")),
    ],
)
@every_kind
def test_a_chunk_is_lerobots_bit_for_bit(kind, changes, cameras):
    """Cameras that are missing, prompts of several lengths, state and action of any width, bfloat16."""
    policy, batch = made(kind, **changes), observed(cameras)
    before = {key: value.clone() for key, value in batch.items()}
    wanted = lerobots(policy, batch)
    assert torch.equal(ours(stage(policy), batch), wanted)
    assert all(torch.equal(value, batch[key]) for key, value in before.items())
    assert (wanted[0] - wanted[1]).abs().max() > 0.01


@pytest.mark.parametrize("schedule", ["exp", "linear", "ones", "zeros"])
@every_kind
def test_a_chunk_continues_as_by_lerobots_own_real_time_chunking(kind, schedule):
    policy, batch = made(kind), observed()
    previous = torch.randn(ROWS, 5, 4, generator=torch.Generator().manual_seed(2))
    settings = RealTimeChunking(schedule=schedule, execution_horizon=4, max_guidance_weight=10.0)
    horizon = policy.config.chunk_size
    wish = torch.nn.functional.pad(previous, (0, 0, 0, horizon - 5))
    weights = torch.from_numpy(settings.weights(5, 2, horizon))[:, None].expand(ROWS, -1, -1)
    found = ours(stage(policy), batch, follow=Continuation(settings, wish, weights))
    policy.config.rtc_config = RTCConfig(
        prefix_attention_schedule=RTCAttentionSchedule[schedule.upper()],
        execution_horizon=4,
        max_guidance_weight=10.0,
    )
    policy.init_rtc_processor()
    wanted = lerobots(policy, batch, inference_delay=2, prev_chunk_left_over=previous)
    policy.config.rtc_config = policy.model.rtc_processor = None
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert (found - ours(stage(policy), batch)).abs().max() > 0.1


@every_kind
def test_an_observation_without_pictures_is_refused(kind):
    with pytest.raises(ObservationMismatch, match=f"has no picture; policy '{kind}' needs one at least of"):
        ours(stage(made(kind)), observed(cameras=()))


@every_kind
def test_hoisting_computes_the_same(kind):
    """The time's part is a table; of pi0 the state's row is read once a chunk, so a step has a row less."""
    staged, batch = stage(made(kind)), observed()
    hoisted = staged.hoist(staged.sampler)
    torch.testing.assert_close(ours(hoisted, batch), ours(staged, batch), atol=1e-5, rtol=0)
    before, after = (count_flops(as_trained(it), batch) for it in (staged, hoisted))
    assert after.condition == 0
    horizon = staged.spec.horizon
    rows = {"pi0": (1 + horizon, horizon), "pi05": (horizon, horizon)}[kind]
    mlp = 2 * ROWS * 3 * 32 * 48 * len(staged.sampler)
    assert (before.blocks["action.0.mlp"], after.blocks["action.0.mlp"]) == (mlp * rows[0], mlp * rows[1])
    if kind == "pi05":  # two layers of the time, and of each of 7 norms one of 3 x 32
        assert before.condition == 2 * ROWS * 32 * 32 * (2 + 7 * 3) * len(staged.sampler)
    else:
        assert before.rest - after.rest == 2 * ROWS * horizon * 32 * 32 * len(staged.sampler)
    assert staged.sampler is hoisted.sampler
    assert torch.equal(ours(staged, batch), lerobots(staged.policy, batch)), "the policy was changed"


def scaled(staged, modules):
    """A twin with other weights in some modules."""
    policy = copy.deepcopy(staged.policy)
    for module in modules(policy.model.paligemma_with_expert.paligemma.model.language_model):
        for parameter in module.parameters():
            parameter.data *= 3.7
    return policy


@every_kind
def test_of_the_last_layer_nobody_reads_more_than_keys_and_values(kind):
    staged, batch = stage(made(kind)), observed()

    def dead(model):
        layer = model.layers[-1]
        parts = (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp, layer.post_attention_layernorm)
        return (*parts, model.norm)

    wanted = lerobots(staged.policy, batch)
    assert torch.equal(lerobots(scaled(staged, dead), batch), wanted)
    assert not torch.equal(lerobots(scaled(staged, lambda m: [m.layers[-1].self_attn.v_proj]), batch), wanted)
    assert not torch.equal(lerobots(scaled(staged, lambda m: [m.layers[-2].mlp]), batch), wanted)
    without = staged.without(("last_layer",))
    assert torch.equal(ours(without, batch), wanted)
    saved = count_flops(as_trained(staged), batch).encode - count_flops(as_trained(without), batch).encode
    s = 2 * PATCHES + LENGTH
    assert saved == 2 * ROWS * s * (2 * 32 * 32 + 3 * 32 * 48 + 2 * s * 32)


@pytest.mark.parametrize("part", ["prompt_padding", "empty_cameras"])
@every_kind
def test_what_is_masked_may_be_left_out(kind, part):
    """Columns that are padding in every row, and a camera that is missing; rows that differ stay right."""
    staged, batch = stage(made(kind)), observed(("wrist",))
    wanted = ours(staged, batch)
    without = staged.without((part,))
    torch.testing.assert_close(ours(without, batch), wanted, atol=1e-5, rtol=0)
    counts = [count_flops(as_trained(it), batch) for it in (staged, without)]
    n = {"prompt_padding": LENGTH - 9, "empty_cameras": PATCHES}[part]
    rows = 2 * PATCHES + LENGTH, 2 * PATCHES + LENGTH - n

    def read(s):  # 3 layers of queries, keys, values, output, MLP; attention
        return 3 * 2 * ROWS * s * (32 * (2 * 32 + 2 * 8) + 3 * 32 * 48 + 2 * s * 32)

    assert [it.language for it in counts] == [read(s) for s in rows]
    vision = (counts[0].encode - counts[0].language) / 2  # of a camera
    assert counts[1].encode - counts[1].language == pytest.approx(
        vision * (2 if part == "prompt_padding" else 1), rel=0.02
    )
    with fixed_shapes():
        assert count_flops(as_trained(without), batch).language == read(rows[part == "empty_cameras"]), (
            "a graph serves prompts of every length"
        )


@every_kind
def test_nothing_that_is_dead_is_missed(kind):
    """All of it at once, hoisted; what padding says changes nothing, what text says does."""
    staged, batch = stage(made(kind, empty_cameras=1)), observed()
    assert set(staged.dead_work) == set(EVERYTHING)
    without = staged.without(EVERYTHING)
    exact = without.hoist(without.sampler)
    wanted = ours(staged, batch)
    torch.testing.assert_close(ours(exact, batch), wanted, atol=1e-5, rtol=0)
    tokens = batch["observation.language.tokens"]
    other = batch | {"observation.language.tokens": torch.where(batch[MASK], tokens, 7)}
    torch.testing.assert_close(ours(exact, other), wanted, atol=1e-5, rtol=0)
    said = batch | {"observation.language.tokens": torch.where(batch[MASK], tokens + 1, tokens)}
    assert (ours(exact, said) - wanted).abs().max() > 1e-4
    assert without.left_out == set(EVERYTHING)
    assert staged.left_out == frozenset()


@every_kind
def test_layers_are_dropped_in_pairs(kind):
    """As if lerobot's policy had been built without them."""
    policy, batch = copy.deepcopy(made(kind)), observed()
    twin = stage(made(kind)).with_layers((0, 2))
    core = policy.model.paligemma_with_expert
    for model in (core.paligemma.model.language_model, core.gemma_expert.model):
        model.layers = nn.ModuleList([model.layers[0], model.layers[2]])
        model.config.num_hidden_layers = 2
        for i, layer in enumerate(model.layers):
            layer.self_attn.layer_idx = i
    assert torch.equal(ours(twin, batch), lerobots(policy, batch))
    assert twin.spec.block_ids == ("action.0.attn", "action.0.mlp", "action.2.attn", "action.2.mlp")
    hoisted = twin.hoist(twin.sampler)
    torch.testing.assert_close(ours(hoisted, batch), ours(twin, batch), atol=1e-5, rtol=0)
    again = stage(made(kind))
    again = again.hoist(again.sampler).with_layers((0, 2))
    assert torch.equal(ours(again, batch), ours(hoisted, batch))


@every_kind
def test_dropped_patches_are_read_no_more_behind_their_layer(kind):
    staged, batch = stage(made(kind)), observed()
    everything = torch.arange(2 * PATCHES).expand(ROWS, -1)
    with torch.no_grad():
        plain, same = (
            staged.encode(batch, select=select)
            for select in (lambda view: None, lambda view: everything if view.index == 1 else None)
        )
        assert all(torch.equal(a, b) for a, b in zip(plain.kept.keys, same.kept.keys, strict=True))
        kept = torch.tensor([[0, 3, 17], [1, 2, 31]])
        few = staged.encode(batch, select=lambda view: kept if view.index == 0 else None)
    rows, after = 2 * PATCHES + LENGTH, 3 + LENGTH
    assert [keys.shape[2] for keys in few.kept.keys] == [rows, after, after]
    assert [mask.shape[-1] for mask in few.kept.masks] == [n + len(few.kept.cos[0]) for n in (rows, after)]
    assert torch.equal(few.kept.cos, plain.kept.cos)
    with pytest.raises(ObservationMismatch, match="patches are chosen among those of 2 cameras, .* has 1"):
        staged.encode(observed(("front",)), select=lambda view: kept)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_kind
def test_it_can_be_cast_as_a_whole(kind, dtype):
    """Which lerobot's own code cannot."""
    policy, batch = copy.deepcopy(made(kind)), observed()
    wanted = ours(stage(policy), batch)
    cast_weights(policy, dtype)
    staged = stage(policy)
    found = ours(staged, batch)
    exact = staged.without(EVERYTHING).hoist(staged.sampler)
    for actions in (found, ours(Denoising(exact, exact.sampler), batch)):
        assert actions.dtype == torch.float32
        assert (actions - wanted).abs().mean() < 0.02
