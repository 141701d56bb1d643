"""`vivace calibrate` and `vivace explain`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.explain import explain
from vivace.accel.flops import count_flops
from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.envs.registry import make
from vivace.eval.gather import CALIBRATION_SEED, calibration_data
from vivace.eval.machine import machine
from vivace.eval.output import output_folder
from vivace.eval.settings import CalibrateCommand, CommonOptions, ExplainCommand
from vivace.eval.terminal import console
from vivace.policies.load import LoadedPolicy, load_policy
from vivace.policies.noise import EpisodeNoise
from vivace.policies.session import Session
from vivace.policies.staged import Execution, sample


def load(command: CommonOptions) -> LoadedPolicy:
    """Load the policy a command names, its actions understood as the environment's."""
    env = make(command.env.type, command.env.task)
    kinds = env.action_kinds
    env.close()
    return load_policy(command.policy.path, command.policy.device, kinds)


def load_plan(command: CommonOptions, loaded: LoadedPolicy) -> AccelerationPlan:
    """Load the plan a command names, else the one beside the checkpoint; it must be the policy's."""
    plan = AccelerationPlan.load(Path(command.accel.path) if command.accel.path else loaded.path)
    plan.check(loaded.fingerprint)
    return plan


def observe(command: CommonOptions, session: Session) -> CalibrationData:
    """Calibration observations of the command's environment, the world frozen, actions by `session`."""
    with console.status("collecting calibration observations (frozen world)"):
        return calibration_data(
            session,
            lambda: make(command.env.type, command.env.task),
            command.accel.episodes,
            command.accel.samples,
        )


def run_calibrate(command: CalibrateCommand) -> tuple[dict[str, Any], bool]:
    """Calibrate, measure action error and FLOPs, save the plan."""
    loaded = load(command)
    wanted = command.accel.wanted()
    data = observe(command, Session(loaded))
    with console.status("calibrating"):
        plan = calibrate(loaded.staged, loaded.fingerprint, data, wanted)
    execution = accelerate(loaded.staged, plan)
    baseline = Execution.of(loaded.staged)
    before = sample(baseline, data.batch, EpisodeNoise(data.noise_keys))
    after = sample(execution, data.batch, EpisodeNoise(data.noise_keys))
    flops = count_flops(baseline, data.one), count_flops(execution, data.one)
    measurements = {
        **machine(command.policy.device),
        "action_error": float((after - before).abs().mean()),
        "flop_ratio": flops[1].total / flops[0].total,
        "observations": len(data.noise_keys),
        "env": f"{command.env.type}/{command.env.task}",
        "seed": CALIBRATION_SEED,
    }
    plan = replace(plan, measurements=measurements)
    target = loaded.path
    if command.output_dir is not None:
        target = output_folder("calibrate", command.output_dir, command.job_name)
    plan.save(target)
    console.print(explain(plan, execution, *flops), highlight=False)
    return {"plan": str(target / FILE_NAME), **measurements}, True


def run_explain(command: ExplainCommand) -> tuple[dict[str, Any], bool]:
    """Print what the plan does."""
    loaded = load(command)
    plan = load_plan(command, loaded)
    execution = accelerate(loaded.staged, plan)
    shapes = loaded.staged.spec.observation_shapes
    zeros = {key: torch.zeros(1, loaded.staged.spec.n_obs_steps, *shape) for key, shape in shapes.items()}
    baseline, accelerated = count_flops(Execution.of(loaded.staged), zeros), count_flops(execution, zeros)
    Console().print(explain(plan, execution, baseline, accelerated), highlight=False)
    ratio = accelerated.total / baseline.total
    return {
        "policy": str(loaded.path),
        "techniques": [t.kind for t in plan.techniques],
        "flop_ratio": ratio,
    }, True
