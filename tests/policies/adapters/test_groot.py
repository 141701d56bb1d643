"""lerobot's groot behind the seam: its own chunk bit for bit, and the same without what nobody reads."""

import copy

import numpy as np
import pytest
import torch
from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config
from lerobot.policies.groot.modeling_groot import GrootPolicy
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot_itself import moments
from lerobot_policies import TASK, build, saved
from policy_cases import qwen_observations
from torch import nn
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from vivace.accel.apply import accelerate
from vivace.accel.flops import count_flops
from vivace.accel.plan import AccelerationPlan
from vivace.accel.techniques.hoist import Hoist
from vivace.accel.techniques.layer_skip import LayerSkip
from vivace.accel.techniques.patch_select import PatchSelect
from vivace.policies.adapters.groot import StagedGroot
from vivace.policies.batch import take
from vivace.policies.errors import BadSetting, ObservationMismatch, PlanMismatch, UnsupportedPolicy
from vivace.policies.execution import Denoising, as_trained, sample
from vivace.policies.fingerprint import fingerprint
from vivace.policies.language.prefix import PrefixRows
from vivace.policies.language.qwen3_vl import StagedQwen3VL, order_of, positions
from vivace.policies.load import load_policy, stage
from vivace.policies.sampling.noise import GlobalNoise, seeded
from vivace.policies.sampling.real_time_chunking import Continuation, RealTimeChunking
from vivace.policies.session import Session
from vivace.policies.vla.qwen3_vision import Pictures

HEAD, OTHER, CONSTANTS = "language_head", "other_context", "constants"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> GrootPolicy:
    return build("groot", tmp_path_factory.mktemp("groot"))


def changed(policy: GrootPolicy, model: dict | None = None, **settings) -> GrootPolicy:
    """A twin with other settings, and, where the model's change, with another model."""
    twin = copy.deepcopy(policy)
    for name, value in settings.items():
        setattr(twin.config, name, value)
    if model:
        config = copy.deepcopy(policy._groot_model.config)
        for name, value in model.items():
            setattr(config, name, value)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            twin._groot_model = GR00TN17(config, load_backbone_weights=False).float()
            for parameter in twin._groot_model.parameters():
                if not parameter.any() or (parameter.ndim > 1 and parameter.std() < 0.05):
                    nn.init.normal_(parameter, std=0.1)
    return twin.eval()


def lerobots(policy, batch, **told):
    with seeded(1, CPU), torch.inference_mode():
        return policy.predict_action_chunk(dict(batch), **told)


def ours(staged, batch, follow=None, sampler=None):
    with seeded(1, CPU):
        return sample(Denoising(staged, sampler or staged.sampler), batch, GlobalNoise(), follow=follow)


