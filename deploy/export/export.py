"""`export`: a loaded policy and its plan become a bundle, proven equal to torch before it is called one."""

import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vivace.accel.apply import accelerate
from vivace.accel.judgement import check_apart, fitted_seeds
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.deploy.bundle.bundle import MANIFEST, PLANS, Bundle
from vivace.deploy.bundle.form import PromptSettings
from vivace.deploy.bundle.golden import FOLDER, GoldenSettings, golden_file
from vivace.deploy.bundle.program import Program
from vivace.deploy.bundle.signature import FILE_NAME as SIGNATURE
from vivace.deploy.bundle.signature import private_key, signature
from vivace.deploy.export.graph_writer import GraphWriter
from vivace.deploy.export.onnx import check_steps, export_denoising
from vivace.deploy.export.packed import packing, reads_packed
from vivace.deploy.export.parity import check_parity, prove, prove_processors
from vivace.deploy.export.precision import check_precision, stored
from vivace.deploy.export.processors import Processing, array, fixed, picture_sizes, read_processors
from vivace.deploy.export.prompts import packed_prompts, prompts, with_tokenizer
from vivace.deploy.export.subject import Subject
from vivace.deploy.export.tokens import check_tokens, export_tokens
from vivace.deploy.export.whole import check_whole, export_whole
from vivace.deploy.inference.ort_graph import Graphs, Runtime
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.deploy.inference.recording import GOLDEN_KEY, GOLDEN_TOLERANCE, check_golden, recorded
from vivace.deploy.robots.action_range import learned_range
from vivace.policies.arrays import is_image
from vivace.policies.batch import Batch, tensors
from vivace.policies.errors import BadBundle, BadSetting, UnsupportedPolicy
from vivace.policies.execution import Decoding, Denoising, Execution, sample
from vivace.policies.files import replacing
from vivace.policies.load import LoadedPolicy
from vivace.policies.placement import dtype_name
from vivace.policies.plain_data import build
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.session import Session, check_begins
from vivace.policies.spec import ActionRange, ChunkExecution, Fingerprint, Mode, PolicySpec
from vivace.policies.training_range import training_ranges

PLAIN_NAME = "plan"
"""Of a plan that was given without a name."""


def export(
    loaded: LoadedPolicy,
    plans: AccelerationPlan | Mapping[str, AccelerationPlan],
    data: CalibrationData,
    folder: Path,
    instructions: Sequence[str] = (),
    on_graph: Callable[[str], None] = lambda name: None,
    precision: str = "fp32",
    into: bool = False,
    sign_key: str | Path = "",
    provider: str = "cpu",
    prompt_tokens: int = 0,
) -> Bundle:
    """Write a bundle; nothing is at `folder` until it is whole and its parity is proven.

    Args:
        loaded: the checkpoint.
        plans: how it is run; name -> plan of this checkpoint, the usual one first. They share graphs.
        data: observations to prove parity on, of other episodes than the plans were calibrated on; the first
            one gives the graphs their shapes, and pictures their size where the policy takes any.
        folder: where the bundle goes; one that is there is replaced.
        instructions: texts to tokenise now, for policies that read one.
        on_graph: told the name of every graph that is about to be exported.
        precision: fp32, or one of `precision.PRECISIONS`; of the others the graphs are proven before they
            are reduced, and the error of the actions is in the receipt.
        into: add the plans to the bundle at `folder`; graphs that it has already are not exported again. A
            plan of the same name is replaced.
        sign_key: PEM file of an ed25519 private key to sign the bundle with; empty: it is not signed. A
            bundle that was signed is added to only with its own key, for adding makes another manifest.
        provider: of ONNX Runtime, that chunks are proven on: cpu, cuda, tensorrt, openvino.
        prompt_tokens: of the longest prompt, if fewer than the policy reads; 0: as many. Of a new bundle.

    Raises:
        BadSetting: the policy was not loaded in float32, this ONNX Runtime lacks the provider, the key
            cannot be read, a plan was calibrated on episodes that the observations are of, or has no name.
        BadBundle: `into` what is no bundle of this policy, or is signed with another key.
        UnsupportedPolicy: the policy or a plan cannot be exported.
        ParityError: ONNX Runtime gives other actions than torch.
    """
    check_precision(precision)
    runtime = Runtime.of((provider,), None, shares_threads=False)
    key = private_key(sign_key) if sign_key else None
    given = {PLAIN_NAME: plans} if isinstance(plans, AccelerationPlan) else plans
    held = Bundle.load(folder) if into else None
    named = _carried(given, None if held is None else held.spec)
    runs, processing = check_exportable(loaded, named, data.one)
    for plan in named.values():
        check_apart(fitted_seeds(plan), data.seeds)
    spec = _with_sizes(_chunks_of(loaded.staged.spec, runs), data, processing.renamed or {})
    with replacing(folder) as unfinished:
        if held is not None:
            bundle = _copied(held, loaded, spec, unfinished, key)
        else:
            is_known = processing.relative is None  # statistics of offsets say nothing of targets
            known = _action_range(loaded, next(iter(runs.values())), data) if is_known else None
            spec = replace(spec, action_range=known)
            bundle = _begun(loaded, processing, spec, unfinished, instructions, prompt_tokens)
        subject = Subject.of(loaded, runs, data, bundle)
        with torch.no_grad():
            bundle = _with_plans(bundle, subject, precision, on_graph, runtime)
        for name, plan in named.items():
            plan.save(bundle.record(name))
            check_parity(name, bundle.plans[name].receipt)
        _finish(_with_golden(bundle, loaded, runs, subject.data.one, precision), key)
    return Bundle.load(folder)


