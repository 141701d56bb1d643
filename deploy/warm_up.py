"""Run a policy on blank observations before the robot moves: the first real chunk must not be a slow one."""

import math
import time

import numpy as np

from vivace.deploy.process_worker import ProcessWorker, observation_layout
from vivace.deploy.worker import Request
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
) -> list[float]:
    """Compute chunks of a blank observation.

    Args:
        worker: started and idle.
        spec: of the policy.
        task: instruction, for a policy that reads one.
        count: chunks.
        patience_s: how long one may take [s].
        plan: of a ladder; the policy's only one when None.

    Returns:
        How long each took [s].

    Raises:
        BadSetting: the policy failed, or took too long.
    """
    blank = {key: np.zeros(shape, dtype) for key, (shape, dtype) in observation_layout(spec).items()}
    who = "the policy" if plan is None else f"plan {plan} of the ladder"
    took = []
    for number in range(count):
        began, errors = time.monotonic(), len(worker.errors)
        worker.submit(Request(blank, number, began, (0, number), plan, task=task))
        while (chunk := worker.poll(time.monotonic())) is None:
            if len(worker.errors) > errors:
                raise BadSetting(f"{who} failed on a blank observation: {worker.errors[-1]}")
            if time.monotonic() - began > patience_s:
                raise BadSetting(
                    f"a chunk took more than {patience_s} s; give more threads, or raise stall_s"
                )
            time.sleep(_PAUSE_S)
        took.append(chunk.ready_s - began)
    return took
