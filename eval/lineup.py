"""The plans that stand beside each other in every table: the claim and its honest baselines."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Options = dict[str, Any]
Wanted = tuple[tuple[str, Options], ...]


@dataclass(frozen=True)
class Entry:
    """One row of a table."""

    name: str
    label: str
    family: str
    wanted: Wanted = ()
    """Techniques to calibrate, (kind, options)."""
    is_compiled: bool = False


_HOIST: tuple[str, Options] = ("hoist", {})


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
    bac: Options = {"updates": updates, "bubbling": bubbling, "force_last": force_last}
    return (
        Entry("plain", "plain loop, as trained", "ddpm"),
        Entry("hoist", "exact hoisting alone", "hoist", (_HOIST,)),
        Entry("compile", "plain loop, torch.compile", "compile", (), is_compiled=True),
        Entry("hoist-compile", "hoisted, torch.compile", "compile", (_HOIST,), is_compiled=True),
        *_cached(updates, bac),
        *_forecast(updates),
        *_fewer_steps(steps),
        *_fewer_steps_cached(bac),
    )


def _cached(updates: int, bac: Options) -> Iterator[Entry]:
    """BAC and its simpler schedules; BAC also without hoisting and compiled."""
    for name, label, family, options in (
        ("bac", "BAC", "bac", bac),
        ("uniform", "uniform interval", "uniform", {"method": "uniform", "updates": updates}),
        ("shared", "one shared schedule", "shared", {"method": "shared", "updates": updates}),
    ):
        yield Entry(name, f"{label}, S = {updates}, hoisted", family, (_HOIST, ("block_cache", options)))
    cache = ("block_cache", bac)
    yield Entry("bac-alone", f"BAC, S = {updates}, not hoisted", "bac", (cache,))
    label = f"BAC, S = {updates}, hoisted, blocks compiled"
    yield Entry("bac-compile", label, "compile", (_HOIST, cache), is_compiled=True)


def _forecast(updates: int) -> Iterator[Entry]:
    for order in (1, 2):
        options = {"method": "uniform", "updates": updates, "order": order}
        label = f"TaylorSeer order {order}, uniform S = {updates}, hoisted"
        yield Entry(f"taylor{order}", label, "taylor", (_HOIST, ("forecast", options)))


def _fewer_steps(steps: tuple[int, ...]) -> Iterator[Entry]:
    for sampler in ("ddim", "dpmsolver++"):
        for k in steps:
            label = f"{sampler} {k} steps, hoisted"
            yield Entry(f"{sampler}-{k}", label, sampler, (_steps(sampler, k), _HOIST))


def _fewer_steps_cached(bac: Options) -> Iterator[Entry]:
    """Caching on top of fewer steps, a third of them updates."""
    for k in (16, 32):
        options = bac | {"updates": max(2, k // 3)}
        label = f"ddim {k} steps + BAC, S = {options['updates']}, hoisted"
        wanted = (_steps("ddim", k), _HOIST, ("block_cache", options))
        yield Entry(f"ddim-{k}+bac", label, "ddim+bac", wanted)


def _steps(sampler: str, n_steps: int) -> tuple[str, Options]:
    return "step_schedule", {"sampler": sampler, "n_steps": n_steps}