def check_exportable(
    loaded: LoadedPolicy, plans: Mapping[str, AccelerationPlan], batch: Batch
) -> tuple[dict[str, Execution], Processing]:
    """Return what a policy runs under each plan, and what its processors do, before any slow work.

    Args:
        loaded: the checkpoint.
        plans: name -> plan.
        batch: normalised observations, blank ones will do.

    Raises:
        BadSetting: the policy was not loaded in float32, or a plan has no name.
        UnsupportedPolicy: the policy, a plan or a processor cannot be carried over, or plans execute chunks
            in several ways.
    """
    _check_dtype(loaded)
    check_names(plans)
    plans = _carried(plans)
    for plan in plans.values():
        _check_techniques(plan)
    runs = {name: accelerate(loaded.staged, plan, loaded.fingerprint) for name, plan in plans.items()}
    for run in runs.values():
        match run:
            case Decoding():
                check_tokens(run)
            case Denoising(is_one_pass=True):
                check_whole(run, batch)
            case Denoising():
                check_steps(run)
                check_begins(run, loaded.preprocess)
    return runs, read_processors(loaded)


def _begun(
    loaded: LoadedPolicy,
    processing: Processing,
    spec: PolicySpec,
    folder: Path,
    instructions: Sequence[str],
    prompt_tokens: int,
) -> Bundle:
    """A bundle without plans yet."""
    (folder / PLANS).mkdir(parents=True)
    if reads_packed(loaded):
        packs = packing(loaded, picture_sizes(spec, processing.renamed or {}))
        settings: PromptSettings | None
        texts, settings = packed_prompts(loaded, packs, instructions, folder, prompt_tokens)
    else:
        texts, settings = prompts(loaded, instructions, prompt_tokens)
        settings = with_tokenizer(loaded, settings, instructions, folder)
    return Bundle(
        folder=folder,
        name=loaded.path.name,
        spec=spec,
        graphs=(),
        plans={},
        observations=processing.observations,
        actions=processing.actions,
        ranges=dict(training_ranges(loaded.preprocess, spec, processing.renamed or {})),
        prompts=texts,
        prompt=settings,
        renamed=processing.renamed,
        relative=processing.relative,
    )


