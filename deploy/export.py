"""`export`: a loaded policy and its plan become a bundle, proven equal to torch before it is called one."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs.types import FeatureType
from torch import Tensor

from vivace.accel.apply import accelerate
from vivace.accel.greedy import executed_tokens
from vivace.accel.judgement import check_apart, fitted_seeds
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.deploy.bundle import MANIFEST, Bundle
from vivace.deploy.bundle_form import MASK, TOKENS, GoldenSettings, PromptSettings
from vivace.deploy.export_onnx import export_denoising, export_tokens
from vivace.deploy.golden import FILE_NAME
from vivace.deploy.graph_writer import GraphWriter
from vivace.deploy.normalization import Normalization
from vivace.deploy.ort_policy import OrtPolicy
from vivace.deploy.precision import check_precision
from vivace.deploy.recording import GOLDEN_KEY, GOLDEN_TOLERANCE, check_golden, recorded, training_ranges
from vivace.deploy.signature import FILE_NAME as SIGNATURE
from vivace.deploy.signature import private_key, signature
from vivace.deploy.token_decoding import Decoder, TokenProgram
from vivace.policies.arrays import is_image
from vivace.policies.errors import BadSetting, ParityError, UnsupportedPolicy
from vivace.policies.load import LoadedPolicy
from vivace.policies.noise import EpisodeNoise
from vivace.policies.plain_data import build
from vivace.policies.session import Session
from vivace.policies.staged import Execution, sample
from vivace.policies.streams import Streams
from vivace.policies.token_vla_staged import StagedTokenVLA

TOLERANCE = 1e-5
"""Largest difference from torch's of normalised actions, and of a graph's outputs in units of their size."""
TOKENIZER = "tokenizer.json"
DECODERS = ("greedy_executed", "jacobi")
"""Decoders that run in numpy, around the graphs."""

_MODES: dict[str, tuple[str, str, float, float]] = {
    "MIN_MAX": ("min", "max", 2.0, -1.0),
    "QUANTILES": ("q01", "q99", 2.0, -1.0),
    "QUANTILE10": ("q10", "q90", 2.0, -1.0),
}
"""lerobot's normalisation mode -> statistics at the ends, gain, shift."""

_KNOWN_STEPS = {
    "RenameObservationsProcessorStep",
    "AddBatchDimensionProcessorStep",
    "DeviceProcessorStep",
    "NormalizerProcessorStep",
    "UnnormalizerProcessorStep",
    "PromptStep",
    "TokenizerProcessorStep",
}


def export(
    loaded: LoadedPolicy,
    plan: AccelerationPlan,
    data: CalibrationData,
    folder: Path,
    instructions: Sequence[str] = (),
    on_step: Callable[[int, int], None] = lambda done, total: None,
    precision: str = "fp32",
    sign_key: str | Path = "",
) -> Bundle:
    """Write a bundle; nothing is at `folder` until it is whole and its parity is proven.

    Args:
        loaded: the checkpoint.
        plan: how it is run; of this checkpoint.
        data: observations to prove parity on, of other episodes than the plan was calibrated on; the first
            one gives the graphs their shapes.
        folder: where the bundle goes; one that is there is replaced.
        instructions: texts to tokenise now, for policies that read one.
        on_step: told how many of how many steps are exported.
        precision: fp32, fp16 or int8; of the latter two the graphs are proven before they are reduced, and
            the error of the actions is in the receipt.
        sign_key: PEM file of an ed25519 private key to sign the bundle with; empty: it is not signed.

    Raises:
        BadSetting: the key cannot be read, or the plan was calibrated on episodes that the observations are
            of.
        UnsupportedPolicy: the policy or its plan cannot be exported.
        ParityError: ONNX Runtime gives other actions than torch.
    """
    check_precision(precision)
    key = private_key(sign_key) if sign_key else None
    _check_techniques(plan)
    check_apart(fitted_seeds(plan), data.seeds)
    execution = accelerate(loaded.staged, plan, loaded.fingerprint)
    observations, prompts = dict(_observations(loaded)), _prompts(loaded, instructions)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    writer = GraphWriter(partial, precision)
    with torch.no_grad():
        parts = _graphs(writer, execution, data, on_step)
    plan.save(partial)
    bundle = Bundle(
        folder=partial,
        name=loaded.path.name,
        spec=execution.policy.spec,
        graphs=tuple(writer.graphs),
        observations=observations,
        actions=_actions(loaded),
        ranges=dict(training_ranges(loaded.preprocess, loaded.staged.spec)),
        prompts=prompts,
        prompt=_prompt(loaded, partial),
        **parts,
    )
    policy = OrtPolicy(bundle)
    receipt = _receipt(policy, plan, execution, data, writer)
    _check_parity(receipt, folder, partial)
    golden = _record(policy, Session(loaded, execution, bundle.usual_task), data, precision)
    whole = replace(bundle, receipt=receipt, golden=golden).write()
    if key is not None:
        (partial / SIGNATURE).write_bytes(signature((whole.folder / MANIFEST).read_bytes(), key))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    return Bundle.load(folder)


