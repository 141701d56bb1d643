"""Launch all kernels of a denoising step at once on a GPU; the very same kernels, no approximation.

torch launches a step's kernels one by one from the host. Of one chunk at a time a large GPU is through with
each before the next one comes: a step of pi0.5's expert takes an H200 14 ms whatever it computes. A CUDA
graph (CUDA C++ Programming Guide, "CUDA Graphs"; torch.cuda.CUDAGraph) holds the kernels of a step with the
addresses that they read and write, and is launched as one.

    first chunk of a size   every step runs as it is, and is captured
    every other chunk       the context is copied to where the graphs read it, once; a step copies x, launches

Each step is a graph of its own, since another one may compute other blocks; what one leaves to the next is
where the next reads it. Reading the observation runs as before. A plan with it does as before on a CPU, and
where chunks are corrected by gradients (real-time chunking) or a profiler watches. Memory: the context once
more for every size, and what steps write.
"""

import copy
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils._pytree import tree_flatten, tree_unflatten

from vivace.accel.registry import beside_exact_work, register
from vivace.accel.technique import Need, Seam, Technique, denoising
from vivace.accel.variant import COMPILE, Variant
from vivace.policies.block import Cache
from vivace.policies.execution import Denoising, Execution, launched
from vivace.policies.sampling.sampler import Step
from vivace.policies.staged import Context

_WARM = 2
"""Calls before one is captured: libraries choose their kernels in them, and make what they keep."""
_SIZES = 8
"""Sizes of batches and prompts that are captured; any others run as they are."""
_PLAIN = (bool, int, float, str, type(None))
"""What a tree may hold besides tensors: it is part of what a graph was captured for."""


@register
@dataclass(frozen=True, kw_only=True)
class CudaGraph(Technique):
    """Nothing to choose: every step is captured."""

    kind: ClassVar[str] = "cuda_graph"
    seam: ClassVar[Seam] = Seam.LAUNCH
    label: ClassVar[str] = "steps launched as CUDA graphs"
    colour: ClassVar[str] = "#5c8a3c"
    needs: ClassVar[tuple[Need, ...]] = (Need.DENOISER, Need.GPU)
    is_static: ClassVar[bool] = True
    is_for_torch: ClassVar[bool] = True
    saves_flops: ClassVar[bool] = False

    @property
    def is_exact(self) -> bool:
        """It is."""
        return True

    def check(self, execution: Execution) -> None:
        """Raise `UnsupportedPolicy` if there are no steps; a plan made on a GPU runs without one too."""
        denoising(execution, self.kind)

    def apply(self, execution: Execution) -> Execution:
        """Launch the steps so, where a GPU computes them."""
        run = denoising(execution, self.kind)
        return launched(run, call=Launcher(run)) if run.policy.placement.device.type == "cuda" else run

    @classmethod
    def variants(cls, staged: Any, options: Any) -> list[Variant]:
        """Itself with all exact work removed, and over what torch.compile makes of it."""
        alone = beside_exact_work(cls, staged, {})
        wanted = (*alone.wanted, (COMPILE, {}))
        label = f"exact work removed, torch.compile, {cls.label}"
        return [alone, Variant("compile+graph", label, wanted, cls.colour)]


class _Held:
    """Tensors of a tree at addresses that graphs read."""

    def __init__(self, tree: Any, is_at_its_address: bool = False) -> None:
        """Hold a copy; the tree itself if a graph writes it and it stays where it is."""
        leaves, structure = tree_flatten(tree)
        if not is_at_its_address:
            leaves = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._leaves, self._last = leaves, tree
        self.tree = tree_unflatten(leaves, structure)

    def fill(self, tree: Any) -> None:
        """Copy the values of another tree of its size to them, unless the same object was copied last."""
        if tree is self._last:
            return
        for held, leaf in zip(self._leaves, tree_flatten(tree)[0], strict=True):
            if isinstance(held, Tensor) and held is not leaf:
                held.copy_(leaf)
        self._last = tree


