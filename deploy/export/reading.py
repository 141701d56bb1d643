"""Export how observations are read: by one graph, or by two of which the first is not run for every chunk."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree

from vivace.accel.techniques.frame_cache import EveryNth
from vivace.accel.techniques.warm_start import begin_warm
from vivace.deploy.bundle.program import SEEN, Origin
from vivace.deploy.export.graph_writer import GraphWriter
from vivace.deploy.export.traced import Encode, Perceive, See
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.execution import Denoising, begin_with_noise, read_afresh
from vivace.policies.staged import Batch, continues_itself


class Reading(NamedTuple):
    """How a chunk comes to its first step, as a `Program` names it."""

    encode: int
    perceive: int | None
    looks_every: int
    first: int | None
    continues: bool


def check_carried(execution: Denoising) -> None:
    """Raise `UnsupportedPolicy` unless what chunks leave to each other can be held by a bundle."""
    if isinstance(execution.read, EveryNth) and execution.read.rates:
        raise UnsupportedPolicy(
            "frame_cache reads cameras at rates of their own, and a bundle looks at all of them at once; "
            "leave its cameras out of the plan"
        )
    is_read = execution.read is read_afresh or isinstance(execution.read, EveryNth)
    if not is_read or execution.begin not in (begin_with_noise, begin_warm):
        raise UnsupportedPolicy("the plan carries something from chunk to chunk that a bundle does not know")


def export_reading(
    writer: GraphWriter,
    execution: Denoising,
    origin: Origin,
    batch: Batch,
    fixed: Mapping[str, Tensor],
    context: Collection[str],
) -> Reading:
    """Export what reads observations; graphs that are there already are taken as they are.

    Args:
        writer: where the graphs go.
        execution: the policy, and how it is run.
        origin: what one graph for all would be made of.
        batch: one normalised observation.
        fixed: what the policy is told besides, always.
        context: names of its leaves.
    """
    names, first = list(context), None if execution.begin is begin_with_noise else execution.first
    continues = not continues_itself(execution.policy)
    match execution.read:
        case EveryNth(every=every):
            return Reading(*_apart(writer, execution, origin, batch, fixed, names), every, first, continues)
    encode = writer.find(origin)
    if encode is None:
        encode = writer.add(origin, Encode(execution, list(batch), fixed), batch, names)
    return Reading(encode, None, 1, first, continues)


def _apart(
    writer: GraphWriter,
    execution: Any,
    origin: Origin,
    batch: Batch,
    fixed: Mapping[str, Tensor],
    names: Sequence[str],
) -> tuple[int, int]:
    """Export looking and the rest as two graphs."""
    whole = {**batch, **fixed}
    leaves, tree = pytree.tree_flatten(execution.policy.see(whole, execution.language, execution.select))
    seen = {f"{SEEN}{i}": leaf for i, leaf in enumerate(leaves)}
    looking, rest = (Origin(part, origin.made_of) for part in ("see", "perceive"))
    encode, perceive = writer.find(looking), writer.find(rest)
    if encode is None:
        encode = writer.add(looking, See(execution, list(batch), fixed), batch, list(seen))
    if perceive is None:
        module = Perceive(execution, list(batch), fixed, tree)
        perceive = writer.add(rest, module, {**batch, **seen}, names)
    return encode, perceive