def _record(policy: OrtPolicy, session: Session, data: CalibrationData, precision: str) -> GoldenSettings:
    """Write the golden chunk; returns how it was made."""
    settings = GoldenSettings(
        file=FILE_NAME, noise_key=GOLDEN_KEY, task=session.task, tolerance=GOLDEN_TOLERANCE[precision]
    )
    golden = recorded(policy, {key: value.cpu().float().numpy() for key, value in data.one.items()}, settings)
    (policy.bundle.folder / settings.file).write_bytes(golden.to_bytes())
    if precision == "fp32":
        check_golden(session, policy.bundle, golden, settings)
    return settings


def _check_techniques(plan: AccelerationPlan) -> None:
    for technique in plan.techniques:
        if not (technique.is_static or technique.kind in DECODERS):
            raise UnsupportedPolicy(
                f"{technique.kind} decides by the values it computes, which a fixed graph cannot; leave it "
                "out of the plan: vivace calibrate --accel.techniques=…"
            )


def _receipt(
    policy: OrtPolicy,
    plan: AccelerationPlan,
    execution: Execution,
    data: CalibrationData,
    writer: GraphWriter,
) -> dict[str, Any]:
    """What was exported, and how far it is from torch."""
    errors = [_chunk_error(policy, execution, one) for one in data.ones()]
    means = [mean for _, mean in errors]
    return {
        "fingerprint": asdict(plan.fingerprint),
        "techniques": [technique.kind for technique in plan.techniques],
        "torch": torch.__version__,
        "observations": len(errors),
        "seeds": sorted(data.seeds),
        "precision": writer.precision,
        "chunk_error": max(largest for largest, _ in errors),
        "action_error": float(np.mean(means)),
        "action_error_spread": np.percentile(means, [10, 90]).tolist(),
        "graph_error": max(writer.errors),
        "tolerance": TOLERANCE,
    }


def _check_parity(receipt: Mapping[str, Any], folder: Path, partial: Path) -> None:
    """Raise `ParityError` if a graph, or at fp32 a chunk, differs from torch's."""
    worst, chunk = receipt["graph_error"], receipt["chunk_error"]
    if receipt["precision"] == "fp32":
        worst = max(chunk, worst)
    if not worst <= TOLERANCE or not np.isfinite(chunk):
        raise ParityError(
            f"ONNX Runtime differs from torch by {worst:.2g} on {receipt['observations']} observations, "
            f"{TOLERANCE:g} is allowed; nothing was written to {folder}; what was made is in {partial}"
        )


def _graphs(
    writer: GraphWriter, execution: Execution, data: CalibrationData, on_step: Callable[[int, int], None]
) -> dict[str, Any]:
    """Write the graphs; returns the bundle's fields that say how they fit together."""
    policy = execution.policy
    if not execution.writes_tokens:
        noise = EpisodeNoise(data.noise_keys[:1])
        made = export_denoising(writer, execution, data.one, noise, on_step)
        return {"encode": made.encode, "steps": made.steps, "finish": made.finish}
    if not isinstance(policy, StagedTokenVLA):
        raise UnsupportedPolicy(
            f"policy {policy.spec.type!r} writes tokens of its own kind; token_vla can be exported"
        )
    decoder = execution.decoder
    kind = getattr(decoder, "kind", "greedy")
    fields: Any = asdict(decoder) if kind == "jacobi" else {}  # type: ignore[call-overload]
    settings = build(Decoder, "decoder", {"kind": kind, **fields})
    graphs = export_tokens(writer, execution, data.one)
    bins = policy.policy.config.bins
    program = TokenProgram(
        graphs.extend, policy.n_tokens, executed_tokens(policy), bins.n, bins.end, settings
    )
    return {"encode": graphs.encode, "steps": (), "finish": None, "tokens": program}


def sample_bundle(policy: OrtPolicy, one: CalibrationData) -> np.ndarray:
    """Sample one chunk of normalised actions (1, H, A) of one observation, as torch's `sample` would."""
    batch = {key: value.cpu().numpy() for key, value in one.batch.items()}
    draft = None if one.draft is None else one.draft[0].numpy()
    return policy.sample(batch, Streams(one.noise_keys), draft)


