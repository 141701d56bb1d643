"""Patches that stand still keep what was written of them: all, none or some, chunk after chunk."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lerobot_policies import build, features
from policy_cases import KEYS, observations

from vivace.accel.apply import accelerate
from vivace.accel.flops import count_flops
from vivace.accel.plan import AccelerationPlan
from vivace.accel.techniques.frame_cache import FrameCache
from vivace.accel.techniques.patch_select import PatchSelect
from vivace.accel.techniques.static_patches import StaticPatches
from vivace.policies.batch import take
from vivace.policies.carry import LOOKED, NOTHING, PAST, SEEN, Carry
from vivace.policies.errors import BadSetting, PlanMismatch
from vivace.policies.execution import as_trained, sample, sample_after
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.sampling.noise import EpisodeNoise

TOKENS = "observation.language.tokens"
SMALL = {"smolvla": {"num_vlm_layers": 2, "num_steps": 2}, "pi0": {"num_inference_steps": 2},
         "pi05": {"num_inference_steps": 2}}  # fmt: skip


@pytest.fixture(scope="module", params=SMALL)
def subject(request, tmp_path_factory) -> SimpleNamespace:
    staged = stage(
        build(request.param, tmp_path_factory.mktemp("static"), **features((64, 64)), **SMALL[request.param])
    )
    mark = fingerprint(staged.policy, staged.spec.block_ids)
    batch = observations(staged.policy)
    return SimpleNamespace(
        staged=staged,
        batch=batch,
        cameras=staged.cameras,
        plain=lambda given: sample(as_trained(staged), given, EpisodeNoise(KEYS[: len(given[TOKENS])])),
        run=lambda *techniques: accelerate(staged, AccelerationPlan(mark, techniques)),
        n=sum(staged.n_patches),
        quarter=staged.n_patches[0] // 4,
    )


def after(execution, batch, carry: Carry) -> tuple[torch.Tensor, Carry]:
    rows = len(batch[TOKENS])
    carry = {**carry, PAST: torch.tensor([4] * rows)} if carry else carry
    return sample_after(execution, batch, EpisodeNoise(KEYS[:rows]), carry)


def watched(execution) -> list[torch.Tensor | None]:
    """Note what each chunk reads anew: patches (B, k), or None: everything."""
    policy, reads = execution.policy, []
    whole, renew = policy._read, policy.renew
    policy._read = lambda *args: (reads.append(None), whole(*args))[1]
    policy.renew = lambda batch, seen, patches, run: (
        reads.append(patches), renew(batch, seen, patches, run)
    )[1]  # fmt: skip
    return reads


def twin(subject, **options):
    """An execution over a copy that may be watched."""
    found = subject.run(StaticPatches(**{"every": 8} | options))
    return replace(found, policy=copy.copy(found.policy))


def close(found, wanted) -> None:
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def touched(batch, camera: str, row: int | None = None, by: float = 0.5):
    """The same with a quarter of a camera's picture changed, of all observations or of one."""
    pictures = batch[camera].clone()
    pictures[slice(None) if row is None else row, ..., :32, :32] = by
    return batch | {camera: pictures}


def test_pictures_that_did_not_change_are_not_read(subject):
    execution = twin(subject, threshold=0.0, most=1.0)
    reads = watched(execution)
    first, carry = after(execution, subject.batch, NOTHING)
    second, carry = after(execution, subject.batch, carry)
    assert torch.equal(second, first)
    close(second, subject.plain(subject.batch))
    assert reads == [None]


def test_where_all_changed_it_is_the_policy_itself(subject):
    execution = twin(subject, threshold=0.0)
    moved = subject.batch | {camera: 1 - subject.batch[camera] for camera in subject.cameras}
    reads = watched(execution)
    _, carry = after(execution, subject.batch, NOTHING)
    found, carry = after(execution, moved, carry)
    assert torch.equal(found, after(execution, moved, NOTHING)[0])
    close(found, subject.plain(moved))
    assert reads == [None, None, None]