DIT = {"num_layers": 4, "num_attention_heads": 2, "attention_head_dim": 16, "dropout": 0.0}
DIT |= {"final_dropout": True, "positional_embeddings": None, "output_dim": 32}
CASES = {
    "plain": ({}, {}, {}),
    "autocast": ({}, {"use_bf16": True}, {}),
    "padded": ({}, {}, {"padding": 4}),
    "padded, autocast": ({}, {"use_bf16": True}, {"padding": 2}),
    "wide pictures": ({}, {}, {"grid": (4, 10)}),
    "three steps": ({"num_inference_timesteps": 3}, {}, {}),
    "all at once": ({"use_alternate_vl_dit": False}, {}, {"padding": 3}),
    "text every third": (
        {
            "attend_text_every_n_blocks": 3,
            "diffusion_model_cfg": DIT
            | {"num_layers": 6, "norm_type": "ada_norm", "interleave_self_attention": True},
        },
        {},
        {},
    ),
    "no timestep in the layers": (
        {
            "use_alternate_vl_dit": False,
            "diffusion_model_cfg": DIT
            | {
                "norm_type": "layer_norm",
                "interleave_self_attention": False,
                "positional_embeddings": "sinusoidal",
            },
        },
        {},
        {},
    ),
    "bare": ({"use_vlln": False, "vl_self_attention_cfg": None, "add_pos_embed": False}, {}, {}),
    "history, horizon": ({"state_history_length": 2, "action_horizon": 5}, {}, {}),
    "short chunks": ({}, {"chunk_size": 3, "n_action_steps": 3}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_chunk_is_lerobots_bit_for_bit(policy, case):
    """Whatever its model and its config ask for; and without dead work, hoisted, equal to rounding."""
    model, settings, seen = CASES[case]
    twin = changed(policy, model, **settings) if model or settings else policy
    staged, batch = stage(twin), qwen_observations(twin, **seen)
    wanted = lerobots(twin, batch)
    found = ours(staged, batch)
    assert torch.equal(found[:, : wanted.shape[1]], wanted)
    assert found.shape == (3, staged.spec.horizon, 4)
    assert (wanted[0] - wanted[1]).abs().max() > 0.01
    rounding = 0.02 if twin.config.use_bf16 else 1e-5
    parts = tuple(staged.dead_work)
    for form in (
        staged.without(parts),
        staged.hoist(staged.sampler),
        staged.without(parts).hoist(staged.sampler),
    ):
        torch.testing.assert_close(ours(form, batch), found, rtol=0, atol=rounding)


@pytest.mark.parametrize("steps", [4, 3])
@pytest.mark.parametrize("delay", [0, 2])
def test_a_chunk_continues_another_as_in_lerobot(policy, delay, steps):
    """Its native overlap, with the horizon of execution that lerobot's loop sets, hoisted too."""
    twin = changed(policy, num_inference_timesteps=None, rtc_config=RTCConfig(execution_horizon=5))
    staged, batch = stage(twin), qwen_observations(twin)
    sampler = staged.resample("euler", steps)
    twin._groot_model.action_head.num_inference_timesteps = steps
    before = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(4)) * 2 - 1
    wanted = lerobots(twin, batch, inference_delay=delay, prev_chunk_left_over=before)
    settings = RealTimeChunking(execution_horizon=5)
    weights = torch.from_numpy(settings.weights(4, delay, 6))[None, :, None].expand(3, -1, -1)
    follow = Continuation(settings, torch.nn.functional.pad(before, (0, 0, 0, 2)), weights)
    found = ours(staged, batch, follow, sampler)
    tolerance = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(found[:, : wanted.shape[1]], wanted, **tolerance)
    assert torch.equal(found[:, :delay], before[:, :delay])
    assert (found - ours(staged, batch, sampler=sampler)).abs().max() > 0.01
    torch.testing.assert_close(ours(staged.hoist(sampler), batch, follow, sampler), found, rtol=0, atol=1e-5)


def test_rows_continue_chunks_of_their_own(policy):
    """Another delay, and another end of what is known, in every row."""
    staged, batch = stage(policy), qwen_observations(policy)
    settings, before = RealTimeChunking(), torch.full((3, 6, 4), 0.4)
    rows = [(4, 0), (6, 2), (0, 0)]
    weights = torch.stack([torch.from_numpy(settings.weights(*row, 6))[:, None] for row in rows])
    found = ours(staged, batch, Continuation(settings, before, weights))
    for i, row in enumerate(rows):
        alike = torch.from_numpy(settings.weights(*row, 6))[None, :, None].expand(3, -1, -1)
        alone = ours(staged, batch, Continuation(settings, before, alike))
        torch.testing.assert_close(found[i], alone[i], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[2], ours(staged, batch)[2], rtol=0, atol=1e-6)


def test_what_lerobot_continues_not_is_refused(policy):
    staged = stage(changed(policy, use_relative_actions=True))
    with pytest.raises(UnsupportedPolicy, match="'groot' has use_relative_actions, and lerobot continues no"):
        staged.check_continuing(RealTimeChunking())
    for unlike in ({"jacobian": "exact"}, {"method": "inpaint"}):
        with pytest.raises(BadSetting, match="'groot' continues chunks by lerobot's own"):
            stage(policy).check_continuing(RealTimeChunking(**unlike))


def scaled(policy: GrootPolicy, *modules: nn.Module) -> GrootPolicy:
    """A twin in which the weights of these modules are 3.7 times as large."""
    ids = {id(parameter) for module in modules for parameter in module.parameters()}
    memo = {id(it): nn.Parameter(it.detach() * 3.7) if id(it) in ids else it for it in policy.parameters()}
    return copy.deepcopy(policy, memo)


def test_nobody_reads_the_language_head(policy):
    """X4: weights of what is left out change nothing; those of the last layer do."""
    backbone, batch = policy._groot_model.backbone, qwen_observations(policy)
    staged = stage(policy)
    plain = ours(staged, batch)
    lean = staged.without((HEAD,))
    assert torch.equal(ours(lean, batch), plain)
    dead = scaled(policy, backbone.language_model.norm)
    assert torch.equal(ours(stage(dead), batch), plain)
    alive = scaled(policy, backbone.language_model.layers[-1].mlp)
    assert not torch.allclose(ours(stage(alive), batch), plain, atol=1e-3)
    head = backbone.model.lm_head
    saved = count_flops(as_trained(staged), batch).encode - count_flops(as_trained(lean), batch).encode
    assert saved == 2 * batch["input_ids"].numel() * head.in_features * head.out_features


@pytest.mark.parametrize("padding", [0, 3])
def test_keys_of_the_other_kind_are_dead(policy, padding):
    """X4's neighbour, and X5: counted by hand; rows whose prompts differ in length stay right."""
    staged, batch = stage(policy), qwen_observations(policy, padding=padding)
    lean, (n, length) = staged.without((OTHER,)), (32, batch["input_ids"].shape[1])
    plain = ours(staged, batch)
    torch.testing.assert_close(ours(lean, batch), plain, rtol=0, atol=1e-5)
    one = take(batch, [1])
    flops = {form: count_flops(Denoising(form, staged.sampler), one) for form in (staged, lean)}
    rows = {0: length - n, 2: n}  # of text, of patches
    for i, seen in rows.items():
        less = (length - seen) * (2 * 2 * 32 * 32 + 2 * 2 * 41 * 32)  # keys and values; and both products
        saved = [flops[form].blocks[f"action.{i}.attn"] for form in (staged, lean)]
        assert saved[0] - saved[1] == len(staged.sampler) * less
    hoisted = count_flops(Denoising(lean.hoist(lean.sampler), lean.sampler), one)
    once = sum(seen * 2 * 2 * 32 * 32 for seen in rows.values())
    assert hoisted.encode - flops[lean].encode == once
    assert sum(flops[lean].blocks.values()) - sum(hoisted.blocks.values()) == len(staged.sampler) * once
    assert hoisted.condition == 0


def test_what_never_changes_is_cast_once(policy):
    """X9's neighbour: autocast finds the weights as it would make them, so nothing changes at all."""
    twin = changed(policy, use_bf16=True)
    staged, batch = stage(twin), qwen_observations(twin)
    lean = staged.without((CONSTANTS,))
    assert set(staged.dead_work) == {HEAD, OTHER, CONSTANTS}
    assert CONSTANTS not in lean.dead_work
    assert CONSTANTS not in stage(policy).dead_work
    assert torch.equal(ours(lean, batch), ours(staged, batch))
    head = lean.policy._groot_model.action_head
    assert head.model.proj_out_1.weight.dtype == head.action_decoder.layer1.W.dtype == torch.bfloat16
    assert head.model.norm_out is not twin._groot_model.action_head.model.norm_out
    words = lean.language.model.embed_tokens.weight
    assert words is staged.language.model.embed_tokens.weight
    fewer = staged.with_layers((0, 2)).without((CONSTANTS,))
    assert fewer.language.layers == (0, 2)


def test_layers_and_patches_go_and_the_head_looks_at_the_rest(policy):
    """Its head reads the last language layer alone; dropped patches are those of a masked forward."""
    staged, batch = stage(policy), qwen_observations(policy, padding=2)
    mark = fingerprint(policy, staged.spec.block_ids)
    plan = AccelerationPlan(mark, (LayerSkip(kept=(0, 2)), PatchSelect(k_final=6, layer=0), Hoist()))
    execution = accelerate(staged, plan)
    seen = execution.policy.encode(batch, select=execution.select).seen.layers
    length = batch["input_ids"].shape[1] - 32 + 6
    assert [keys[0].shape[2] for keys in seen if keys] == [length, length]
    everything = torch.arange(32).expand(3, -1)
    same = staged.encode(batch, select=lambda view: everything if view.index == 1 else None)
    torch.testing.assert_close(staged.said(same), staged.said(staged.encode(batch)), rtol=0, atol=1e-5)
    with pytest.raises(PlanMismatch, match=r"keeps 33 patches, the policy has 16 \+ 16"):
        PatchSelect(k_final=33).check(as_trained(staged))


def tiny_text(levels: int) -> StagedQwen3VL:
    """A language stage with features for so many layers."""
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "dtype": "float32"}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "patch_size": 8}
    vision |= {"out_hidden_size": 32, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision))
    return StagedQwen3VL(model.float().eval().model.language_model, levels)


