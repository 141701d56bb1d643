"""`vivace calibrate` and `vivace explain`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.explain import explain
from vivace.accel.flops import count_flops
from vivace.accel.judgement import check_apart, fitted_seeds
from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.deploy.loop import Mode
from vivace.envs.registry import env_class, instruction, make, task_names
from vivace.eval.action_error import action_errors, sample_all
from vivace.eval.gather import CALIBRATION_SEED, JUDGEMENT_SEED, calibration_data
from vivace.eval.machine import machine
from vivace.eval.output import output_folder
from vivace.eval.settings import (
    CalibrateCommand,
    CommonOptions,
    ConvertCommand,
    EvalCommand,
    ExplainCommand,
)
from vivace.eval.statistics import spread_of
from vivace.eval.terminal import console
from vivace.policies.action_kinds import read_kinds
from vivace.policies.errors import BadSetting
from vivace.policies.load import LoadedPolicy, load_policy
from vivace.policies.session import Session
from vivace.policies.staged import Execution, executing
from vivace.policies.types import PolicySpec

IMAGE = "observation.images."


def load(command: CommonOptions, action_kinds: Sequence[str] = ()) -> LoadedPolicy:
    """Load the policy a command names, its actions understood as the environment's; settle the rate.

    Args:
        command: names policy and environment.
        action_kinds: how its actions are to be understood instead, by name.
    """
    kinds = [env_class(command.env.type, task).action_kinds for task in command.env.tasks][0]
    if action_kinds:
        kinds = read_kinds(action_kinds, len(kinds), "--export.action_kinds")
    loaded = load_policy(command.policy.path, command.policy.device, kinds)
    command.env.control_hz = control_hz(command, loaded.staged.spec)
    return replace(loaded, staged=executing(loaded.staged, command.policy.n_action_steps))


def control_hz(command: CommonOptions, spec: PolicySpec) -> float:
    """Return the rate a command asks for [Hz], else the policy's, else the tasks' own.

    Raises:
        BadSetting: nobody asked, the policy does not say, and the tasks differ.
    """
    if command.env.control_hz is not None:
        if spec.control_hz not in (None, command.env.control_hz):
            console.print(
                f"the policy was trained at {spec.control_hz:g} Hz and runs at {command.env.control_hz:g} Hz",
                style="yellow",
            )
        return command.env.control_hz
    if spec.control_hz is not None:
        return spec.control_hz
    rates = {env_class(command.env.type, task).own_hz for task in command.env.tasks}
    if len(rates) > 1:
        raise BadSetting(
            f"the tasks' own control rates are {', '.join(f'{hz:g}' for hz in sorted(rates))} Hz, and the "
            "policy does not say at which it was trained; give --env.control_hz"
        )
    return rates.pop()


def session(
    command: CommonOptions, loaded: LoadedPolicy, execution: Execution | None = None, task: str = ""
) -> Session:
    """Run a policy under an execution, told what to do in a task, the command's first when not given."""
    text = command.env.instruction or instruction(command.env.type, task or command.env.tasks[0])
    chunking = None
    if isinstance(command, EvalCommand) and command.eval.mode == Mode.RTC:
        chunking = command.rtc
    return Session(loaded, execution, text, chunking)


def env_maker(command: CommonOptions, spec: PolicySpec, task: str = "") -> Callable[[], Any]:
    """Return what makes a task's environment, with the cameras that a policy looks through."""
    shapes = {k.removeprefix(IMAGE): s for k, s in spec.observation_shapes.items() if k.startswith(IMAGE)}
    sizes = {shape[-1] for shape in shapes.values()}
    if len(sizes) > 1:
        raise BadSetting(f"the policy's cameras have sizes {sorted(sizes)}; one size for all is needed")
    options: dict[str, Any] = {"control_hz": command.env.control_hz}
    if shapes:
        is_lazy = spec.n_obs_steps == 1
        options |= {"image_size": sizes.pop(), "cameras": tuple(shapes), "lazy_images": is_lazy}
    return partial(make, command.env.type, task or command.env.tasks[0], **options)


