"""The plans that stand beside each other in every table: the claim and its honest baselines."""

from dataclasses import dataclass
from typing import Any

Wanted = tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True)
class Entry:
    """One row of a table."""

    name: str
    label: str
    family: str
    wanted: Wanted = ()
    """Techniques to calibrate, (kind, options)."""
    is_compiled: bool = False


_HOIST: tuple[str, dict[str, Any]] = ("hoist", {})


def lineup(
    updates: int = 10,
    bubbling: int = 5,
    steps: tuple[int, ...] = (2, 4, 8, 16, 32),
    force_last: bool = False,
) -> tuple[Entry, ...]:
    """Build the standard table: the plain loop first, then one technique at a time, then combinations.

    Hoisting is exact, so every baseline has it too, and none of it is credited to caching; rows that say
    "not hoisted" and the compiled plain loop tell its share.
    """
    bac: dict[str, Any] = {"updates": updates, "bubbling": bubbling, "force_last": force_last}
    cached: dict[str, tuple[str, str, dict[str, Any]]] = {
        "bac": ("BAC", "bac", bac),
        "uniform": ("uniform interval", "uniform", {"method": "uniform", "updates": updates}),
        "shared": ("one shared schedule", "shared", {"method": "shared", "updates": updates}),
    }
    entries = [
        Entry("plain", "plain loop, as trained", "ddpm"),
        Entry("hoist", "exact hoisting alone", "hoist", (_HOIST,)),
        Entry("compile", "plain loop, torch.compile", "compile", (), is_compiled=True),
        Entry("hoist-compile", "hoisted, torch.compile", "compile", (_HOIST,), is_compiled=True),
    ]
    for name, (label, family, options) in cached.items():
        entries.append(
            Entry(name, f"{label}, S = {updates}, hoisted", family, (_HOIST, ("block_cache", options)))
        )
    entries.append(Entry("bac-alone", f"BAC, S = {updates}, not hoisted", "bac", (("block_cache", bac),)))
    entries.append(
        Entry(
            "bac-compile",
            f"BAC, S = {updates}, hoisted, blocks compiled",
            "compile",
            (_HOIST, ("block_cache", bac)),
            is_compiled=True,
        )
    )
    for order in (1, 2):
        taylor = {"method": "uniform", "updates": updates, "order": order}
        entries.append(
            Entry(
                f"taylor{order}",
                f"TaylorSeer order {order}, uniform S = {updates}, hoisted",
                "taylor",
                (_HOIST, ("forecast", taylor)),
            )
        )
    for sampler, family in (("ddim", "ddim"), ("dpmsolver++", "dpmsolver++")):
        for k in steps:
            entries.append(
                Entry(f"{sampler}-{k}", f"{sampler} {k} steps, hoisted", family, (_steps(sampler, k), _HOIST))
            )
    for k in (16, 32):
        fewer = bac | {"updates": max(2, k // 3)}
        entries.append(
            Entry(
                f"ddim-{k}+bac",
                f"ddim {k} steps + BAC, S = {fewer['updates']}, hoisted",
                "ddim+bac",
                (_steps("ddim", k), _HOIST, ("block_cache", fewer)),
            )
        )
    return tuple(entries)


def _steps(sampler: str, n_steps: int) -> tuple[str, dict[str, Any]]:
    return "step_schedule", {"sampler": sampler, "n_steps": n_steps}
