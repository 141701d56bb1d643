"""The line-up offers what fits a policy, says why of the rest, and hides no mistake."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lerobot_policies import saved

from vivace.accel.technique import CalibrationData
from vivace.accel.techniques.hoist import Hoist
from vivace.accel.techniques.step_schedule import StepSchedule
from vivace.accel.updates import UpdateOptions
from vivace.accel.variant import Variant
from vivace.eval.measure.variants import labelled, unfit, variants_of
from vivace.eval.verbs.bench import build
from vivace.policies.errors import BadSetting
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import load_policy, stage
from vivace.policies.tiny.policies import tiny_clip, tiny_dp_transformer, tiny_multi_task_dit, tiny_token_vla

KEYS = ((1, 0), (2, 0))
FEW = {"block_cache": UpdateOptions(updates=4, bubbling=2)}


def loaded(policy) -> SimpleNamespace:
    staged = stage(policy)
    return SimpleNamespace(staged=staged, fingerprint=fingerprint(policy, staged.spec.block_ids))


def observations(policy) -> CalibrationData:
    config, generator = policy.config, torch.Generator().manual_seed(0)
    batch = {
        key: torch.rand(2, config.n_obs_steps, *feature.shape, generator=generator)
        for key, feature in config.input_features.items()
    }
    batch["observation.language.tokens"] = torch.arange(16).expand(2, 16)
    batch["observation.language.attention_mask"] = torch.ones(2, 16, dtype=torch.bool)
    return CalibrationData(batch, KEYS)


@pytest.fixture(scope="module")
def flow(tmp_path_factory):
    return tiny_multi_task_dit(
        tiny_clip(tmp_path_factory.mktemp("flow")), objective="flow_matching", num_integration_steps=10
    )


def test_a_flow_policy_is_offered_fewer_steps_of_its_own_samplers(flow):
    policy = loaded(flow)
    rows = [row for row in variants_of(policy.staged, FEW) if not row.is_compiled]
    built = build(policy, rows, observations(flow))
    names = [row.name for row in built.variants]
    assert {"euler-2", "euler-4", "euler-8", "rk4-2"} <= set(names)
    assert not any(name.startswith(("ddim", "dpmsolver")) for name in names)
    assert list(built.executions) == names == [row.name for row in rows]
    assert built.left_out == {}
    assert len(built.executions["rk4-2"].sampler) == 8 < len(policy.staged.sampler)


def test_a_policy_that_writes_tokens_has_every_row_it_is_offered():
    policy = tiny_token_vla(horizon=2, n_action_steps=2)
    rows = [row for row in variants_of(stage(policy)) if not row.is_compiled]
    built = build(loaded(policy), rows, observations(policy))
    assert list(built.executions) == [row.name for row in rows]
    assert built.left_out == {}


def test_only_fewer_steps_are_offered_as_fewer_steps():
    staged = stage(tiny_dp_transformer(num_train_timesteps=10))
    names = {row.name for row in variants_of(staged)}
    assert {"ddim-8", "dpmsolver++-8"} <= names
    assert not {"ddim-16", "dpmsolver++-32", "ddim-16+bac"} & names


def test_rows_that_do_not_fit_are_left_out_with_the_reason(flow):
    staged, n_blocks = stage(flow), len(flow.noise_predictor.transformer_blocks) * 2
    options = UpdateOptions(updates=11, bubbling=n_blocks + 1)
    rows = [
        row
        for row in variants_of(staged, {"block_cache": options})
        if row.name in ("plain", "bac", "uniform", "euler-4")
    ]
    built = build(loaded(flow), rows, observations(flow))
    assert list(built.executions) == ["plain", "euler-4"]
    assert built.left_out == {
        "bac": "updates=11, but the sampler runs 10 steps; choose 1..10",
        "uniform": "updates=11, but the sampler runs 10 steps; choose 1..10",
    }
    built = build(
        loaded(flow),
        [
            row
            for row in variants_of(staged, {"block_cache": replace(options, updates=4)})
            if row.name in ("plain", "bac")
        ],
        observations(flow),
    )
    assert built.left_out == {
        "bac": f"bubbling={n_blocks + 1}, but the policy has {n_blocks} blocks; "
        f"choose 0..{n_blocks}, or leave it out"
    }


def test_a_row_of_a_stage_that_the_policy_lacks_is_left_out_with_the_reason():
    policy = tiny_dp_transformer(n_cond_layers=1)
    rows = variants_of(stage(policy), FEW)
    built = build(
        loaded(policy), [row for row in rows if row.name in ("plain", "hoist")], observations(policy)
    )
    assert list(built.executions) == ["plain"]
    assert "hoisting needs a token-wise condition encoder" in built.left_out["hoist"]


def test_a_bad_setting_of_a_row_is_raised(flow):
    wrong = Variant("wrong", "wrong", (("block_cache", {"objective": "best"}),))
    with pytest.raises(BadSetting, match="objective is 'best'; needed is one of 'anchor', 'consecutive'"):
        build(loaded(flow), [wrong], observations(flow))
    unknown = Variant("unknown", "unknown", (("step_schedule", {"sampler": "ddim", "n_steps": 4}),))
    with pytest.raises(BadSetting, match="unknown flow sampler 'ddim'"):
        build(loaded(flow), [unknown], observations(flow))


def test_an_opaque_policy_has_the_rows_that_fit_a_whole():
    opaque = load_policy(saved("vqbet")).staged
    assert [row.name for row in variants_of(opaque)] == ["plain", "compile"]
    assert unfit(opaque) == {
        "mlp_prune, layer_skip, patch_select": "works on a language stage, but policy 'vqbet' has none",
        "fused_attention": "looks at keys by torch's own kernels, but policy 'vqbet' does so, or cannot",
        "step_schedule, guidance, dead_actions, hoist, block_cache, context_freeze, forecast, frame_cache, "
        "static_patches, warm_start, cuda_graph": "works on denoising steps, but policy 'vqbet' has none "
        "that come apart",
        "cameras_together": "looks at several cameras in one call, but policy 'vqbet' has not several, or "
        "does so",
        "vision_merge": "works inside a vision tower, but policy 'vqbet' has none that comes apart",
        "convolutions, precision": "runs stages in fewer bits, but policy 'vqbet' names none",
        "dead_work": "leaves out work whose result nobody reads, but policy 'vqbet' has none that is known",
        "greedy_executed, jacobi, sjd, stand, token_recycling": "decodes action tokens, but policy 'vqbet' "
        "writes none",
    }


def test_a_row_says_which_spacing_its_calibration_chose():
    row = Variant("ddim-4", "ddim 4 steps, hoisted")
    spaced = SimpleNamespace(techniques=[StepSchedule(spacing="trailing"), Hoist()])
    assert labelled(row, spaced).label == "ddim 4 steps, hoisted, trailing spacing"
    assert labelled(row, SimpleNamespace(techniques=[Hoist()])) == row


def test_a_row_under_torch_compile_is_another_one():
    row = Variant("bac", "BAC", (("block_cache", {}),), is_short=True)
    compiled = row.compiled()
    assert (compiled.name, compiled.label) == ("bac-compile", "BAC, torch.compile")
    assert compiled.is_compiled
    assert not compiled.is_short
    assert compiled.wanted == (*row.wanted, ("compile", {}))