def _chunk_error(policy: OrtPolicy, execution: Any, one: CalibrationData) -> tuple[float, float]:
    """Largest and mean difference of normalised actions of one observation."""
    wanted = sample(execution, one.batch, EpisodeNoise(one.noise_keys), one.draft).cpu().numpy()
    difference = np.abs(sample_bundle(policy, one) - wanted)
    return float(difference.max()), float(difference.mean())


def identity(shape: tuple[int, ...] = (1,)) -> Normalization:
    """Leave values as they are."""
    return Normalization(np.zeros(shape, np.float32), np.ones(shape, np.float32), 1.0, 0.0)


def _observations(loaded: LoadedPolicy) -> Iterator[tuple[str, Normalization]]:
    pipelines: tuple[Any, ...] = (loaded.preprocess, loaded.postprocess)
    for pipeline in pipelines:
        for step in pipeline.steps:
            renames = getattr(step, "rename_map", {})
            if type(step).__name__ not in _KNOWN_STEPS or renames:
                raise UnsupportedPolicy(
                    f"processor step {type(step).__name__} {renames or ''} is not one that can be exported: "
                    f"{', '.join(sorted(_KNOWN_STEPS))}, without renaming"
                )
    for key, shape in loaded.staged.spec.observation_shapes.items():
        yield key, _normalization(loaded.preprocess, key, (shape[0], 1, 1) if is_image(key) else shape)


def _actions(loaded: LoadedPolicy) -> Normalization:
    return _normalization(loaded.postprocess, "action", (loaded.staged.spec.action_dim,))


def _normalization(pipeline: Any, key: str, shape: tuple[int, ...]) -> Normalization:
    """Read how a pipeline (un)normalises a feature, number by number."""
    found = _known_normalization(pipeline, key) or identity(shape)
    low, span = (np.broadcast_to(values, shape) for values in (found.low, found.span))
    return replace(found, low=low, span=span)


def _known_normalization(pipeline: Any, key: str) -> Normalization | None:
    for step in pipeline.steps:
        if key not in getattr(step, "features", {}):
            continue
        kind: FeatureType = step.features[key].type
        mode = getattr(step.norm_map.get(kind), "name", "IDENTITY")
        stats: Mapping[str, Tensor] = step._tensor_stats.get(key, {})
        if mode == "IDENTITY" or not stats:
            return None
        if mode == "MEAN_STD":
            return Normalization(_array(stats["mean"]), _array(stats["std"]) + np.float32(step.eps), 1.0, 0.0)
        low, high, gain, shift = _MODES[mode]
        span = _array(stats[high]) - _array(stats[low])
        return Normalization(_array(stats[low]), np.where(span == 0, np.float32(step.eps), span), gain, shift)
    return None


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().float().numpy()


def _reads_text(loaded: LoadedPolicy) -> bool:
    pipeline: Any = loaded.preprocess
    return any(type(step).__name__ in ("PromptStep", "TokenizerProcessorStep") for step in pipeline.steps)


def _tokens(loaded: LoadedPolicy, text: str) -> tuple[Tensor, Tensor]:
    """Padded ids (L,) of an instruction and their mask, as the checkpoint's own pipeline makes them."""
    spec = loaded.staged.spec
    blank = {key: torch.zeros(1, spec.n_obs_steps, *s) for key, s in spec.observation_shapes.items()}
    ready = loaded.preprocess(blank | {"task": [text]})
    return ready[TOKENS][0].cpu(), ready[MASK][0].bool().cpu()


def _prompts(loaded: LoadedPolicy, instructions: Sequence[str]) -> dict[str, tuple[int, ...]]:
    if not _reads_text(loaded):
        return {}
    if not instructions:
        raise BadSetting("this policy reads an instruction; give the texts it will be told when exporting")
    found = {}
    for text in instructions:
        ids, mask = _tokens(loaded, text)
        found[text.strip().lower()] = tuple(ids[mask].tolist())
    return found


def _prompt(loaded: LoadedPolicy, folder: Path) -> PromptSettings | None:
    """How instructions that come later are tokenised; writes the tokenizer's file."""
    if not _reads_text(loaded):
        return None
    ids, mask = _tokens(loaded, "a")
    settings = PromptSettings(length=len(ids), pad=int(ids[~mask][0]) if not mask.all() else 0)
    pipeline: Any = loaded.preprocess
    for step in pipeline.steps:
        if type(step).__name__ == "PromptStep":
            (folder / TOKENIZER).write_text(step.tokenizer.to_str())
            settings = replace(
                settings,
                tokenizer=TOKENIZER,
                template=step.template,
                bos=step.bos,
                suffix=tuple(step.suffix),
            )
    return settings