def load_plan(command: CommonOptions, loaded: LoadedPolicy) -> AccelerationPlan:
    """Load the plan a command names, else the one beside the checkpoint; it must be the policy's."""
    plan = AccelerationPlan.load(Path(command.accel.path) if command.accel.path else loaded.path)
    plan.check(loaded.fingerprint)
    return plan


def observe(
    command: CommonOptions,
    loaded: LoadedPolicy,
    execution: Execution | None = None,
    seed: int = CALIBRATION_SEED,
    samples: int | None = None,
) -> CalibrationData:
    """Observations of all the command's tasks, the world frozen, actions by an execution.

    Args:
        command: names tasks, and how many episodes and observations plans are fitted to and judged on.
        loaded: the policy.
        execution: how it acts meanwhile; as trained when not given.
        seed: of the first episode: `CALIBRATION_SEED` to fit on, `JUDGEMENT_SEED` to judge on.
        samples: how many, of one episode each at least, where the command's number is not meant.

    Returns:
        The observations in an order in which any first few are from all over tasks and episodes.
    """
    accel, tasks = command.accel, command.env.tasks
    wanted = (accel.episodes, accel.samples)
    if seed == JUDGEMENT_SEED:
        wanted = (accel.judged_episodes, accel.judged_samples)
    if samples is not None:
        wanted = (min(wanted[0], samples), samples)
    for name, n in zip(("episodes", "observations"), wanted, strict=True):
        if n < 1:
            raise BadSetting(f"{n} {name} were asked for to look at; 1 or more are needed")
    episodes, samples = (math.ceil(n / len(tasks)) for n in wanted)
    parts = []
    with console.status(f"collecting observations from seed {seed} on (frozen world)"):
        for i, task in enumerate(tasks):
            parts.append(
                calibration_data(
                    session(command, loaded, execution, task),
                    env_maker(command, loaded.staged.spec, task),
                    episodes,
                    samples,
                    seed + 1000 * i,
                    command.env.max_steps,
                )
            )
    return _shuffled(parts, seed)


def _shuffled(parts: Sequence[CalibrationData], seed: int) -> CalibrationData:
    """Join the observations of all tasks, in an order that a seed gives."""
    keys = [key for part in parts for key in part.noise_keys]
    order = np.random.default_rng(seed).permutation(len(keys))
    batch = {key: torch.cat([part.batch[key] for part in parts])[order] for key in parts[0].batch}
    drafts = [part.draft for part in parts if part.draft is not None]
    raw: dict[str, Any] = {
        key: np.concatenate([part.raw[key] for part in parts])[order] for key in parts[0].raw
    }
    draft = torch.cat(drafts)[order] if drafts else None
    steps = [part.largest_step for part in parts if part.largest_step is not None]
    largest_step = np.max(steps, axis=0) if steps else None
    return CalibrationData(batch, tuple(keys[i] for i in order), draft, raw, largest_step)


def run_calibrate(command: CalibrateCommand) -> tuple[dict[str, Any], bool]:
    """Calibrate, measure action error and FLOPs on observations of other episodes, save the plan."""
    loaded = load(command)
    wanted = command.accel.wanted()
    data = observe(command, loaded)
    with console.status("calibrating"):
        plan = calibrate(loaded.staged, loaded.fingerprint, data, wanted)
    execution = accelerate(loaded.staged, plan)
    baseline = Execution.of(loaded.staged)
    judged = observe(command, loaded, seed=JUDGEMENT_SEED)
    check_apart(fitted_seeds(plan), judged.seeds)
    with console.status("comparing actions"):
        errors = action_errors(execution, sample_all(baseline, judged), judged)
    flops = count_flops(baseline, judged.one), count_flops(execution, judged.one)
    measurements = {
        **plan.measurements,
        **machine(command.policy.device, loaded.dtype),
        **spread_of("action_error", errors),
        "flop_ratio": flops[1].total / flops[0].total,
        "observations": len(data.noise_keys),
        "env": f"{command.env.type}/{command.env.task}",
        "seed": CALIBRATION_SEED,
        "judged_observations": len(judged.noise_keys),
        "judged_seed": JUDGEMENT_SEED,
    }
    plan = replace(plan, measurements=measurements)
    target = loaded.path
    if command.output_dir is not None:
        target = output_folder("calibrate", command.output_dir, command.job_name)
    plan.save(target)
    console.print(explain(plan, execution, *flops), highlight=False)
    console.print(measured(plan), highlight=False)
    return {"plan": str(target / FILE_NAME), **measurements}, True


