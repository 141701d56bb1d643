"""Run a policy before the robot moves: the first real chunk must not be a slow one.

What that takes also says whether the control rate can be met at all.
"""

import math
import time
from collections.abc import Mapping

import numpy as np

from vivace.deploy.loop.settings import LoopSettings
from vivace.deploy.workers.process_worker import ProcessWorker
from vivace.deploy.workers.worker import Request
from vivace.policies.arrays import observation_layout
from vivace.policies.errors import BadSetting
from vivace.policies.spec import PolicySpec

_PAUSE_S = 0.0005
_SLACK_TICKS = 1e-6
"""Rounding of tick times is not lateness."""


def warm_up(
    worker: ProcessWorker,
    spec: PolicySpec,
    task: str,
    count: int,
    patience_s: float = math.inf,
    plan: str | None = None,
    observations: Mapping[str, np.ndarray] | None = None,
    *,
    anytime: bool = False,
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
        anytime: cut every chunk as short as it can be.

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
        deadline_s = began if anytime else None
        worker.submit(Request(seen, number, began, (0, number), plan, task=task, deadline_s=deadline_s))
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


def check_rate(fastest_s: float, control_hz: float, settings: LoopSettings, spec: PolicySpec) -> None:
    """Refuse a control rate at which a policy cannot act.

    A chunk that takes l control periods is l ticks old when it arrives, and the next one, asked for at that
    moment, comes when it is 2 l ticks old. So deadlines are met if 2 l <= n_action_steps. Mode sync waits
    for each chunk and can act at any rate.

    Args:
        fastest_s: the shortest time in which a chunk was there [s].
        control_hz: control rate [Hz].
        settings: how chunks are executed.
        spec: of the policy.

    Raises:
        BadSetting: even the fastest chunk would miss its deadline every time.
    """
    if settings.is_sync:
        return
    count = settings.fresh_actions(spec)
    ticks = max(1, math.ceil(fastest_s * control_hz - _SLACK_TICKS))
    if 2 * ticks <= count:
        return
    highest_hz = count // 2 / fastest_s
    slower = f"{highest_hz:.3g} Hz at most, " if highest_hz else ""
    raise BadSetting(
        f"{control_hz:g} Hz cannot be met: a chunk takes {ticks} ticks ({1e3 * fastest_s:.1f} ms at best), "
        f"so its {count} fresh actions are used up before the next one can be there; take {slower}more "
        f"actions of a chunk (n_action_steps, up to {spec.horizon - spec.first_action}), a faster bundle or "
        "mode sync; or set watchdog.misses to 0 and act on stale ones"
    )
