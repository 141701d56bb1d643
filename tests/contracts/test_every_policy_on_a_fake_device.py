"""No policy mixes devices, and none waits for the device but where it must, which is listed here by name.

A wait costs a GPU the work it could have done meanwhile, and a step that waits is no CUDA graph.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda, on_fake_cuda
from pipelines import Telling
from policy_cases import DENOISER, POLICIES, TOKENS, observations
from technique_cases import NUMBERS_DIFFER, TOGETHER, examples, fits
from torch import Tensor

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.flops import count_flops
from vivace.accel.plan import AccelerationPlan
from vivace.accel.registry import techniques
from vivace.accel.technique import CalibrationData, Need
from vivace.deploy.bundle.form import Graph
from vivace.deploy.export.graph_writer import GraphWriter
from vivace.deploy.export.onnx import export_denoising
from vivace.deploy.export.tokens import export_tokens
from vivace.policies.arrays import is_image
from vivace.policies.batch import take
from vivace.policies.execution import as_trained, sample
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import LoadedPolicy, stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.real_time_chunking import RealTimeChunking
from vivace.policies.session import Session
from vivace.policies.spec import DELAY, PREVIOUS, Fingerprint
from vivace.policies.tiny.policies import tiny_clip

KEYS = ((1, 0), (2, 0))
EVERYTHING = examples()
READS: dict[str, set[str]] = {
    "a chunk": {"checked"},  # are its actions finite
    "a session": {"checked", "Session.predict"},  # the actions themselves
    "pictures of any size": {"Pictures.read"},  # their sizes, and whether prompts are padded, once
    "a chunk that ends by itself": {"greedy"},  # is it over, at every token
    "padding left out": {"PaliReader.prompt"},  # how long the longest prompt is, once
    "jacobi": {"unread"},  # how many tokens have not settled, at every pass
    "sjd": {"unread"},
    "token_recycling": {"decode_by_tree"},  # is every row done, at every pass
    "stand": {"decode_by_tree", "_Grams.guess"},  # and the tokens themselves: its table is a dictionary
    "stand-drawn": {"_Grams.begin"},  # the seeds it draws by
}
"""What reads values from the device while a chunk is made -> the functions that do."""
COPIES: dict[str, set[str]] = {"stand": {"_Grams.guess"}}
"""What sends values while a chunk is made, but for the observation and the noise."""
SIZED = {"groot"}
"""Policies whose pictures may be of any size, which says the shape of all that follows. What depends on sizes
alone is made of the first picture of each."""
ENDS_BY_ITSELF = {"pi0_fast"}
"""Policies whose chunks end with a token, which greedy decoding looks for."""
PADDED = {"pi0", "pi05", "pi0_fast"}
"""Policies whose prompts are padded."""
TIMED = {"cameras_together", "convolutions", "fused_attention"}
"""Techniques whose calibration measures times."""
BACKWARDS = ("dp_transformer", "diffusion-images", "multi_task_dit-flow", "cogact")
"""Policies whose chunks are also drawn towards others by a backward pass; one of a type."""
VARIANTS = ["as trained", *(name for name in EVERYTHING if name not in NUMBERS_DIFFER)]


@dataclass(frozen=True)
class Subject:
    """A policy on the host, and its twin on the device."""

    name: str
    cuda: FakeCuda
    host: Any
    twin: Any
    """lerobot's object on the device."""
    staged: Any
    mark: Fingerprint
    data: CalibrationData
    batch: dict[str, Tensor]
    has: set[Need]

    def plan(self, variant: str) -> AccelerationPlan:
        """Calibrate on the host."""
        return calibrate(self.host, self.mark, self.data, self.wanted(variant))

    def wanted(self, variant: str) -> list[tuple[str, dict[str, Any]]]:
        """(kind, options) of a variant."""
        found = [(kind, dict(options)) for kind, options in EVERYTHING.get(variant, [])]
        for kind, options in found:
            if kind == "step_schedule":
                own = self.host.sampler.name
                options["sampler"] = own if own in ("euler", "renoise") else "ddim"
        return found


