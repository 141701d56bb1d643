"""The CogACT policy: its staged form equals the plain one; patches, prompts, votes of chunks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.execution import Denoising, as_trained, sample
from vivace.policies.families.cogact.ensemble import AdaptiveEnsemble
from vivace.policies.families.cogact.policy import (
    CogACTConfig,
    CogACTPolicy,
    finish,
    make_cogact_pre_post_processors,
)
from vivace.policies.families.cogact.staged import StagedCogACT
from vivace.policies.language.tokenize import train_tokenizer
from vivace.policies.sampling.noise import GlobalNoise
from vivace.policies.tiny.policies import tiny_cogact, tiny_token_vla
from vivace.policies.vla.vision import patch_features

TASKS = ["Open the drawer", "Close the window now please"]


def batch(policy, rows=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokenizer = train_tokenizer(TASKS)
    pre, _ = make_cogact_pre_post_processors(policy.config, tokenizer=tokenizer)
    images = {
        key: torch.rand(rows, 1, *feature.shape, generator=generator)
        for key, feature in policy.config.image_features.items()
    }
    ready = pre(images | {"task": (TASKS * rows)[:rows]})
    return {k: v for k, v in ready.items() if isinstance(v, torch.Tensor) and k.startswith("observation.")}


def draw(seed=3):
    return GlobalNoise(torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("cameras", [1, 2])
@pytest.mark.parametrize("scale", [1.0, 1.5])
@pytest.mark.parametrize("hoist", [False, True])
def test_staged_equals_the_plain_forward(cameras, scale, hoist):
    policy = tiny_cogact(cameras, guidance_scale=scale)
    staged = StagedCogACT(policy)
    if hoist:
        staged = staged.hoist(staged.sampler)
    seen = batch(policy)
    expected = policy.sample_actions(seen, draw())
    torch.testing.assert_close(sample(as_trained(staged), seen, draw()), expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1


def test_cognition_feature_ignores_padding():
    policy = tiny_cogact()
    seen = batch(policy)
    mask, tokens = seen["observation.language.attention_mask"], seen["observation.language.tokens"]
    assert not mask.all()
    changed = seen | {"observation.language.tokens": torch.where(mask, tokens, 17)}
    torch.testing.assert_close(policy.cognition(changed), policy.cognition(seen))
    other = seen | {"observation.language.tokens": torch.where(mask, tokens.roll(1, 0), 0)}
    assert (policy.cognition(other) - policy.cognition(seen)).abs().max() > 1e-3


def test_language_stage_equals_transformers_with_grouped_heads():
    policy = tiny_cogact()
    staged, seen = StagedCogACT(policy), batch(policy)
    torch.testing.assert_close(staged.encode(seen), policy.cognition(seen), atol=1e-5, rtol=0)


def test_every_block_runs_once_in_order(seen, spying):
    policy = tiny_cogact()
    staged = StagedCogACT(policy)
    staged.encode(batch(policy), spying(0, {}))
    assert seen == [f"language.{i}.{branch}" for i in range(4) for branch in ("kv", "attn", "mlp")]
    seen.clear()
    sample(Denoising(staged, staged.sampler, spying), batch(policy), draw())
    assert seen == ["action.0.attn", "action.0.mlp", "action.1.attn", "action.1.mlp"] * 10


def test_patch_features_are_timms_second_to_last_block():
    for vit in (
        tiny_cogact().vision_backbone.dino_featurizer,
        tiny_cogact().vision_backbone.siglip_featurizer,
    ):
        image = torch.rand(2, 3, 32, 32)
        (expected,) = vit.get_intermediate_layers(image, n={len(vit.blocks) - 2})
        torch.testing.assert_close(patch_features(vit, image), expected)


def test_an_image_of_another_size_is_resized():
    policy = tiny_cogact()
    image = torch.rand(1, 3, 64, 48)
    small = F.interpolate(image, (32, 32), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    torch.testing.assert_close(
        policy.vision_backbone(image), policy.vision_backbone(small), atol=1e-4, rtol=1e-4
    )


def test_kept_patches_are_seen_and_dropped_ones_are_not():
    policy = tiny_cogact()
    staged, seen = StagedCogACT(policy), batch(policy)
    kept = torch.tensor([[0, 3, 5], [1, 2, 9]])

    def select(view):
        return kept if view.index == 0 else None

    few = staged.encode(seen, select=select)
    assert (few - staged.encode(seen)).abs().max() > 1e-4

    everything = torch.arange(sum(staged.n_patches)).expand(2, -1)
    same = staged.encode(seen, select=lambda view: everything if view.index == 1 else None)
    torch.testing.assert_close(same, staged.encode(seen), atol=1e-5, rtol=0)


def test_survivors_equal_a_masked_forward():
    """Dropping patches before layer 1 is the same as nobody attending to them from there on."""
    policy = tiny_cogact()
    staged, seen = StagedCogACT(policy), batch(policy, rows=1)
    kept = torch.tensor([[0, 3, 5, 11]])
    few = staged.encode(seen, select=lambda view: kept if view.index == 0 else None)

    model = policy.language
    h = policy.embed(seen)
    length, n = h.shape[1], sum(staged.n_patches)
    stays = torch.ones(length, dtype=torch.bool)
    stays[1 : 1 + n] = False
    stays[1 + kept[0]] = True
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    angles = model.rotary_emb(h, torch.arange(length)[None])
    for i, layer in enumerate(model.layers):
        allowed = causal if i == 0 else causal & stays
        mask = torch.zeros(1, 1, length, length).masked_fill(~allowed, torch.finfo(torch.float32).min)
        h = layer(h, attention_mask=mask, position_embeddings=angles)
    last = 1 + n + int(seen["observation.language.attention_mask"].sum()) - 2
    torch.testing.assert_close(few, model.norm(h)[:, last], atol=1e-5, rtol=0)


def test_attention_of_a_view_is_the_layers_own():
    policy = tiny_cogact()
    staged, seen = StagedCogACT(policy), batch(policy)
    views = []
    staged.encode(seen, select=lambda view: views.append(view))
    weights = views[1].attention()
    policy.language.config._attn_implementation = "eager"
    expected = policy.language(inputs_embeds=policy.embed(seen), output_attentions=True).attentions[1]
    n = sum(staged.n_patches)
    torch.testing.assert_close(weights, expected[:, :, 1 + n :, 1 : 1 + n], atol=1e-5, rtol=0)


def test_fewer_layers_are_another_policy_over_the_same_weights():
    policy = tiny_cogact()
    staged, seen = StagedCogACT(policy), batch(policy)
    twin = staged.with_layers((0, 2, 3))
    ids = [block.id for block in twin.language.blocks]
    assert ids == [f"language.{i}.{branch}" for i in (0, 2, 3) for branch in ("kv", "attn", "mlp")]
    h = policy.embed(seen)
    angles = policy.language.rotary_emb(h, torch.arange(h.shape[1])[None])
    for i in (0, 2, 3):
        h = policy.language.layers[i](h, position_embeddings=angles, attention_mask=None)
    assert (twin.encode(seen) - staged.encode(seen)).abs().max() > 1e-3
    assert twin.with_layers((1, 2)).language.layers == (2, 3)
    assert twin.hoist(twin.sampler).language.layers == (0, 2, 3)


def test_prompt_is_the_originals_form():
    policy = tiny_cogact(prompt_suffix=(7, 2), max_tokens=80)
    tokenizer = train_tokenizer([])
    pre, _ = make_cogact_pre_post_processors(policy.config, tokenizer=tokenizer)
    ready = pre({"observation.images.front": torch.rand(1, 3, 32, 32), "task": ["Open the Drawer"]})
    tokens = ready["observation.language.tokens"][0]
    used = tokens[ready["observation.language.attention_mask"][0]].tolist()
    assert used[0] == 1
    assert used[-2:] == [7, 2]
    assert tokenizer.decode(used[1:-2]) == "In: What action should the robot take to open the drawer?\nOut:"


@pytest.mark.parametrize(("task", "message"), [("", "instruction"), ("open " * 60, "at most 24")])
def test_bad_instructions_are_refused(task, message):
    pre, _ = make_cogact_pre_post_processors(tiny_cogact().config, tokenizer=train_tokenizer(TASKS))
    with pytest.raises(BadSetting, match=message):
        pre({"observation.images.front": torch.rand(1, 3, 32, 32), "task": [task]})


def test_processors_keep_their_tokenizer_on_disk(tmp_path):
    config = tiny_cogact().config
    tokenizer = train_tokenizer(TASKS)
    pre, _ = make_cogact_pre_post_processors(config, tokenizer=tokenizer)
    pre.save_pretrained(tmp_path)
    loaded = type(pre).from_pretrained(tmp_path, config_filename="policy_preprocessor.json")
    image = {"observation.images.front": torch.rand(1, 3, 32, 32), "task": [TASKS[0]]}
    assert torch.equal(
        pre(dict(image))["observation.language.tokens"], loaded(dict(image))["observation.language.tokens"]
    )


def test_finish_clips_and_decides_the_gripper():
    config = tiny_cogact(gripper_dims=(2,)).config
    out = finish(torch.tensor([[[2.0, -0.3, 0.4], [-3.0, 0.1, 0.5]]]), config)
    torch.testing.assert_close(out, torch.tensor([[[1.0, -0.3, 0.0], [-1.0, 0.1, 1.0]]]))


def test_chunks_vote_by_likeness():
    rng = np.random.default_rng(0)
    chunks = torch.from_numpy(rng.normal(size=(4, 1, 3, 2))).float()
    vote = AdaptiveEnsemble(horizon=3, alpha=0.1)
    torch.testing.assert_close(vote(chunks[0]), chunks[0][:, 0])
    vote(chunks[1])
    vote(chunks[2])
    actions = torch.stack([chunks[3][0, 0], chunks[2][0, 1], chunks[1][0, 2]])
    weights = torch.exp(0.1 * F.cosine_similarity(actions, actions[:1], dim=-1))
    expected = (weights[:, None] * actions).sum(0) / weights.sum()
    torch.testing.assert_close(vote(chunks[3])[0], expected)


def test_saves_and_loads_as_a_lerobot_policy(tmp_path):
    policy = tiny_cogact()
    policy.save_pretrained(tmp_path)
    loaded = CogACTPolicy.from_pretrained(tmp_path)
    seen = batch(policy)
    assert torch.equal(loaded.sample_actions(seen, draw()), policy.sample_actions(seen, draw()))
    assert isinstance(loaded.config, CogACTConfig)
    assert loaded.config.action_layers == 2


def test_sizes_of_the_action_head():
    for size, millions in (("small", 12.48), ("base", 88.99), ("large", 307.8)):
        config = tiny_cogact().config
        with torch.device("meta"):
            config.action_head, config.language_width = size, 4096
            config.__post_init__()
            from vivace.policies.families.cogact.dit import DiT

            net = DiT(7, 16, 4096, config.action_layers, config.action_width, config.action_heads)
        assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, rel=2e-3)


def test_learns_an_example_by_heart_with_all_of_its_parts():
    """But what nobody reads: the last block of a tower and what follows it; and no row is unconditioned."""
    torch.manual_seed(0)
    config = tiny_cogact(repeated_diffusion_steps=8, guidance_scale=1.0, condition_dropout=0.0).config
    policy = CogACTPolicy(config)
    seen = batch(policy)
    actions = torch.tensor([0.7, -0.7]).view(2, 1, 1).expand(2, 8, 3)
    optimiser = torch.optim.AdamW(policy.get_optim_params(), lr=3e-3, weight_decay=0.0)
    before = {name: value.detach().clone() for name, value in policy.named_parameters()}
    losses = []
    for _ in range(100):
        optimiser.zero_grad()
        losses.append(policy.loss(seen, actions)[0])
        losses[-1].backward()
        optimiser.step()
    assert torch.stack(losses[-10:]).mean() < 0.3 < losses[0]
    still = [name for name, value in policy.named_parameters() if torch.equal(value, before[name])]
    unread = (".blocks.2.", ".attn_pool.", "_featurizer.norm.", ".uncondition")
    assert not [name for name in still if not any(part in name for part in unread)]
    assert not [name for name in before if "_featurizer.blocks.2." in name and name not in still]


@pytest.mark.parametrize(
    ("n_steps", "expected"),
    [
        (10, [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]),
        (5, [80, 60, 40, 20, 0]),
        (8, [91, 78, 65, 52, 39, 26, 13, 0]),
        (1, [50]),
    ],
)
def test_ddim_steps_where_the_original_does(n_steps, expected):
    sampler = tiny_cogact().resample("ddim", n_steps)
    assert [int(step.t) for step in sampler.steps] == expected
    with pytest.raises(BadSetting, match="cannot give 60 steps"):
        tiny_cogact().resample("ddim", 60)


def test_a_chunk_is_had_of_a_batch_with_and_without_a_time_axis():
    """G9: as lerobot's policy server asks, with the arguments of its real-time chunking."""
    for policy in (tiny_cogact(), tiny_token_vla()):
        seen = batch(policy)
        moment = {key: value[:, 0] if "images" in key else value for key, value in seen.items()}
        chunks = []
        for given in (seen, moment):
            torch.manual_seed(3)
            chunks.append(policy.predict_action_chunk(given, inference_delay=1, prev_chunk_left_over=None))
        assert torch.equal(*chunks)
        assert chunks[0].shape == (2, policy.config.n_action_steps, 3)


def test_a_policy_whose_own_loop_votes_is_refused():
    """G7, B1: it would not act as trained."""
    with pytest.raises(
        UnsupportedPolicy, match="ensemble_horizon=2: its own loop .* set ensemble_horizon to 0"
    ):
        StagedCogACT(tiny_cogact(ensemble_horizon=2))
