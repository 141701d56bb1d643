"""Which patches stay: the paper's three groups, its baselines, cameras apart, and what is refused."""

import pytest
import torch
import torch.nn.functional as F

from vivace.accel.techniques.patch_select import PatchSelect
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import as_trained
from vivace.policies.language.prefix import LayerView, PrefixRows
from vivace.policies.load import stage
from vivace.policies.tiny.policies import tiny_cogact

HEADS, TEXT, PATCHES, WIDTH = 3, 5, 20, 8


def view(index=1, cameras=(PATCHES,), seed=0):
    generator = torch.Generator().manual_seed(seed)
    n = sum(cameras)
    attention = torch.rand(2, HEADS, TEXT, n, generator=generator).softmax(-1)
    h = torch.randn(2, 1 + n + TEXT, WIDTH, generator=generator)
    is_text = torch.arange(TEXT) < torch.tensor([[3], [5]])
    return LayerView(index, h, h, PrefixRows(cameras, is_text), lambda: attention)


def reference(attention, is_text, patches, k_final, k_key, alpha):
    """Equations 2 to 5 for one observation, patch by patch."""
    r = [
        sum(float(attention[:, j, i].mean()) for j in range(TEXT) if is_text[j]) for i in range(len(patches))
    ]
    order = sorted(range(len(patches)), key=lambda i: -r[i])
    key, rest = order[:k_key], order[k_key:]
    k_task = int(alpha * (k_final - k_key))
    task, rest = rest[:k_task], rest[k_task:]
    diversity = {i: 1 - max(float(F.cosine_similarity(patches[i], patches[k], 0)) for k in key) for i in rest}
    diverse = sorted(rest, key=lambda i: -diversity[i])[: k_final - k_key - k_task]
    return sorted([*key, *task, *diverse])


@pytest.mark.parametrize(
    ("k_final", "k_key", "alpha"), [(9, 3, 0.5), (12, 4, 0.25), (6, 6, 0.5), (20, 2, 0.0)]
)
def test_efficientvla_keeps_key_task_and_diverse_patches(k_final, k_key, alpha):
    seen = view()
    kept = PatchSelect(k_final=k_final, k_key=k_key, alpha=alpha).select(seen)
    for row in range(2):
        patches = seen.h[row, 1 : 1 + PATCHES]
        expected = reference(seen.attention()[row], seen.prefix.is_text[row], patches, k_final, k_key, alpha)
        assert kept[row].tolist() == expected


def test_fastv_keeps_the_most_attended():
    seen = view()
    kept = PatchSelect(k_final=7, method="fastv").select(seen)
    for row in range(2):
        weights = seen.attention()[row].mean(0)[seen.prefix.is_text[row]].sum(0)
        assert kept[row].tolist() == weights.topk(7).indices.sort().values.tolist()


def test_cognition_looks_at_the_last_token_alone():
    seen = view()
    kept = PatchSelect(k_final=7, method="fastv", source="cognition").select(seen)
    for row, last in enumerate((2, 4)):
        weights = seen.attention()[row].mean(0)[last]
        assert kept[row].tolist() == weights.topk(7).indices.sort().values.tolist()


def test_baselines_do_not_look():
    first, second = view(seed=1), view(seed=2)
    for method in ("random", "uniform"):
        technique = PatchSelect(k_final=5, method=method)
        assert torch.equal(technique.select(first), technique.select(second))
    assert PatchSelect(k_final=5, method="uniform").select(first)[0].tolist() == [0, 5, 10, 14, 19]
    other = PatchSelect(k_final=5, method="random", seed=1).select(first)
    assert not torch.equal(PatchSelect(k_final=5, method="random").select(first), other)


def test_cameras_apart_get_the_same_share():
    seen = view(cameras=(10, 10))
    kept = PatchSelect(k_final=6, k_key=1, per_camera=True).select(seen)
    assert ((kept < 10).sum(1) == 3).all()
    assert kept.shape == (2, 6)


def test_other_layers_keep_everything():
    assert PatchSelect(k_final=5, layer=2).select(view(index=1)) is None


def test_keeping_every_patch_changes_nothing():
    staged = stage(tiny_cogact())
    batch = {
        "observation.images.front": torch.rand(2, 1, 3, 32, 32),
        "observation.language.tokens": torch.arange(48).view(2, 24),
        "observation.language.attention_mask": torch.ones(2, 24, dtype=torch.bool),
    }
    everything = PatchSelect(k_final=16)
    torch.testing.assert_close(
        staged.encode(batch, select=everything.select), staged.encode(batch), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "options", [{"method": "best"}, {"source": "patches"}, {"k_key": 9, "k_final": 8}, {"alpha": 1.5}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(BadSetting, match="patch_select"):
        PatchSelect(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k_final": 33}, r"the policy has 16 \+ 16"),
        ({"k_final": 31, "per_camera": True}, "multiple of the number of cameras"),
        ({"k_final": 8, "layer": 4}, "the language model runs 4"),
    ],
)
def test_more_than_there_is_is_refused(options, message):
    with pytest.raises(PlanMismatch, match=message):
        PatchSelect(**options).check(as_trained(stage(tiny_cogact(cameras=2))))


@pytest.mark.parametrize("seed", range(3))
def test_attention_is_that_of_the_layers_own_projections(seed):
    """Bit for bit what projecting every row anew would give."""
    staged = stage(tiny_cogact())
    batch = {
        "observation.images.front": torch.rand(
            2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(seed)
        ),
        "observation.language.tokens": torch.arange(48).view(2, 24),
        "observation.language.attention_mask": torch.ones(2, 24, dtype=torch.bool),
    }
    found = []

    def look(seen):
        layer, h = staged.language.model.layers[seen.index], seen.before
        x = layer.input_layernorm(h)
        cos, sin = staged.language.angles(torch.arange(h.shape[1]).expand(2, -1), h)
        q, k = (
            turned(proj(x).unflatten(-1, (-1, 8)).transpose(1, 2), cos[:, None], sin[:, None])
            for proj in (layer.self_attn.q_proj, layer.self_attn.k_proj)
        )
        scores = q[:, :, 17:] @ k.repeat_interleave(2, dim=1).mT * layer.self_attn.scaling
        ahead = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool).triu(1)[17:]
        wanted = scores.masked_fill(ahead, -torch.inf).softmax(-1)[..., 1:17]
        found.append(torch.equal(seen.attention(), wanted))

    def turned(rows, cos, sin):
        first, second = rows.chunk(2, dim=-1)
        return rows * cos + torch.cat([-second, first], dim=-1) * sin

    with torch.inference_mode():
        staged.encode(batch, select=look)
    assert found == [True] * 4