class Layers:
    """What the language stage is given, of two rows; patches stand at 2 to 5."""

    def __init__(self, levels: int):
        self.stage = tiny_text(levels)
        random = torch.Generator().manual_seed(0)
        self.h = torch.randn(2, 9, 32, generator=random)
        is_patch = torch.zeros(2, 9, dtype=torch.bool)
        is_patch[:, 2:6] = True
        self.prefix = PrefixRows((4,), torch.ones(2, 5, dtype=torch.bool), 0, order=order_of(is_patch))
        self.where = torch.arange(9).expand(3, 2, -1)
        self.features = [torch.randn(2, 4, 32, generator=random) for _ in range(levels)]

    def __call__(self, stage: StagedQwen3VL, features: list, select=lambda view: None):
        with torch.inference_mode():
            return stage(self.h, self.prefix, self.where, None, features, select=select)


def test_features_of_a_layer_that_is_gone_are_added_all_the_same():
    """DeepStack: behind the layer before it, or before the first one."""
    given = Layers(2)
    without_features = [torch.zeros_like(it) for it in given.features]
    for kept in ((2, 3), (0, 3)):
        twin = given.stage.with_layers(kept)
        given.h, plain = given.h.clone(), given.h
        found, _ = given(twin, given.features)
        if kept[0]:  # both before the first
            given.h = plain.clone()
            given.h[:, 2:6] += given.features[0] + given.features[1]
            wanted, _ = given(twin, without_features)
        else:  # both behind it
            wanted, _ = given(twin, [given.features[0] + given.features[1], without_features[1]])
        given.h = plain
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_patches_stay_until_all_features_were_added_to_them(policy):
    """Refused by name, in a plan and while it runs; later it is as if they were masked."""
    given = Layers(2)
    assert [given.stage.with_layers(kept).first_drop for kept in ((0, 1, 2, 3), (0, 2), (3,), (0, 1))] == [
        1, 0, 0, 1,
    ]  # fmt: skip
    kept = torch.tensor([[0, 3], [1, 2]])
    with pytest.raises(UnsupportedPolicy, match="after layer 0, but features .* after layer 1 or later"):
        given(given.stage, given.features, lambda view: kept if view.index == 0 else None)
    found, prefix = given(given.stage, given.features, lambda view: kept if view.index == 1 else None)
    assert found.shape == (2, 7, 32)
    assert prefix.order.tolist() == [[2, 3, 0, 1, 4, 5, 6], [2, 3, 0, 1, 4, 5, 6]]
    assert prefix.is_token(7).all()
    staged = copy.copy(stage(policy))
    staged.language = given.stage
    with pytest.raises(PlanMismatch, match=r"runs 4, and adds to its patches up to layer 1; choose 1\.\.3"):
        PatchSelect(k_final=4, layer=0).check(as_trained(staged))


