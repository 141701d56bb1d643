"""Bundles made by hand, without torch: small enough that thousands of damaged ones can be loaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.bundle.form import Contents, Graph, PromptSettings
from vivace.deploy.bundle.golden import FOLDER, GoldenSettings
from vivace.deploy.bundle.normalization import Normalization, Relative
from vivace.deploy.bundle.program import Origin, Program, ScheduledStep
from vivace.deploy.bundle.token_program import Decoder, TokenProgram
from vivace.deploy.inference.ort_policy import OrtPolicy
from vivace.deploy.inference.recording import GOLDEN_KEY, GOLDEN_TOLERANCE, recorded
from vivace.policies.sampling.step_table import StepTable
from vivace.policies.spec import ActionKind, BlockInfo, PolicySpec
from vivace.policies.training_range import Range

STATE, CAMERA = "observation.state", "observation.images.front"
N_OBS, STATES, HORIZON, ACTIONS, WIDTH = 2, 5, 6, 3, 4
CHUNK, CONTEXT, CACHE = (1, HORIZON, ACTIONS), (1, WIDTH), (1, HORIZON, WIDTH)
IMAGES = (1, N_OBS, 3, 4, 4)
TABLES = (
    StepTable(
        t=0.9, alpha=0.1, sigma=0.99, clean_x=10.0, clean_out=-9.9, clip=1.0, x=0.6, clean=0.35, noise=0.1
    ),
    StepTable(
        t=0.5,
        alpha=0.5,
        sigma=0.86,
        clean_x=2.0,
        clean_out=-1.72,
        clip=1.0,
        x=0.4,
        clean=0.6,
        keep=("clean",),
    ),
    StepTable(t=0.1, alpha=0.9, sigma=0.4, clean_x=1.11, clean_out=-0.44, clip=1.0, clean=0.8, memory=(0.2,)),
)


def renaming(folder: Path) -> Path:
    """The same of a robot that calls its camera otherwise, and of actions that are offsets to its joints."""
    top = "observation.images.top"
    relative = Relative(STATE, (True, True, False))
    return denoiser(folder, camera=top, renamed={top: CAMERA}, relative=relative)


def denoiser(folder: Path, camera: str = CAMERA, **more: Any) -> Path:
    """A policy of joints and a camera that denoises in three steps; the later two reuse a block's output."""
    random, writer = np.random.default_rng(0), _Writer(folder)
    seen = {STATE: (1, N_OBS, STATES), CAMERA: IMAGES}
    weights = writer.weight("wi", random, (int(np.prod(IMAGES)), WIDTH), 0.1)
    encode = [
        helper.make_node("Flatten", [STATE], ["s"]),
        helper.make_node("Flatten", [CAMERA], ["i"]),
        helper.make_node("MatMul", ["s", writer.weight("ws", random, (N_OBS * STATES, WIDTH))], ["hs"]),
        helper.make_node("MatMul", ["i", weights], ["hi"]),
        helper.make_node("Add", ["hs", "hi"], ["h"]),
        helper.make_node("Tanh", ["h"], ["context.0"]),
    ]
    first = [
        helper.make_node("MatMul", ["x", writer.weight("wx", random, (ACTIONS, WIDTH))], ["hx"]),
        helper.make_node("Add", ["hx", "context.0"], ["hc"]),
        helper.make_node("Tanh", ["hc"], ["new.action.0.mlp"]),
        *_head(writer, random, "new.action.0.mlp"),
    ]
    later = _head(writer, random, "cache.action.0.mlp.0")
    step, cache = {"x": CHUNK, "t": (), "context.0": CONTEXT}, {"cache.action.0.mlp.0": CACHE}
    graphs = (
        writer.graph("encode", encode, seen, {"context.0": CONTEXT}),
        writer.graph("step-000", first, step, {"out": CHUNK, "new.action.0.mlp": CACHE}),
        writer.graph("step-001", later, {"x": CHUNK, "t": (), **cache}, {"out": CHUNK}),
    )
    contents = Contents(
        spec=_spec("small", {STATE: (STATES,), camera: (3, 4, 4)}, N_OBS),
        graphs=graphs,
        plans={
            "plan": Program(
                encode=0,
                steps=(
                    ScheduledStep(1, TABLES[0], 0),
                    *(ScheduledStep(2, table, 0, {"action.0.mlp": (1.0,)}) for table in TABLES[1:]),
                ),
            )
        },
        observations={STATE: _norm(random, STATES), camera: _mean_std((3, 1, 1))},
        actions=_norm(random, ACTIONS),
        ranges={STATE: Range(np.full(STATES, -2, np.float32), np.full(STATES, 2, np.float32))},
        **more,
    )
    return _finished(folder, contents, random)


