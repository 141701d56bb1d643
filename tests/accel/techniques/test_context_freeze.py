"""Context freeze: the context runs at some steps, and stands still for the action tokens at the others."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.xvla.configuration_xvla import XVLAConfig
from lerobot.policies.xvla.modeling_xvla import XVLAPolicy
from lerobot_policies import build
from policy_cases import KEYS, observations

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.explain import explain, grid
from vivace.accel.flops import Flops, count_flops
from vivace.accel.freeze import Freeze
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.accel.techniques.compile import compile_execution
from vivace.accel.techniques.context_freeze import ContextFreeze, context_similarity
from vivace.policies.errors import BadSetting, CalibrationError, PlanMismatch
from vivace.policies.execution import Denoising, Execution, as_trained, sample
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.sampling.noise import EpisodeNoise

H, C, WIDTH, STEPS = 6, 65 + 16 + 65 + 4, 32, 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("joint")


class Subject:
    """A joint policy, and what to run it on."""

    def __init__(self, folder: Any, **changes: Any):
        policy = build("xvla", folder, num_denoising_steps=STEPS, **changes)
        self.staged = stage(policy)
        self.mark = fingerprint(policy, self.staged.spec.block_ids)
        self.data = CalibrationData(observations(policy), KEYS)

    def plan(self, *wanted: tuple[str, dict[str, Any]]) -> AccelerationPlan:
        return calibrate(self.staged, self.mark, self.data, wanted)

    def frozen(self, **options: Any) -> Execution:
        return accelerate(self.staged, self.plan(("context_freeze", options)))

    def run(self, execution: Execution) -> torch.Tensor:
        return sample(execution, self.data.batch, EpisodeNoise(KEYS))


@pytest.fixture(scope="module")
def subject(folder) -> Subject:
    return Subject(folder)


def test_running_the_context_at_every_step_is_the_plain_head_bit_for_bit(subject):
    plain = subject.run(as_trained(subject.staged))
    assert torch.equal(subject.run(subject.frozen(full_steps=STEPS)), plain)


@pytest.mark.parametrize("twin", ["plain", "hoisted", "without dead work"])
def test_actions_alone_find_what_they_find_among_all(subject, twin):
    """At the step that kept it, the context is what it is: so are the actions."""
    staged = subject.staged
    staged = {
        "plain": lambda: staged,
        "hoisted": lambda: staged.hoist(staged.sampler),
        "without dead work": lambda: staged.without(("last_layer",)),
    }[twin]()
    x = torch.randn(len(KEYS), *staged.spec.latent_shape, generator=torch.Generator().manual_seed(2))
    condition = staged.condition(staged.sampler.steps[3], staged.encode(subject.data.batch))
    wanted = staged.denoise(x, condition)
    out, kept = staged.denoise_keeping(x, condition)
    assert torch.equal(out, wanted)
    assert {tuple(it.shape) for it in kept} == {(len(KEYS), C, 2 * WIDTH)}
    assert len(kept) == 2
    torch.testing.assert_close(staged.denoise_alone(x, condition, kept), wanted, atol=1e-5, rtol=0)
    other = tuple(3.7 * it for it in kept)
    assert (staged.denoise_alone(x, condition, other) - wanted).abs().max() > 1e-2


def test_frozen_steps_run_the_action_tokens_alone(subject):
    rows: list[int] = []

    def told(block: Any) -> Any:
        def fn(h: torch.Tensor, *cond: torch.Tensor) -> Any:
            rows.append(h.shape[1])
            return block.fn(h, *cond)

        return replace(block, fn=fn) if block.id == "action.1.mlp" else block

    execution = subject.frozen(full_steps=3)
    assert execution.plan.techniques[0].full == (0, 3, 6)
    seen = replace(execution, policy=execution.policy.with_blocks(told))
    assert torch.equal(subject.run(seen), subject.run(execution))
    assert rows == [H + C if step in (0, 3, 6) else H for step in range(STEPS)]
    plain = subject.run(as_trained(subject.staged))
    assert 1e-4 < (subject.run(execution) - plain).abs().max() < 1


def test_work_is_counted_as_it_is_done(subject):
    plain, one = as_trained(subject.staged), subject.data.one
    execution = subject.frozen(full_steps=1)
    before, after = count_flops(plain, one), count_flops(execution, one)

    def layer(rows: int) -> tuple[int, int]:
        attention = 2 * rows * 4 * WIDTH**2 + 2 * 2 * rows * (H + C) * WIDTH
        return attention, 2 * rows * 2 * 4 * WIDTH**2

    for branch, full, alone in zip(("attn", "mlp"), layer(H + C), layer(H), strict=True):
        assert before.blocks[f"action.0.{branch}"] == STEPS * full
        assert after.blocks[f"action.0.{branch}"] == full + (STEPS - 1) * alone
    text = explain(execution.plan, execution, before, after)
    assert "a of the action tokens alone, the context frozen" in text
    assert grid(execution) == dict.fromkeys(subject.staged.spec.block_ids, "#" + "a" * (STEPS - 1))


def test_a_single_layer_sees_a_context_that_never_changes(folder, subject):
    """What enters the first layer is not of x: it is frozen without an error, and its likeness is 1."""
    one = Subject(folder, depth=1)
    np.testing.assert_allclose(context_similarity(as_trained(one.staged), one.data), 1, atol=1e-6)
    found = one.run(one.frozen(full_steps=1))
    torch.testing.assert_close(found, one.run(as_trained(one.staged)), atol=1e-5, rtol=0)
    likeness = context_similarity(as_trained(subject.staged), subject.data)
    np.testing.assert_allclose(np.diagonal(likeness), 1, atol=1e-6)
    assert 0 < likeness.min() < 1 - 1e-5


def test_full_steps_are_where_the_context_changes(subject, monkeypatch):
    kept = np.eye(STEPS)
    kept[:2, :2] = kept[2:, 2:] = 1  # it changes once, behind step 1
    monkeypatch.setattr(
        "vivace.accel.techniques.context_freeze.context_similarity", lambda execution, data: kept
    )
    (found,) = subject.plan(("context_freeze", {"method": "similarity", "full_steps": 2})).techniques
    assert found.full == (0, 2)
    (found,) = subject.plan(("context_freeze", {})).techniques
    assert (found.full, found.options["method"]) == ((0, 5), "uniform")


def test_compiled_code_computes_the_same(subject):
    execution = subject.frozen(full_steps=2)
    graphs = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = compile_execution(execution, backend)
    compiled.policy.encode = subject.staged.encode  # this is about steps
    torch.testing.assert_close(subject.run(compiled), subject.run(execution), atol=1e-5, rtol=0)
    assert len(graphs) == 2, "one of the full steps, one of the others"


def test_what_cannot_be_is_refused(subject):
    with pytest.raises(PlanMismatch, match="block_cache and context_freeze both work on the blocks seam"):
        subject.plan(("context_freeze", {}), ("block_cache", {"updates": 2, "bubbling": 0}))
    with pytest.raises(CalibrationError, match="updates=11, but the sampler runs 10 steps"):
        subject.plan(("context_freeze", {"full_steps": 11}))
    with pytest.raises(BadSetting, match="context_freeze method is 'acs'; needed is one of 'similarity'"):
        subject.plan(("context_freeze", {"method": "acs"}))
    execution = as_trained(subject.staged)
    for full in ((), (1, 2), (0, 5, 3), (0, 10)):
        with pytest.raises(PlanMismatch, match="ascending steps from 0 to at most 9"):
            ContextFreeze(n_steps=10, full=full).check(execution)
    fewer = Denoising(subject.staged, subject.staged.resample("renoise", 4))
    with pytest.raises(PlanMismatch, match="calibrated for 10 steps, but renoise runs 4"):
        ContextFreeze(n_steps=10, full=(0,)).check(fewer)


def head(flops: Flops) -> int:
    return sum(flops.blocks.values())


FLORENCE: dict[str, Any] = {
    "vision_config": {
        "depths": (1, 1, 9, 1),
        "embed_dim": (256, 512, 1024, 2048),
        "num_heads": (8, 16, 32, 64),
        "num_groups": (8, 16, 32, 64),
        "patch_size": (7, 3, 3, 3),
        "patch_stride": (4, 2, 2, 2),
        "patch_padding": (3, 1, 1, 1),
        "patch_prenorm": (False, True, True, True),
        "window_size": 12,
        "projection_dim": 1024,
    },
    "text_config": {
        "model_type": "bart",
        "d_model": 1024,
        "vocab_size": 51289,
        "encoder_layers": 12,
        "decoder_layers": 1,
        "encoder_ffn_dim": 4096,
        "encoder_attention_heads": 16,
        "max_position_embeddings": 1024,
    },
}
"""Florence-2-large, whose encoders X-VLA starts from."""


def true_size() -> Any:
    """The published X-VLA (0.9 B) of shapes without weights: three views of 224 x 224, 64 text tokens."""
    seen = {f"observation.images.{i}": PolicyFeature(FeatureType.VISUAL, (3, 224, 224)) for i in range(3)}
    config = XVLAConfig(
        input_features=seen | {"observation.state": PolicyFeature(FeatureType.STATE, (20,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (20,))},
        florence_config=FLORENCE,
        max_state_dim=20,
        device="cpu",
    )
    with torch.device("meta"):
        return XVLAPolicy(config)


@pytest.mark.long
def test_at_true_size_a_frozen_step_is_a_ninth_of_a_full_one():
    staged = stage(true_size())
    shapes = {key: (1, 1, *shape) for key, shape in staged.spec.observation_shapes.items()}
    batch = {key: torch.zeros(shape, device="meta") for key, shape in shapes.items()}
    batch["observation.language.tokens"] = torch.zeros(1, 64, dtype=torch.long, device="meta")
    exact = staged.without(tuple(staged.dead_work))
    exact = exact.hoist(exact.sampler)
    plain, least = (count_flops(as_trained(it), batch) for it in (staged, exact))
    once = Freeze((True,) + (False,) * 9)
    frozen = count_flops(replace(as_trained(exact), call=once), batch)
    full, alone = head(plain) / 10, (head(frozen) - head(least) / 10) / 9
    rows, width = 32 + 50 + 64 + 2 * 50 + 32, 1024

    def layer(asking: int) -> int:
        return 2 * (asking * 12 * width**2 + 2 * asking * rows * width)

    assert (full, alone) == (24 * layer(rows), 24 * layer(32))
    assert 8.6 < full / alone < 8.8
    assert 4.9 < head(plain) / head(frozen) < 5.1
    assert 0.8 < least.encode / plain.encode < 0.82
    assert 1.07 < plain.total / least.total < 1.08
    assert 2.9 < plain.total / frozen.total < 3
