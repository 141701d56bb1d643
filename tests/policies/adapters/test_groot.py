"""lerobot's groot behind the seam: its own chunk bit for bit, and the same without what nobody reads."""

import copy
from types import SimpleNamespace

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