def _chunks_of(spec: PolicySpec, runs: Mapping[str, Execution]) -> PolicySpec:
    """A policy's spec with the chunks that its plans make of it.

    Raises:
        UnsupportedPolicy: they are of several lengths, and a bundle's are of one.
    """
    found = {name: run.policy.spec for name, run in runs.items()}
    lengths = {name: one.horizon for name, one in found.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UnsupportedPolicy(
            f"the plans make chunks of several lengths ({told}), a bundle has one; export them apart"
        )
    one = next(iter(found.values()))
    names = ("horizon", "latent_horizon", "is_cut", "n_action_steps", "request_at", "mode")
    return replace(spec, **{name: getattr(one, name) for name in names})


def _with_sizes(spec: PolicySpec, data: CalibrationData, renamed: Mapping[str, str]) -> PolicySpec:
    """A spec whose pictures are as large as those of an observation: graphs take no others."""
    one = data.one
    sizes = {name: tuple(value.shape[2:]) for name, value in one.items() if is_image(name)}
    sizes |= {
        renamed.get(key, key): (value.shape[-1], *value.shape[-3:-1])
        for key, value in data.raw.items()
        if is_image(key) and renamed.get(key, key) not in sizes
    }
    shapes = {
        key: sizes.get(renamed.get(key, key), shape) if spec.resizes and is_image(key) else shape
        for key, shape in spec.observation_shapes.items()
    }
    return replace(spec, observation_shapes=shapes, resizes=False)


def _copied(bundle: Bundle, loaded: LoadedPolicy, spec: PolicySpec, unfinished: Path, key: Any) -> Bundle:
    """A whole bundle, copied to be added to: what its manifest names, and nothing else."""
    folder, signed = bundle.folder, bundle.folder / SIGNATURE
    _check_same(bundle, loaded, spec)
    is_ours = (
        key is not None
        and signed.exists()
        and signature((folder / MANIFEST).read_bytes(), key) == signed.read_bytes()
    )
    if signed.exists() and not is_ours:
        raise BadBundle(
            f"{folder} is signed, and plans that are added need its signature made anew: give the key that "
            "made it as --export.sign_key, or export a new bundle"
        )
    for name in bundle.files:
        (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, unfinished / name)
    return replace(bundle, folder=unfinished)


def _finish(bundle: Bundle, key: Any) -> None:
    """Write the manifest, and sign it if there is a key."""
    bundle.write()
    if key is not None:
        signed = (bundle.folder / MANIFEST).read_bytes()
        (bundle.folder / SIGNATURE).write_bytes(signature(signed, key))


@torch.no_grad()
def _action_range(loaded: LoadedPolicy, execution: Execution, data: CalibrationData) -> ActionRange | None:
    """What the actions were that the policy learned from; None if its processors do not say."""
    pipeline: Any = loaded.postprocess
    stats = [stats for step in pipeline.steps if (stats := getattr(step, "_tensor_stats", {}).get("action"))]
    if not stats:
        return None
    steps, source = data.largest_step, f"in {data.source or f'the episodes {sorted(data.seeds)}'}"
    if steps is None:
        chunks = sample(execution, data.batch, EpisodeNoise(data.noise_keys), data.draft)
        actions = loaded.postprocess(chunks[:, execution.policy.spec.first_action :])
        steps, source = (
            array(actions.diff(dim=1).abs().amax((0, 1))),
            f"in {len(chunks)} of its own chunks",
        )
    return learned_range({name: array(values) for name, values in stats[0].items()}, steps, source)


def _check_dtype(loaded: LoadedPolicy) -> None:
    """Graphs are written and proven in float32, and reduced afterwards."""
    if loaded.placement.dtype != torch.float32:
        raise BadSetting(
            f"{loaded.path} computes in {dtype_name(loaded.placement.dtype)}, graphs are made of float32: "
            "load it with --policy.dtype=float32, and choose theirs by --export.precision=fp16, int8 or bf16"
        )


def check_names(names: Iterable[str]) -> None:
    """Raise `BadSetting` unless names of plans can stand in a path, and there are some."""
    found = list(names)
    bad = [name for name in found if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name)]
    if bad or not found:
        raise BadSetting(
            f"plans are named {found}; at least one is needed, of letters, digits, '-', '_' and '.'"
        )


def _check_same(bundle: Bundle, loaded: LoadedPolicy, spec: PolicySpec) -> None:
    """Raise `BadBundle` unless a bundle holds this policy, for pictures of this size."""
    held = build(Fingerprint, "the bundle's fingerprint", bundle.receipt["fingerprint"])
    other = loaded.fingerprint.differs(held)
    if other or replace(bundle.spec, action_range=None) != spec:
        raise BadBundle(
            f"{bundle.folder} holds another policy than {loaded.path}: its {', '.join(other) or 'spec'} "
            "differs; give the bundle of this one, or export a new one"
        )