@dataclass(frozen=True)
class _Captured:
    """A step's graph, what it reads besides the context, and what it writes."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    cache: _Held
    out: Tensor
    left: Cache


class Launcher:
    """Calls the denoiser by graphs, each captured when it is first asked for; a `DenoiserCall`."""

    def __init__(self, execution: Denoising) -> None:
        """Prepare; nothing is captured yet.

        Args:
            execution: whose steps they are. What denoises otherwise, such as the twin of its policy that a
                profiler makes or one that continues a chunk, is called as it is.
        """
        self._of = execution
        self._contexts: dict[Hashable, _Held] = {}
        self.captured: dict[Hashable, _Captured] = {}
        """One for every step and size that was met."""
        self._seen: tuple[Context, Hashable] = (None, None)
        self._judged: tuple[Any, bool] = (execution.policy, True)
        self._pool: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Graphs are of these addresses: a copy captures its own."""
        return type(self)(copy.deepcopy(self._of, memo))

    def __call__(
        self, execution: Denoising, step: Step, x: Tensor, context: Context, cache: Cache
    ) -> tuple[Tensor, Cache]:
        """Return the denoiser's output at one step, and what the next one may use; as `call_denoiser`."""
        held = self._held(context) if self._is_captured(execution, x) else None
        given = None if held is None else _size((x, dict(cache)))
        if held is None or given is None:
            return self._of.call(execution, step, x, context, cache)
        held.fill(context)
        key = (step.index, given, self._seen[1])
        if key not in self.captured:
            self.captured[key] = self._capture(execution, step, x, held.tree, cache)
        captured = self.captured[key]
        captured.x.copy_(x)
        captured.cache.fill(cache)
        captured.graph.replay()
        return captured.out.clone(), captured.left

    def _is_captured(self, execution: Denoising, x: Tensor) -> bool:
        """Whether graphs hold what this call is to do."""
        mine = self._of
        if execution.policy is not self._judged[0]:
            self._judged = execution.policy, denoises_alike(execution.policy, mine.policy)
        is_mine = execution.sampler is mine.sampler and execution.action is mine.action and self._judged[1]
        return is_mine and not x.requires_grad and _get_current_dispatch_mode() is None

    def _held(self, context: Context) -> _Held | None:
        """Where graphs read a context of this size; None of one that is not captured."""
        if context is not self._seen[0]:
            size = _size(context)
            self._seen = context, None if size is None else (size, torch.is_inference_mode_enabled())
        size = self._seen[1]
        if size is not None and size not in self._contexts and len(self._contexts) < _SIZES:
            self._contexts[size] = _Held(context)
        return self._contexts.get(size)

    def _capture(
        self, execution: Denoising, step: Step, x: Tensor, context: Context, cache: Cache
    ) -> _Captured:
        """Capture a step on copies of what it is given."""
        is_ours = not cache or any(cache is captured.left for captured in self.captured.values())
        held_x, held = x.clone(), _Held(cache, is_ours)

        def call() -> tuple[Tensor, Cache]:
            return self._of.call(execution, step, held_x, context, held.tree)

        here = torch.cuda.current_stream(x.device)
        aside = torch.cuda.Stream(x.device)
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(_WARM):
                call()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        # Another thread may be making use of the device: the loop's, while this one thinks.
        with torch.cuda.graph(graph, pool=self._pool, stream=aside, capture_error_mode="thread_local"):
            out, left = call()
        return _Captured(graph, held_x, held, out, left)


_READS = ("language", "is_replaced")
"""Attributes of a policy that its denoising does not go by."""


def denoises_alike(policy: Any, other: Any) -> bool:
    """Whether a policy's steps are another's: a twin that reads otherwise, or itself."""
    mine, others = vars(policy), vars(other)

    def is_same(name: str) -> bool:
        one, two = mine.get(name), others.get(name)
        if isinstance(one, tuple) and isinstance(two, tuple) and len(one) == len(two):
            return all(a is b for a, b in zip(one, two, strict=True))
        return one is two

    return type(policy) is type(other) and all(
        is_same(k) for k in mine.keys() | others.keys() if k not in _READS
    )


def _size(tree: Any) -> Hashable | None:
    """What two trees share that a graph does not tell apart; None of one that holds what is no number."""
    leaves, structure = tree_flatten(tree)
    known = [
        (tuple(leaf.shape), leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf for leaf in leaves
    ]
    if any(not isinstance(leaf, (Tensor, *_PLAIN)) for leaf in leaves):
        return None
    return tuple(known), str(structure)