def test_patches_that_changed_are_read_with_the_words_and_no_others(subject):
    execution = twin(subject, threshold=0.0, most=1.0, every=3)
    reads = watched(execution)
    moved = touched(subject.batch, subject.cameras[0], row=1)
    _, carry = after(execution, subject.batch, NOTHING)
    found, carry = after(execution, moved, carry)
    assert (reads[1] < subject.n).sum(1).tolist() == [0, subject.quarter, 0]
    fresh = execution.policy.see(moved)
    seen = carry[SEEN]
    places = reads[1][1]
    close(seen.keys[0][1, :, places], fresh.keys[0][1, :, places])
    alone = take(moved, [1])
    _, carry_alone = after(execution, take(subject.batch, [1]), NOTHING)
    noise = EpisodeNoise(KEYS[1:2])
    carry_alone = {**carry_alone, PAST: torch.tensor([4])}
    close(found[1:2], sample_after(execution, alone, noise, carry_alone)[0])
    again, carry = after(execution, moved, carry)
    close(again, found)
    assert carry[LOOKED] == 3
    _, carry = after(execution, moved, carry)
    assert reads[-1] is None, "after so many chunks all are read"
    assert carry[LOOKED] == 1


def test_what_changes_slowly_is_read_in_the_end(subject):
    execution = twin(subject, threshold=0.3, most=1.0)
    reads = watched(execution)
    carry: Carry = NOTHING
    for level in (0.0, 0.1, 0.2, 0.25, 0.25):  # of a range of 2 that is 0, 0.2, 0.4, 0.5
        _, carry = after(execution, touched(subject.batch, subject.cameras[1], by=level), carry)
    assert [None if each is None else (each < subject.n).sum().item() for each in reads] == [
        None,
        subject.quarter * len(KEYS),
    ]


def test_no_more_are_kept_than_a_share_and_those_that_changed_least(subject):
    execution = twin(subject, threshold=2.0, most=0.75)
    reads = watched(execution)
    moved = touched(subject.batch, subject.cameras[0])
    _, carry = after(execution, subject.batch, NOTHING)
    _, carry = after(execution, moved, carry)
    assert reads[1].shape == (len(KEYS), subject.n - int(0.75 * subject.n))
    first = reads[1][:, : subject.quarter].sort(dim=1).values
    assert torch.equal(first, first[:1].expand_as(first)), "the patches that were touched come first"


def test_other_words_are_read_though_nothing_moves(subject):
    execution = twin(subject, threshold=0.0, most=1.0)
    told = subject.batch | {TOKENS: subject.batch[TOKENS] + 3}
    _, carry = after(execution, subject.batch, NOTHING)
    found, _ = after(execution, told, carry)
    assert not torch.equal(found, subject.plain(subject.batch))
    wanted = subject.plain(told)
    assert (found - wanted).abs().max() < (wanted - subject.plain(subject.batch)).abs().max()


def test_work_is_counted_of_a_still_picture(subject):
    one = take(subject.batch, [0])
    plain = count_flops(as_trained(subject.staged), one)
    some, all_ = (count_flops(subject.run(StaticPatches(most=most, every=2)), one) for most in (0.5, 1.0))
    assert all_.language < some.language < plain.language
    assert some.encode - some.language <= plain.encode - plain.language + 1, "the tower runs on all pictures"
    assert some.denoise == plain.denoise


def test_what_it_does_not_go_with_is_refused(subject):
    with pytest.raises(PlanMismatch, match="static_patches keeps patches where they stand, and a technique"):
        subject.run(PatchSelect(k_final=6), StaticPatches())
    with pytest.raises(PlanMismatch, match="decides what is read of an observation, and so does another"):
        subject.run(FrameCache(), StaticPatches())
    with pytest.raises(BadSetting, match=r"static_patches threshold=0.03, most=0, every=2; needed"):
        StaticPatches(most=0)
