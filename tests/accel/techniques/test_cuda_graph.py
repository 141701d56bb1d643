"""Steps launched as CUDA graphs: what needs no GPU to be seen. What they compute is held in tests/gpu."""

import copy
from dataclasses import replace

import pytest
import torch
from policy_cases import KEYS, POLICIES, observations

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData, Need
from vivace.accel.techniques.cuda_graph import CudaGraph, denoises_alike
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.execution import as_trained, sample
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.staged import has_language

DENOISE = [name for name, (_, has) in POLICIES.items() if Need.DENOISER in has and "multi_task" not in name]


@pytest.fixture(scope="module")
def staged(request, tmp_path_factory):
    return stage(POLICIES[request.param][0](tmp_path_factory.mktemp("built") / "none"))


def watched(policy, name):
    """A twin that runs another block of this name, as a stopwatch and a profiler make them."""
    return policy.with_blocks(lambda block: replace(block) if block.id == name else block)


@pytest.mark.parametrize("staged", DENOISE, indirect=True)
def test_who_denoises_alike_is_launched_and_nobody_else(staged):
    assert denoises_alike(staged, staged)
    assert denoises_alike(copy.copy(staged), staged)
    assert not denoises_alike(watched(staged, staged.blocks[-1].id), staged)
    if has_language(staged):
        assert denoises_alike(watched(staged, staged.language.blocks[0].id), staged), "bench's stopwatch"
    other = copy.copy(staged)
    other.something = torch.ones(1)
    assert not denoises_alike(other, staged), "as one that continues a chunk"


@pytest.mark.parametrize("staged", ["smolvla"], indirect=True)
def test_a_cpu_refuses_to_capture_and_runs_what_was_made_for_a_gpu(staged, tmp_path):
    data = CalibrationData(observations(staged.policy), KEYS)
    mark = fingerprint(staged.policy, staged.spec.block_ids)
    with pytest.raises(
        UnsupportedPolicy, match=r"cuda_graph .* policy 'smolvla' is on a device that .* leave"
    ):
        calibrate(staged, mark, data, [("cuda_graph", {})])
    AccelerationPlan(mark, (CudaGraph(),)).save(tmp_path)
    execution = accelerate(staged, AccelerationPlan.load(tmp_path), mark)
    found, wanted = (sample(run, data.batch, EpisodeNoise(KEYS)) for run in (execution, as_trained(staged)))
    assert torch.equal(found, wanted)
