"""Time the plans of a ladder where they will run, before the robot moves."""

import time
from collections.abc import Mapping, Sequence

import numpy as np

from vivace.deploy.budget import Rung
from vivace.deploy.bundle import Bundle
from vivace.deploy.process_worker import ProcessWorker
from vivace.deploy.worker import Request
from vivace.policies.errors import BadSetting
from vivace.policies.types import PolicySpec

_PAUSE_S = 0.0005
_WARM_UP = 2


def check_same_policy(found: Mapping[str, Bundle]) -> None:
    """Raise `BadSetting` unless the bundles observe and act alike, so that one can stand for another."""
    first, *others = found
    for name in others:
        for field in ("type", "action_dim", "horizon", "n_obs_steps", "observation_shapes", "action_kinds"):
            wanted, got = (getattr(found[bundle].spec, field) for bundle in (first, name))
            if wanted != got:
                raise BadSetting(
                    f"the ladder's bundle {name} has {field}={got}, {first} has {wanted}; give bundles of "
                    "one policy under different plans"
                )


def measure_rungs(
    worker: ProcessWorker, spec: PolicySpec, names: Sequence[str], task: str, repeats: int = 20
) -> tuple[Rung, ...]:
    """Run every plan on a blank observation; a plan's latency is the longest of `repeats`.

    Args:
        worker: started and idle.
        spec: of the policy.
        names: the plans, best first.
        task: instruction.
        repeats: timed chunks of each plan.

    Raises:
        BadSetting: a plan gave no chunk.
    """
    return tuple(
        Rung(name, max(_latency(worker, spec, name, task, k) for k in range(repeats + _WARM_UP)))
        for name in names
    )


def _latency(worker: ProcessWorker, spec: PolicySpec, plan: str, task: str, k: int) -> float:
    """Time one chunk [s]; 0 for those that warm up."""
    began, errors = time.monotonic(), len(worker.errors)
    worker.submit(Request(_blank(spec), k, began, (0, k), plan, None, task))
    while (chunk := worker.poll(time.monotonic())) is None:
        if len(worker.errors) > errors:
            raise BadSetting(f"plan {plan} of the ladder gave no chunk: {worker.errors[-1]}")
        time.sleep(_PAUSE_S)
    return chunk.ready_s - began if k >= _WARM_UP else 0.0


def _blank(spec: PolicySpec) -> dict[str, np.ndarray]:
    """Observations of zeros {key: (To, ...)}, images HWC uint8."""
    found = {}
    for key, shape in spec.observation_shapes.items():
        is_image = key.startswith("observation.image")
        shape = (*shape[1:], shape[0]) if is_image else shape
        found[key] = np.zeros((spec.n_obs_steps, *shape), np.uint8 if is_image else np.float32)
    return found
