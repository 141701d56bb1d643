"""Put an `If` around blocks of an exported graph, so that a step may leave them out.

The graph comes as it was traced, every block computed and its output an output of the graph. A block's `If`
computes it, or takes the weighted sum of what was kept of it. Nodes that nothing else needs go into the
branch that computes; weights stay where they are, outside, and are read from there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from vivace.deploy.bundle.program import FRESH, NEW, cached, weighed


@dataclass(frozen=True)
class Branch:
    """A block that may be left out."""

    block: str
    """Its id; the graph has an output "new.<id>"."""
    depth: int = 1
    """How many kept outputs may be summed."""
    is_weighed: bool = False
    """The kept outputs have weights; else the newest one stands for the block."""
    keeps_more_rows: bool = False
    """What was kept may have more rows than the graph computes: the first ones count."""


def add_branches(model: Any, branches: Sequence[Branch]) -> Any:
    """Return an ONNX model whose blocks are computed only if their input "fresh.<id>" says so.

    Args:
        model: proto of a model that computes all of them.
        branches: the blocks that may be left out.
    """
    whole = ir.from_proto(model)
    graph = whole.graph
    results = {branch: _Result.of(graph, branch) for branch in branches}
    owners = _owners(graph, {result: branch for branch, result in results.items()})
    for branch, result in results.items():
        nodes = [node for node in graph if owners.get(node) is branch]
        _replace(graph, branch, result, nodes)
    graph.sort()
    ir.passes.common.NameFixPass()(whole)
    return ir.to_proto(whole)


@dataclass(frozen=True)
class _Result:
    """Where a block's output is in a graph, and what becomes of it."""

    kept: ir.Value
    """Output of the graph."""
    value: ir.Value
    """What the rest of the graph reads: the same, or the same before a cast."""
    total: ir.Value | None
    """The stream with it added, if that is all it is read for."""

    @property
    def stream(self) -> ir.Value | None:
        """The stream before, as it is now: of an earlier block's `If`, once that is there."""
        adder = None if self.total is None else self.total.producer()
        return None if adder is None else next(one for one in adder.inputs if one is not self.value)

    @classmethod
    def of(cls, graph: ir.Graph, branch: Branch) -> "_Result":
        kept = next(value for value in graph.outputs if value.name == NEW + branch.block)
        maker, value = kept.producer(), kept
        if maker is not None and maker.op_type in ("Cast", "Identity") and not kept.uses():
            value = maker.inputs[0] or kept
        readers = [use.node for use in value.uses() if use.node is not maker]
        if len(readers) == 1 and readers[0].op_type == "Add" and not readers[0].outputs[0].is_graph_output():
            return cls(kept, value, readers[0].outputs[0])
        return cls(kept, value, None)

    @property
    def ends(self) -> list[ir.Node]:
        """Nodes that a branch ends with."""
        makers = [value.producer() for value in (self.kept, self.value, self.total) if value is not None]
        return [maker for maker in makers if maker is not None and len(maker.outputs) == 1]


def _owners(graph: ir.Graph, results: Mapping[_Result, Branch]) -> dict[ir.Node, Branch]:
    """Node -> the one block that needs it; nodes that others need too are left out."""
    owners = {node: branch for result, branch in results.items() for node in result.ends}
    streams = {id(result.stream) for result in results}  # what stands for a block is added to them, too
    for node in reversed(graph):
        if node in owners or any(value.is_graph_output() or id(value) in streams for value in node.outputs):
            continue
        needed_by = {owners.get(use.node) for value in node.outputs for use in value.uses()}
        if len(needed_by) == 1 and (owner := needed_by.pop()) is not None:
            owners[node] = owner
    return owners


