"""The FLOP counter gives the published figures (methods of BAC, Diffusion Policy image shape)."""

from dataclasses import replace

import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from policy_cases import KEYS, observations
from technique_cases import examples, fits
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.flops import count_flops
from vivace.accel.rows import make_rows
from vivace.accel.technique import CalibrationData, Need
from vivace.accel.techniques.patch_select import PatchSelect
from vivace.accel.updates import uniform_updates
from vivace.policies.block import compute
from vivace.policies.execution import as_trained
from vivace.policies.families.dp_transformer.policy import DPTransformerConfig, DPTransformerPolicy
from vivace.policies.families.dp_transformer.staged import StagedDPTransformer
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.tiny.policies import tiny_cogact, tiny_token_vla


@pytest.fixture(scope="module")
def image_shape():
    """8 layers, width 256, 10 action tokens, 2 observations of 137 features (image encoder left out)."""
    config = DPTransformerConfig(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (137,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (10,))},
        horizon=10,
        device="cpu",
    )
    staged = StagedDPTransformer(DPTransformerPolicy(config))
    return as_trained(staged), {"observation.state": torch.randn(1, 2, 137)}


def test_full_sampling_costs_what_the_paper_prints(image_shape):
    assert count_flops(*image_shape).denoise / 1e9 == pytest.approx(15.755, abs=0.0015)


@pytest.mark.parametrize(("updates", "expected"), [(5, 1.11), (8, 1.57), (10, 1.88), (20, 3.42)])
def test_updates_cost_what_the_paper_prints(image_shape, updates, expected):
    execution, batch = image_shape
    schedule = dict.fromkeys(execution.policy.spec.block_ids, uniform_updates(100, updates))
    cached = replace(execution, action=make_rows(execution.policy.spec.blocks, schedule, 100))
    assert count_flops(cached, batch).denoise / 1e9 == pytest.approx(expected, abs=0.005)


def test_hoisting_is_counted_apart(image_shape):
    execution, batch = image_shape
    plain = count_flops(execution, batch)
    hoisted = count_flops(replace(execution, policy=execution.policy.hoist(execution.sampler)), batch)
    assert hoisted.condition == 0
    assert hoisted.encode > plain.encode
    saved_per_layer = 100 * 2 * 2 * 3 * 256 * 256  # keys and values of three memory tokens
    assert plain.blocks["action.0.cross"] - hoisted.blocks["action.0.cross"] == saved_per_layer
    assert plain.blocks["action.0.mlp"] == hoisted.blocks["action.0.mlp"]


PATCHES, TEXT, WIDTH = 16, 16, 32
"""Of the miniature VLA; its language model also reads one token before the patches."""


def looking(**options):
    """Count the miniature's encoding as it is, and with patches chosen after its last layer."""
    execution = as_trained(stage(tiny_cogact()))
    batch = {
        "observation.images.front": torch.rand(1, 1, 3, 32, 32),
        "observation.language.tokens": torch.arange(TEXT)[None],
        "observation.language.attention_mask": torch.ones(1, TEXT, dtype=torch.bool),
    }
    select = PatchSelect(k_final=PATCHES, layer=3, **options)
    return count_flops(execution, batch), count_flops(select.apply(execution), batch)


def test_choosing_patches_is_work_of_the_language_stage():
    plain, chosen = looking(method="fastv")
    assert chosen.encode - chosen.language == plain.encode - plain.language, "vision does what it did"
    assert chosen.language > plain.language
    plain, uniform = looking(method="uniform")
    assert uniform.language == plain.language, "an even grid looks at nothing"


def test_choosing_patches_projects_the_texts_queries_and_no_keys():
    plain, chosen = looking(method="fastv")
    text = TEXT - 1  # the first token stands before the patches
    queries = 2 * text * WIDTH * WIDTH
    scores = 2 * text * (1 + PATCHES + text) * WIDTH
    assert chosen.language - plain.language == queries + scores


TOKENS = [name for name in examples() if fits({Need.TOKENS, Need.LANGUAGE, Need.GATED}, name)]


@pytest.mark.parametrize("name", TOKENS)
def test_one_pass_of_each_size_is_counted_for_all(name):
    policy = tiny_token_vla()
    staged = stage(policy)
    data = CalibrationData(observations(policy), KEYS)
    plan = calibrate(staged, fingerprint(policy, staged.spec.block_ids), data, examples()[name])
    run = accelerate(staged, plan)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        context = run.policy.encode(data.one, compute, run.select)
        with FlopCounterMode(display=False) as every_pass:
            run.decoder(run.policy, context, EpisodeNoise([(0, 0)]), None, compute)
    assert count_flops(run, data.one).decode == every_pass.get_total_flops() > 0