def writer(folder: Path) -> Path:
    """A policy of a camera and an instruction that writes a token after the other."""
    random, files, vocabulary, room = np.random.default_rng(1), _Writer(folder), 40, 30
    images, length, n = (1, 1, 3, 4, 4), 8, HORIZON * ACTIONS
    past = {
        "past.keys.0": (1, room, WIDTH),
        "past.values.0": (1, room, WIDTH),
        "past.prompt.0": (1, 10),
        "past.positions": (1,),
    }
    weights = files.weight("wi", random, (int(np.prod(images)), WIDTH), 0.1)
    table = files.weight("embedding", random, (vocabulary, WIDTH))
    head = files.weight("head", random, (WIDTH, vocabulary))
    constant = {
        name: files.constant("made." + name, np.full(shape, 0.5, np.float32)) for name, shape in past.items()
    }
    encode = [
        helper.make_node("Flatten", [CAMERA], ["i"]),
        helper.make_node("MatMul", ["i", weights], ["h"]),
        helper.make_node("Gather", [table, "observation.language.tokens"], ["e"]),
        helper.make_node("ReduceMean", ["e", files.constant("axis", np.array([1]))], ["m"], keepdims=0),
        helper.make_node("Add", ["h", "m"], ["hm"]),
        helper.make_node("MatMul", ["hm", head], ["logits"]),
        *(helper.make_node("Identity", [constant[name]], [name]) for name in past),
    ]
    extend = [
        helper.make_node("Gather", [table, "tokens"], ["e"]),
        helper.make_node("ReduceMean", ["past.keys.0", files.constant("axes", np.array([1]))], ["k"]),
        helper.make_node("Add", ["e", "k"], ["ek"]),
        helper.make_node("MatMul", ["ek", head], ["logits"]),
        *(helper.make_node("Identity", [name], [f"next.{name}"]) for name in list(past)[:2]),
    ]
    seen = {CAMERA: images, "observation.language.tokens": (1, length)}
    reads = {"tokens": (1, -1), "kept": (1,), "past.keys.0": past["past.keys.0"]}
    fresh = {f"next.{name}": past[name] for name in list(past)[:2]}
    reads |= {"past.values.0": past["past.values.0"]}
    graphs = (
        files.graph("encode", encode, seen, {"logits": (1, vocabulary), **past}),
        files.graph("extend", extend, reads, {"logits": (1, -1, vocabulary), **fresh}),
    )
    decoder = Decoder(kind="jacobi", init="marginal", table=(25,) * n)
    tokens = TokenProgram(1, n, n, 16, 38, decoder)
    contents = Contents(
        spec=_spec("writer", {CAMERA: (3, 4, 4)}, 1),
        graphs=graphs,
        plans={"plan": Program(encode=0, tokens=tokens)},
        observations={CAMERA: _mean_std((3, 1, 1))},
        actions=_norm(random, ACTIONS),
        prompts={"open the drawer": (1, 5, 7)},
        prompt=PromptSettings(length=length),
    )
    return _finished(folder, contents, random)


def observation(bundle: Bundle, seed: int = 7) -> dict[str, np.ndarray]:
    """Another observation than the golden one, as a robot gives it, batch 1."""
    random = np.random.default_rng(seed)
    return {
        key: random.integers(0, 256, (1, bundle.spec.n_obs_steps, *shape[1:], shape[0]), dtype=np.uint8)
        if len(shape) == 3
        else random.uniform(-1, 1, (1, bundle.spec.n_obs_steps, *shape)).astype(np.float32)
        for key, shape in bundle.spec.observation_shapes.items()
    }


