"""How much memory a plan takes: its weights in their dtypes, and the most that a chunk holds besides.

Only what the plan runs is counted. Python, its libraries, and weights that this process keeps although the
plan replaces them, are not: they are the same for all plans, or gone where the plan alone is loaded.
"""

import os
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from vivace.accel.technique import CalibrationData
from vivace.eval.measure.latencies import Measured, chunks_in_turn
from vivace.eval.measure.timing import Rounds
from vivace.policies.execution import Execution
from vivace.policies.session import Session
from vivace.policies.stopwatch import StageWatch

MB = 1e6
CHUNKS = 2
"""So many are run to see what one holds."""


class WithinMemory:
    """Measures latencies as another does, and leaves out what takes more memory than there is."""

    def __init__(self, measure: Callable[..., Measured], limit_mb: float) -> None:
        """Prepare.

        Args:
            measure: measures latencies.
            limit_mb: what a plan may take [MB].
        """
        self._measure, self._limit_mb = measure, limit_mb
        self.known_mb: dict[str, float] = {}
        """Name -> what it takes [MB]."""

    def __call__(self, runs: Mapping[str, Session], data: CalibrationData, rounds: Rounds) -> Measured:
        """Measure; what is over the limit is left out, with its latencies."""
        found = self._measure(runs, data, rounds)
        for name, session in runs.items():
            if name not in self.known_mb and name not in found.raised:
                with rounds.sparing(name, found.raised):
                    self.known_mb[name] = peak_mb(session, data)
            if self.known_mb.get(name, 0.0) > self._limit_mb:
                found.left_out[name] = (
                    f"it takes {self.known_mb[name]:.4g} MB of memory, budget.memory_mb={self._limit_mb:g}"
                )
        return found


def peak_mb(session: Session, data: CalibrationData) -> float:
    """Memory of a plan [MB]: its weights, and the most that is held at once while it makes a chunk."""
    return (weights_bytes(session.execution) + chunk_bytes(session, data)) / MB


def weights_bytes(execution: Execution) -> int:
    """Bytes of the weights and tables of what is run; what is shared counts once."""
    policy: Any = execution.policy
    held: list[Any] = [*policy.policy.parameters(), *policy.policy.buffers()]
    for technique in execution.plan.techniques if execution.plan else ():
        held += tree_leaves(dict(getattr(technique, "tensors", {})))
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in held
        if isinstance(tensor, Tensor)
    }
    return sum(storages.values())


def chunk_bytes(session: Session, data: CalibrationData) -> int:
    """Most bytes that a chunk holds at once beside the weights, scratch inside operations included.

    Every allocation of torch is seen, on the device that the policy computes on.
    """
    run = chunks_in_turn(session, next(data.ones()), StageWatch())
    run()  # what is made once and kept, such as tables, is made now
    device = session.loaded.placement.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device)) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else it complains, past Python, that there is no GPU
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        run()
    assert profiled.profiler is not None
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [
        event.nbytes()
        for event in sorted(events, key=lambda event: event.start_ns())
        if event.device_type() == DeviceType.CPU
    ]
    return max(0, *accumulate(changes)) if changes else 0
