"""Patches merged inside the vision tower: what they are made of, what is given back, and what it costs."""

import pytest
import torch
from lerobot_policies import build
from policy_cases import KEYS, observations

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.flops import count_flops
from vivace.accel.technique import CalibrationData
from vivace.accel.techniques.vision_merge import VisionMerge, _cells
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import as_trained, sample
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.vla.siglip import Merging, TowerView

FORMS = {
    "smolvla": {"num_steps": 2, "empty_cameras": 1},
    "pi0": {"num_inference_steps": 2},
    "pi05": {"num_inference_steps": 2, "empty_cameras": 1},
}


@pytest.fixture(scope="module", params=FORMS)
def staged(request, tmp_path_factory):
    return stage(build(request.param, tmp_path_factory.mktemp("merging"), **FORMS[request.param]))


@pytest.fixture(scope="module")
def pictures(staged):
    side = 64 if staged.spec.type == "smolvla" else 32
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def chunk(staged, *wanted):
    """Observations, and the chunk made of them under a plan of these techniques."""
    batch = observations(staged.policy)
    mark = fingerprint(staged.policy, staged.spec.block_ids)
    plan = calibrate(staged, mark, CalibrationData(batch, KEYS), wanted)
    return batch, sample(accelerate(staged, plan), batch, EpisodeNoise(KEYS))


def test_cells_are_means_and_smaller_ones_stand_at_the_edge():
    found = _cells(2, 3, 2, torch.zeros(0))[0]
    assert found.tolist() == [[0.25, 0.25, 0, 0.25, 0.25, 0], [0, 0, 0.5, 0, 0, 0.5]]


def test_patches_become_means_by_likeness():
    """Of two patches the first one is kept: W is the softmax of their cosines over tau, by hand."""
    h = torch.tensor([[[1.0, 0.0], [0.6, 0.8]]])
    view = TowerView(h, (1, 2), lambda: torch.tensor([[0.9, 0.1]]))
    (weights,) = VisionMerge(keep=0.5, layer=0, tau=0.5).weights(view)
    own = torch.tensor([[1.0, 0.6]]).div(0.5).softmax(-1)
    torch.testing.assert_close(weights, own)


@torch.inference_mode()
def test_merging_nothing_is_the_plain_tower_and_merging_gives_back_the_whole_grid(staged, pictures):
    plain = staged.vision(pictures)
    same = staged.vision.merging(Merging(0, VisionMerge(keep=1.0, method="grid", layer=0).weights, True))
    torch.testing.assert_close(same(pictures), plain, atol=1e-5, rtol=0)
    near = staged.vision.merging(Merging(0, VisionMerge(keep=1.0, layer=0, tau=1e-4).weights))
    torch.testing.assert_close(near(pictures), plain, atol=1e-3, rtol=0)
    for method in ("grid", "transform"):
        technique = VisionMerge(method=method, layer=0)
        merged = staged.vision.merging(Merging(0, technique.weights, method == "grid"))(pictures)
        assert merged.shape == plain.shape == (2, (pictures.shape[-1] // 8) ** 2, 32)
        likeness = torch.cosine_similarity(merged, plain, dim=-1).mean()
        assert 0.8 < likeness < 0.9999
    last = staged.vision.merging(Merging(1, VisionMerge(keep=0.25, layer=1).weights))
    torch.testing.assert_close(last(pictures), plain, msg="nothing is left to be merged for")


def test_a_chunk_whose_cells_are_single_patches_is_the_plain_one(staged):
    """Several cameras, and one that nobody has."""
    batch, found = chunk(staged, ("vision_merge", {"method": "grid", "keep": 1.0}))
    wanted = sample(as_trained(staged), batch, EpisodeNoise(KEYS))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    _, merged = chunk(staged, ("vision_merge", {"method": "grid"}))
    assert (merged - wanted).abs().max() > 1e-4


@pytest.mark.parametrize("method", ["grid", "transform"])
def test_every_picture_is_merged_by_itself(staged, method):
    """In one call of the tower or in several."""
    merging = ("vision_merge", {"method": method})
    _, apart = chunk(staged, merging)
    _, together = chunk(staged, merging, ("cameras_together", {"measure": False}))
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)


@pytest.mark.parametrize("without_dead_work", [False, True])
def test_the_layers_behind_cost_what_the_merged_patches_cost(staged, without_dead_work):
    batch = observations(staged.policy)
    n_looks = len(staged.cameras)
    if without_dead_work:
        staged = staged.without(tuple(staged.dead_work))
    else:
        n_looks += staged.policy.config.empty_cameras
    data = CalibrationData(batch, KEYS)
    mark = fingerprint(staged.policy, staged.spec.block_ids)
    plan = calibrate(staged, mark, data, [("vision_merge", {"method": "grid"})])
    assert plan.techniques[0].layer == 0
    whole, less = (count_flops(it, batch).encode for it in (as_trained(staged), accelerate(staged, plan)))
    n = 64 if staged.spec.type == "smolvla" else 16
    m, d, mlp = n // 4, 32, 48

    def layer(rows):
        return rows * (4 * d * d + 2 * d * mlp) + 2 * rows * rows * d

    assert whole - less == len(KEYS) * n_looks * 2 * (layer(n) - layer(m) - 2 * n * m * d)


def test_what_does_not_fit_is_refused(staged):
    with pytest.raises(BadSetting, match="keep=0, tau=0.1; needed: 0 < keep <= 1"):
        VisionMerge(keep=0)
    with pytest.raises(BadSetting, match="method 'tome' is unknown; choose transform or grid"):
        VisionMerge(method="tome")
    with pytest.raises(PlanMismatch, match=r"behind layer 7, the vision tower has 2; choose 0..1"):
        VisionMerge(layer=7).check(as_trained(staged))
