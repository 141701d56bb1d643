"""What a command is about: its policy, its plan, its session and its environment."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vivace.accel.plan import AccelerationPlan
from vivace.envs.protocol import TaskInfo
from vivace.envs.registry import describe, instruction, make
from vivace.eval.options import CommonOptions, EnvOptions
from vivace.eval.terminal import console
from vivace.policies.action_kinds import read_kinds
from vivace.policies.errors import BadSetting
from vivace.policies.execution import Execution, executing
from vivace.policies.load import LoadedPolicy, load_policy
from vivace.policies.placement import dtype_name
from vivace.policies.session import Session
from vivace.policies.spec import ActionKind, PolicySpec


def load(command: CommonOptions, action_kinds: Sequence[str] = ()) -> LoadedPolicy:
    """Load the policy a command names, its actions understood as the environment's; settle task and rate.

    Args:
        command: names policy and environment.
        action_kinds: how its actions are to be understood instead, by name.

    Raises:
        BadSetting: its actions have another number of dimensions than the environment's.
    """
    env = command.env
    env.task = ",".join(env.tasks)
    world = describe(env.type, env.tasks[0], **env.chosen())
    kinds = _kinds(world, env)
    if action_kinds:
        kinds = read_kinds(action_kinds, _size(world) or len(action_kinds), "--export.action_kinds")
    policy = command.policy
    loaded = load_policy(policy.path, policy.device, kinds, policy.dtype)
    spec = loaded.staged.spec
    if _size(world) not in (None, spec.action_dim):
        raise BadSetting(
            f"actions in {env.type} {env.task} have {_size(world)} dimensions, the policy's have "
            f"{spec.action_dim}; take a policy that was trained there, or the environment it was trained in"
        )
    env.control_hz = control_hz(command, spec)
    return replace(loaded, staged=executing(loaded.staged, command.loop.n_action_steps))


def _size(world: TaskInfo) -> int | None:
    """Dimensions of a world's actions, as far as it says."""
    return world.action_dim or len(world.action_kinds) or None


def _kinds(world: TaskInfo, env: EnvOptions) -> tuple[ActionKind, ...]:
    """What a world's actions mean: as it says, else as the user does.

    Raises:
        BadSetting: the two contradict each other.
    """
    if not env.action_kinds:
        return world.action_kinds
    said = read_kinds(env.action_kinds, _size(world) or len(env.action_kinds), "--env.action_kinds")
    if world.action_kinds and said != world.action_kinds:
        raise BadSetting(
            f"--env.action_kinds says {', '.join(said)}, but the actions of {env.type} {env.task} are "
            f"{', '.join(world.action_kinds)}; leave it out"
        )
    return said


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
    env = command.env
    rates = {describe(env.type, task, **env.chosen()).control_hz for task in env.tasks}
    known = sorted(rate for rate in rates if rate is not None)
    if len(rates) != 1 or not known:
        told = (
            f"control rates are {', '.join(f'{hz:g}' for hz in known)} Hz" if known else "rate is not known"
        )
        raise BadSetting(
            f"the tasks' own {told}, and the policy does not say at which it was trained; give "
            "--env.control_hz"
        )
    return known[0]


def session(
    command: CommonOptions, loaded: LoadedPolicy, execution: Execution | None = None, task: str = ""
) -> Session:
    """Run a policy under an execution, told what to do in a task, the command's first when not given."""
    env = command.env
    text = env.instruction or instruction(env.type, task or env.tasks[0], **env.chosen())
    return Session(loaded, execution, text, command.loop.chunking)


def env_maker(command: CommonOptions, spec: PolicySpec, task: str = "") -> Callable[[], Any]:
    """Return what makes a task's environment, for the policy that will act in it."""
    env = command.env
    options = {"control_hz": env.control_hz, "spec": spec, **env.chosen()}
    return partial(make, env.type, task or env.tasks[0], **options)


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