def _with_plans(
    bundle: Bundle, subject: Subject, precision: str, on_graph: Callable[[str], None], runtime: Runtime
) -> Bundle:
    """Export what plans need and is not there, and prove them where they are to run."""
    loaded, runs, data = subject.loaded, subject.runs, subject.data
    writer = GraphWriter.of(bundle, stored(precision), on_graph)
    told = fixed(loaded)
    one = {key: value for key, value in tensors(data.one).items() if key not in told}
    stepwise = {n: run for n, run in _denoising(runs).items() if not run.is_one_pass}
    made = export_denoising(writer, stepwise, one, EpisodeNoise(data.noise_keys[:1]), told)
    for name, run in runs.items():
        match run:
            case Decoding():
                made[name] = export_tokens(writer, run, one)
            case Denoising(is_one_pass=True):
                made[name] = export_whole(writer, run, one)
    goldens = {name: golden for name, golden in bundle.goldens.items() if name not in made}
    bundle = replace(bundle, graphs=tuple(writer.graphs), plans={**bundle.plans, **made}, goldens=goldens)
    shared = Graphs(runtime)
    receipts: dict[str, dict[str, Any]] = {}
    lerobot_error = None
    for name, run in runs.items():
        plans = {name: replace(made[name], receipt={"precision": precision})}
        policy = OrtPolicy(replace(bundle, plans=plans, plan=name), graphs=shared, task=bundle.usual_task)
        if lerobot_error is None:  # the same for all plans
            lerobot_error = prove_processors(policy, loaded, data)
        receipts[name] = prove(policy, loaded, run, data, precision, subject.packs)
        receipts[name] |= {"lerobot_error": lerobot_error, "provider": runtime.providers[0]}
    proven = {name: replace(made[name], receipt=receipt) for name, receipt in receipts.items()}
    return replace(bundle, plans={**bundle.plans, **proven})


def _with_golden(
    bundle: Bundle,
    loaded: LoadedPolicy,
    runs: Mapping[str, Execution],
    one: Batch,
    precision: str,
) -> Bundle:
    """Record the golden chunks of plans."""
    batch = {key: value.cpu().float().numpy() for key, value in tensors(one).items()}
    (bundle.folder / FOLDER).mkdir(exist_ok=True)
    shared = Graphs(Runtime.of(("cpu",), None, shares_threads=False))
    plans: dict[str, Program] = dict(bundle.plans)
    for name, run in runs.items():
        settings = GoldenSettings(
            file=golden_file(name),
            noise_key=GOLDEN_KEY,
            task=bundle.usual_task,
            tolerance=GOLDEN_TOLERANCE[precision],
        )
        golden = recorded(OrtPolicy(replace(bundle, plan=name), graphs=shared), batch, settings)
        (bundle.folder / settings.file).write_bytes(golden.to_bytes())
        if precision == "fp32":
            check_golden(Session(loaded, run, settings.task), bundle, golden, settings)
        plans[name] = replace(plans[name], golden=settings)
    return replace(bundle, plans=plans)


def _denoising(runs: Mapping[str, Execution]) -> dict[str, Denoising]:
    return {name: run for name, run in runs.items() if isinstance(run, Denoising)}


def _carried(
    plans: Mapping[str, AccelerationPlan], bundle: PolicySpec | None = None
) -> dict[str, AccelerationPlan]:
    """What a bundle can have of plans: not how torch is to compute the same, and one way to execute chunks.

    That is the way of those that say one, or of the bundle that they are added to. Where none says a mode a
    bundle runs in async.

    Raises:
        UnsupportedPolicy: they say different things, and a bundle executes chunks one way.
    """
    told = {name: plan.execution for name, plan in plans.items() if plan.execution.chosen}
    if bundle is not None:
        own = ChunkExecution(
            mode=bundle.mode, n_action_steps=bundle.n_action_steps, request_at=bundle.request_at
        )
        told = {"the bundle": own} | {name: execution.over(own) for name, execution in told.items()}
    if len({replace(execution, mode=execution.mode or Mode.ASYNC) for execution in told.values()}) > 1:
        each = "; ".join(f"{name}: {execution}" for name, execution in told.items())
        raise UnsupportedPolicy(
            f"chunks are to be executed in several ways ({each}), a bundle's are in one; export them apart, "
            "or say for all: --loop.n_action_steps"
        )
    alike = next(iter(told.values()), ChunkExecution())
    return {
        name: replace(
            plan,
            execution=alike,
            techniques=tuple(one for one in plan.techniques if not one.is_for_torch),
        )
        for name, plan in plans.items()
    }


def _check_techniques(plan: AccelerationPlan) -> None:
    for technique in plan.techniques:
        if not technique.is_exportable:
            raise UnsupportedPolicy(
                f"{technique.kind} decides by the values it computes, which a fixed graph cannot; leave it "
                "out of the plan: vivace calibrate --accel.techniques=…"
            )
