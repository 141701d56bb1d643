"""Parity: the staged multi-task DiT is lerobot's, bit for bit; hoisting changes rounding only."""

import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.multi_task_dit.processor_multi_task_dit import make_multi_task_dit_pre_post_processors

from vivace.policies.adapters.multi_task_dit import StagedMultiTaskDiT
from vivace.policies.block import Compute
from vivace.policies.errors import BadSetting
from vivace.policies.execution import Denoising, as_trained, sample
from vivace.policies.sampling.noise import EpisodeNoise, GlobalNoise
from vivace.policies.tiny.policies import tiny_clip, tiny_multi_task_dit

BLOCKS = ["action.0.attn", "action.0.mlp", "action.1.attn", "action.1.mlp"]
OBJECTIVES = [
    {"objective": "diffusion", "noise_scheduler_type": "DDPM"},
    {"objective": "diffusion", "noise_scheduler_type": "DDIM"},
    {"objective": "flow_matching", "integration_method": "euler"},
    {"objective": "flow_matching", "integration_method": "rk4"},
]
TWO_CAMERAS = {
    "observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, 40, 40)),
    "observation.state": PolicyFeature(FeatureType.STATE, (5,)),
    "observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 40, 40)),
}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("miniature"))


def batch(policy, task: str = "push the puck", n: int = 2) -> dict[str, torch.Tensor]:
    """Observations as lerobot's own preprocessor leaves them, filtered as `Session.prepare` does."""
    generator = torch.Generator().manual_seed(1)
    values = {
        key: torch.rand(n, policy.config.n_obs_steps, *feature.shape, generator=generator)
        for key, feature in policy.config.input_features.items()
    }
    preprocess, _ = make_multi_task_dit_pre_post_processors(policy.config)
    ready = preprocess(values | {"task": [task] * n})
    return {k: v for k, v in ready.items() if isinstance(v, torch.Tensor) and k.startswith("observation.")}


@torch.no_grad()
def lerobot_sample(policy, observations) -> torch.Tensor:
    context = policy.observation_encoder.encode(policy._prepare_batch(observations))
    torch.manual_seed(0)
    return policy.objective.conditional_sample(policy.noise_predictor, len(context), context)


def staged_sample(staged, observations) -> torch.Tensor:
    torch.manual_seed(0)
    return sample(as_trained(staged), observations, GlobalNoise())


