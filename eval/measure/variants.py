"""The plans that stand beside each other in every table: the claim and its honest baselines."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from vivace.accel.plan import AccelerationPlan
from vivace.policies.staged import has_language, writes_tokens

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
    n_action_steps: int | None = None
    """Actions executed of a chunk, where it is not the policy's own number."""


SAVED = (
    Entry("accelerated", "its own plan", "accelerated"),
    Entry("accelerated-compile", "its own plan, torch.compile", "compile", is_compiled=True),
)
"""The plan saved beside the checkpoint; not calibrated anew."""

_HOIST: tuple[str, Options] = ("hoist", {})
_CALLS = {"ddim": 1, "dpmsolver++": 1, "euler": 1, "rk4": 4}
"""Sampler -> calls of the denoiser a step."""
_STEPS = (2, 4, 8, 16, 32)
_STEPS_CACHED = (16, 32)


def samplers_of(staged: Any) -> tuple[str, str]:
    """Return the samplers with which a policy can take fewer steps, the simplest first."""
    return ("euler", "rk4") if staged.sampler.name in ("euler", "rk4") else ("ddim", "dpmsolver++")


def lineup(staged: Any, updates: int = 10, bubbling: int = 5, force_last: bool = False) -> tuple[Entry, ...]:
    """Build the standard table: the plain loop first, then one technique at a time, then combinations.

    Hoisting is exact, so every baseline has it too, and none of it is credited to caching; rows that say
    "not hoisted" and the compiled plain loop tell its share.

    Args:
        staged: the policy.
        updates: updates per block of the caches.
        bubbling: blocks that take part in Bubbling Union.
        force_last: the caches' last step is computed.
    """
    bac: Options = {"updates": updates, "bubbling": bubbling, "force_last": force_last}
    return (
        Entry("plain", "plain loop, as trained", "plain"),
        Entry("hoist", "exact hoisting alone", "hoist", (_HOIST,)),
        Entry("compile", "plain loop, torch.compile", "compile", (), is_compiled=True),
        Entry("hoist-compile", "hoisted, torch.compile", "compile", (_HOIST,), is_compiled=True),
        *_cached(updates, bac),
        *_forecast(updates),
        *_fewer_steps(staged),
        *_fewer_steps_cached(staged, bac),
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


def _fewer_steps(staged: Any) -> Iterator[Entry]:
    for sampler in samplers_of(staged):
        for k in _fewer(staged, sampler, _STEPS):
            label = f"{sampler} {k} steps, hoisted"
            yield Entry(f"{sampler}-{k}", label, sampler, (_steps(sampler, k), _HOIST))


def _fewer_steps_cached(staged: Any, bac: Options) -> Iterator[Entry]:
    """Caching on top of fewer steps, a third of them updates."""
    sampler = samplers_of(staged)[0]
    for k in _fewer(staged, sampler, _STEPS_CACHED):
        options = bac | {"updates": max(2, k // 3)}
        label = f"{sampler} {k} steps + BAC, S = {options['updates']}, hoisted"
        wanted = (_steps(sampler, k), _HOIST, ("block_cache", options))
        yield Entry(f"{sampler}-{k}+bac", label, f"{sampler}+bac", wanted)


def _fewer(staged: Any, sampler: str, steps: tuple[int, ...]) -> list[int]:
    """Those numbers of steps that call the denoiser less often than the policy's own sampler does."""
    return [k for k in steps if k * _CALLS[sampler] < len(staged.sampler)]


def _steps(sampler: str, n_steps: int) -> tuple[str, Options]:
    return "step_schedule", {"sampler": sampler, "n_steps": n_steps}


def vla_lineup(staged: Any) -> tuple[Entry, ...]:
    """Build the table of a vision-language-action policy: EfficientVLA's ablation and its baselines.

    The shares are the paper's (arXiv 2506.10100, table 5): 10 of 32 layers dropped, 56 of 256 patches kept, a
    quarter of the MLP channels cut, the action cache renewed every 5 steps.

    Args:
        staged: the policy; it has a language stage and denoises.
    """
    n_layers, n_patches, n_steps = len(staged.language.layers), sum(staged.n_patches), len(staged.sampler)
    n_dropped, k_final = round(n_layers * 10 / 32), max(5, round(n_patches * 56 / 256))
    updates = max(2, n_steps // 5)
    tokens = ("token_select", {"k_final": k_final})
    layers = ("layer_skip", {"n_dropped": n_dropped})
    evenly = ("layer_skip", {"n_dropped": n_dropped, "rule": "uniform"})
    mlp: tuple[str, Options] = ("mlp_prune", {})
    eora: tuple[str, Options] = ("mlp_prune", {"rank": 16})
    cache = ("block_cache", {"method": "uniform", "updates": updates})
    everything, spread = (mlp, layers, tokens, cache), (mlp, evenly, tokens, cache)
    rows: list[tuple[str, str, Wanted]] = [
        ("tokens", f"{k_final} of {n_patches} patches", (tokens,)),
        ("cache", f"action cache, {updates} of {n_steps} steps", (cache,)),
        ("layers", f"{n_layers - n_dropped} of {n_layers} layers", (layers,)),
        ("layers+mlp", "layers, MLP channels -25 %", (mlp, layers)),
        ("layers+mlp+cache", "layers, MLP, cache", (mlp, layers, cache)),
        ("tokens+cache", "patches, cache", (tokens, cache)),
        ("all", "layers, MLP, patches, cache", everything),
        ("all+eora", "all, MLP compensated at rank 16", (eora, *everything[1:])),
        ("all+hoist", "all, hoisted", (*everything, _HOIST)),
        ("all+evenly", "all, layers dropped evenly", spread),
        ("all+evenly+hoist", "all, layers dropped evenly, hoisted", (*spread, _HOIST)),
        *(_guided(everything) if staged.has_guidance else ()),
    ]
    return (
        Entry("plain", "as trained", "plain"),
        *(Entry(name, label, "efficientvla", wanted) for name, label, wanted in rows),
        *_vla_baselines(staged, tokens, evenly, updates),
        Entry("compile", "as trained, torch.compile", "compile", (), is_compiled=True),
        Entry("all-compile", "all, torch.compile", "compile", everything, is_compiled=True),
    )


def _guided(everything: Wanted) -> Iterator[tuple[str, str, Wanted]]:
    """Classifier-free guidance for fewer steps."""
    adaptive: tuple[str, Options] = ("guidance", {})
    yield "guidance", "adaptive guidance", (adaptive,)
    yield "linear-guidance", "LinearAG", (("guidance", {"method": "linear"}),)
    yield "all+guidance", "all, adaptive guidance", (*everything, adaptive)
    yield "everything", "all, adaptive guidance, hoisted", (*everything, adaptive, _HOIST)


def _vla_baselines(
    staged: Any, tokens: tuple[str, Options], evenly: tuple[str, Options], updates: int
) -> Iterator[Entry]:
    """Simpler choices at the same cost, another cache schedule, fewer steps, hoisting."""
    k_final, n_dropped = tokens[1]["k_final"], evenly[1]["n_dropped"]
    yield Entry("hoist", "exact hoisting alone", "hoist", (_HOIST,))
    for method, label in (("fastv", "FastV"), ("random", "random")):
        wanted = ("token_select", tokens[1] | {"method": method})
        yield Entry(method, f"{label}, {k_final} patches", "baseline", (wanted,))
    yield Entry("uniform-layers", f"{n_dropped} layers dropped evenly", "baseline", (evenly,))
    bac = ("block_cache", {"updates": updates, "bubbling": 2})
    yield Entry("bac", f"BAC on the head, S = {updates}", "bac", (bac,))
    sampler = samplers_of(staged)[0]
    for k in _fewer(staged, sampler, (2, 5)):
        yield Entry(f"{sampler}-{k}", f"{sampler} {k} steps", sampler, (_steps(sampler, k),))


def token_lineup(n_layers: int, n_patches: int) -> tuple[Entry, ...]:
    """Build the table of a policy that writes tokens: greedy decoding, exact decoders, early exits.

    Args:
        n_layers: language layers.
        n_patches: patches of all cameras.
    """
    layers: tuple[str, Options] = ("layer_skip", {"n_dropped": max(1, round(n_layers / 6))})
    tokens: tuple[str, Options] = ("token_select", {"k_final": max(5, n_patches // 2)})

    def jacobi(**options: Any) -> tuple[str, Options]:
        return "jacobi", options

    rows: list[tuple[str, str, str, Wanted]] = [
        ("plain", "greedy", "greedy", ()),
        ("jacobi", "Jacobi", "jacobi", (jacobi(freeze=False),)),
        ("freeze", "Jacobi, prefix frozen", "jacobi", (jacobi(),)),
        ("marginal", "Jacobi, from the usual tokens", "jacobi", (jacobi(init="marginal"),)),
        ("previous", "Jacobi, from the chunk before", "jacobi", (jacobi(init="previous"),)),
        ("executed", "Jacobi, executed actions only", "jacobi", (jacobi(until="executed"),)),
        ("tolerance", "Jacobi, until moves < 0.02", "exit", (jacobi(tolerance=0.02),)),
        *(
            (
                f"exit-{sigma}",
                f"early exit, {sigma} " + ("pass" if sigma == 1 else "passes"),
                "exit",
                (jacobi(max_iterations=sigma),),
            )
            for sigma in (1, 2, 4, 8)
        ),
        ("recycling", "Token Recycling", "tree", (("token_recycling", {}),)),
        ("stand", "STAND", "tree", (("stand", {}),)),
        ("sjd", "SJD, temperature 1", "sjd", (("sjd", {}),)),
        ("layers", f"{layers[1]['n_dropped']} layers dropped", "efficientvla", (layers,)),
        ("tokens", f"{tokens[1]['k_final']} of {n_patches} patches", "efficientvla", (tokens,)),
        (
            "combined",
            "layers, patches, early exit 2",
            "efficientvla",
            (layers, tokens, jacobi(max_iterations=2)),
        ),
    ]
    return (
        *(Entry(*row) for row in rows),
        Entry("chunk-1", "greedy, one action a time", "greedy", (("greedy_executed", {}),), n_action_steps=1),
        Entry("compile", "greedy, torch.compile", "compile", (), is_compiled=True),
        Entry(
            "jacobi-compile", "Jacobi, torch.compile", "compile", (jacobi(freeze=False),), is_compiled=True
        ),
    )


def lineup_for(staged: Any, options: Any) -> tuple[Entry, ...]:
    """Return the table that fits a policy.

    Args:
        staged: the policy; one that writes tokens has the decoders' table, any other one with a language
            stage EfficientVLA's, one without blocks nothing but itself.
        options: `updates`, `bubbling` and `force_last` of the other one.
    """
    if writes_tokens(staged) and has_language(staged):
        return token_lineup(len(staged.language.layers), sum(staged.n_patches))
    if not staged.blocks:
        return (Entry("plain", "as trained", "plain"),)
    if has_language(staged):
        return vla_lineup(staged)
    return lineup(staged, options.updates, options.bubbling, options.force_last)


def misfit(entry: Entry, staged: Any) -> str:
    """Say why the numbers of a row's caches do not fit a policy; nothing if they do."""
    wanted = dict(entry.wanted)
    for kind in {"block_cache", "forecast"}.intersection(wanted):
        updates, bubbling = (wanted[kind].get(name, 0) for name in ("updates", "bubbling"))
        n_steps, n_blocks = _denoiser_calls(wanted, staged), len(staged.blocks)
        if updates > n_steps:
            return (
                f"updates={updates}, but the sampler runs {n_steps} steps; choose --accel.updates in "
                f"1..{n_steps}"
            )
        if bubbling > n_blocks:
            return (
                f"bubbling={bubbling}, but the policy has {n_blocks} blocks; choose --accel.bubbling in "
                f"0..{n_blocks}"
            )
    return ""


def _denoiser_calls(wanted: dict[str, Options], staged: Any) -> int:
    """How often a chunk calls the denoiser under a row's sampler, or the policy's own."""
    fewer = wanted.get("step_schedule")
    return fewer["n_steps"] * _CALLS[fewer["sampler"]] if fewer else len(staged.sampler)


def labelled(entry: Entry, plan: AccelerationPlan) -> Entry:
    """Return a row that also says what calibration chose: how a sampler's steps are spaced."""
    chosen = [getattr(technique, "spacing", "") for technique in plan.techniques]
    return replace(entry, label=", ".join([entry.label, *(f"{name} spacing" for name in chosen if name)]))
