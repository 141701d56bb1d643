"""What policies see apart from what they feel, camera by camera, and patch by patch."""

from types import SimpleNamespace

import pytest
import torch
from lerobot_policies import build
from policy_cases import KEYS, observations

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.technique import CalibrationData
from vivace.policies.cameras import look_at, pixels_of
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.execution import Denoising, sample
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.seeing import read

STATE, TOKENS = "observation.state", "observation.language.tokens"
MASK = "observation.language.attention_mask"
FORMS = {
    "smolvla": {"num_vlm_layers": 2, "num_steps": 2, "empty_cameras": 1, "prefix_length": 80},
    "pi0": {"num_inference_steps": 2},
    "pi05": {"num_inference_steps": 2, "empty_cameras": 1},
}


@pytest.fixture(scope="module", params=[*FORMS, *(f"{kind}, exact" for kind in FORMS)])
def seeing(request, tmp_path_factory) -> SimpleNamespace:
    """A policy as it is or without what is exact to leave out, and observations, some prompts shorter."""
    kind, _, is_exact = request.param.partition(", ")
    staged = stage(build(kind, tmp_path_factory.mktemp("seeing"), **FORMS[kind]))
    batch = observations(staged.policy)
    batch[MASK] = torch.arange(16) < torch.tensor([[16], [12], [14]])
    data = CalibrationData(batch, KEYS)
    wanted = [("dead_work", {}), ("hoist", {})] if is_exact else []
    mark = fingerprint(staged.policy, staged.spec.block_ids)
    execution = accelerate(staged, calibrate(staged, mark, data, wanted))
    return SimpleNamespace(kind=kind, execution=execution, policy=execution.policy, batch=batch)


def chunk(seeing, batch, read=None) -> torch.Tensor:
    """A chunk; of a context that is made by `read`."""
    execution = seeing.execution
    if read is not None:
        execution = Denoising(
            execution.policy, execution.sampler, read=lambda run, batch, carry: (read(batch), {})
        )
    return sample(execution, batch, EpisodeNoise(KEYS))


def close(found, wanted) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def felt_anew(seeing) -> dict[str, torch.Tensor]:
    """The same pictures and another state."""
    batch = dict(seeing.batch)
    batch[STATE] = batch[STATE] + 0.5
    if seeing.kind == "pi05":
        batch[TOKENS] = batch[TOKENS] + 3
    return batch


def test_seen_and_felt_make_the_context(seeing):
    policy = seeing.policy
    close(
        chunk(seeing, seeing.batch, lambda b: policy.perceive(b, policy.see(b))), chunk(seeing, seeing.batch)
    )


def test_what_is_read_at_once_is_the_policy_itself_and_all_that_is_seen(seeing):
    policy, batch = seeing.policy, seeing.batch
    close(chunk(seeing, batch, lambda b: read(policy, b)[0]), chunk(seeing, batch))
    seen, looks = policy.see(batch), policy.look(batch, policy.cameras)
    for found in (read(policy, batch)[1], read(policy, batch, looks=looks)[1]):
        assert all(map(torch.equal, found.keys, seen.keys))


def test_what_is_felt_is_felt_now(seeing):
    policy, other = seeing.policy, felt_anew(seeing)
    seen = policy.see(seeing.batch)
    found, wanted = chunk(seeing, other, lambda b: policy.perceive(b, seen)), chunk(seeing, other)
    before = chunk(seeing, seeing.batch)
    assert (wanted - before).abs().max() > 1e-4, "the state does not count"
    if seeing.kind == "pi05":  # pictures were read beside another prompt
        assert not torch.equal(found, before)
        assert (found - wanted).abs().max() > 1e-7
    else:
        close(found, wanted)


def test_cameras_are_looked_at_one_by_one(seeing):
    policy, batch = seeing.policy, seeing.batch
    first, second = policy.cameras
    looks = policy.look(batch, [second])
    assert list(looks) == [second]
    same = policy.see(batch, looks=looks)
    assert all(map(torch.equal, same.keys, policy.see(batch).keys))
    moved = batch | {first: 1 - batch[first], second: 1 - batch[second]}
    found = policy.see(moved, looks=looks)
    wanted = policy.see(moved | {second: batch[second]})
    assert all(map(torch.equal, found.values, wanted.values))
    assert not torch.equal(found.values[0], same.values[0])


def test_all_patches_read_anew_are_all_there_is_to_see(seeing):
    policy, batch = seeing.policy, seeing.batch
    seen = policy.see(batch | {camera: 1 - batch[camera] for camera in policy.cameras})
    patches = torch.arange(sum(policy.n_patches)).expand(len(KEYS), -1)
    close(chunk(seeing, batch, lambda b: policy.renew(b, seen, patches)[0]), chunk(seeing, batch))
    _, found = policy.renew(batch, seen, patches)
    wanted = policy.see(batch)
    for name in ("keys", "values"):
        for one, other in zip(getattr(found, name), getattr(wanted, name), strict=True):
            n = sum(policy.n_patches)  # rows behind them may be padding, which nobody sees
            close(one[:, :, :n], other[:, :, :n])
    assert torch.equal(found.position, wanted.position)


def test_patches_that_are_not_read_anew_stay(seeing):
    policy, batch = seeing.policy, seeing.batch
    moved = batch | {camera: 1 - batch[camera] for camera in policy.cameras}
    seen, n = policy.see(batch), sum(policy.n_patches)
    _, found = policy.renew(moved, seen, torch.tensor([[2, 5], [5, n], [n, n]]))
    fresh = policy.see(moved)
    for row, anew in enumerate(([2, 5], [5], [])):
        kept = [i for i in range(n) if i not in anew]
        for layer in range(len(seen.keys)):
            assert torch.equal(found.keys[layer][row, :, kept], seen.keys[layer][row, :, kept])
        close(found.keys[0][row, :, anew], fresh.keys[0][row, :, anew])


def test_one_call_for_all_cameras_changes_rounding_only(seeing, monkeypatch):
    together = seeing.policy.with_cameras_together()
    twin = SimpleNamespace(execution=Denoising(together, seeing.execution.sampler))
    close(chunk(twin, seeing.batch), chunk(seeing, seeing.batch))


def test_pictures_of_one_size_are_one_call():
    calls = []

    def tower(pictures):
        calls.append(len(pictures))
        return pictures.mean((1, 2, 3))

    sizes = {"a": 4, "b": 6, "c": 4}
    pictures = {name: torch.full((2, 3, size, size), float(size + i))
                for i, (name, size) in enumerate(sizes.items())}  # fmt: skip
    apart = look_at(tower, pictures)
    assert calls == [2, 2, 2]
    together = look_at(tower, pictures, is_together=True)
    assert calls[3:] == [4, 2]
    assert list(together) == list(apart) == list(sizes)
    assert all(torch.equal(together[name], apart[name]) for name in sizes)


def test_pixels_of_patches_stand_row_by_row():
    picture = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4)
    found = pixels_of(picture, 4)
    assert found.shape == (1, 4, 12)
    assert [sorted(set(patch.tolist())) for patch in found[0]] == [
        [0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]
    ]  # fmt: skip
    with pytest.raises(UnsupportedPolicy, match="4 patches of a picture of 4 x 6 pixels do not tile"):
        pixels_of(torch.zeros(1, 3, 4, 6), 4)
