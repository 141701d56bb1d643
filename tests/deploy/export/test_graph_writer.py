"""Graphs as they are written: weights where products find them, at every precision, each once."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from vivace.deploy.bundle.onnx_file import external_data
from vivace.deploy.bundle.program import Origin
from vivace.deploy.export.graph_writer import GraphWriter

_SIZE = 512, 600
"""Of a matrix too large for torch.onnx to transpose it once for each time that it is read."""


class Thrice(nn.Module):
    """A tower that is run for each of three cameras."""

    def __init__(self):
        super().__init__()
        self.tower = nn.Linear(*_SIZE)

    def forward(self, *pictures):
        """Look."""
        return (torch.stack([self.tower(picture) for picture in pictures]),)


@pytest.fixture(scope="module")
def inputs():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {name: torch.randn(1, 5, _SIZE[0]) for name in ("a", "b", "c")}


@pytest.mark.parametrize(("precision", "largest"), [("fp32", 1e-5), ("fp16", 5e-3), ("int8", 5e-2)])
def test_weights_that_are_read_several_times_are_written_once(precision, largest, inputs, tmp_path):
    """Transposed, so that int8 takes them; all from file to file, as graphs of more than 2 GB need it."""
    writer = GraphWriter(tmp_path, precision)
    module = Thrice()
    writer.add(Origin("encode", "x"), module, inputs, ["seen"])
    (graph,) = writer.graphs
    assert graph.error <= 1e-5
    file = tmp_path / graph.file
    model = onnx.load(file, load_external_data=False).graph
    kinds = Counter(node.op_type for node in model.node)
    products = {"int8": "MatMulInteger"}.get(precision, "MatMul")
    assert kinds[products] == 3
    assert not kinds["Transpose"]
    places = {part.offset: part.length for part in external_data(file.read_bytes(), graph.file)}
    numbers = _SIZE[0] * _SIZE[1] * {"fp32": 4, "fp16": 2, "int8": 1}[precision]
    assert numbers <= sum(places.values()) <= 1.05 * numbers  # a bias and scales
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {file.name, "weights.bin"}
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    found = session.run(None, {name: value.numpy() for name, value in inputs.items()})[0]
    with torch.no_grad():
        wanted = module(*inputs.values())[0].numpy()
    np.testing.assert_allclose(found, wanted, rtol=0, atol=largest)


def test_weights_behind_2_gb_are_found(inputs, tmp_path):
    """As those of a policy of 3 billion parameters are; the file has a hole where the first ones would be."""
    far = 2**31 + 4096
    (tmp_path / "graphs").mkdir()
    with (tmp_path / "graphs" / "weights.bin").open("wb") as file:
        file.truncate(far)
    writer = GraphWriter(tmp_path, _end=far)
    writer.add(Origin("encode", "x"), Thrice(), inputs, ["seen"])
    (graph,) = writer.graphs
    assert graph.error <= 1e-5
    data = (tmp_path / graph.file).read_bytes()
    assert min(part.offset for part in external_data(data, graph.file)) >= far
