"""Bundles: equal to torch on every policy, runnable without it, and refused by name when damaged."""

import copy
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from safetensors.numpy import load_file
from support_table import shows

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.bundle.checks import check_steps
from vivace.deploy.bundle.form import MASK, TOKENS
from vivace.deploy.bundle.program import FRESH, Origin
from vivace.deploy.bundle.token_program import Decoder
from vivace.deploy.export import parity
from vivace.deploy.export.export import export
from vivace.deploy.export.graph_writer import GraphWriter, _error
from vivace.deploy.export.onnx import export_denoising
from vivace.deploy.export.processors import identity
from vivace.deploy.inference.ort_graph import Runtime, check_bf16
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.eval.training.fit import save
from vivace.eval.training.recipe import statistics
from vivace.policies.adapters.opaque import OpaquePolicy
from vivace.policies.errors import (
    BadBundle,
    BadSetting,
    NonFiniteActions,
    ObservationMismatch,
    ParityError,
    UnsupportedPolicy,
)
from vivace.policies.execution import sample
from vivace.policies.families.cogact.policy import make_cogact_pre_post_processors
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.families.token_vla.policy import make_token_vla_pre_post_processors
from vivace.policies.fingerprint import fingerprint
from vivace.policies.language.tokenize import train_tokenizer
from vivace.policies.load import load_policy, stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.real_time_chunking import Continuation, RealTimeChunking
from vivace.policies.sampling.streams import Streams
from vivace.policies.session import Session
from vivace.policies.spec import DELAY, PREVIOUS
from vivace.policies.tiny.policies import (
    tiny_clip,
    tiny_cogact,
    tiny_diffusion,
    tiny_dp_transformer,
    tiny_multi_task_dit,
    tiny_token_vla,
)

CACHED = [("hoist", {}), ("block_cache", {"method": "uniform", "updates": 3})]
FEW = ("step_schedule", {"sampler": "ddim", "n_steps": 2})
EFFICIENT = [
    ("layer_skip", {"n_dropped": 1}),
    ("patch_select", {"k_final": 6, "k_key": 2}),
    ("hoist", {}),
    ("block_cache", {"method": "uniform", "updates": 2}),
]
KEYS = ((1, 0), (2, 8))
FITTED = ((3, 0), (4, 0))
"""Noise keys of the episodes that plans are calibrated on."""
SUBJECTS = ("diffusion", "vla", pytest.param("writer", marks=pytest.mark.long))
"""Fixtures that are exported; making the graphs of the last one takes a quarter of a minute."""


def saved(policy, processors, folder: Path, **extra):
    random = np.random.default_rng(0)
    stats = {
        key: statistics(random.uniform(-1, 1, (50, *feature.shape)).astype(np.float32))
        for key, feature in {**policy.config.input_features, **policy.config.output_features}.items()
        if feature.type is not FeatureType.VISUAL
    }
    save(policy, *processors(policy.config, stats, **extra), folder)
    return load_policy(folder)


def raw(loaded, rows: int = 2) -> dict[str, np.ndarray]:
    """Observations as a robot gives them, its pictures wider than those of a policy that resizes (A14)."""
    spec, random = loaded.staged.spec, np.random.default_rng(3)
    return {
        key: random.integers(
            0, 256, (rows, spec.n_obs_steps, *((48, 64) if spec.resizes else shape[1:]), 3), dtype=np.uint8
        )
        if "image" in key
        else random.uniform(-1, 1, (rows, spec.n_obs_steps, *shape)).astype(np.float32)
        for key, shape in spec.observation_shapes.items()
    }


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory):
    """A checkpoint, its plan, and the bundle of both."""
    base = tmp_path_factory.mktemp("dp")
    loaded = saved(tiny_dp_transformer(), make_dp_transformer_pre_post_processors, base / "dp")
    data = CalibrationData(Session(loaded).prepare(raw(loaded)), KEYS)
    plan = calibrate(loaded.staged, loaded.fingerprint, replace(data, noise_keys=FITTED), CACHED)
    export(loaded, plan, data, base / "bundle")
    return loaded, plan, data, base / "bundle"


