"""`vivace explain`: what a plan does, or what an architecture costs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from vivace.accel.apply import accelerate
from vivace.accel.explain import explain, measured
from vivace.accel.flops import count_flops
from vivace.accel.plan import AccelerationPlan
from vivace.envs.registry import DEFAULT_TYPE, instruction, task_names
from vivace.eval.observations.observe import observe
from vivace.eval.options import CommonOptions
from vivace.eval.subject import find_plan, load, session
from vivace.eval.terminal import FoldingTable, console
from vivace.policies.errors import BadSetting
from vivace.policies.execution import as_trained
from vivace.policies.load import LoadedPolicy
from vivace.policies.staged import Batch


@dataclass(kw_only=True)
class ExplainCommand(CommonOptions):
    """Say what a plan does: step by block grid, FLOPs saved stage by stage.

    Example: vivace explain --policy.path=zoo/reach, or vivace explain --policy.type=cogact
    """

    COUNTS_BASES = True


def run(command: ExplainCommand) -> tuple[dict[str, Any], bool]:
    """Print what the plan does, or what a published architecture costs."""
    if command.policy.type:
        return _published(command.policy.type)()
    loaded = load(command)
    plan = find_plan(command, loaded) or AccelerationPlan(loaded.fingerprint)
    if loaded.as_trained.is_opaque:
        return _opaque(loaded)
    execution = accelerate(loaded.staged, plan)
    one, source = _counted_on(command, loaded)
    baseline, accelerated = count_flops(as_trained(loaded.staged), one), count_flops(execution, one)
    out = Console()
    out.print(explain(plan, execution, baseline, accelerated, out.width), highlight=False)
    dtype = loaded.dtype
    out.print(f"work counted on observations: {source}", highlight=False)
    out.print(measured(plan, dtype), highlight=False)
    ratio = accelerated.total / baseline.total
    return {
        "policy": str(loaded.path),
        "dtype": dtype,
        "techniques": [t.kind for t in plan.techniques],
        "flop_ratio": ratio,
        "observations": source,
    }, True


def _counted_on(command: ExplainCommand, loaded: LoadedPolicy) -> tuple[Batch, str]:
    """One observation to count work on, and where it is from: a recorded one, or zeros of the right shapes.

    No world is made for it: work depends on shapes and on the instruction.
    """
    if command.data.is_named:
        data = observe(command, loaded, samples=1)
        return data.one, data.source
    told = f", told what to do in {command.env.named}" if command.env.is_named else ""
    return session(command, loaded).blank(), f"from shapes (zeros{told})"


def _opaque(loaded: LoadedPolicy) -> tuple[dict[str, Any], bool]:
    """Say what there is to say of a policy that does not come apart."""
    spec, dtype = loaded.staged.spec, loaded.dtype
    millions = sum(parameter.numel() for parameter in loaded.policy.parameters()) / 1e6
    Console().print(
        f"policy {spec.type!r} is one opaque piece of {millions:.2f} M parameters: {spec.n_obs_steps} "
        f"observations in, {spec.horizon - spec.first_action} actions out, {spec.n_action_steps} of them "
        "executed. It has no blocks to cache or skip; device, dtype, threads, torch.compile (vivace bench), "
        "--loop.mode and --loop.n_action_steps work on the whole",
        highlight=False,
    )
    return {"policy": str(loaded.path), "dtype": dtype, "techniques": [], "flop_ratio": 1.0}, True


def _explain_cost() -> tuple[dict[str, Any], bool]:
    """Parameters and FLOPs of CogACT as published, and under the plans of EfficientVLA's paper."""
    from vivace.eval.measure.cost import cost_table, vla_costs
    from vivace.policies.families.cogact.policy import full_size
    from vivace.policies.families.cogact.staged import StagedCogACT

    with console.status("counting on the meta device"):
        rows = vla_costs(StagedCogACT(full_size()))
    Console().print(cost_table(rows), highlight=False)
    plans = {
        row.name: {
            "parameters": sum(row.parameters.values()),
            "flops_paper": sum(row.paper.values()),
            "flops_run": sum(row.full.values()),
        }
        for row in rows
    }
    return {"policy": "cogact", "plans": plans}, True


def _explain_layers() -> tuple[dict[str, Any], bool]:
    """Importance of SmolLM2's layers on the instructions of all tasks, and what dropping them costs."""
    from vivace.eval.measure.layer_curve import text_curve
    from vivace.policies.language.smollm2 import load_smollm2, prompts

    model, tokenizer = load_smollm2()
    texts = sorted({instruction(DEFAULT_TYPE, task) for task in task_names(DEFAULT_TYPE)})
    scores, points = text_curve(model, *prompts(tokenizer, texts))
    rows = [
        (str(layer), f"{score:.4f}", str(point["dropped"]), f"{point['hidden_error']:.4f}")
        for layer, (score, point) in enumerate(zip(scores, points, strict=True))
    ]
    head = ("layer", "importance", "layers dropped", "error of the last token's state")
    title = f"SmolLM2-135M on {len(texts)} instructions, no patches"
    Console().print(FoldingTable(title, head, rows))
    return {"policy": "smollm2", "importance": scores, "curve": points}, True


def _published(name: str) -> Callable[[], tuple[dict[str, Any], bool]]:
    """Return what explains an architecture in its published size."""
    known = {"cogact": _explain_cost, "smollm2": _explain_layers}
    if name not in known:
        raise BadSetting(f"policy.type={name!r} has no published size to explain; known: {', '.join(known)}")
    return known[name]