def test_attention_that_selectors_look_at_is_that_of_the_layer():
    """Weights of text rows on patches, rows before the patches none."""
    given, looked = Layers(1), []
    given(given.stage, given.features, lambda view: looked.append((view, view.attention())))
    view, weights = looked[1]
    assert weights.shape == (2, 4, 5, 4)
    assert not weights[:, :, :2].any()
    assert weights[:, :, 2:].min() > 0
    assert torch.equal(view.prefix.patches_of(view.h), view.h[:, 2:6])


def test_positions_are_those_of_transformers(policy):
    """Pictures of unlike sides, and of two sizes; padded rows."""
    qwen = policy._groot_model.backbone.model
    token = qwen.config.image_token_id
    for sizes in (((1, 4, 10), (1, 8, 2)), ((1, 2, 2),), ((1, 6, 4), (1, 6, 4), (1, 4, 8))):
        pictures = Pictures(sizes, 2, 2, is_padded=True)
        prompt = [30, 31]
        for n in pictures.counts:
            prompt += [32, *[token] * n, 33]
        ids = torch.tensor([prompt + [40, 41, 42], prompt + [40, 41, 42]])
        mask = torch.ones_like(ids)
        mask[0, :2] = 0
        is_patch = ids == token
        found = positions(is_patch, mask == 1, pictures.ended(), pictures.places())
        grid = torch.tensor(sizes * 2)
        wanted, _ = qwen.model.get_rope_index(ids, is_patch.int(), image_grid_thw=grid, attention_mask=mask)
        assert torch.equal(found, wanted)


