"""What steps of denoising keep of their blocks, in buffers that later steps read where they were written."""

from collections.abc import Mapping, Sequence

import numpy as np

from vivace.deploy.bundle.form import Graph
from vivace.deploy.bundle.program import CACHE, FRESH, NEW, WEIGHT, cached, depths
from vivace.deploy.inference.ort_graph import Buffer
from vivace.policies.errors import BadBundle


class Kept:
    """Buffers of a plan, handed out step by step; nothing is copied between two steps.

    Args:
        graphs: of the steps, in their order.
        device: where they run: cpu or cuda.
    """

    def __init__(self, graphs: Sequence[Graph], device: str) -> None:
        self._device = device
        self._depths: dict[str, int] = {}
        for graph in graphs:
            for block, depth in depths(graph.inputs).items():
                self._depths[block] = max(depth, self._depths.get(block, 0))
        self._kept: dict[str, list[Buffer]] = {}
        """Block -> what it gave, newest first."""
        self._made: dict[str, list[Buffer]] = {}
        self._constants: dict[object, Buffer] = {}

    def step(
        self, graph: Graph, weights: Mapping[str, tuple[float, ...]]
    ) -> tuple[dict[str, Buffer], dict[str, Buffer]]:
        """Return name -> buffer of the inputs and of the outputs of the next step's graph.

        Args:
            graph: what the manifest says of it.
            weights: block that is not computed -> weights of what was kept of it, newest first.

        Raises:
            BadBundle: the graph cannot leave out such a block, or not so much was kept of it.
        """
        given: dict[str, Buffer] = {}
        found = depths(graph.inputs)
        for block, row in weights.items():
            self._check(graph, block, row, found.get(block, 0))
        for name, shape in graph.inputs.items():
            if name.startswith(FRESH):
                is_fresh = name.removeprefix(FRESH) not in weights
                given[name] = self._constant(np.array(is_fresh), "cpu")  # conditions are read there
            elif name.startswith((CACHE, WEIGHT)):
                block, _, place = name.partition(".")[2].rpartition(".")
                row, j = weights.get(block, ()), int(place)
                if name.startswith(WEIGHT):
                    given[name] = self._constant(np.array(row[j] if j < len(row) else 0, np.float32))
                else:
                    given[name] = self._kept[block][j] if j < len(row) else self._blank(shape)
        into = {}
        for name, shape in graph.outputs.items():
            block = name.removeprefix(NEW)
            if not name.startswith(NEW):
                continue
            if FRESH + block in graph.inputs and block in weights:
                into[name] = self._blank((0, *shape[1:]))
            else:
                rows = graph.inputs.get(cached(block, 1)[0], shape)[0] if shape[0] < 0 else shape[0]
                into[name] = self._next(block, (max(rows, 1), *shape[1:]), is_read=block in weights)
        return given, into

    def _check(self, graph: Graph, block: str, row: tuple[float, ...], depth: int) -> None:
        is_weighed = f"{WEIGHT}{block}.0" in graph.inputs
        kept = len(self._kept.get(block, ()))
        is_known = depth or is_weighed
        if (
            not row
            or not is_known
            or (depth and len(row) > min(depth, kept))
            or not (is_weighed or row == (1.0,))
        ):
            raise BadBundle(
                f"a step takes {list(row)} of what was kept of {block!r}; {graph.file} can take {depth}, "
                f"{'with' if is_weighed else 'without'} weights, and {kept} were kept; export it again"
            )

    def _next(self, block: str, shape: tuple[int, ...], is_read: bool) -> Buffer:
        """Return the buffer that a block writes: one that this step and later ones do not read."""
        kept, depth = self._kept.setdefault(block, []), self._depths.get(block, 0)
        still = kept[:depth] if is_read else kept[: max(depth - 1, 0)]
        made = self._made.setdefault(block, [])
        free = [b for b in made if tuple(b.value.shape()) == shape and not any(b is other for other in still)]
        if not free:
            free = [Buffer.on(self._device, np.zeros(shape, np.float32))]
            made.append(free[0])
        self._kept[block] = [free[0], *kept][: max(depth, 1)]
        return free[0]

    def _blank(self, shape: Sequence[int]) -> Buffer:
        """Zeros that nobody writes, for inputs that are not looked at."""
        return self._constant(np.zeros([max(n, 0) for n in shape], np.float32))

    def _constant(self, value: np.ndarray, device: str = "") -> Buffer:
        key = (value.dtype.str, value.shape, value.item() if value.size == 1 and not value.shape else 0)
        if key not in self._constants:
            self._constants[key] = Buffer.on(device or self._device, value)
        return self._constants[key]