@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: list(o.values())[1])
def test_staged_is_bit_equal_to_lerobot_and_hoisting_changes_rounding_only(clip, objective, rope):
    policy = tiny_multi_task_dit(clip, use_rope=rope, **objective)
    observations = batch(policy)
    theirs = lerobot_sample(policy, observations)
    staged = StagedMultiTaskDiT(policy)
    assert torch.equal(staged_sample(staged, observations), theirs)
    if policy.config.is_diffusion:
        assert (theirs.abs() < 1).float().mean() > 0.3, "clipping hides differences"
    hoisted = staged.hoist(staged.sampler)
    torch.testing.assert_close(staged_sample(hoisted, observations), theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"use_positional_encoding": True, "use_rope": False},
        {"num_inference_steps": 5},
        {"prediction_type": "sample", "clip_sample": False},
        {"n_obs_steps": 1},
        {"input_features": TWO_CAMERAS},
        {"input_features": TWO_CAMERAS, "use_separate_rgb_encoder_per_camera": True},
        {"input_features": {"observation.state": PolicyFeature(FeatureType.STATE, (5,))}},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_other_architectures_and_processes(clip, changes):
    policy = tiny_multi_task_dit(clip, **changes)
    staged = StagedMultiTaskDiT(policy)
    observations = batch(policy)
    theirs = lerobot_sample(policy, observations)
    assert torch.equal(staged_sample(staged, observations), theirs)
    hoisted = staged_sample(staged.hoist(staged.sampler), observations)
    torch.testing.assert_close(hoisted, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("key", ["task", "observation.state", "observation.images.front"])
def test_every_input_reaches_the_actions(clip, key):
    staged = StagedMultiTaskDiT(tiny_multi_task_dit(clip))
    observations = batch(staged.policy)
    other = batch(staged.policy, "open the drawer") if key == "task" else dict(observations)
    if key != "task":
        other[key] = other[key].flip(0)
    difference = staged_sample(staged, observations) - staged_sample(staged, other)
    assert difference.abs().max() > 1e-4


@pytest.mark.parametrize("hoist", [False, True])
@pytest.mark.parametrize("objective", [OBJECTIVES[1], OBJECTIVES[3]], ids=["ddim", "rk4"])
def test_every_block_runs_once_a_call_in_order(clip, objective, hoist, seen, spying):
    staged = StagedMultiTaskDiT(tiny_multi_task_dit(clip, **objective))
    if hoist:
        staged = staged.hoist(staged.sampler)
    execution = Denoising(staged, staged.sampler, spying)
    sample(execution, batch(staged.policy), GlobalNoise())
    assert list(staged.spec.block_ids) == BLOCKS
    assert all(block.additive for block in staged.blocks)
    assert seen == BLOCKS * len(staged.sampler)
    assert len(staged.sampler) == (10 if staged.policy.config.is_diffusion else 16)


@pytest.mark.parametrize("skipped", BLOCKS)
def test_no_block_of_the_miniature_is_trivial(clip, skipped):
    staged = StagedMultiTaskDiT(tiny_multi_task_dit(clip, objective="flow_matching"))
    observations = batch(staged.policy)

    class Skip(Compute):
        def __call__(self, block, h, *cond):
            return None if block.id == skipped else super().__call__(block, h, *cond)

    torch.manual_seed(0)
    execution = Denoising(staged, staged.sampler, lambda index, cache: Skip())
    without = sample(execution, observations, GlobalNoise())
    assert (without - staged_sample(staged, observations)).abs().max() > 1e-3


def test_hoisted_modulation_belongs_to_the_sampler_it_was_computed_for(clip):
    staged = StagedMultiTaskDiT(tiny_multi_task_dit(clip))
    hoisted = staged.hoist(staged.sampler).hoist(staged.resample("ddim", 4))
    assert len(hoisted.sampler) == 4
    observations = batch(staged.policy)
    plain = sample(Denoising(staged, hoisted.sampler), observations, EpisodeNoise([(7,), (8,)]))
    twin = sample(as_trained(hoisted), observations, EpisodeNoise([(7,), (8,)]))
    torch.testing.assert_close(twin, plain, atol=1e-5, rtol=0)


def test_lerobots_policy_is_left_as_it_was(clip):
    policy = tiny_multi_task_dit(clip)
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    modules = list(policy.modules())
    observations = batch(policy)
    keys = list(observations)
    theirs = lerobot_sample(policy, observations)
    staged = StagedMultiTaskDiT(policy)
    staged_sample(staged, observations)
    staged_sample(staged.hoist(staged.sampler), observations)
    after = policy.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(a is b for a, b in zip(modules, policy.modules(), strict=True))
    assert list(observations) == keys
    assert torch.equal(lerobot_sample(policy, observations), theirs)


def test_building_a_miniature_leaves_the_global_generator_alone(clip, tmp_path):
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    again = tiny_clip(tmp_path)
    first, second = tiny_multi_task_dit(clip).state_dict(), tiny_multi_task_dit(again).state_dict()
    assert torch.equal(torch.randn(3), expected)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_resample_refuses_what_the_process_cannot_do(clip):
    diffusion = StagedMultiTaskDiT(tiny_multi_task_dit(clip))
    assert len(diffusion.resample("dpmsolver++", 4)) == 4
    with pytest.raises(BadSetting, match="known samplers: ddpm, ddim"):
        diffusion.resample("euler", 4)
    flow = StagedMultiTaskDiT(tiny_multi_task_dit(clip, objective="flow_matching"))
    assert len(flow.resample("rk4", 3)) == 12
    with pytest.raises(BadSetting, match="known samplers: euler, rk4"):
        flow.resample("ddim", 4)
