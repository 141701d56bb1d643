"""Every policy under every technique does on a GPU what it does on a CPU, in float32 and in less.

A step of a static plan never waits for the host, and is captured as a CUDA graph that computes the same.
"""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from policy_cases import POLICIES, TOKENS, observations
from support_table import shows
from technique_cases import examples, fits
from torch import Tensor
from torch.utils._pytree import tree_map

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.flops import count_flops
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData, Need
from vivace.accel.techniques.cuda_graph import CudaGraph, Launcher
from vivace.policies.adapters.opaque import OpaquePolicy
from vivace.policies.arrays import is_image
from vivace.policies.batch import take, tensors
from vivace.policies.block import EMPTY
from vivace.policies.dtype import cast_weights
from vivace.policies.execution import Execution, as_trained, sample
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import LoadedPolicy, stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.session import Session
from vivace.policies.spec import Fingerprint
from vivace.policies.staged import writes_tokens
from vivace.policies.tiny.policies import tiny_clip

pytestmark = pytest.mark.gpu

KEYS = ((1, 0), (2, 0))
EVERYTHING = examples()
TOLERANCE = 2e-3
"""Of normalised actions, which reach to 1: sums in another order, magnified by samplers."""
MEAN_ERROR = {torch.bfloat16: 0.02, torch.float16: 0.004}
"""Mean difference of normalised actions from those of float32 on the CPU."""
LOGIT_LIKENESS = {torch.float32: 1 - 1e-6, torch.bfloat16: 0.998, torch.float16: 0.999}
"""Cosine similarity of the first token's logits, of a policy that writes tokens: rounding may turn a token of
random weights, and with it all that follow."""


