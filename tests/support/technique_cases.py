"""What the contract tests run: the examples of every technique there is, and combinations."""

from collections.abc import Iterable, Mapping
from typing import Any

from vivace.accel.registry import techniques
from vivace.accel.technique import Need

Wanted = list[tuple[str, Mapping[str, Any]]]
COMBINATIONS: dict[str, Wanted] = {
    "fewer steps, cached": [
        ("block_cache", {"updates": 2, "bubbling": 1}),
        ("hoist", {}),
        ("step_schedule", {"n_steps": 5}),
    ],
    "fewer steps, frozen": [
        ("context_freeze", {"full_steps": 2}),
        ("hoist", {}),
        ("step_schedule", {"n_steps": 5}),
    ],
    "language": [
        ("patch_select", {"k_final": 6}),
        ("layer_skip", {"n_dropped": 1}),
        ("mlp_prune", {"rank": 2}),
    ],
    "efficientvla": [
        ("patch_select", {"k_final": 6}),
        ("block_cache", {"method": "uniform", "updates": 2}),
        ("hoist", {}),
        ("layer_skip", {"n_dropped": 1}),
        ("mlp_prune", {"rank": 2}),
    ],
    "guidance, cached": [
        ("guidance", {"full_steps": 4}),
        ("block_cache", {"updates": 3, "bubbling": 1}),
        ("hoist", {}),
    ],
    "guidance, forecast": [
        ("guidance", {"full_steps": 3}),
        ("forecast", {"method": "uniform", "updates": 4, "order": 1}),
    ],
    "ceed": [
        ("patch_select", {"k_final": 6}),
        ("layer_skip", {"n_dropped": 1}),
        ("mlp_prune", {"rank": 2}),
        ("jacobi", {"max_iterations": 3, "until": "executed"}),
    ],
}

NUMBERS_DIFFER = {
    "block_cache-consecutive",
    "block_cache-shared",
    "block_cache-uniform",
    "block_cache-deepcache",
    "forecast-taylor0",
    "forecast-taylor2",
    "forecast-taylor3",
    "forecast-taylor4",
    "forecast-adams_bashforth",
    "mlp_prune-cut",
    "layer_skip-importance",
    "patch_select-fastv",
    "patch_select-globalcom2",
    "jacobi-exit",
    "compile",
}
"""Variants that run the same code as others."""
TOGETHER = {"as trained", "fewer steps, cached", "language", "efficientvla", "guidance, cached", "ceed"}
"""Variants that a second miniature of a type is run under."""


def examples() -> dict[str, Wanted]:
    """Name -> techniques: every example of every technique alone, and the combinations."""
    alone: dict[str, Wanted] = {
        f"{kind}-{name}" if name else kind: [(kind, options)]
        for kind, technique in techniques().items()
        for name, options in technique.examples.items()
    }
    return alone | COMBINATIONS


def needs(kinds: Iterable[str]) -> set[Need]:
    """What a policy must have for all of these techniques; a compiler is the machine's."""
    return {need for kind in kinds for need in techniques()[kind].needs} - {Need.COMPILER}


def fits(has: set[Need], example: str) -> bool:
    """Whether a policy that has this can be run under an example."""
    return needs(kind for kind, _ in examples()[example]) <= has


def daily(policies: Mapping[str, set[Need]]) -> set[tuple[str, str]]:
    """(policy, example) of every day: what runs code that no other pair runs; the others belong to `long`.

    Args:
        policies: name -> what it has; "type-more" is another miniature of a type.
    """
    found: set[tuple[str, str]] = set()
    first: dict[str, str] = {}
    types: set[str] = set()
    for policy, has in policies.items():
        is_second, types = policy.split("-")[0] in types, types | {policy.split("-")[0]}
        for example in examples():
            if not fits(has, example):
                continue
            is_first = first.setdefault(example, policy) == policy
            if is_first or (example not in NUMBERS_DIFFER and (example in TOGETHER or not is_second)):
                found.add((policy, example))
    return found