def _replace(graph: ir.Graph, branch: Branch, result: _Result, nodes: Sequence[ir.Node]) -> None:
    """Put the `If` of a block where its nodes are."""
    used, kept = result.total or result.value, result.kept
    outputs = [_like(used, f"{branch.block}.used"), _like(kept, kept.name)]
    condition = _input(graph, FRESH + branch.block, ir.DataType.BOOL, ())
    graph.outputs[graph.outputs.index(kept)] = outputs[1]
    kept.name = f"{branch.block}.computed"
    inside = {id(node) for node in nodes}
    for use in list(used.uses()):
        if id(use.node) not in inside:
            use.node.replace_input_with(use.idx, outputs[0])
    graph.remove(nodes)
    chosen = ir.Node(
        "",
        "If",
        [condition],
        [
            ir.AttrGraph("then_branch", _computing(branch, used, kept, nodes)),
            ir.AttrGraph("else_branch", _reusing(graph, branch, result)),
        ],
        outputs=outputs,
        name=f"{branch.block}.if",
    )
    graph.append(chosen)
    _loosen(outputs[1])


def _computing(branch: Branch, used: ir.Value, kept: ir.Value, nodes: Sequence[ir.Node]) -> ir.Graph:
    """What computes a block: its nodes; two outputs of a branch must be two values of its own."""
    nodes = list(nodes)
    ends: list[ir.Value] = []
    for value in (used, kept):
        if value.producer() not in nodes or any(value is end for end in ends):
            nodes.append(ir.node("Identity", [value]))
            nodes[-1].outputs[0].shape, nodes[-1].outputs[0].type = value.shape, value.type
            value = nodes[-1].outputs[0]
        ends.append(value)
    return ir.Graph([], ends, nodes=nodes, name=f"{branch.block}.compute")


def _reusing(graph: ir.Graph, branch: Branch, result: _Result) -> ir.Graph:
    """What stands for a block: the sum of what was kept, and nothing that is new."""
    kept, nodes = result.kept, []

    def then(op_type: str, inputs: Sequence[ir.Value], like: ir.Value, **attributes: Any) -> ir.Value:
        nodes.append(ir.node(op_type, inputs, attributes))
        nodes[-1].outputs[0].shape, nodes[-1].outputs[0].type = like.shape, like.type
        return nodes[-1].outputs[0]

    assert kept.shape is not None
    assert kept.dtype is not None
    shape = [dim if isinstance(dim, int) else 1 for dim in kept.shape]
    names = cached(branch.block, branch.depth)
    terms = [
        _input(graph, name, kept.dtype, [None if branch.keeps_more_rows else shape[0], *shape[1:]])
        for name in names
    ]
    if branch.keeps_more_rows:
        ends = [
            _constant(graph, f"{branch.block}.rows.{k}", np.array([n])) for k, n in ((0, 0), (1, shape[0]))
        ]
        terms = [then("Slice", [term, *ends], kept) for term in terms]
    if branch.is_weighed:
        weights = [_input(graph, name, kept.dtype, ()) for name in weighed(branch.block, branch.depth)]
        terms = [then("Mul", pair, kept) for pair in zip(weights, terms, strict=True)]
    total = then("Sum", terms, kept) if len(terms) > 1 else terms[0]
    if result.value.dtype != kept.dtype:
        total = then("Cast", [total], result.value, to=result.value.dtype)
    if result.total is not None and result.stream is not None:
        total = then("Add", [result.stream, total], result.total)
    else:
        total = then("Identity", [total], result.value)
    empty = np.zeros((0, *shape[1:]), kept.dtype.numpy())
    nothing = then("Identity", [_constant(graph, f"{branch.block}.nothing", empty)], kept)
    nothing.shape = ir.Shape(empty.shape)
    return ir.Graph([], [total, nothing], nodes=nodes, name=f"{branch.block}.reuse")


def _like(value: ir.Value, name: str | None) -> ir.Value:
    return ir.Value(name=name, shape=value.shape, type=value.type)


def _loosen(value: ir.Value) -> None:
    """Let a value have any number of rows."""
    assert value.shape is not None
    value.shape = ir.Shape([None, *value.shape[1:]])


def _input(graph: ir.Graph, name: str, dtype: ir.DataType, shape: Sequence[int | None]) -> ir.Value:
    """Return a new input of a graph."""
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
    graph.inputs.append(value)
    return value


def _constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Return a new constant of a graph."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value