@pytest.fixture(scope="module")
def subject(request, tmp_path_factory) -> Subject:
    make, has = POLICIES[request.param]
    policy = make(tiny_clip(tmp_path_factory.mktemp("miniature")))
    host, seen = stage(policy), take(observations(policy), range(len(KEYS)))
    mark = fingerprint(policy, host.spec.block_ids)
    with (
        cuda := FakeCuda(
            {"record": True, "context_similarity": True}, {"Pictures.read": (*(1, 8, 8) * 4, 32, 32, 1)}
        )
    ):
        twin = on_fake_cuda(policy)
        batch = {key: value.to("cuda", non_blocking=True) for key, value in seen.items()}
        staged = stage(twin)
    return Subject(request.param, cuda, host, twin, staged, mark, CalibrationData(seen, KEYS), batch, has)


@pytest.fixture
def cuda(subject) -> Iterator[FakeCuda]:
    with subject.cuda:
        yield subject.cuda


def pairs(once: bool = False) -> Any:
    """Every policy under every variant that fits it; `once`: a variant on one policy of those it fits.

    Every day a technique runs on one policy, and what runs several together on all.
    """
    found: dict[tuple[str, str], str] = {}
    types: set[str] = set()
    for policy, (_, has) in POLICIES.items():
        is_second, types = policy.split("-")[0] in types, types | {policy.split("-")[0]}
        for variant in VARIANTS:
            if (variant in TOGETHER or not is_second) and (variant == "as trained" or fits(has, variant)):
                found.setdefault((variant, "" if once else policy), policy)
    seen: set[str] = set()
    cases = []
    for (variant, _), policy in found.items():
        is_everyday = variant in TOGETHER or variant not in seen
        cases.append(pytest.param(policy, variant, marks=() if is_everyday else pytest.mark.long))
        seen.add(variant)
    return pytest.mark.parametrize(("subject", "variant"), cases, indirect=["subject"])


def named(table: Mapping[str, set[str]], *names: str) -> set[str]:
    return set().union(*(table.get(name, set()) for name in names))


def forget(cuda: FakeCuda) -> None:
    cuda.reads.clear()
    cuda.copies.clear()


def test_every_technique_is_under_test():
    kinds = {kind for variant in VARIANTS for kind, _ in EVERYTHING.get(variant, [])}
    assert kinds == techniques().keys() - {"compile"}, "which makes code for a device that is there"
    for kind in techniques().keys() & (READS.keys() | COPIES.keys()):
        assert not techniques()[kind].is_static, f"{kind} reads what it computes"


@pairs()
def test_a_chunk_is_made_on_the_device_and_waits_only_where_it_says(subject, variant):
    plan = subject.plan(variant)
    kinds = [technique.kind for technique in plan.techniques]
    ends = ["a chunk that ends by itself"] if subject.name in ENDS_BY_ITSELF else []
    if not {"jacobi", "sjd", "token_recycling", "stand"}.isdisjoint(kinds):
        ends = []  # another decoder
    if "dead_work" in kinds and subject.name in PADDED:
        ends.append("padding left out")
    with subject.cuda as cuda:
        execution = accelerate(subject.staged, plan)
        sized = ["pictures of any size"] if subject.name in SIZED else []
        if sized:
            execution.policy.encode(subject.batch)
        forget(cuda)
        actions = sample(execution, subject.batch, EpisodeNoise(KEYS))
    assert actions.device.type == "cuda"
    assert set(cuda.reads) == named(READS, "a chunk", *ends, *sized, *kinds, variant)
    assert set(cuda.copies) == named(COPIES, *kinds)
    assert cuda.reads["checked"] == 1


@pairs(once=True)
def test_what_is_calibrated_on_the_device_is_kept_on_the_host(subject, variant):
    if TIMED.intersection(kind for kind, _ in subject.wanted(variant)):
        pytest.skip("calibration times what it chooses between, which a device that is not there cannot be")
    plan = subject.plan(variant)
    options = dict(subject.wanted(variant))
    data = CalibrationData(subject.batch, KEYS)
    with subject.cuda:
        execution = as_trained(subject.staged)
        for technique in plan.techniques:
            made = type(technique).calibrate(execution, data, options[technique.kind])
            for tensor in getattr(made, "tensors", {}).values():
                assert tensor.device.type == "cpu"
            execution = technique.apply(execution)  # values that were made up fit nothing


def as_loaded(subject: Subject) -> LoadedPolicy:
    """As a checkpoint would be, with processors that only tell the task."""
    words = {k: v for k, v in subject.batch.items() if k not in subject.staged.spec.observation_shapes}
    return LoadedPolicy(
        Path(),
        subject.twin,
        subject.staged,
        Telling(words),
        lambda actions: actions,
        subject.mark,
    )


