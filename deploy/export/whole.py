"""Export a policy of one pass as one graph, from normalised observations to the chunk."""

from typing import Any

import torch
from torch import Tensor

from vivace.accel.technique import Seam
from vivace.deploy.bundle.program import Origin, Program
from vivace.deploy.export.graph_writer import GraphWriter
from vivace.deploy.export.traced import Observing, made_of
from vivace.policies.adapters.opaque import OpaquePolicy
from vivace.policies.batch import Batch
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.execution import Denoising

_ONE_GRAPH = "of opaque policies those of one pass without noise can be exported, such as act"


def export_whole(writer: GraphWriter, execution: Denoising, batch: Batch) -> Program:
    """Export a policy of one pass; a graph that was made of the same is taken as it is.

    Args:
        writer: where the graph goes.
        execution: the policy under its plan.
        batch: one normalised observation.

    Raises:
        UnsupportedPolicy: the policy cannot be written as a graph.
    """
    origin = Origin("whole", made_of(execution, tuple(Seam), writer.precision))
    found = writer.find(origin)
    if found is None:
        try:
            found = writer.add(origin, _Whole(execution, list(batch)), batch, ["actions"])
        except torch.onnx.errors.OnnxExporterError as error:
            told = str(error.__cause__ or error).strip().splitlines()[0][:200]
            raise UnsupportedPolicy(
                f"policy {execution.policy.spec.type!r} makes its chunk in one pass, which torch.onnx cannot "
                f"write as one graph: {told}"
            ) from error
    return Program(found)


def check_whole(execution: Denoising, batch: Batch) -> None:
    """Raise `UnsupportedPolicy` if an opaque policy is no graph; it is asked for one chunk. Others are one.

    Args:
        execution: the policy, and how it is run.
        batch: normalised observations, blank ones will do.
    """
    policy = execution.policy
    kind = policy.spec.type
    if not isinstance(policy, OpaquePolicy):
        return
    if policy.selects:
        raise UnsupportedPolicy(
            f"policy {kind!r} is opaque and asked by its own select_action, which is no graph; {_ONE_GRAPH}"
        )
    if policy.draws(batch):
        raise UnsupportedPolicy(
            f"policy {kind!r} is opaque and draws noise, which a graph would draw once for ever; {_ONE_GRAPH}"
        )


class _Whole(Observing):
    """Normalised observations -> the chunk."""

    def forward(self, *values: Tensor) -> tuple[Tensor]:
        """Ask the policy."""
        policy: Any = self.execution.policy
        return (policy.chunk(self.encoded(values)),)
