"""Which patches stay: the paper's three groups, its baselines, cameras apart, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from lerobot_policies import build
from policy_cases import KEYS, observations

from vivace.accel.techniques.patch_select import PatchSelect, shared_out
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import as_trained, sample
from vivace.policies.language.prefix import LayerView, PrefixRows
from vivace.policies.load import stage
from vivace.policies.sampling.noise import EpisodeNoise
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


def looked_at(*cameras):
    """Relevance (1, patches) of cameras, each a list, the most relevant first."""
    return torch.tensor([[value for camera in cameras for value in camera]])


def test_globalcom2_shares_out_as_by_hand():
    """s = (4, 2, 1, 1), tau = 10: 25 patches times 1.053, .998, .974, .974: 26.3, 24.9, 24.4, 24.4."""
    four = [torch.linspace(2 * s / 100, 0, 100).tolist() for s in (4, 2, 1, 1)]
    kept = shared_out(looked_at(*four), (100,) * 4, 100, tau=10.0)[0]
    counts = kept.div(100, rounding_mode="floor").bincount().tolist()
    assert sorted(counts) == [24, 25, 25, 26]
    assert (counts[0], counts[1]) == (26, 25)
    assert kept.tolist() == [100 * j + i for j, n in enumerate(counts) for i in range(n)], "the first ones"
    # at tau = 1: p = .810, .110, .040, .040, so 1.56, .86, .79, .79 of 25 each
    sharper = shared_out(looked_at(*four), (100,) * 4, 100, tau=1.0)[0]
    assert sharper.div(100, rounding_mode="floor").bincount().tolist() == [39, 21, 20, 20]


def test_globalcom2_keeps_as_many_of_cameras_that_are_looked_at_alike_and_no_more_than_there_are():
    alike = looked_at([3.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    assert shared_out(alike, (3, 3), 4, tau=10.0).tolist() == [[0, 2, 4, 5]]
    one = looked_at([90.0, 80.0], [0.3, 0.1, 0.2, 0.0])
    assert shared_out(one, (2, 4), 4, tau=0.1).tolist() == [[0, 1, 2, 4]], "the first camera has two"
    assert shared_out(one, (2, 4), 6, tau=0.1).tolist() == [[0, 1, 2, 3, 4, 5]]


def test_globalcom2_looks_by_text():
    seen = view(cameras=(12, 8))
    kept = PatchSelect(k_final=10, method="globalcom2", tau=0.1).select(seen)
    relevance = PatchSelect(method="globalcom2").relevance(seen)
    assert torch.equal(kept, shared_out(relevance, (12, 8), 10, 0.1))
    assert kept.shape == (2, 10)
    first, second = relevance[:, :12].sum(1), relevance[:, 12:].sum(1)
    p = 1 / (1 + ((second - first) / 0.1).exp())
    wanted = 10 * 12 * (p + 0.5) / (12 * (p + 0.5) + 8 * (1.5 - p))
    assert ((kept < 12).sum(1) - wanted).abs().max() <= 1


@pytest.mark.parametrize("kind", ["smolvla", "pi0"])
def test_globalcom2_with_all_patches_is_the_policy_bit_for_bit(kind, tmp_path):
    policy = build(kind, tmp_path)
    staged, batch = stage(policy), observations(policy)
    assert len(staged.n_patches) == 2
    n, layer = sum(staged.n_patches), staged.language.first_drop
    all_of_them = PatchSelect(k_final=n, method="globalcom2", layer=layer)
    plain = as_trained(staged)
    chunks = [sample(it, batch, EpisodeNoise(KEYS)) for it in (plain, all_of_them.apply(plain))]
    assert torch.equal(*chunks)


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
    "options",
    [
        {"method": "best"},
        {"source": "patches"},
        {"k_key": 9, "k_final": 8},
        {"alpha": 1.5},
        {"method": "globalcom2", "tau": 0.0},
        {"method": "globalcom2", "per_camera": True},
    ],
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
