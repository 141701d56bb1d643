"""A CUDA device for machines without one: its tensors have shapes, dtypes and a device, and no values.

Inside `FakeCuda()` tensors of the host are what they always are; those of device "cuda" are torch's fake
tensors. Mixing the two raises, as it does on a GPU (numbers, 0-d tensors of the host, may enter). What makes
the host wait for the device is written down by the name of the function that does it:

    reads   a value comes to the host: `.item()`, `.tolist()`, `bool(…)`, `.cpu()`, a boolean mask as an index
    copies  a tensor goes to the device without pinned memory, a list or an array as an index too

Values that are read are made up: numbers and truths are 0 the first time a line asks, and large or true from
then on, so that loops which wait for something end.
"""

import copy
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
_MADE_OF_OTHERS = (aten.to, aten.item, aten.is_nonzero, aten.pin_memory, aten.type_as)
"""Operations that inference mode does not take apart."""
_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
"""Operations that send an index of the host to the device by themselves."""
_LARGE = 10**6


class FakeCuda(TorchDispatchMode):
    """Run what is inside with a CUDA device.

    Args:
        truths: name of a function -> what a truth is that it reads, in the place of false and then true.
        numbers: name of a function -> the whole numbers that it reads, one after the other, again and again.
    """

    def __init__(
        self, truths: Mapping[str, bool] | None = None, numbers: Mapping[str, Sequence[int]] | None = None
    ) -> None:
        super().__init__()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._truths, self._asked = dict(truths or {}), Counter()
        self._numbers = {name: cycle(given) for name, given in (numbers or {}).items()}
        self.reads: Counter[str] = Counter()
        """Function -> how often it read from the device."""
        self.copies: Counter[str] = Counter()
        """Function -> how often it sent what was not in pinned memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation for real on the host, or pretend."""
        kwargs = kwargs or {}
        if func.overloadpacket in _MADE_OF_OTHERS:
            return self._apart(func, args, kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        has_fakes = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        device = kwargs.get("device")
        to = None if device is None else torch.device(device).type
        if func is aten._pin_memory.default:
            return args[0]
        if func is aten.is_pinned.default:
            return False
        if not has_fakes and to != "cuda":
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return self._value(args[0])
        if func is aten._to_copy.default and to == "cpu" and has_fakes:
            self.reads[_caller()[0]] += 1
            with unset_fake_temporarily():
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if func is aten._to_copy.default and not has_fakes and not kwargs.get("non_blocking"):
            self.copies[_caller()[0]] += 1
        if func is aten.nonzero.default:
            return self._everywhere(args[0])
        if func in _INDEXED and any(_is_of_the_host(at) for at in args[1]):
            self.copies[_caller()[0]] += 1
        if func is aten.index.Tensor:
            args = (args[0], [part for mask in args[1] for part in self._as_indices(mask)])
        return func(*args, **kwargs)

    def __enter__(self) -> "FakeCuda":
        """Begin; the fake mode is entered first, so that this one sees everything before it."""
        self._fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        """End."""
        super().__exit__(*error)
        self._fake.__exit__(*error)

    def _apart(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation that is made of others so that each of them is seen."""
        super().__enter__()
        try:
            return func.decompose(*args, **kwargs)
        finally:
            super().__exit__(None, None, None)

    def _value(self, tensor: Tensor) -> bool | int | float:
        name, line = _caller()
        self.reads[name] += 1
        self._asked[name, line] += 1
        is_first = self._asked[name, line] == 1
        if tensor.dtype == torch.bool:
            return self._truths.get(name, not is_first)
        if tensor.dtype.is_floating_point:
            return 0.5
        if name in self._numbers:
            return next(self._numbers[name])
        return 0 if is_first else _LARGE

    def _everywhere(self, mask: Tensor) -> Tensor:
        """Indices of all entries, as if all were true."""
        self.reads[_caller()[0]] += 1
        return torch.empty(mask.numel(), mask.dim(), dtype=torch.long, device=mask.device)

    def _as_indices(self, mask: Tensor | None) -> tuple[Tensor | None, ...]:
        if mask is None or mask.dtype != torch.bool or not isinstance(mask, FakeTensor):
            return (mask,)
        return self._everywhere(mask).unbind(1)


def _is_of_the_host(at: Tensor | None) -> bool:
    return isinstance(at, Tensor) and not isinstance(at, FakeTensor) and at.device.type == "cpu"


def on_fake_cuda[Module: nn.Module](module: Module) -> Module:
    """Copy a module, its parameters and buffers on the device; all else stays; to be called inside."""
    moved: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        there = tensor.detach().to("cuda", non_blocking=True)
        is_weight = isinstance(tensor, nn.Parameter)
        moved[id(tensor)] = nn.Parameter(there, tensor.requires_grad) if is_weight else there
    return copy.deepcopy(module, moved)


def _caller() -> tuple[str, int]:
    """Return the innermost function of ours that is running, and its line."""
    frame: Any = sys._getframe(1)
    while frame is not None and not frame.f_globals["__name__"].startswith("vivace."):
        frame = frame.f_back
    return ("", 0) if frame is None else (frame.f_code.co_qualname.split(".<locals>")[0], frame.f_lineno)
