"""Run a policy before the robot moves: the first real chunk must not be a slow one."""

import math
import time
from collections.abc import Mapping

import numpy as np

from vivace.deploy.process_worker import ProcessWorker
from vivace.deploy.worker import Request
from vivace.policies.arrays import observation_layout
from vivace.policies.errors import BadSetting
from vivace.policies.types import PolicySpec

_PAUSE_S = 0.0005


def warm_up(
    worker: ProcessWorker,
    spec: PolicySpec,
    task: str,
    count: int,
    patience_s: float = math.inf,
    plan: str | None = None,
    observations: Mapping[str, np.ndarray] | None = None,
) -> list[float]:
    """Compute chunks of an observation that was seen before, or of a blank one.

    Args:
        worker: started and idle.
        spec: of the policy.
        task: instruction, for a policy that reads one.
        count: chunks.
        patience_s: how long one may take [s].
        plan: of a ladder; the policy's only one when None.
        observations: key -> (To, ...), a bundle's recorded ones; when None blank ones, which may be far from
            what a policy was trained on.

    Returns:
        How long each took [s].

    Raises:
        BadSetting: the policy failed, or took too long.
    """
    layout = observation_layout(spec)
    seen = observations or {key: np.zeros(shape, dtype) for key, (shape, dtype) in layout.items()}
    who = "the policy" if plan is None else f"plan {plan} of the ladder"
    took = []
    for number in range(count):
        began, errors = time.monotonic(), len(worker.errors)
        worker.submit(Request(seen, number, began, (0, number), plan, task=task))
        while (chunk := worker.poll(time.monotonic())) is None:
            if len(worker.errors) > errors:
                raise BadSetting(f"{who} failed before the robot moved: {worker.errors[-1]}")
            if time.monotonic() - began > patience_s:
                raise BadSetting(
                    f"a chunk took more than {patience_s} s; give more threads, or raise stall_s"
                )
            time.sleep(_PAUSE_S)
        took.append(chunk.ready_s - began)
    return took