@pytest.mark.long
def test_a_bundle_of_the_executed_actions_alone_has_shorter_chunks(diffusion, tmp_path):
    loaded, whole, data, _ = diffusion
    fitted = replace(data, noise_keys=FITTED)
    plan = calibrate(loaded.staged, loaded.fingerprint, fitted, [FEW, ("dead_actions", {}), ("hoist", {})])
    bundle = export(loaded, plan, data, tmp_path / "short")
    assert (bundle.spec.horizon, bundle.spec.latent_horizon, bundle.spec.is_cut) == (5, 8, True)
    seen = {key: value[:1] for key, value in raw(loaded).items()}
    session = Session(loaded, accelerate(loaded.staged, plan))
    found, wanted = (one.predict(seen, [(3, 0)]) for one in (OrtPolicy(bundle), session))
    assert found.shape == (1, 4, 3)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    with pytest.raises(UnsupportedPolicy, match="the first actions alone are computed; leave dead_actions"):
        OrtPolicy(bundle, chunking=RealTimeChunking())
    with pytest.raises(
        UnsupportedPolicy, match="chunks of several lengths .plan 8, short 5., a bundle has one"
    ):
        export(loaded, {"plan": whole, "short": plan}, data, tmp_path / "both")


@pytest.fixture(scope="module")
def vla(tmp_path_factory):
    base = tmp_path_factory.mktemp("vla")
    policy = tiny_cogact(
        input_features={"observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 32, 32))},
        max_tokens=40,
    )
    tokenizer = train_tokenizer(["Open the drawer"])
    loaded = saved(policy, make_cogact_pre_post_processors, base / "vla", tokenizer=tokenizer)
    data = CalibrationData(Session(loaded, task="Open the drawer").prepare(raw(loaded)), KEYS)
    plan = calibrate(loaded.staged, loaded.fingerprint, replace(data, noise_keys=FITTED), EFFICIENT)
    export(loaded, plan, data, base / "bundle", ["Open the drawer"])
    return loaded, plan, data, base / "bundle"


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A policy that writes tokens, and the bundle of it with layers and patches dropped."""
    base = tmp_path_factory.mktemp("tokens")
    policy = tiny_token_vla(
        input_features={"observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 32, 32))},
        max_tokens=40,
    )
    tokenizer = train_tokenizer(["Open the drawer"])
    loaded = saved(policy, make_token_vla_pre_post_processors, base / "vla", tokenizer=tokenizer)
    data = CalibrationData(Session(loaded, task="Open the drawer").prepare(raw(loaded)), KEYS)
    plan = calibrate(
        loaded.staged, loaded.fingerprint, replace(data, noise_keys=FITTED), [*EFFICIENT[:2], ("jacobi", {})]
    )
    export(loaded, plan, data, base / "bundle", ["Open the drawer"])
    return loaded, plan, data, base / "bundle"


def test_parity_is_not_proven_on_what_the_plan_was_fitted_to(diffusion, tmp_path):
    loaded, plan, data, folder = diffusion
    with pytest.raises(BadSetting, match="episode 3 was calibrated on, and is asked to judge by"):
        export(loaded, plan, replace(data, noise_keys=FITTED), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())
    receipt = Bundle.load(folder).receipt
    assert receipt["seeds"] == [1, 2]
    low, high = receipt["action_error_spread"]
    assert low <= receipt["action_error"] <= high


def test_graphs_are_made_of_float32_alone(diffusion, tmp_path):
    loaded, _, data, _ = diffusion
    half = load_policy(loaded.path, dtype="bfloat16")
    with pytest.raises(
        BadSetting, match=r"computes in bfloat16, .* --policy.dtype=float32, and choose theirs"
    ):
        export(half, AccelerationPlan(half.fingerprint), data, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_parity_is_proven_where_it_is_asked_for(diffusion, tmp_path):
    loaded, plan, data, folder = diffusion
    assert Bundle.load(folder).receipt["provider"] == "CPUExecutionProvider"
    with pytest.raises(BadSetting, match="execution provider 'abacus' is not one of this ONNX Runtime's"):
        export(loaded, plan, data, tmp_path / "bundle", provider="abacus")
    assert not list(tmp_path.iterdir())


def test_providers_are_told_to_compute_float32_and_to_keep_engines(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider")
    (_, tensorrt), (_, cuda), cpu = Runtime(names)._providers()
    assert cuda == {"use_tf32": "0"}
    assert tensorrt["trt_engine_cache_enable"] == "1"
    assert Path(tensorrt["trt_engine_cache_path"]).is_dir()
    assert cpu == "CPUExecutionProvider"
    assert Runtime(names[2:])._providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize(
    "subject",
    [
        pytest.param("diffusion", marks=shows("export", "dp_transformer")),
        pytest.param("vla", marks=shows("export", "cogact")),
        pytest.param("writer", marks=[shows("export", "token_vla"), pytest.mark.long]),
    ],
)
def test_a_bundle_acts_as_its_policy_does(subject, request):
    loaded, plan, _, folder = request.getfixturevalue(subject)
    task = "" if subject == "diffusion" else "Open the drawer"
    session = Session(loaded, accelerate(loaded.staged, plan, loaded.fingerprint), task)
    policy = OrtPolicy(folder, task=task)
    wanted, found = (p.predict(raw(loaded), KEYS) for p in (session, policy))
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.array_equal(found, policy.predict(raw(loaded), KEYS)), "not deterministic"
    assert policy.bundle.receipt["lerobot_error"] <= 1e-5, "lerobot's own path, observation to action (G1)"


@pytest.mark.parametrize("subject", SUBJECTS)
def test_buffers_keep_nothing_of_the_chunk_before(subject, request):
    loaded, *_, folder = request.getfixturevalue(subject)
    first, second = ({key: value[row : row + 1] for key, value in raw(loaded).items()} for row in (0, 1))
    policy = OrtPolicy(folder, task="Open the drawer")
    found = policy.predict(first, KEYS[:1])
    kept = found.copy()
    policy.predict(second, KEYS[1:])
    again = policy.predict(first, KEYS[:1])
    assert np.array_equal(found, kept)  # what was handed out is the caller's
    assert np.array_equal(again, kept)
    late = policy.predict(first, KEYS[:1], deadline_s=0.0)
    assert late.shape == kept.shape
    assert np.array_equal(policy.predict(first, KEYS[:1]), kept)


@pytest.mark.parametrize("method", ["guidance", "inpaint"])
@pytest.mark.parametrize("subject", ["diffusion", "vla"])
def test_a_bundle_continues_a_chunk_as_its_policy_does(subject, method, request):
    loaded, plan, _, folder = request.getfixturevalue(subject)
    task, chunking = "" if subject == "diffusion" else "Open the drawer", RealTimeChunking(method=method)
    execution = accelerate(loaded.staged, plan, loaded.fingerprint)
    session = Session(loaded, execution, task, chunking)
    policy = OrtPolicy(folder, task=task, chunking=chunking)
    seen = raw(loaded)
    free = policy.predict(seen, KEYS)
    seen[PREVIOUS] = np.zeros((2, 3, session.spec.action_dim), np.float32)
    seen[PREVIOUS][1, 2] = np.nan
    seen[DELAY] = np.array([2, 1])
    found = policy.predict(seen, KEYS)
    np.testing.assert_allclose(found, session.predict(seen, KEYS), atol=1e-4)
    assert np.abs(found[:, 0]).mean() < np.abs(free[:, 0]).mean()


@pytest.mark.long
def test_what_cannot_continue_a_chunk_is_refused(writer, diffusion):
    with pytest.raises(UnsupportedPolicy, match="policy 'token_vla' has none of its own"):
        OrtPolicy(writer[-1], chunking=RealTimeChunking())
    with pytest.raises(BadSetting, match="jacobian='exact' needs torch"):
        OrtPolicy(diffusion[-1], chunking=RealTimeChunking(jacobian="exact"))


@pytest.mark.parametrize("subject", [SUBJECTS[0], SUBJECTS[2]])
def test_a_chunk_that_must_be_there_at_once_is_cut_short(subject, request):
    loaded, _, _, folder = request.getfixturevalue(subject)
    policy = OrtPolicy(folder, task="Open the drawer")
    whole = policy.predict(raw(loaded), KEYS)
    assert np.array_equal(whole, policy.predict(raw(loaded), KEYS, time.monotonic() + 1e6))
    assert policy.cut_short == 0
    cut = policy.predict(raw(loaded), KEYS, time.monotonic())
    assert policy.cut_short == len(KEYS)
    assert cut.shape == whole.shape
    assert np.isfinite(cut).all()
    assert not np.array_equal(cut, whole)


@pytest.mark.long
@pytest.mark.parametrize("precision", [pytest.param("fp16", marks=pytest.mark.long), "int8"])
def test_a_bundle_of_lower_precision_says_how_far_off_it_is(vla, precision, tmp_path):
    loaded, plan, data, folder = vla
    bundle = export(loaded, plan, data, tmp_path / precision, ["Open the drawer"], precision=precision)
    receipt = bundle.receipt
    assert receipt["precision"] == precision
    assert receipt["graph_error"] <= receipt["tolerance"]  # before they were reduced
    assert 0 < receipt["action_error"] <= receipt["chunk_error"] < 0.5
    whole = OrtPolicy(folder, task="Open the drawer").predict(raw(loaded), KEYS)
    found = OrtPolicy(bundle, task="Open the drawer").predict(raw(loaded), KEYS)
    assert not np.array_equal(found, whole)
    weights = [at / "graphs" / "weights.bin" for at in (bundle.folder, folder)]
    assert weights[0].stat().st_size < 0.6 * weights[1].stat().st_size


def test_an_unknown_precision_is_refused(diffusion, tmp_path):
    loaded, plan, data, _ = diffusion
    with pytest.raises(BadSetting, match="precision='fp4'; choose one of fp32, fp16, int8, bf16"):
        export(loaded, plan, data, tmp_path / "out", precision="fp4")


def test_bf16_is_refused_by_name_where_it_cannot_be_had(diffusion, tmp_path, monkeypatch):
    loaded, plan, data, folder = diffusion
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BadSetting, match="bf16 needs OpenVINO, which this ONNX Runtime .* is built without"):
        export(loaded, plan, data, tmp_path / "out", precision="bf16")
    bundle = Bundle.load(folder)
    program = replace(bundle.program, receipt={**bundle.receipt, "precision": "bf16"})
    with pytest.raises(BadSetting, match="bf16 needs OpenVINO"):
        OrtPolicy(replace(bundle, plans={"plan": program}))
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["OpenVINOExecutionProvider"])
    (tmp_path / "cpuinfo").write_text("flags : avx2 avx512_bf16_not")
    with pytest.raises(BadSetting, match="needs a processor with avx512_bf16 or amx_bf16"):
        check_bf16(tmp_path / "cpuinfo")
    (tmp_path / "cpuinfo").write_text("flags : avx2 avx512_bf16 gfni")
    check_bf16(tmp_path / "cpuinfo")


@pytest.mark.skipif(
    "OpenVINOExecutionProvider" not in ort.get_available_providers(), reason="needs onnxruntime-openvino"
)
def test_a_bf16_plan_shares_the_graphs_of_fp32_and_says_how_far_off_it_is(diffusion, tmp_path):
    loaded, plan, data, folder = diffusion
    shutil.copytree(folder, tmp_path / "bundle")
    bundle = export(loaded, {"bf16": plan}, data, tmp_path / "bundle", precision="bf16", into=True)
    assert len(bundle.graphs) == 2
    receipt = bundle.plans["bf16"].receipt
    assert receipt["precision"] == "bf16"
    assert 0 < receipt["action_error"] <= receipt["chunk_error"] < 0.5


DECODERS = [
    ("greedy_executed", {}),
    ("jacobi", {"init": "prompt", "freeze": False}),
    ("jacobi", {"init": "previous", "until": "executed"}),
    ("jacobi", {"init": "marginal", "max_iterations": 2}),
    ("jacobi", {"tolerance": 0.3}),
]


@pytest.mark.long
@pytest.mark.parametrize(("kind", "options"), DECODERS, ids=lambda value: str(value))
def test_chunks_are_decoded_in_numpy_as_in_torch(writer, kind, options):
    loaded, plan, data, folder = writer
    known = [technique for technique in plan.techniques if technique.kind != "jacobi"]
    extra = calibrate(
        loaded.staged, loaded.fingerprint, replace(data, noise_keys=FITTED), [(kind, options)]
    ).techniques
    session = Session(
        loaded,
        accelerate(loaded.staged, AccelerationPlan(loaded.fingerprint, (*known, *extra))),
        "Open the drawer",
    )
    bundle = Bundle.load(folder)
    settings = Decoder(**extra[0].in_bundle())
    assert settings.kind == kind
    program = replace(bundle.program, tokens=replace(bundle.program.tokens, decoder=settings))
    policy = OrtPolicy(replace(bundle, plans={"plan": program}, goldens={}), task="Open the drawer")
    seen = raw(loaded)
    seen[PREVIOUS] = (
        np.random.default_rng(4).uniform(-1, 1, (2, 1, session.spec.action_dim)).astype(np.float32)
    )
    np.testing.assert_allclose(policy.predict(seen, KEYS), session.predict(seen, KEYS), atol=1e-6)


@pytest.mark.long
def test_a_decoder_that_needs_torch_is_refused(writer, tmp_path):
    loaded, _, data, _ = writer
    plan = calibrate(loaded.staged, loaded.fingerprint, replace(data, noise_keys=FITTED), [("sjd", {})])
    with pytest.raises(UnsupportedPolicy, match="sjd decides by the values it computes"):
        export(loaded, plan, data, tmp_path / "bundle", ["Open the drawer"])


def test_every_step_of_a_schedule_calls_one_graph_and_tensors_are_kept_once(diffusion):
    loaded, plan, _, folder = diffusion
    bundle = Bundle.load(folder)
    assert accelerate(loaded.staged, plan).action.programs > 1
    assert [graph.origin.part for graph in bundle.graphs] == ["encode", "step"]
    assert {step.graph for step in bundle.program.steps} == {1}
    stored = (folder / "graphs" / "weights.bin").stat().st_size
    weights = sum(p.numel() * 4 for p in loaded.policy.parameters())
    assert stored < 3 * weights + 4096 * 100


@pytest.mark.parametrize(
    "kind",
    [
        "diffusion",
        pytest.param("multi_task_dit-diffusion", marks=pytest.mark.long),
        pytest.param("multi_task_dit-flow", marks=pytest.mark.long),
        pytest.param("multi_task_dit-rk4", marks=pytest.mark.long),
    ],
)
def test_lerobots_own_policies_keep_their_actions(kind, tmp_path):
    if kind == "diffusion":
        policy = tiny_diffusion()
    else:
        flow: dict[str, object] = {"objective": "flow_matching", "num_integration_steps": 10}
        method = kind.split("-")[1]
        flow = {} if method == "diffusion" else flow | {"integration_method": method.replace("flow", "euler")}
        policy = tiny_multi_task_dit(tiny_clip(tmp_path), **flow)
    staged, generator = stage(policy), torch.Generator().manual_seed(1)
    spec = staged.spec
    batch = {
        key: torch.rand(1, spec.n_obs_steps, *shape, generator=generator)
        for key, shape in spec.observation_shapes.items()
    }
    if kind != "diffusion":
        batch |= {TOKENS: torch.arange(16)[None], MASK: torch.ones(1, 16, dtype=torch.bool)}
    mark, data = fingerprint(policy, spec.block_ids), CalibrationData(batch, KEYS[:1])
    execution = accelerate(staged, calibrate(staged, mark, data, CACHED))
    graphs = GraphWriter(tmp_path)
    with torch.no_grad():
        made = export_denoising(graphs, {"plan": execution}, batch, EpisodeNoise(data.noise_keys))
    bundle = Bundle(
        folder=tmp_path,
        name=kind,
        spec=spec,
        graphs=tuple(graphs.graphs),
        plans=made,
        observations={},
        actions=identity(),
    )
    check_steps(bundle, made["plan"], "plan")
    found = OrtPolicy(bundle).sample({k: v.numpy() for k, v in batch.items()}, Streams(data.noise_keys))
    wanted = sample(execution, batch, EpisodeNoise(data.noise_keys)).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert max(graph.error for graph in graphs.graphs) <= 1e-5
    wish = torch.full_like(torch.from_numpy(wanted), 0.3)
    weights = (torch.arange(wish.shape[1]) < 3).float()[None, :, None]
    inpaint = RealTimeChunking(method="inpaint")
    follow = Continuation(inpaint, wish.numpy(), weights.numpy())
    seen = {k: v.numpy() for k, v in batch.items()}
    found = OrtPolicy(bundle).sample(seen, Streams(data.noise_keys), follow=follow)
    assert np.array_equal(found[:, :3], wish[:, :3].numpy())
    follow = Continuation(inpaint, wish, weights)
    wanted = sample(execution, batch, EpisodeNoise(data.noise_keys), follow=follow)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


def test_a_plain_policy_needs_one_step_graph(diffusion, tmp_path):
    loaded, _, data, _ = diffusion
    bundle = export(loaded, AccelerationPlan(loaded.fingerprint), data, tmp_path / "plain")
    assert {step.graph for step in bundle.program.steps} == {1}
    assert not [name for name in bundle.graphs[1].inputs if name.startswith(FRESH)]
    assert bundle.receipt["chunk_error"] <= 1e-5


REPLAY = """
import sys
from importlib.metadata import distributions
from importlib.util import find_spec
import numpy as np
from vivace.deploy import OrtPolicy

recorded = dict(np.load("recorded.npz"))
keys = [tuple(key) for key in recorded.pop("noise_keys").tolist()]
policy = OrtPolicy(sys.argv[1], task="Open the drawer")
np.save("actions.npy", np.concatenate([
    policy.predict({name: values[i : i + 1] for name, values in recorded.items()}, [key])
    for i, key in enumerate(keys)
]))
print(*sorted(found.metadata["Name"] for found in distributions()))
assert find_spec("torch") is None
"""


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_wheel_alone_replays_what_torch_did(subject, robots_python, request, tmp_path):
    loaded, plan, _, folder = request.getfixturevalue(subject)
    session = Session(loaded, accelerate(loaded.staged, plan, loaded.fingerprint), task="Open the drawer")
    seen, keys = raw(loaded, rows=4), ((1, 0), (1, 8), (1, 16), (2, 0))
    np.savez(tmp_path / "recorded.npz", noise_keys=keys, **seen)
    done = robots_python.run("-I", "-c", REPLAY, folder, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"numpy", "onnxruntime", "vivace"} <= set(done.stdout.split())
    assert not {"torch", "lerobot", "mujoco", "gymnasium", "tokenizers", "scipy"} & set(done.stdout.split())
    found, wanted = np.load(tmp_path / "actions.npy"), session.predict(seen, keys)
    assert np.abs(found - wanted).max() <= 1e-5 * max(1.0, np.abs(wanted).max())
    if robots_python.is_ours:  # others may have another ONNX Runtime
        assert np.array_equal(found, OrtPolicy(folder, task="Open the drawer").predict(seen, keys))


ARM = """
import time
import numpy as np
from vivace.policies.spec import Observation

class Arm:
    initial_action = (0.0, 0.0, 0.0)

    def observe(self):
        return Observation({"observation.state": np.full(5, 0.1)}, 0, time.monotonic())

    def act(self, action):
        assert action.shape == (3,)
"""


@pytest.mark.every_python
def test_a_policy_drives_a_robot_on_this_python(equipped, diffusion, tmp_path):
    (tmp_path / "arm.py").write_text(ARM)
    asked = ("--robot.type=arm:Arm", "--control_hz=20", "--duration_s=2", "--output_dir=out")
    asked += ("--robot.action_kinds=[absolute,absolute,absolute]",)
    done = equipped.run("-m", "vivace.eval.cli", "run", f"--bundle={diffusion[-1]}", *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["run"]["ticks"] > 10
    assert found["run"]["sources"]["chunk"] > 0


def test_actions_that_are_not_finite_are_neither_exported_nor_predicted(diffusion, tmp_path):
    loaded, _, data, folder = diffusion
    bundle = Bundle.load(folder)
    broken = OrtPolicy(replace(bundle, actions=replace(bundle.actions, gain=np.nan), goldens={}))
    seen = raw(loaded, rows=2)
    with pytest.raises(NonFiniteActions, match="gave NaN or infinity in 2 of 2 chunks, in row 0 first"):
        broken.predict(seen, [(1, 0), (2, 0)])
    with pytest.raises(ObservationMismatch, match="the batch holds no observation; give at least one"):
        broken.predict({key: value[:0] for key, value in seen.items()}, [])
    policy = copy.deepcopy(loaded.policy)
    with torch.no_grad():
        next(policy.parameters())[:] = torch.nan
    with pytest.raises(NonFiniteActions, match="chunks, in row 0 first; finite actions are needed"):
        export(
            replace(loaded, staged=stage(policy)), AccelerationPlan(loaded.fingerprint), data, tmp_path / "b"
        )
    assert not (tmp_path / "b").exists()


def test_export_fails_above_the_tolerance_and_leaves_what_was_there(diffusion, tmp_path, monkeypatch):
    loaded, _, data, _ = diffusion
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "precious").write_text("kept")
    monkeypatch.setattr(parity, "TOLERANCE", -1.0)
    with pytest.raises(ParityError, match="differs from torch by"):
        export(loaded, AccelerationPlan(loaded.fingerprint), data, tmp_path / "bundle")
    assert (tmp_path / "bundle" / "precious").read_text() == "kept"


def test_graphs_are_judged_by_the_size_of_what_they_give(tmp_path):
    graphs = GraphWriter(tmp_path)
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1, 64, generator=generator), torch.rand(64, 64, generator=generator)

    class Scaled(torch.nn.Module):
        def __init__(self, gain: float, weight: torch.Tensor) -> None:
            super().__init__()
            self.gain, self.weight = gain, weight

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.gain * (x @ self.weight),)

    for gain in (1.0, 1000.0):
        graphs.add(Origin("times", str(gain)), Scaled(gain, weight), {"x": x}, ["y"])
    assert 0 <= max(graph.error for graph in graphs.graphs) < 1e-6
    wrong = _error(str(tmp_path / graphs.graphs[1].file), {"x": x.numpy()}, Scaled(1001.0, weight)(x))
    assert wrong == pytest.approx(1e-3, rel=0.01)


def test_a_policy_that_reads_needs_its_instructions(vla, tmp_path):
    loaded, plan, data, folder = vla
    with pytest.raises(BadSetting, match="reads an instruction"):
        export(loaded, plan, data, tmp_path / "bundle")
    with pytest.raises(BadSetting, match="none was given; it knows 'open the drawer'"):
        OrtPolicy(folder).predict(raw(loaded), KEYS)
    other = OrtPolicy(folder, task="Shut it")  # the package tokenizers is here
    ours = Session(loaded, task="Shut it").prepare(raw(loaded, 1))
    for key, value in other.prepare(raw(loaded, 1)).items():
        np.testing.assert_allclose(value, ours[key].numpy(), atol=1e-6)


@pytest.mark.parametrize("subject", SUBJECTS)
def test_the_golden_chunk_is_torchs_too(subject, request):
    loaded, plan, _, folder = request.getfixturevalue(subject)
    bundle = Bundle.load(folder)
    task = bundle.program.golden.task
    assert task == ("" if subject == "diffusion" else "open the drawer")
    session = Session(loaded, accelerate(loaded.staged, plan, loaded.fingerprint), task)
    golden, keys = bundle.recorded, [bundle.program.golden.noise_key]
    np.testing.assert_allclose(golden.chunk, session.predict(golden.batch, keys)[0], atol=1e-4)
    assert OrtPolicy(bundle).golden_error <= 1e-5
    theirs = load_file(folder / bundle.program.golden.file)  # anybody's safetensors reads it
    assert all(np.array_equal(theirs[key], value) for key, value in golden.observations.items())
    assert np.array_equal(theirs["action"], golden.chunk)
    if golden.continued is not None:
        session.chunking = RealTimeChunking()
        continued = session.predict(golden.batch | golden.before, keys)[0]
        np.testing.assert_allclose(golden.continued, continued, atol=1e-4)
        assert np.abs(golden.continued - golden.chunk).max() > 0.01


@pytest.mark.long
def test_a_bundle_is_signed_as_it_is_exported(diffusion, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    loaded, _, data, _ = diffusion
    key, form = ed25519.Ed25519PrivateKey.generate(), serialization.Encoding.PEM
    private, public = tmp_path / "key.pem", tmp_path / "public.pem"
    private.write_bytes(
        key.private_bytes(form, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(key.public_key().public_bytes(form, serialization.PublicFormat.SubjectPublicKeyInfo))
    plain = AccelerationPlan(loaded.fingerprint)
    with pytest.raises(BadSetting, match="is no ed25519 private key"):
        export(loaded, plain, data, tmp_path / "bundle", sign_key=public)
    assert not (tmp_path / "bundle.partial").exists()
    export(loaded, plain, data, tmp_path / "bundle", sign_key=private)
    assert Bundle.load(tmp_path / "bundle", public).name == loaded.path.name
    export(loaded, plain, data, tmp_path / "bundle")
    with pytest.raises(BadBundle, match="has no signature"):
        Bundle.load(tmp_path / "bundle", public)


def test_what_training_saw_is_in_the_bundle(diffusion):
    loaded, *_, folder = diffusion
    policy = OrtPolicy(folder)
    known = policy.bundle.ranges["observation.state"]
    norm = policy.bundle.observations["observation.state"]
    np.testing.assert_allclose(known.high - known.low, norm.span, rtol=1e-6)
    np.testing.assert_allclose(known.low, norm.low)


def test_processors_that_do_more_than_a_bundle_can_are_found(diffusion, tmp_path):
    loaded, plan, data, _ = diffusion
    postprocess = loaded.postprocess
    doubled = replace(loaded, postprocess=_Doubled(postprocess))
    with pytest.raises(ParityError, match="the bundle differs from lerobot's own path by 1 of"):
        export(doubled, plan, data, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


class _Doubled:
    """A pipeline that does more than its steps say."""

    def __init__(self, pipeline) -> None:
        self.pipeline, self.steps = pipeline, pipeline.steps

    def __call__(self, actions):
        return 2 * self.pipeline(actions)


def test_an_opaque_policy_is_refused(diffusion, tmp_path):
    loaded, _, data, _ = diffusion
    opaque = OpaquePolicy(loaded.policy)
    with pytest.raises(UnsupportedPolicy, match="opaque"):
        export(
            replace(loaded, staged=opaque), AccelerationPlan(loaded.fingerprint), data, tmp_path / "bundle"
        )


def test_observations_are_checked(diffusion):
    loaded, *_, folder = diffusion
    policy, seen = OrtPolicy(folder), raw(loaded)
    with pytest.raises(ObservationMismatch, match="needs 'observation.state'"):
        policy.predict({}, KEYS)
    seen["observation.state"][:] = np.nan
    with pytest.raises(ObservationMismatch, match="NaN"):
        policy.predict(seen, KEYS)


def test_an_unknown_provider_is_refused(diffusion):
    with pytest.raises(BadSetting, match="'abacus' is not one of this ONNX Runtime's: .*cpu"):
        OrtPolicy(diffusion[-1], providers=["abacus"])


def test_a_provider_that_does_not_start_is_not_left_out_in_silence(diffusion):
    runtime = Runtime(("CUDAExecutionProvider", "CPUExecutionProvider"))  # as a build has it without a device
    path = diffusion[-1] / "graphs" / "encode-000.onnx"
    with pytest.raises(BadSetting, match="CUDAExecutionProvider could not be started, .* CPUExecution"):
        runtime.session(path)


def test_noise_is_the_same_with_and_without_torch():
    with_torch, without = EpisodeNoise(KEYS), Streams(KEYS)
    for _ in range(2):
        assert np.array_equal(with_torch((2, 3, 4), torch.zeros(1)).numpy(), without((3, 4)))


@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_bundle_says_what_its_actions_were_and_that_nobody_said_what_they_mean(subject, request):
    loaded, *_, folder = request.getfixturevalue(subject)
    spec, chunks = (
        Bundle.load(folder).spec,
        Session(loaded, task="Open the drawer").predict(raw(loaded), KEYS),
    )
    known = spec.action_range
    assert known.bounds_from == "min and max of the training data"
    assert known.low == pytest.approx([-1] * spec.action_dim, abs=0.1)
    assert known.step_from == "2 times the largest in 2 of its own chunks, else 0.1 of the range"
    assert 0 < min(known.step) <= max(known.step) <= max(np.subtract(known.high, known.low))
    assert chunks.shape[-1] == len(known.step)
    assert set(spec.action_kinds) == {"unknown"}
