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


def examples() -> dict[str, Wanted]:
    """Name -> techniques: every example of every technique alone, and the combinations."""
    alone: dict[str, Wanted] = {
        f"{kind}-{name}" if name else kind: [(kind, options)]
        for kind, technique in techniques().items()
        for name, options in technique.examples.items()
    }
    return alone | COMBINATIONS


def needs(kinds: Iterable[str]) -> set[Need]:
    """What a policy must have for all of these techniques."""
    return {need for kind in kinds for need in techniques()[kind].needs}


def fits(has: set[Need], example: str) -> bool:
    """Whether a policy that has this can be run under an example."""
    return needs(kind for kind, _ in examples()[example]) <= has