def test_observations_without_what_the_processors_make_are_refused(policy):
    staged, batch = stage(policy), qwen_observations(policy)
    bare = {key: value for key, value in batch.items() if key != "image_grid_thw"}
    with pytest.raises(ObservationMismatch, match="the policy needs image_grid_thw too; save the processors"):
        staged.encode(bare)
    odd = batch | {"input_ids": batch["input_ids"].clone()}
    odd["input_ids"][1, -1] = policy._groot_model.backbone.model.config.image_token_id
    with pytest.raises(ObservationMismatch, match="32, 33, 32 image tokens in their prompts"):
        staged.encode(odd)
    with pytest.raises(ObservationMismatch, match="gives 2 states, the policy reads 1"):
        staged.encode(batch | {"state": torch.zeros(3, 2, 8)})
    with pytest.raises(UnsupportedPolicy, match="n_obs_steps=2 in config.json, set it to 1"):
        stage(changed(policy, n_obs_steps=2))


def test_observations_come_apart_with_their_pictures(policy):
    batch = qwen_observations(policy)
    picked = take(batch, [2, 0])
    n = len(batch["pixel_values"]) // 3
    assert torch.equal(picked["pixel_values"][:n], batch["pixel_values"][2 * n :])
    assert torch.equal(picked["image_grid_thw"], batch["image_grid_thw"][:4])
    assert torch.equal(picked["state"], batch["state"][[2, 0]])


def test_patches_are_as_many_as_the_preprocessor_makes():
    """It alone knows; the model's config is believed where there is none."""
    loaded = load_policy(saved("groot"))
    assert loaded.staged.n_patches == (16, 16)
    step = loaded.preprocess.steps[3]
    assert type(step).__name__ == "GrootN17VLMEncodeStep"
    step.image_target_size, step.image_crop_size = [64, 32], None
    assert loaded.staged.prepared_by(loaded.preprocess).n_patches == (8, 8)
    assert stage(loaded.policy).n_patches == (16, 16)


def test_cameras_of_two_sizes_are_one_line():
    """A15: lerobot's own step stacks pictures, and ends in numpy's words."""
    session = Session(load_policy(saved("groot")), task=TASK)
    seen = moments(session.spec)[0]
    seen["observation.images.wrist"] = np.zeros((1, 50, 50, 3), np.uint8)
    with pytest.raises(
        ObservationMismatch, match=r"front 48 x 64, .*wrist 50 x 50; this policy takes .* one"
    ):
        session.predict({key: value[:, None] for key, value in seen.items()}, [(0, 0)])


@pytest.mark.long
def test_work_at_true_size(monkeypatch):
    """X4, X5, X6: the language head is 28 % of the language stage, keys and values 24 % of the DiT."""
    config = GR00TN17Config()
    build_model = lambda self: GR00TN17(config, load_backbone_weights=False)  # noqa: E731
    monkeypatch.setattr(GrootPolicy, "_create_groot_model", build_model)
    with torch.device("meta"):
        staged = StagedGroot(build_true_size())
    sizes = Pictures(((1, 16, 16),) * 2, 1, 2, is_padded=False)
    monkeypatch.setattr(Pictures, "read", lambda *given: sizes)
    length = 160
    batch = {
        "input_ids": torch.zeros(1, length, dtype=torch.long, device="meta"),
        "attention_mask": torch.ones(1, length, dtype=torch.long, device="meta"),
        "pixel_values": torch.zeros(512, 1536, device="meta"),
        "image_grid_thw": torch.zeros(2, 3, dtype=torch.long, device="meta"),
        "state": torch.zeros(1, 1, 132, device="meta"),
        "embodiment_id": torch.zeros(1, dtype=torch.int32, device="meta"),
    }
    forms = {
        "plain": staged,
        "head": staged.without((HEAD,)),
        "hoisted": staged.hoist(staged.sampler),
        "all": staged.without((HEAD, OTHER)).hoist(staged.sampler),
    }
    found = {name: count_flops(Denoising(form, staged.sampler), batch) for name, form in forms.items()}
    head = found["plain"].encode - found["head"].encode
    assert round(head / (found["plain"].language + head), 2) == 0.28
    assert round(1 - found["hoisted"].denoise / found["plain"].denoise, 2) == 0.24
    print({name: (it.encode / 2e9, it.language / 2e9, it.denoise / 2e9) for name, it in found.items()})


def build_true_size() -> GrootPolicy:
    """lerobot's own architecture, without weights."""
    from lerobot.policies.factory import make_policy_config
    from lerobot_policies import features

    settings = features() | {"use_bf16": False}
    return GrootPolicy(make_policy_config("groot", **settings))