def measured(plan: AccelerationPlan) -> str:
    """Say how far a plan's actions are from the plain loop's, and on which observations that was measured."""
    found = plan.measurements
    if "judged_observations" in found:
        low, high = found["action_error_spread"]
        return (
            f"action error {found['action_error']:.4f} ({low:.4f} … {high:.4f}): mean and 10th to 90th "
            f"percentile over {found['judged_observations']} observations from seed {found['judged_seed']} "
            f"on; calibrated on {found['observations']} others from seed {found['seed']} on"
        )
    if "action_error" in found:
        return (
            f"action error {found['action_error']:.4f} on the observations it was calibrated on, too low for "
            "others; recalibrate: vivace calibrate --policy.path=…"
        )
    return "action error not measured; vivace calibrate measures it"


def run_explain(command: ExplainCommand) -> tuple[dict[str, Any], bool]:
    """Print what the plan does, or what a published architecture costs."""
    if command.policy.type:
        return _explain_cost(command.policy.type)
    loaded = load(command)
    plan = load_plan(command, loaded)
    execution = accelerate(loaded.staged, plan)
    zeros = session(command, loaded).blank()
    baseline, accelerated = count_flops(Execution.of(loaded.staged), zeros), count_flops(execution, zeros)
    Console().print(explain(plan, execution, baseline, accelerated), highlight=False)
    Console().print(measured(plan), highlight=False)
    ratio = accelerated.total / baseline.total
    return {
        "policy": str(loaded.path),
        "techniques": [t.kind for t in plan.techniques],
        "flop_ratio": ratio,
    }, True


def _explain_cost(kind: str) -> tuple[dict[str, Any], bool]:
    if kind == "smollm2":
        return _explain_layers()
    if kind != "cogact":
        raise BadSetting(f"policy.type={kind!r} has no published size to explain; known: cogact, smollm2")
    from vivace.accel.cost import cost_table, vla_costs
    from vivace.policies.cogact import full_size
    from vivace.policies.cogact_staged import StagedCogACT

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
    return {"policy": kind, "plans": plans}, True


def _explain_layers() -> tuple[dict[str, Any], bool]:
    """Importance of SmolLM2's layers on the instructions of all tasks, and what dropping them costs."""
    from vivace.accel.layer_curve import text_curve
    from vivace.policies.smollm2 import load_smollm2, prompts

    model, tokenizer = load_smollm2()
    texts = sorted({instruction("metaworld", task) for task in task_names("metaworld")})
    scores, points = text_curve(model, *prompts(tokenizer, texts))
    table = Table(title=f"SmolLM2-135M on {len(texts)} instructions, no patches")
    for name in ("layer", "importance", "layers dropped", "error of the last token's state"):
        table.add_column(name, justify="right")
    for layer, (score, point) in enumerate(zip(scores, points, strict=True)):
        table.add_row(str(layer), f"{score:.4f}", str(point["dropped"]), f"{point['hidden_error']:.4f}")
    Console().print(table)
    return {"policy": "smollm2", "importance": scores, "curve": points}, True


def run_convert(command: ConvertCommand) -> tuple[dict[str, Any], bool]:
    """Convert a checkpoint of an original project."""
    from vivace.policies.originals import convert

    chunk = {} if command.horizon is None else {"horizon": command.horizon, "n_action_steps": command.horizon}
    with console.status("converting"):
        config = convert(
            Path(command.run), Path(command.output_dir), Path(command.tokenizer), command.unnorm_key, chunk
        )
    return {"policy": command.output_dir, "type": config.type, "horizon": config.horizon}, True