class _Writer:
    """Writes graphs and the one file of their weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "graphs").mkdir(parents=True)
        self.tensors: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: np.ndarray) -> str:
        self.tensors[name] = numpy_helper.from_array(value, name)
        return name

    def weight(
        self, name: str, random: np.random.Generator, shape: tuple[int, ...], scale: float = 1.0
    ) -> str:
        """A tensor in the shared file."""
        if name not in self.tensors:
            file = self.folder / "graphs" / "weights.bin"
            offset = file.stat().st_size if file.exists() else 0
            data = (scale * random.normal(size=shape)).astype(np.float32).tobytes()
            with file.open("ab") as out:
                out.write(data)
            tensor = TensorProto(name=name, dims=shape, data_type=TensorProto.FLOAT)
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", file.name), ("offset", offset), ("length", len(data))):
                tensor.external_data.add(key=key, value=str(value))
            self.tensors[name] = tensor
        return name

    def graph(self, name: str, nodes: list, inputs: dict, outputs: dict) -> Graph:
        used = {read for node in nodes for read in node.input}
        graph = helper.make_graph(
            nodes, name, _values(inputs), _values(outputs), [t for n, t in self.tensors.items() if n in used]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        file = f"graphs/{name}.onnx"
        (self.folder / file).write_bytes(model.SerializeToString())
        part = {"step-000": "step", "step-001": "step"}.get(name, name)
        return Graph(file, inputs, outputs, Origin(part, name), 0.0)


def _head(writer: _Writer, random: np.random.Generator, hidden: str) -> list:
    return [
        helper.make_node("MatMul", [hidden, writer.weight("wo", random, (WIDTH, ACTIONS))], ["o"]),
        helper.make_node("Mul", ["x", "t"], ["xt"]),
        helper.make_node("Add", ["o", "xt"], ["out"]),
    ]


def _values(shapes: dict) -> list:
    whole = ("tokens", "kept", "observation.language.tokens")
    return [
        helper.make_tensor_value_info(
            name,
            TensorProto.INT64 if name in whole else TensorProto.FLOAT,
            ["length" if n < 0 else n for n in shape],
        )
        for name, shape in shapes.items()
    ]


def _spec(kind: str, shapes: dict, n_obs_steps: int) -> PolicySpec:
    return PolicySpec(
        type=kind,
        action_dim=ACTIONS,
        horizon=HORIZON,
        n_obs_steps=n_obs_steps,
        n_action_steps=3,
        observation_shapes=shapes,
        action_kinds=(ActionKind.ABSOLUTE, ActionKind.ABSOLUTE, ActionKind.DELTA),
        blocks=(BlockInfo("action.0.mlp"),),
        control_hz=20.0,
    )


def _norm(random: np.random.Generator, n: int) -> Normalization:
    low, span = random.uniform(-2, -1, n).astype(np.float32), random.uniform(2, 4, n).astype(np.float32)
    return Normalization(low, span, 2.0, -1.0)


def _mean_std(shape: tuple[int, ...]) -> Normalization:
    return Normalization(np.full(shape, 0.5, np.float32), np.full(shape, 0.25, np.float32), 1.0, 0.0)


def _finished(folder: Path, contents: Contents, random: np.random.Generator) -> Path:
    """Record the golden chunk, write the manifest."""
    bundle = Bundle(folder=folder, name="small", **vars(contents))
    settings = GoldenSettings(
        file=f"{FOLDER}/plan.safetensors",
        noise_key=GOLDEN_KEY,
        task=bundle.usual_task,
        tolerance=GOLDEN_TOLERANCE["fp32"],
    )
    batch = {
        bundle.policy_name(key): random.uniform(-1, 1, (1, bundle.spec.n_obs_steps, *shape)).astype(
            np.float32
        )
        for key, shape in bundle.spec.observation_shapes.items()
    }
    (folder / FOLDER).mkdir()
    (folder / settings.file).write_bytes(recorded(OrtPolicy(bundle), batch, settings).to_bytes())
    receipt = {"precision": "fp32", "seeds": [1, 2]}
    replace(bundle, plans={"plan": replace(bundle.program, golden=settings, receipt=receipt)}).write()
    return folder
