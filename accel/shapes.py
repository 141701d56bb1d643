"""Run a policy on tensors that have shapes and no values: what it computes is seen, and takes no time."""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from vivace.policies.batch import Batch

_META = "meta"
VALUES_ARE_ASKED_FOR = (NotImplementedError, RuntimeError, TypeError)
"""What torch raises where a number, a truth or an index is read off a tensor without values."""


class ShapesAlone(TorchDispatchMode):
    """Let whatever meets a tensor of the meta device be one too; what meets none is computed.

    torch refuses to mix devices. Here weights, which are on a real one, meet an observation of shapes alone:
    of them too the shapes are taken. Prompts, masks and positions, which say shapes, keep their values.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, or what it does to shapes."""
        kwargs = kwargs or {}
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves((args, kwargs))):
            args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to(_META), (args, kwargs))
            if kwargs.get("device") is not None:
                kwargs["device"] = _META
        return func(*args, **kwargs)


def without_values(batch: Batch) -> Batch:
    """Return observations whose pictures and states have shapes alone."""
    return {key: value.to(_META) if _is_measured(value) else value for key, value in batch.items()}


def _is_measured(value: Any) -> bool:
    """Whether it is what a camera or a joint says; whole numbers and truths are prompts and masks."""
    return isinstance(value, Tensor) and value.is_floating_point()
