"""Policies cast by `.to(torch.bfloat16)` or `.half()` run as they are, and give float32 actions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot_policies import build
from pipelines import Telling

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.flops import count_flops
from vivace.accel.technique import CalibrationData
from vivace.eval.machine import machine
from vivace.policies.arrays import is_image
from vivace.policies.dtype import cast_weights
from vivace.policies.execution import Execution, as_trained, sample
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import LoadedPolicy, stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.session import Session
from vivace.policies.spec import DELAY, PREVIOUS
from vivace.policies.staged import writes_tokens
from vivace.policies.tiny.policies import (
    tiny_clip,
    tiny_cogact,
    tiny_diffusion,
    tiny_dp_transformer,
    tiny_multi_task_dit,
    tiny_pi0_fast,
    tiny_token_vla,
)

KEYS = ((1, 0), (2, 0))
POLICIES: dict[str, Callable[[Path], Any]] = {
    "dp_transformer": lambda clip: tiny_dp_transformer(images=True),
    "dp_transformer-encoder": lambda clip: tiny_dp_transformer(n_cond_layers=1),
    "diffusion": lambda clip: tiny_diffusion(images=True),
    "multi_task_dit-diffusion": lambda clip: tiny_multi_task_dit(clip),
    "multi_task_dit-flow": lambda clip: tiny_multi_task_dit(clip, objective="flow_matching"),
    "cogact": lambda clip: tiny_cogact(),
    "token_vla": lambda clip: tiny_token_vla(),
    "pi0": lambda clip: build("pi0", clip),
    "pi05": lambda clip: build("pi05", clip),
    "pi0_fast": lambda clip: tiny_pi0_fast(),
}
MEAN_ERROR = {torch.bfloat16: 0.01, torch.float16: 0.002}
"""Mean difference of normalised actions, which reach to 1; of weights rounded to 8 and to 11 bits."""
LOGIT_LIKENESS = 0.999
"""Cosine similarity of the first token's logits, of a policy that writes tokens: rounding may turn a token of
random weights, and with it all that follow."""

every_policy = pytest.mark.parametrize("name", POLICIES)
every_dtype = pytest.mark.parametrize(
    "dtype", MEAN_ERROR, ids=lambda dtype: str(dtype).removeprefix("torch.")
)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("miniature"))


def observations(policy: Any) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (len(KEYS), policy.config.n_obs_steps)
    return {
        key: torch.rand(*shape, *feature.shape, generator=generator)
        for key, feature in policy.config.input_features.items()
    } | words(policy)


def words(policy: Any) -> dict[str, torch.Tensor]:
    if policy.config.type in ("dp_transformer", "diffusion"):
        return {}
    return {
        "observation.language.tokens": torch.arange(16).expand(len(KEYS), 16),
        "observation.language.attention_mask": torch.ones(len(KEYS), 16, dtype=torch.bool),
    }


def first_logits(execution: Execution, batch: dict[str, torch.Tensor]) -> Any:
    with torch.inference_mode():
        return execution.policy.encode(batch).logits if writes_tokens(execution.policy) else None


@every_dtype
@every_policy
def test_actions_are_float32_and_near_those_of_float32(name, dtype, clip):
    policy = POLICIES[name](clip)
    batch = observations(policy)
    whole = as_trained(stage(policy))
    wanted, logits = sample(whole, batch, EpisodeNoise(KEYS)), first_logits(whole, batch)
    cast_weights(policy, dtype)
    execution = as_trained(stage(policy))
    found = sample(execution, batch, EpisodeNoise(KEYS))
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    if logits is None:
        assert (found - wanted).abs().mean() < MEAN_ERROR[dtype]
    else:
        reduced = first_logits(execution, batch).float()
        assert torch.cosine_similarity(reduced, logits).min() > LOGIT_LIKENESS
    assert machine(execution.policy.placement)["dtype"] == str(dtype).removeprefix("torch.")


@every_dtype
def test_rotary_frequencies_stay_float32(dtype):
    """Position 300 times a frequency of eight bits is half a radian off."""
    policy = tiny_cogact()
    cast_weights(policy, dtype)
    assert policy.language.embed_tokens.weight.dtype == dtype
    assert policy.language.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(policy.language.rotary_emb.inv_freq, tiny_cogact().language.rotary_emb.inv_freq)


@every_dtype
@every_policy
def test_work_is_counted_in_half_precision(name, dtype, clip):
    policy = POLICIES[name](clip).to(dtype)
    one = {key: value[:1] for key, value in observations(policy).items()}
    assert count_flops(as_trained(stage(policy)), one).total > 0


def loaded(policy: Any) -> LoadedPolicy:
    """As a checkpoint would be, with processors that only tell the task."""
    staged = stage(policy)
    mark = fingerprint(policy, staged.spec.block_ids)
    return LoadedPolicy(Path(), policy, staged, Telling(words(policy)), lambda actions: actions, mark)


@every_dtype
@every_policy
def test_a_session_gives_float32_alone_and_behind_another_chunk(name, dtype, clip):
    policy = POLICIES[name](clip).to(dtype)  # as anybody may cast it
    it = loaded(policy)
    continues = not writes_tokens(it.staged)
    assert it.placement.dtype == dtype
    session = Session(it, chunking=RealTimeChunking(method="inpaint") if continues else None)
    random = np.random.default_rng(0)
    seen: dict[str, np.ndarray] = {}
    for key, shape in session.spec.observation_shapes.items():
        size = (len(KEYS), session.spec.n_obs_steps, *((*shape[1:], shape[0]) if is_image(key) else shape))
        seen[key] = random.uniform(0, 255 if is_image(key) else 1, size).astype(
            np.uint8 if is_image(key) else np.float32
        )
    found = session.predict(seen, KEYS)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    seen |= {PREVIOUS: np.full_like(found[:, :2], 0.25), DELAY: np.array([2, 1])}
    following = session.predict(seen, KEYS)
    assert following.dtype == np.float32
    if continues:
        assert (following[0, :2] == 0.25).all()
        assert (following[1, :1] == 0.25).all()


PLANS: dict[str, tuple[str, list[tuple[str, dict[str, Any]]]]] = {
    "cached": (
        "dp_transformer",
        [
            ("hoist", {}),
            ("block_cache", {"method": "uniform", "updates": 5}),
            ("step_schedule", {"n_steps": 5}),
        ],
    ),
    "forecast": ("diffusion", [("hoist", {}), ("forecast", {"method": "uniform", "updates": 4})]),
    "hoisted": ("multi_task_dit-diffusion", [("hoist", {})]),
    "efficientvla": (
        "cogact",
        [
            ("layer_skip", {"n_dropped": 1}),
            ("patch_select", {"k_final": 6}),
            ("mlp_prune", {"rank": 2}),
            ("guidance", {"method": "linear"}),
            ("hoist", {}),
        ],
    ),
    "jacobi": ("token_vla", [("mlp_prune", {"rank": 2}), ("jacobi", {})]),
    "stand": ("token_vla", [("stand", {"stochastic": True})]),
    "sjd": ("token_vla", [("sjd", {})]),
}


@every_dtype
@pytest.mark.parametrize("plan", PLANS)
def test_techniques_run_in_half_precision(plan, dtype, clip):
    name, wanted = PLANS[plan]
    policy = POLICIES[name](clip).to(dtype)
    staged, batch = stage(policy), observations(policy)
    mark = fingerprint(policy, staged.spec.block_ids)
    made = calibrate(staged, mark, CalibrationData(batch, KEYS), wanted)
    found = sample(accelerate(staged, made, mark), batch, EpisodeNoise(KEYS))
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    if plan == "hoisted":
        plain = sample(as_trained(staged), batch, EpisodeNoise(KEYS))
        assert (found - plain).abs().mean() < MEAN_ERROR[dtype]
