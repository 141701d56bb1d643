"""Write modules as ONNX graphs into a folder, each proven equal to torch, equal tensors stored once."""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import onnxscript  # noqa: F401  torch writes graphs with it: better missed now than after a minute's work
import torch
from torch import Tensor, nn

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.bundle.form import Graph
from vivace.deploy.bundle.program import FRESH, Origin
from vivace.deploy.export.branches import Branch, add_branches
from vivace.deploy.export.precision import reduced
from vivace.deploy.inference.ort_graph import type_of
from vivace.policies.backports import Self
from vivace.policies.shapes import fixed_shapes

OPSET = 20
_ALIGNMENT = 4096
"""Of tensors in the shared file, so that they can be mapped into memory."""
_SHARED_FROM = 1024
"""Tensors of so many bytes go to the shared file."""
_WEIGHTS = "weights.bin"


@dataclass
class GraphWriter:
    """Writes graphs into a folder; tensors that are equal are stored once."""

    folder: Path
    """Of the bundle."""
    precision: str = "fp32"
    """One of `precision.PRECISIONS`; graphs are proven at fp32 before they are reduced."""
    on_graph: Callable[[str], None] = lambda name: None
    """Told the name of every graph that is about to be exported."""
    graphs: list[Graph] = field(default_factory=list)
    _known: dict[str, tuple[int, int]] = field(default_factory=dict)
    _end: int = 0

    @classmethod
    def of(cls, bundle: Bundle, precision: str, on_graph: Callable[[str], None]) -> Self:
        """Return a writer that adds graphs to those of a bundle."""
        writer = cls(bundle.folder, precision, on_graph, list(bundle.graphs))
        file = bundle.folder / "graphs" / _WEIGHTS
        data = file.read_bytes() if file.is_file() else b""
        for graph in bundle.graphs:
            model = onnx.load(bundle.path(graph.file), load_external_data=False)
            for tensor in model.graph.initializer:
                place = {entry.key: entry.value for entry in tensor.external_data}
                if place:
                    offset, length = int(place["offset"]), int(place["length"])
                    writer._known[_digest(data[offset : offset + length])] = offset, length
        writer._end = len(data)
        return writer

    def find(self, origin: Origin, serves: Callable[[Graph], bool] = lambda graph: True) -> int | None:
        """Return the index of a graph that is made of the same, and serves; None if there is none.

        Args:
            origin: what it is to be made of; its timesteps may be among more.
            serves: whether a graph has the inputs that are needed.
        """
        found = [
            index
            for index, graph in enumerate(self.graphs)
            if (graph.origin.part, graph.origin.made_of) == (origin.part, origin.made_of)
            and set(origin.timesteps) <= set(graph.origin.timesteps or origin.timesteps)
            and serves(graph)
        ]
        return min(found, key=lambda index: len(self.graphs[index].inputs), default=None)

    def add(
        self,
        origin: Origin,
        module: nn.Module,
        inputs: Mapping[str, Tensor],
        outputs: Sequence[str],
        dynamic: Mapping[str, int] = MappingProxyType({}),
        branches: Sequence[Branch] = (),
    ) -> int:
        """Export a module; returns the index of its graph.

        Args:
            origin: what it is made of; its timesteps are forgotten if the graph looks nothing up.
            module: takes the inputs in their order, returns a tuple of the outputs.
            inputs: name -> example, of the shape the graph will have.
            outputs: their names.
            dynamic: input -> axis that may have any length, the same for all of them.
            branches: blocks that may be left out.
        """
        name = f"{origin.part}-{len(self.graphs):03d}"
        self.on_graph(name)
        given = tuple(inputs.values())
        with torch.no_grad(), fixed_shapes():
            program: Any = torch.onnx.export(
                module.eval(),
                given,
                input_names=list(inputs),
                output_names=list(outputs),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
                external_data=False,
                dynamic_shapes=_dynamic(inputs, dynamic) if dynamic else None,
            )
            found = module(*given)
        _fold_transposes(program.model.graph)
        model = program.model_proto
        _drop_unused_inputs(model.graph)
        used = {value.name: inputs[value.name].cpu().numpy() for value in model.graph.input}
        error = 0.0
        if self.precision != "fp32":
            model, error = self._reduced(model, used, found)
        if branches:
            model = add_branches(model, branches)
        file = Path("graphs") / f"{name}.onnx"
        target = self.folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        self._share(model.graph.initializer, target.parent / _WEIGHTS)
        target.write_bytes(model.SerializeToString())
        if self.precision == "fp32":
            error = _error(str(target), used, found)
        if "at" not in used:
            origin = replace(origin, timesteps=())
        inputs_of, outputs_of = _shapes(model.graph.input), _shapes(model.graph.output)
        self.graphs.append(Graph(file.as_posix(), inputs_of, outputs_of, origin, error))
        return len(self.graphs) - 1

    def _reduced(
        self, model: Any, inputs: Mapping[str, np.ndarray], wanted: Sequence[Tensor]
    ) -> tuple[Any, float]:
        """Return a model at the writer's precision, and how far off it was before that."""
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            file = Path(folder) / "whole.onnx"
            onnx.save_model(model, file, save_as_external_data=True, size_threshold=_SHARED_FROM)
            return reduced(file, self.precision), _error(str(file), inputs, wanted)

    def _share(self, tensors: Any, file: Path) -> None:
        """Move large tensors to the shared file."""
        for tensor in tensors:
            data = onnx.numpy_helper.to_array(tensor).tobytes()
            if len(data) < _SHARED_FROM:
                continue
            digest = _digest(data)
            if digest not in self._known:
                offset = -(-self._end // _ALIGNMENT) * _ALIGNMENT
                with file.open("ab") as out:
                    out.write(b"\0" * (offset - self._end) + data)
                self._known[digest], self._end = (offset, len(data)), offset + len(data)
            offset, length = self._known[digest]
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            del tensor.external_data[:]
            for key, value in (("location", file.name), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))


