"""Parity: the staged X-VLA is lerobot's, bit for bit; exact work that is left out changes rounding only."""

from typing import Any

import pytest
import torch
from lerobot_policies import build, features
from torch import Tensor

from vivace.accel.flops import count_flops
from vivace.policies.adapters.xvla import StagedXVLA
from vivace.policies.errors import BadSetting, ObservationMismatch, UnsupportedPolicy
from vivace.policies.execution import Denoising, as_trained, sample
from vivace.policies.sampling.noise import GlobalNoise
from vivace.policies.sampling.real_time_chunking import Continuation, RealTimeChunking

MODES = {
    "ee6d": {"action_mode": "ee6d", "max_state_dim": 20},
    "joint": {"action_mode": "joint", "max_state_dim": 14},
    "agibot_ee6d": {"action_mode": "agibot_ee6d"},
    "franka_joint7": {"action_mode": "franka_joint7"},
    "so101_bimanual": {"action_mode": "so101_bimanual", "max_state_dim": 20},
    "auto": {"action_mode": "auto"},
}
CHANGES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "an empty camera": {"empty_cameras": 1},
    "five views": {"num_image_views": 5},
    "one camera": features(cameras=1),
    "pictures as they are": {"resize_imgs_with_padding": None},
    "weights of the domain for views": {"use_hetero_proj": True},
    "without soft prompts": {"len_soft_prompts": 0},
    "without proprioception": {"use_proprio": False},
    "one step": {"num_denoising_steps": 1},
    "an odd time": {"dim_time": 7, "num_denoising_steps": 7},
    "two observations": {"n_obs_steps": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("xvla")


def seen_by(policy: Any, n: int = 2, **more: Tensor) -> dict[str, Tensor]:
    """Observations as lerobot's own preprocessor leaves them, with their time axis."""
    generator = torch.Generator().manual_seed(1)
    found = {
        key: torch.rand(n, 1, *feature.shape, generator=generator)
        for key, feature in policy.config.input_features.items()
        if "empty" not in key
    }
    tokens = torch.randint(3, 300, (n, 16), generator=generator)
    tokens[0, 9:] = tokens[-1, 5:] = 0
    words = {"observation.language.tokens": tokens, "observation.language.attention_mask": tokens > 0}
    return found | words | {"domain_id": torch.tensor([2, 1, 3][:n])} | more


def theirs(policy: Any, batch: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(0)
    return policy.predict_action_chunk({k: v[:, 0] if v.ndim in (3, 5) else v for k, v in batch.items()})


def ours(staged: Any, batch: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(0)
    return sample(as_trained(staged), batch, GlobalNoise())


def check(policy: Any, batch: dict[str, Tensor]) -> None:
    wanted = theirs(policy, batch)
    staged = StagedXVLA(policy)
    assert torch.equal(ours(staged, batch), wanted)
    assert wanted.std() > 0.1
    assert (wanted[0] - wanted[1]).abs().max() > 0.1
    exact = staged.without(tuple(staged.dead_work))
    for twin in (staged.hoist(staged.sampler), exact, exact.hoist(exact.sampler)):
        torch.testing.assert_close(ours(twin, batch), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_staged_is_bit_equal_to_lerobot(folder, changes):
    policy = build("xvla", folder, **changes)
    check(policy, seen_by(policy))


@pytest.mark.parametrize("mode", MODES)
def test_every_action_mode_is_that_of_lerobot(folder, mode):
    policy = build("xvla", folder, **MODES[mode])
    check(policy, seen_by(policy))


def test_domains_are_found_where_lerobot_finds_them(folder):
    policy = build("xvla", folder, domain_feature_key="robot")
    for given in (torch.tensor(3), torch.tensor([[1, 0], [2, 0]]), torch.tensor([2])):
        check(policy, seen_by(policy, robot=given))
    batch = seen_by(policy)
    first = ours(StagedXVLA(policy), batch)
    assert not torch.equal(first, ours(StagedXVLA(policy), batch | {"domain_id": torch.tensor([0, 3])}))


def test_a_camera_that_is_not_there_is_left_to_the_policy(folder):
    policy = build("xvla", folder)
    batch = seen_by(policy)
    for key in ("observation.images.front", "observation.images.wrist"):
        check(policy, {k: v for k, v in batch.items() if k != key})


def test_what_nobody_reads_of_the_last_layer_is_left_out(folder):
    policy = build("xvla", folder, depth=3)
    staged, batch = StagedXVLA(policy), seen_by(policy)
    exact, one = staged.without(("last_layer",)), seen_by(policy, 1)
    before = ours(exact, batch)
    width, n = 32, policy.config.chunk_size
    layer = policy.model.transformer.blocks[-1]
    layer.attn.qkv.register_forward_hook(lambda module, given, out: pytest.fail("all rows ask"))
    assert torch.equal(ours(exact, batch), before)
    counts = [count_flops(as_trained(it), one) for it in (StagedXVLA(build("xvla", folder, depth=3)), exact)]
    context = 65 + 16 + 65 + 4
    steps, saved = (
        len(staged.sampler),
        {name: counts[0].blocks[name] - k for name, k in counts[1].blocks.items()},
    )
    assert {name for name, n in saved.items() if n} == {"action.2.attn", "action.2.mlp"}
    assert saved["action.2.mlp"] == steps * 2 * context * 2 * 4 * width**2
    assert saved["action.2.attn"] == steps * 2 * context * (2 * width**2 + 2 * (context + n) * width)


def test_rows_of_the_context_that_nobody_reads_may_be_anything(folder):
    """The proof: what the last layer adds to the context does not matter, what the one before adds does."""
    staged = StagedXVLA(build("xvla", folder))
    batch, n = seen_by(staged.policy), staged.policy.config.chunk_size

    def disturbed(block):
        def fn(h, *cond):
            out = block.fn(h, *cond)
            return torch.cat([out[:, :n], 3.7 * out[:, n:]], dim=1)

        return type(block)(block.id, fn) if block.id.startswith(layer) else block

    for layer in ("action.1", "action.0"):
        found = ours(staged.with_blocks(disturbed), batch)
        assert torch.equal(found, ours(staged, batch)) == (layer == "action.1")


def test_grippers_are_continued_as_an_action_has_them(folder):
    """They are logits in the network, and shares in what the robot does."""
    policy = build("xvla", folder, **MODES["ee6d"])
    batch, staged = seen_by(policy), StagedXVLA(policy)
    free = ours(staged, batch)
    assert free[..., [9, 19]].min() > 0
    assert free[..., [9, 19]].max() < 1
    wish, weights = torch.full_like(free, 0.9), torch.zeros(2, 6, 1)
    weights[:, :2] = 1
    torch.manual_seed(0)
    follow = Continuation(RealTimeChunking(method="inpaint"), wish, weights)
    found = sample(as_trained(staged), batch, GlobalNoise(), follow=follow)
    assert (found[:, :2] == 0.9).all()
    assert (found - free)[:, 2:].abs().max() > 1e-3


def test_fewer_steps_are_those_of_lerobot(folder):
    policy = build("xvla", folder, num_denoising_steps=10)
    staged, batch = StagedXVLA(policy), seen_by(policy)
    policy.config.num_denoising_steps = 4
    torch.manual_seed(0)
    found = sample(Denoising(staged, staged.resample("renoise", 4)), batch, GlobalNoise())
    assert torch.equal(found, theirs(policy, batch))
    with pytest.raises(BadSetting, match="unknown sampler 'ddim'; known samplers: renoise, euler"):
        staged.resample("ddim", 4)


def test_what_cannot_be_is_refused(folder, monkeypatch):
    policy = build("xvla", folder, max_len_seq=100)
    with pytest.raises(ObservationMismatch, match="are 152 tokens, the policy has .*max_len_seq=100"):
        ours(StagedXVLA(policy), seen_by(policy))

    class Mine(type(policy.model.action_space)):
        pass

    policy.model.action_space = Mine(4, 8)
    with pytest.raises(UnsupportedPolicy, match="action_mode='auto', which is not one of lerobot's own"):
        StagedXVLA(policy)


def test_half_precision_is_that_of_lerobot_but_for_what_x_is_held_in(folder, monkeypatch):
    policy, drawn = build("xvla", folder), torch.randn(2, 6, 8)
    batch = seen_by(policy)
    policy.model.to(torch.bfloat16)
    policy.config.dtype = "bfloat16"
    monkeypatch.setattr(torch, "randn", lambda *shape, dtype, **more: drawn.to(dtype))
    found, wanted = ours(StagedXVLA(policy), batch), theirs(policy, batch)
    assert found.dtype == torch.float32
    assert (found - wanted.float()).abs().mean() < 0.02


def test_padding_of_windows_is_not_multiplied(folder):
    """14 x 16 tokens in windows of 4 are padded to 16 x 16, 7 x 8 to 8 x 8."""
    policy = build("xvla", folder, resize_imgs_with_padding=(56, 64))
    staged, batch = StagedXVLA(policy), seen_by(policy)
    assert list(staged.dead_work) == ["last_layer", "window_padding"]
    assert list(StagedXVLA(build("xvla", folder)).dead_work) == ["last_layer"]
    check(policy, batch)
    exact = staged.without(("window_padding",))
    before, after = (count_flops(as_trained(it), seen_by(policy, 1)) for it in (staged, exact))
    per_view = sum(2 * 4 * width**2 * n for width, n in ((16, 2 * 16), (32, 1 * 8)))
    assert before.encode - after.encode == 2 * per_view
    assert (before.blocks, before.language) == (after.blocks, after.language)
