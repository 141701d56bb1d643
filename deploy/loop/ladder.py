"""The variants on a ladder: load them, and time them where they will run, before the robot moves."""

from collections.abc import Mapping, Sequence

import numpy as np

from vivace.deploy.bundle.bundle import PLAN, Bundle
from vivace.deploy.loop.budget import Rung, read_rung
from vivace.deploy.loop.warm_up import warm_up
from vivace.deploy.workers.process_worker import ProcessWorker
from vivace.policies.errors import BadSetting
from vivace.policies.spec import PolicySpec

_WARM_UP = 2
"""Chunks of each plan that are not timed."""


def load_ladder(best: str, ladder: Sequence[str], public_key: str = "") -> dict[str, Bundle]:
    """Load every plan of a policy, best first; what it was called by -> bundle.

    Args:
        best: the bundle; "folder#plan" means one of its plans.
        ladder: faster bundles of the same policy; "#plan" is a plan of the best one's bundle, "…@1.7" one
            that is taken from a load on.
        public_key: PEM file of the key they must be signed with, see `Bundle.load`.

    Raises:
        BadBundle: one cannot be read.
        BadSetting: a bundle is there twice or of another policy.
    """
    folders = [best, *(best.partition(PLAN)[0] + name if name.startswith(PLAN) else name for name in ladder)]
    places = [best, *(read_rung(folder)[0] for folder in folders[1:])]
    if len(set(places)) < len(places):
        raise BadSetting(f"the ladder has bundles {places}; each may be there once")
    found = {folder: Bundle.load(place, public_key) for folder, place in zip(folders, places, strict=True)}
    _check_same_policy(found)
    return found


def _check_same_policy(found: dict[str, Bundle]) -> None:
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
    worker: ProcessWorker,
    spec: PolicySpec,
    names: Sequence[str],
    task: str,
    repeats: int = 20,
    observations: Mapping[str, np.ndarray] | None = None,
) -> tuple[Rung, ...]:
    """Run every plan on an observation; a plan's latency is the longest of `repeats`.

    Args:
        worker: started and idle.
        spec: of the policy.
        names: the plans, best first.
        task: instruction.
        repeats: timed chunks of each plan.
        observations: as of `warm_up`.

    Raises:
        BadSetting: a plan gave no chunk.
    """
    return tuple(
        Rung(
            name,
            max(
                warm_up(worker, spec, task, repeats + _WARM_UP, plan=name, observations=observations)[
                    _WARM_UP:
                ]
            ),
            from_load=read_rung(name)[1] if place else None,
        )
        for place, name in enumerate(names)
    )
