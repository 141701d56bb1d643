"""What a command is about: its policy, its plan, its session and its environment."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.envs.registry import describe, instruction, make
from vivace.eval.options import CommonOptions
from vivace.eval.simulation.env_robot import camera_options
from vivace.eval.terminal import console
from vivace.policies.action_kinds import read_kinds
from vivace.policies.errors import BadSetting
from vivace.policies.execution import Execution, executing
from vivace.policies.load import LoadedPolicy, load_policy
from vivace.policies.placement import dtype_name
from vivace.policies.session import Session
from vivace.policies.spec import PolicySpec


def load(command: CommonOptions, action_kinds: Sequence[str] = ()) -> LoadedPolicy:
    """Load the policy a command names, its actions understood as the environment's; settle the rate.

    Args:
        command: names policy and environment.
        action_kinds: how its actions are to be understood instead, by name.
    """
    kinds = [describe(command.env.type, task).action_kinds for task in command.env.tasks][0]
    if action_kinds:
        kinds = read_kinds(action_kinds, len(kinds) or len(action_kinds), "--export.action_kinds")
    policy = command.policy
    loaded = load_policy(policy.path, policy.device, kinds, policy.dtype, command.rename_map)
    command.env.control_hz = control_hz(command, loaded.staged.spec)
    return replace(loaded, staged=executing(loaded.staged, command.loop.n_action_steps))


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
    rates = {describe(command.env.type, task).control_hz for task in command.env.tasks}
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
    return Session(loaded, execution, text, command.loop.chunking)


def env_maker(command: CommonOptions, spec: PolicySpec, task: str = "") -> Callable[[], Any]:
    """Return what makes a task's environment, with the cameras that a policy looks through."""
    options = {"control_hz": command.env.control_hz, **camera_options(spec)}
    return partial(make, command.env.type, task or command.env.tasks[0], **options)


def find_plan(command: CommonOptions, loaded: LoadedPolicy) -> AccelerationPlan | None:
    """Load the plan a command names, else the one beside the checkpoint; None, and it is told, without one.

    Raises:
        PlanMismatch: the one that is named is not there, or it is another policy's.
    """
    if command.accel.path or (loaded.path / FILE_NAME).is_file():
        return load_plan(command, loaded)
    spec = loaded.staged.spec
    remedy = f"make one: vivace calibrate --policy.path={command.policy.path}"
    if loaded.as_trained.is_opaque:
        remedy = f"policy {spec.type!r} is opaque, so there is nothing to calibrate"
    console.print(
        f"no plan beside the checkpoint: as trained alone; {remedy}", style="yellow", highlight=False
    )
    return None


def load_plan(command: CommonOptions, loaded: LoadedPolicy) -> AccelerationPlan:
    """Load the plan a command names, else the one beside the checkpoint; it must be the policy's.

    Made in another dtype it is run all the same, for its decisions are those of the same weights, and told.
    """
    plan = AccelerationPlan.load(Path(command.accel.path) if command.accel.path else loaded.path)
    plan.check(loaded.fingerprint)
    runs_in = dtype_name(loaded.placement.dtype)
    made_in = plan.measurements.get("dtype", runs_in)
    if made_in != runs_in:
        console.print(f"the plan was made in {made_in}, the policy runs in {runs_in}", style="yellow")
    return plan