@dataclass(frozen=True)
class Subject:
    """A policy on the CPU, and on the device."""

    policy: Any
    host: Any
    there: Any
    mark: Fingerprint
    batch: dict[str, Tensor]
    device: torch.device
    has: set[Need]

    def moved(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch on the device."""
        return {key: value.to(self.device) for key, value in batch.items()}

    def wanted(self, variant: str) -> list[tuple[str, dict[str, Any]]]:
        """(kind, options) of a variant."""
        wanted = [(kind, dict(options)) for kind, options in EVERYTHING.get(variant, [])]
        for kind, options in wanted:
            if kind == "step_schedule":
                own = self.host.sampler.name
                options["sampler"] = own if own in ("euler", "renoise") else "ddim"
        return wanted

    def plan(self, variant: str) -> AccelerationPlan:
        """Calibrate on the CPU: a plan is the same wherever it is used."""
        return calibrate(self.host, self.mark, CalibrationData(self.batch, KEYS), self.wanted(variant))


@pytest.fixture(scope="module")
def subject(request, tmp_path_factory, device) -> Subject:
    make, has = POLICIES[request.param]
    policy = make(tiny_clip(tmp_path_factory.mktemp("miniature")))
    host, there = stage(policy), stage(copy.deepcopy(policy).to(device))
    seen = take(observations(policy), range(len(KEYS)))
    return Subject(policy, host, there, fingerprint(policy, host.spec.block_ids), seen, device, has)


every_policy = pytest.mark.parametrize("subject", list(POLICIES), indirect=True)
every_pair = pytest.mark.parametrize(
    ("subject", "variant"),
    [
        (policy, variant)
        for policy, (_, has) in POLICIES.items()
        for variant in ("as trained", *EVERYTHING)
        if variant == "as trained" or fits(has, variant)
    ],
    indirect=["subject"],
)


def first_logits(execution: Execution, batch: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return execution.policy.encode(batch, execution.language, execution.select).logits.float().cpu()


@every_pair
def test_the_gpu_does_what_the_cpu_does(subject, variant):
    plan = subject.plan(variant)
    host, there = accelerate(subject.host, plan), accelerate(subject.there, plan)
    seen = subject.moved(subject.batch)
    actions = sample(there, seen, EpisodeNoise(KEYS))
    assert actions.device.type == subject.device.type
    rounds = any(technique.kind == "precision" for technique in plan.techniques)
    if writes_tokens(host.policy):
        found, wanted = first_logits(there, seen), first_logits(host, subject.batch)
        likeness = LOGIT_LIKENESS[torch.bfloat16 if rounds else torch.float32]
        assert torch.cosine_similarity(found, wanted).min() > likeness
        return
    wanted = sample(host, subject.batch, EpisodeNoise(KEYS))
    if rounds:  # each sums in another order, and rounds it to eight bits
        assert (actions.cpu() - wanted).abs().mean() < MEAN_ERROR[torch.bfloat16]
    else:
        torch.testing.assert_close(actions.cpu(), wanted, atol=TOLERANCE, rtol=0)


OVERFLOWS = {"act": 8e5}
"""Types whose random weights make numbers as large as this, where float16 ends at 65504: a ResNet's, whose
norms have learned nothing."""


@pytest.mark.parametrize(
    ("subject", "dtype"),
    [
        (policy, dtype)
        for policy in POLICIES
        for dtype in MEAN_ERROR
        if dtype != torch.float16 or policy.split("-")[0] not in OVERFLOWS
    ],
    indirect=["subject"],
    ids=lambda it: str(it).removeprefix("torch."),
)
def test_fewer_bits_are_near_float32(subject, dtype):
    policy = copy.deepcopy(subject.policy)
    cast_weights(policy, dtype)
    there, seen = as_trained(stage(policy.to(subject.device))), subject.moved(subject.batch)
    host = as_trained(subject.host)
    if writes_tokens(host.policy):
        found, wanted = first_logits(there, seen), first_logits(host, subject.batch)
        assert torch.cosine_similarity(found, wanted).min() > LOGIT_LIKENESS[dtype]
    else:
        actions = sample(there, seen, EpisodeNoise(KEYS))
        wanted = sample(host, subject.batch, EpisodeNoise(KEYS))
        assert actions.dtype == torch.float32
        assert (actions.cpu() - wanted).abs().mean() < MEAN_ERROR[dtype]


@every_policy
def test_what_is_calibrated_on_the_gpu_runs_on_the_cpu(subject):
    everything = ("ceed", "fewer steps, cached", "dead_work")
    wanted = subject.wanted(next(variant for variant in everything if fits(subject.has, variant)))
    plan = calibrate(subject.there, subject.mark, CalibrationData(subject.moved(subject.batch), KEYS), wanted)
    assert sample(accelerate(subject.host, plan), subject.batch, EpisodeNoise(KEYS)).isfinite().all()


@every_policy
def test_pictures_are_the_same_bit_for_bit(subject):
    sessions = [
        Session(LoadedPolicy(Path(), subject.policy, staged, lambda batch: batch, lambda a: a, subject.mark))
        for staged in (subject.host, subject.there)
    ]
    random = np.random.default_rng(0)
    seen = {
        key: random.integers(0, 256, blank.shape, np.uint8) if is_image(key) else random.random(blank.shape)
        for key, blank in sessions[0].blank_observation().items()
    }
    on_host, there = (tensors(session.prepare(seen)) for session in sessions)
    assert set(sessions[0].spec.observation_shapes) <= on_host.keys()
    for key, value in on_host.items():
        assert there[key].device.type == subject.device.type
        assert torch.equal(there[key].cpu(), value)


@every_policy
def test_whether_a_chunk_draws_noise_is_known_on_the_gpu(subject):
    """groot draws from the device's own generator, which nobody can give the host's noise."""
    host, there = (OpaquePolicy(one.policy) for one in (subject.host, subject.there))
    assert host.draws(subject.batch) == there.draws(subject.moved(subject.batch))


HOST_READS = {
    "groot": "pictures may be of any size, and sizes are shapes of what follows",
    "multi_task_dit": "transformers asks whether the mask of the prompt can be left out",
}
"""Policies of which the host reads something before the steps, and what. What does not wait, and is captured,
are the steps."""


class Steps:
    """A chunk of a static plan as one function of what is `given`, its noise drawn before."""

    def __init__(self, execution: Execution, rows: int) -> None:
        policy = execution.policy
        shape = (rows, *policy.spec.latent_shape)
        noise = EpisodeNoise(KEYS[:rows])
        self._execution = execution
        self._is_read_first = policy.spec.type in HOST_READS
        self._drawn = noise.ahead(execution.sampler.n_draws, shape, policy.placement.like)

    def given(self, batch: dict[str, Tensor]) -> Any:
        """A tree of tensors: the observation, or of a policy that the host reads first, what it reads."""
        return self._read(batch) if self._is_read_first else batch

    def _read(self, batch: dict[str, Tensor]) -> Any:
        return self._execution.policy.encode(batch, self._execution.language, self._execution.select)

    def __call__(self, given: Any) -> Tensor:
        run, policy = self._execution, self._execution.policy
        drawn = iter(self._drawn)

        def noise(shape: tuple[int, ...], like: Tensor) -> Tensor:
            return next(drawn)

        context = given if self._is_read_first else self._read(given)
        x, memory, cache = next(drawn), (), EMPTY
        for step in run.sampler.steps:
            out, cache = run.call(run, step, x.to(policy.placement.dtype), context, cache)
            x, memory = step.advance(x, out.to(x.dtype), memory, noise)
        return policy.finish(x, context)


STATIC = (
    "as trained",
    "fewer steps, cached",
    "forecast-taylor1",
    "efficientvla",
    "guidance, cached",
    "guidance-linear",
)
static_pairs = pytest.mark.parametrize(
    ("subject", "variant"),
    [
        (policy, variant)
        for policy, (_, has) in POLICIES.items()
        for variant in STATIC
        if TOKENS not in has and (variant == "as trained" or fits(has, variant))
    ],
    indirect=["subject"],
)


@static_pairs
def test_a_static_chunk_never_waits_for_the_gpu(subject, variant):
    if subject.device.type != "cuda":
        pytest.skip("a CPU is never waited for")
    execution = accelerate(subject.there, subject.plan(variant))
    steps, seen = Steps(execution, len(KEYS)), subject.moved(subject.batch)
    with torch.inference_mode():
        seen = steps.given(seen)
        steps(seen)  # what is made once, is made
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            steps(seen)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@static_pairs
def test_a_static_chunk_is_captured_as_a_graph(subject, variant):
    """Captured on one observation, replayed on another."""
    execution = accelerate(subject.there, subject.plan(variant))
    rows = [subject.moved(take(subject.batch, [i])) for i in (0, 1)]
    with torch.inference_mode():
        steps = Steps(execution, 1)
        one, other = (tree_map(Tensor.clone, steps.given(row)) for row in rows)
        wanted = steps(other)
        torch.testing.assert_close(
            wanted, sample(execution, rows[1], EpisodeNoise(KEYS[:1])), atol=TOLERANCE, rtol=0
        )
        if subject.device.type != "cuda":
            pytest.skip("a CPU captures nothing; its steps are those of `sample`")
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                steps(one)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = steps(one)
        tree_map(Tensor.copy_, one, other)
        graph.replay()
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


every_launch = pytest.mark.parametrize(
    ("subject", "variant"),
    [
        pytest.param(policy, variant, marks=shows("cuda_graph", policy.split("-")[0], "on a GPU"))
        for policy, (_, has) in POLICIES.items()
        for variant in STATIC
        if Need.DENOISER in has and (variant == "as trained" or fits(has, variant))
    ],
    indirect=["subject"],
)


@every_launch
def test_steps_launched_as_graphs_do_what_their_kernels_do(subject, variant):
    """One observation, another, both, the first again: every size is captured once, and nothing stays."""
    plan = subject.plan(variant)
    graphs = replace(plan, techniques=(*plan.techniques, CudaGraph()))
    eager, execution = accelerate(subject.there, plan), accelerate(subject.there, graphs)
    for rows in ([0], [1], [0, 1], [0]):
        seen, keys = subject.moved(take(subject.batch, rows)), [KEYS[i] for i in rows]
        found, wanted = (sample(run, seen, EpisodeNoise(keys)) for run in (execution, eager))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    one = subject.moved(take(subject.batch, [0]))
    assert count_flops(execution, one) == count_flops(eager, one), "what is counted is not what is launched"
    if subject.device.type == "cuda":
        assert len(execution.call.captured) == 2 * len(execution.sampler)
    else:
        assert not isinstance(execution.call, Launcher)