def seen_by(session: Session) -> dict[str, np.ndarray]:
    found = {}
    for key, shape in session.spec.observation_shapes.items():
        size = (len(KEYS), session.spec.n_obs_steps, *((*shape[1:], shape[0]) if is_image(key) else shape))
        found[key] = np.zeros(size, np.uint8 if is_image(key) else np.float32)
    return found


@pytest.mark.parametrize(
    ("subject", "jacobian"),
    [(name, "identity") for name in POLICIES] + [(name, "exact") for name in BACKWARDS],
    indirect=["subject"],
)
def test_a_session_goes_there_and_back_once(subject, cuda, jacobian, monkeypatch):
    # the engine itself asks the driver for the device; what goes into it and comes out is checked
    monkeypatch.setattr(torch.autograd, "grad", lambda of, by, weights: (weights + torch.zeros_like(by),))
    follows = DENOISER in subject.has
    session = Session(as_loaded(subject), chunking=RealTimeChunking(jacobian=jacobian) if follows else None)
    observations, spec = seen_by(session), session.spec
    observations |= {
        PREVIOUS: np.full((len(KEYS), 3, spec.action_dim), 0.25, np.float32),
        DELAY: np.array([2, 1]),
    }
    sized = ["pictures of any size"] if subject.name in SIZED else []
    if sized:
        session.predict(observations, KEYS)
    forget(cuda)
    found = session.predict(observations, KEYS)
    assert isinstance(found, np.ndarray)
    ends = ["a chunk that ends by itself"] if subject.name in ENDS_BY_ITSELF else []
    assert set(cuda.reads) == named(READS, "a session", *ends, *sized)
    assert not cuda.copies


@pytest.mark.parametrize("subject", ["diffusion", "cogact", "pi0_fast"], indirect=True)
def test_work_is_counted_where_the_policy_is(subject, cuda):
    assert count_flops(as_trained(subject.staged), {k: v[:1] for k, v in subject.batch.items()}).total > 0


class Inputs(GraphWriter):
    """Runs what would be exported on the inputs it would be exported with."""

    def add(self, origin, module, inputs, outputs, dynamic=None, branches=()) -> int:  # type: ignore[override]
        assert {tensor.device.type for tensor in inputs.values()} == {"cuda"}
        found = module.eval()(*inputs.values())
        shapes = [
            {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            for tensors in (inputs, dict(zip(outputs, found, strict=True)))
        ]
        self.graphs.append(Graph(origin.part, *shapes, origin, 0.0))
        return len(self.graphs) - 1


@pytest.mark.parametrize(
    "subject",
    ["diffusion-images", "multi_task_dit-flow", "cogact", "token_vla"],
    indirect=True,
)
def test_graphs_are_traced_on_inputs_of_the_device(subject, cuda, tmp_path):
    variants = ["as trained"] if TOKENS in subject.has else ["as trained", "hoist"]
    one = {key: value[:1] for key, value in subject.batch.items()}
    with torch.no_grad():
        writer = Inputs(tmp_path)
        runs = {name: accelerate(subject.staged, subject.plan(name)) for name in variants}
        if TOKENS in subject.has:
            export_tokens(writer, runs["as trained"], one)
        else:
            export_denoising(writer, runs, one, EpisodeNoise(KEYS[:1]))
    assert len(writer.graphs) >= 2


def test_the_contract_notices_what_it_is_for():
    """Each of the faults that it is to find."""
    with FakeCuda() as cuda:
        there = torch.zeros(3, device="cuda")
        with pytest.raises(RuntimeError, match="two different devices"):
            there + torch.zeros(3)
        assert torch.zeros(3).tolist() == [0, 0, 0]
        assert not cuda.reads
        for read in (
            there.sum().item,
            there.tolist,
            lambda: bool(there.any()),
            there.cpu,
            lambda: there[there > 0],
        ):
            before = cuda.reads.total()
            read()
            assert cuda.reads.total() > before
        for copy in (
            lambda: torch.zeros(3).to("cuda"),
            lambda: torch.tensor([1, 2], device="cuda"),
            lambda: there[[0, 2]],
            lambda: there[torch.tensor([0, 2])],
            lambda: there.index_put_((torch.tensor([0, 2]),), there[:2]),
        ):
            before = cuda.copies.total()
            copy()
            assert cuda.copies.total() > before
        before = cuda.copies.total()
        torch.zeros(3).pin_memory().to("cuda", non_blocking=True)
        assert cuda.copies.total() == before