def _fold_transposes(graph: ir.Graph) -> None:
    """Transpose the weights that a graph would: torch.onnx leaves it those that are read several times.

    int8 takes products with weights alone, and ONNX Runtime makes a copy for each time they are read.
    """
    made: dict[tuple[str | None, tuple[int, ...]], ir.Value] = {}
    for node in [node for node in graph if node.op_type == "Transpose"]:
        weight, result = node.inputs[0], node.outputs[0]
        if weight is None or weight.const_value is None or result.is_graph_output():
            continue
        order = tuple(node.attributes["perm"].as_ints())
        key = weight.name, order
        if key not in made:
            array = np.ascontiguousarray(weight.const_value.numpy().transpose(order))
            name = f"{weight.name}.{'_'.join(map(str, order))}"
            made[key] = ir.Value(
                name=name,
                shape=ir.Shape(array.shape),
                type=result.type,
                const_value=ir.tensor(array, name=name),
            )
            graph.register_initializer(made[key])
        result.replace_all_uses_with(made[key])
        graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _dynamic(inputs: Mapping[str, Tensor], axes: Mapping[str, int]) -> tuple[tuple[Any, ...]]:
    """`torch.export`'s description of a module's *args with one length that may vary."""
    length = torch.export.Dim("length", min=1, max=4096)
    return (tuple({axes[name]: length} if name in axes else None for name in inputs),)


def _shapes(values: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of a graph's inputs or outputs; -1 where any length fits."""
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim
        )
        for value in values
    }


def _error(model: str, inputs: Mapping[str, np.ndarray], wanted: Sequence[Tensor]) -> float:
    """Largest difference of a graph's outputs in ONNX Runtime from torch's, every block computed.

    In units of the output's largest value where that exceeds 1, for rounding grows with it: logits of 20
    that differ by 1e-5 are as near as actions that differ by 5e-7.
    """
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    given = {value.name: inputs.get(value.name, _blank(value)) for value in session.get_inputs()}
    found = session.run(None, given)
    return max(_difference(mine, theirs) for mine, theirs in zip(found, wanted, strict=True))


def _blank(value: Any) -> np.ndarray:
    """What a graph is given that computes every block."""
    shape = [n if isinstance(n, int) else 1 for n in value.shape]
    return np.full(shape, value.name.startswith(FRESH), type_of(value))


def _difference(found: np.ndarray, wanted: Tensor) -> float:
    exact = wanted.cpu().double().numpy()
    scale = max(1.0, np.abs(exact).max(initial=0.0))
    return float(np.abs(found.astype(np.float64) - exact).max(initial=0.0) / scale)


def _drop_unused_inputs(graph: Any) -> None:
    used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for value in [value for value in graph.input if value.name not in used]:
        graph.input.remove(value)
