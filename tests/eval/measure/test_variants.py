"""The line-up offers what fits a policy, says why of the rest, and hides no mistake."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from vivace.accel.technique import CalibrationData
from vivace.eval.measure.variants import Entry, labelled, lineup_for
from vivace.eval.options import AccelOptions
from vivace.eval.verbs.bench import build
from vivace.policies.adapters.opaque import OpaquePolicy
from vivace.policies.errors import BadSetting
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.tiny.policies import tiny_clip, tiny_dp_transformer, tiny_multi_task_dit, tiny_token_vla

KEYS = ((1, 0), (2, 0))


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
    entries = [e for e in lineup_for(policy.staged, AccelOptions(updates=4, bubbling=2)) if not e.is_compiled]
    built = build(policy, entries, observations(flow))
    names = [entry.name for entry in built.entries]
    assert {"euler-2", "euler-4", "euler-8", "rk4-2"} <= set(names)
    assert not any(name.startswith(("ddim", "dpmsolver")) for name in names)
    assert list(built.executions) == names == [entry.name for entry in entries]
    assert built.left_out == {}
    assert len(built.executions["rk4-2"].sampler) == 8 < len(policy.staged.sampler)


def test_a_policy_that_writes_tokens_has_every_row_it_is_offered():
    policy = tiny_token_vla(horizon=2, n_action_steps=2)
    entries = [e for e in lineup_for(stage(policy), AccelOptions()) if not e.is_compiled]
    built = build(loaded(policy), entries, observations(policy))
    assert list(built.executions) == [entry.name for entry in entries]
    assert built.left_out == {}


def test_only_fewer_steps_are_offered_as_fewer_steps():
    staged = stage(tiny_dp_transformer(num_train_timesteps=10))
    names = {entry.name for entry in lineup_for(staged, AccelOptions())}
    assert {"ddim-8", "dpmsolver++-8"} <= names
    assert not {"ddim-16", "dpmsolver++-32", "ddim-16+bac"} & names


def test_rows_that_do_not_fit_are_left_out_with_the_reason(flow):
    staged, n_blocks = stage(flow), len(flow.noise_predictor.transformer_blocks) * 2
    options = AccelOptions(updates=11, bubbling=n_blocks + 1)
    entries = [e for e in lineup_for(staged, options) if e.name in ("plain", "bac", "uniform", "euler-4")]
    built = build(loaded(flow), entries, observations(flow))
    assert list(built.executions) == ["plain", "euler-4"]
    assert built.left_out == {
        "bac": "updates=11, but the sampler runs 10 steps; choose --accel.updates in 1..10",
        "uniform": "updates=11, but the sampler runs 10 steps; choose --accel.updates in 1..10",
    }
    built = build(
        loaded(flow),
        [e for e in lineup_for(staged, replace(options, updates=4)) if e.name in ("plain", "bac")],
        observations(flow),
    )
    assert built.left_out == {
        "bac": f"bubbling={n_blocks + 1}, but the policy has {n_blocks} blocks; choose --accel.bubbling in "
        f"0..{n_blocks}"
    }


def test_a_row_of_a_stage_that_the_policy_lacks_is_left_out_with_the_reason():
    policy = tiny_dp_transformer(n_cond_layers=1)
    entries = lineup_for(stage(policy), AccelOptions(updates=4, bubbling=2))
    built = build(loaded(policy), [e for e in entries if e.name in ("plain", "hoist")], observations(policy))
    assert list(built.executions) == ["plain"]
    assert "hoisting needs a token-wise condition encoder" in built.left_out["hoist"]


def test_a_bad_setting_of_a_row_is_raised(flow):
    wrong = Entry("wrong", "wrong", "bac", (("block_cache", {"objective": "best"}),))
    with pytest.raises(BadSetting, match="objective is 'best'; needed is one of 'anchor', 'consecutive'"):
        build(loaded(flow), [wrong], observations(flow))
    unknown = Entry("unknown", "unknown", "ddim", (("step_schedule", {"sampler": "ddim", "n_steps": 4}),))
    with pytest.raises(BadSetting, match="unknown flow sampler 'ddim'"):
        build(loaded(flow), [unknown], observations(flow))


def test_an_opaque_policy_has_the_one_row_that_fits_it():
    config = SimpleNamespace(
        type="act", n_obs_steps=1, n_action_steps=4, input_features={}, action_delta_indices=list(range(4)),
        action_feature=SimpleNamespace(shape=(2,)),
    )  # fmt: skip
    opaque = OpaquePolicy(SimpleNamespace(config=config, eval=lambda: None))
    assert [entry.name for entry in lineup_for(opaque, AccelOptions())] == ["plain"]


def test_a_row_says_which_spacing_its_calibration_chose():
    entry = Entry("ddim-4", "ddim 4 steps, hoisted", "ddim")
    spaced = SimpleNamespace(techniques=[SimpleNamespace(kind="step_schedule", spacing="trailing")])
    assert labelled(entry, spaced).label == "ddim 4 steps, hoisted, trailing spacing"
    assert labelled(entry, SimpleNamespace(techniques=[SimpleNamespace(kind="hoist")])) == entry
