"""Parity: the staged smolvla is lerobot's, bit for bit, however it is configured; dead work is dead."""

import pytest
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot_policies import _smolvlm, build, features
from transformers import SmolVLMConfig

from vivace.accel.flops import count_flops
from vivace.policies.adapters.smolvla import StagedSmolVLA
from vivace.policies.dtype import cast_weights
from vivace.policies.errors import ObservationMismatch, UnsupportedPolicy
from vivace.policies.execution import as_trained, sample
from vivace.policies.language.prefix import Survivors
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.real_time_chunking import Continuation, RealTimeChunking

KEYS = ((1, 0), (2, 0))
MASK, TOKENS = "observation.language.attention_mask", "observation.language.tokens"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("smolvla")


def make(folder, **changes):
    return build("smolvla", folder, **({"num_vlm_layers": 4} | changes))


def observations(policy, rows=2, length=9, seed=1):
    """Observations as lerobot's preprocessor leaves them; the prompt of row 0 is shorter than the others."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, length, dtype=torch.bool)
    mask[0, 5:] = False
    values = {
        key: torch.rand(rows, *feature.shape, generator=generator)
        for key, feature in policy.config.input_features.items()
        if "empty_camera" not in key
    }
    tokens = torch.randint(3, 290, (rows, length), generator=generator)
    return values | {TOKENS: tokens, MASK: mask}


def noise(policy, rows=2):
    config = policy.config
    return EpisodeNoise(KEYS[:rows])((rows, config.chunk_size, config.max_action_dim), torch.empty(0))


def lerobots(policy, batch):
    given = {key: value.clone() for key, value in batch.items()}
    return policy.predict_action_chunk(given, noise=noise(policy, len(batch[TOKENS])))


def with_time(batch):
    return {
        key: value if "language" in key or "mask" in key else value[:, None] for key, value in batch.items()
    }


def ours(staged, batch):
    return sample(as_trained(staged), with_time(batch), EpisodeNoise(KEYS[: len(batch[TOKENS])]))


CONFIGS = {
    "plain": {},
    "empty cameras": {"empty_cameras": 2},
    "special tokens": {"add_image_special_tokens": True, "empty_cameras": 1},
    "pictures as they are": {"resize_imgs_with_padding": None},
    "larger pictures": {"resize_imgs_with_padding": (128, 128)},
    "self-attention": {"attention_mode": "self_attn"},
    "cross-attention": {"self_attn_every_n_layers": 0},
    "cross, and self every third": {"self_attn_every_n_layers": 3},
    "fewer layers in the expert": {"num_expert_layers": 2, "self_attn_every_n_layers": 0},
    "fewer, of both kinds": {"num_expert_layers": 2, "self_attn_every_n_layers": 4},
    "padded prefix": {"prefix_length": 60, "pad_language_to": "max_length"},
    "prefix longer than its padding": {"prefix_length": 10},
    "steps and periods": {"num_steps": 7, "min_period": 1e-2, "max_period": 2.0},
    "several observations": {"n_obs_steps": 2},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_staged_is_bit_equal_to_lerobot_and_exact_forms_to_rounding(folder, changes):
    policy = make(folder, **changes)
    if changes.get("resize_imgs_with_padding", 0) is None:
        for key, feature in policy.config.image_features.items():
            policy.config.input_features[key] = PolicyFeature(feature.type, (3, 64, 64))
    batch = observations(policy)
    theirs = lerobots(policy, batch)
    staged = StagedSmolVLA(policy)
    assert torch.equal(ours(staged, batch), theirs)
    assert theirs.abs().mean() > 0.1
    exact = staged.without(tuple(staged.dead_work))
    torch.testing.assert_close(ours(exact, batch), theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(exact.hoist(exact.sampler), batch), theirs, atol=1e-5, rtol=0)


def test_cameras_that_are_missing_or_marked_are_filled_and_masked_as_lerobot_does(folder):
    policy = make(folder, empty_cameras=2)
    batch = observations(policy)
    marked = batch | {"observation.images.wrist_padding_mask": torch.tensor([False, True])}
    lacking = {key: value for key, value in batch.items() if "wrist" not in key}
    dark = batch | {"observation.images.wrist_padding_mask": torch.tensor([False, False])}
    staged = StagedSmolVLA(policy)
    exact = staged.without(tuple(staged.dead_work))
    for given in (marked, lacking, dark):
        theirs = lerobots(policy, given)
        assert torch.equal(ours(staged, given), theirs)
        torch.testing.assert_close(ours(exact, given), theirs, atol=1e-5, rtol=0)
        assert not torch.allclose(theirs, lerobots(policy, batch), atol=1e-3)
    with pytest.raises(ObservationMismatch, match="those of 2 cameras, the observation has 1; give"):
        staged.encode(with_time(lacking), select=lambda view: torch.zeros(2, 1, dtype=torch.long))


def test_aloha_s_joints_are_turned_as_in_lerobot(folder):
    features = {
        "input_features": {
            "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, 48, 64)),
            "observation.state": PolicyFeature(FeatureType.STATE, (14,)),
        },
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (14,))},
    }
    policy = make(folder, adapt_to_pi_aloha=True, max_state_dim=16, max_action_dim=16, **features)
    batch = observations(policy)
    before = {key: value.clone() for key, value in batch.items()}
    assert torch.equal(ours(StagedSmolVLA(policy), batch), lerobots(policy, batch))
    assert all(torch.equal(value, batch[key]) for key, value in before.items())


@pytest.mark.parametrize("schedule", ["exp", "linear", "ones", "zeros"])
def test_chunks_continue_as_by_lerobots_own_real_time_chunking(small, schedule):
    policy, batch = small.policy, observations(small.policy, rows=1)
    before = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(3))
    settings = RealTimeChunking(schedule=schedule, execution_horizon=4, max_guidance_weight=10.0)
    weights = torch.from_numpy(settings.weights(6, 2, 6))[None, :, None]
    found = sample(
        as_trained(small),
        with_time(batch),
        EpisodeNoise(KEYS[:1]),
        follow=Continuation(settings, before, weights),
    )
    policy.config.rtc_config = RTCConfig(
        prefix_attention_schedule=RTCAttentionSchedule[schedule.upper()], execution_horizon=4
    )
    policy.init_rtc_processor()
    given = {key: value.clone() for key, value in batch.items()}
    theirs = policy.predict_action_chunk(
        given, noise=noise(policy, 1), inference_delay=2, prev_chunk_left_over=before
    )
    policy.config.rtc_config = None
    policy.model.rtc_processor = None
    torch.testing.assert_close(found, theirs, atol=1e-5, rtol=0)
    assert (theirs - lerobots(policy, batch)).abs().max() > 0.1


@pytest.fixture(scope="module")
def small(folder):
    return StagedSmolVLA(make(folder))


def test_what_is_said_to_be_dead_is_dead(small):
    batch = observations(small.policy)
    before = ours(small, batch)
    twin = small.with_weights(_copied(small.policy))
    text = twin.language.model
    dead = [text.layers[3].self_attn.q_proj, text.layers[3].self_attn.o_proj, text.layers[3].mlp.down_proj]
    for module in (*dead, text.layers[3].post_attention_layernorm, text.norm):
        module.weight.data = module.weight * 3.7
    assert torch.equal(ours(twin, batch), before)
    text.layers[2].mlp.down_proj.weight.data = text.layers[2].mlp.down_proj.weight * 3.7
    assert not torch.allclose(ours(twin, batch), before, atol=1e-3)


def _copied(policy):
    from vivace.accel.techniques.mlp_prune import copy_sharing_tensors

    return copy_sharing_tensors(policy)


def test_work_falls_by_what_is_left_out(folder):
    """By hand: two cameras of 16 patches, two that nobody has, 9 tokens of text, 5 of them there, a state."""
    policy = make(folder, empty_cameras=2, pad_language_to="max_length")
    staged = StagedSmolVLA(policy)
    one = with_time(observations(policy, rows=1))

    def flops(form):
        return count_flops(as_trained(form), one)

    whole = flops(staged)
    rows, kept = 4 * 16 + 9 + 1, 32
    d, kv, mlp = 32, 16, 48
    branch = rows * (2 * d * d + 3 * d * mlp) + 2 * rows * rows * d
    assert whole.total - flops(staged.without(("last_layer",))).total == 2 * branch
    layer = rows * (2 * d * d + 2 * d * kv + 3 * d * mlp) + 2 * rows * rows * d
    assert whole.language == 2 * 4 * layer
    fewer = rows - kept
    smaller = fewer * (2 * d * d + 2 * d * kv + 3 * d * mlp) + 2 * fewer * fewer * d
    assert flops(staged.without(("empty_cameras",))).language == 2 * 4 * smaller
    shorter = rows - 4
    smaller = shorter * (2 * d * d + 2 * d * kv + 3 * d * mlp) + 2 * shorter * shorter * d
    assert flops(staged.without(("prompt_padding",))).language == 2 * 4 * smaller
    hoisted = staged.hoist(staged.sampler)
    assert flops(hoisted).condition == 0 < whole.condition


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"use_cache": False}, "use_cache=false"),
        (
            {"num_expert_layers": 2, "attention_mode": "self_attn"},
            "language layer 1 has no layer of the expert",
        ),
        (
            {"num_expert_layers": 2, "self_attn_every_n_layers": 2},
            "was made for keys of 16 numbers and is given 24",
        ),
    ],
)
def test_what_lerobot_cannot_run_either_is_refused(folder, changes, why):
    policy = make(folder, **changes)
    with pytest.raises(UnsupportedPolicy, match=why):
        StagedSmolVLA(policy)
    with pytest.raises((RuntimeError, AssertionError, AttributeError, ValueError, TypeError)):
        lerobots(policy, observations(policy))


def test_a_language_model_in_bfloat16_beside_the_rest_in_float32(folder):
    """As lerobot loads SmolVLM2: its weights in bfloat16, the projections around it in float32."""
    policy = make(folder)
    batch = observations(policy)
    whole = ours(StagedSmolVLA(policy), batch)
    cast_weights(policy.model.vlm_with_expert, torch.bfloat16)
    found = ours(StagedSmolVLA(policy), batch)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, lerobots(policy, batch), atol=0.05, rtol=0)
    assert 0 < (found - whole).abs().mean() < 0.02


def test_patches_that_are_dropped_leave_the_rest_where_it_was(small):
    batch = with_time(observations(small.policy))
    everything = torch.arange(32).expand(2, -1)
    plain = small.encode(batch)
    same = small.encode(batch, select=lambda view: everything if view.index == 1 else None)
    assert all(torch.equal(a, b) for a, b in zip(same.keys, plain.keys, strict=True))
    kept = torch.tensor([[0, 3, 5, 20], [1, 2, 9, 31]])
    few = small.encode(batch, select=lambda view: kept if view.index == 1 else None)
    assert [k.shape[2] for k in few.keys] == [42, 42, 14, 14]
    assert [mask.shape[1] for mask in few.there] == [42, 14]
    assert torch.equal(few.there[1][0], torch.tensor([True] * 9 + [False] * 4 + [True]))
    assert torch.equal(few.position, plain.position)


@torch.inference_mode()
def test_early_keys_of_dropped_patches_stay_go_or_are_read_anew(small):
    batch = with_time(observations(small.policy))
    plain = small.encode(batch)
    kept = torch.tensor([[0, 3, 5, 20], [1, 2, 9, 31]])
    rows = torch.cat([kept, torch.arange(32, 42).expand(2, -1)], dim=1)[:, None, :, None]

    def chosen(early, patches=kept):
        return small.encode(batch, select=lambda view: Survivors(patches, early) if view.index == 1 else None)

    dropped, again = chosen("drop"), chosen("again")
    for context in (dropped, again):
        assert {k.shape[2] for k in context.keys} == {14}
        assert [mask.shape[1] for mask in context.there] == [14]
        assert torch.equal(context.keys[0], plain.keys[0].gather(2, rows.expand(-1, 2, -1, 8)))
    assert torch.equal(dropped.values[1], plain.values[1].gather(2, rows.expand(-1, 2, -1, 8)))
    assert not torch.allclose(again.values[1], dropped.values[1], atol=1e-4), "read without the others"
    everything = chosen("again", torch.arange(32).expand(2, -1))
    assert all(torch.equal(a, b) for a, b in zip(everything.keys, plain.keys, strict=True))


@torch.inference_mode()
def test_a_language_layer_is_dropped_with_the_experts_or_without(small):
    batch = with_time(observations(small.policy))
    plain, pairs, branches = (
        it.encode(batch) for it in (small, small.with_layers((0, 2, 3)), small.with_branches((0, 2, 3)))
    )
    assert len(pairs.keys) == 3
    assert small.with_layers((0, 2, 3)).spec.block_ids[2:4] == ("action.2.attn", "action.2.mlp")
    assert len(branches.keys) == 4
    assert torch.equal(branches.keys[1], plain.keys[1])
    assert torch.equal(branches.keys[2], pairs.keys[1])


@pytest.mark.long
def test_as_published_two_empty_cameras_are_more_than_half_of_the_work(tmp_path):
    """Counted without memory, by the numbers of SmolVLM2-500M and lerobot/smolvla_base; 12 tokens of text."""
    vlm = _smolvlm(tmp_path)
    text = {"model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32}
    text |= {"num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "patch_size": 16}
    vision |= {"num_attention_heads": 12, "image_size": 512}
    SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=4).save_pretrained(vlm)
    config = SmolVLAConfig(
        **features((256, 256), cameras=1), vlm_model_name=str(vlm), empty_cameras=2, load_vlm_weights=False
    )
    config.device = "meta"
    with torch.device("meta"):
        policy = SmolVLAPolicy(config)
        batch = {
            "observation.images.front": torch.zeros(1, 1, 3, 256, 256),
            "observation.state": torch.zeros(1, 1, 5),
            TOKENS: torch.zeros(1, 12, dtype=torch.long),
            MASK: torch.ones(1, 12, dtype=torch.bool),
        }
        staged = StagedSmolVLA(policy)
        exact = staged.without(tuple(staged.dead_work))
        whole, less = (count_flops(as_trained(it), batch) for it in (staged, exact.hoist(exact.sampler)))
    print(whole.total / 2e9, less.total / 2e9, whole.total / less.total)
    assert whole.total / less.total >= 2.2
