"""What a command is about: its policy, its plan, its session, and its world or recording."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lerobot.processor.rename_processor import rename_stats

from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.envs.registry import describe, instruction, make
from vivace.eval.options import CommonOptions, PolicyOptions
from vivace.eval.terminal import console
from vivace.policies.action_kinds import kinds_of_names, read_kinds
from vivace.policies.errors import BadSetting, VivaceError
from vivace.policies.execution import Execution, executing
from vivace.policies.load import LoadedPolicy, load_policy, resolve
from vivace.policies.plain_data import read_json
from vivace.policies.published.build import build_published
from vivace.policies.session import Session
from vivace.policies.spec import ActionKind, PolicySpec

INSTRUCTION = "pick up the object"
"""What a policy is told that reads an instruction, where nobody says one."""


def load(command: CommonOptions, action_kinds: Sequence[str] = ()) -> LoadedPolicy:
    """Load the policy a command names, its actions understood as its world or data has them; settle the rate.

    Args:
        command: names policy, and recording or world; the world is settled (`settle_world`).
        action_kinds: how its actions are to be understood instead, by name.

    Raises:
        BadSetting: its actions have another number of dimensions than the environment's, more of a chunk are
            to be executed than it has, or what is named is an architecture and the command takes none.
    """
    if command.policy.type:
        return _built(command)
    settle_world(command)
    known = told(command)[0]
    kinds = _kinds(known, command)
    if action_kinds:
        kinds = read_kinds(action_kinds, known.size or len(action_kinds), "--export.action_kinds")
    policy = command.policy
    loaded = load_policy(
        policy.path,
        policy.device,
        kinds,
        policy.dtype,
        command.rename_map,
        statistics=_lent(command),
        action_names=_named(command),
        has=_shown_by(command),
    )
    _tell_base(command, loaded)
    tell_absent(loaded, _place(command))
    spec = loaded.staged.spec
    command.loop.fresh_actions(spec)
    if known.size not in (None, spec.action_dim):
        raise BadSetting(
            f"actions in {_place(command)} have {known.size} dimensions, the policy's have "
            f"{spec.action_dim}; take a policy that was trained there, or the environment or data it was "
            "trained in"
        )
    command.env.control_hz = control_hz(command, spec)
    recording = command.data.recording
    recorded_hz = None if recording is None else recording.control_hz
    if None not in (recorded_hz, spec.control_hz) and recorded_hz != spec.control_hz:
        console.print(
            f"the recording is of {recorded_hz:g} Hz, the policy of {spec.control_hz:g} Hz: the past that it "
            "is shown lies otherwise in time than in training",
            style="yellow",
        )
    return replace(loaded, staged=executing(loaded.staged, command.loop.n_action_steps, recorded_hz))


def _lent(command: CommonOptions) -> Mapping[str, Any] | None:
    """Statistics for a checkpoint that holds none: those of the data, or none at all to count and to time."""
    recording = command.data.recording
    if recording is not None and recording.statistics and command.LENDS_STATISTICS:
        return rename_stats(dict(recording.statistics), command.rename_map)  # type: ignore[arg-type]
    is_made_up = not command.env.is_named and not command.data.is_named
    return {} if command.COUNTS_BASES and is_made_up else None


def _named(command: CommonOptions) -> tuple[str, ...]:
    """What lerobot's training calls the actions of the data whose statistics are lent."""
    recording = command.data.recording
    return () if recording is None else recording.names_in_training


def _tell_base(command: CommonOptions, loaded: LoadedPolicy) -> None:
    """Say what a checkpoint without statistics runs with; it is written nowhere."""
    if not loaded.is_base:
        return
    data, spec = command.data.repo, loaded.staged.spec
    told = (
        f"normalised by the statistics of {data}, for the checkpoint holds none; it gives out actions of "
        f"{spec.action_dim} numbers, as there; it is not changed, and a plan fits it with --data.repo={data} "
        "alone"
        if data
        else "the checkpoint holds no statistics: nothing is normalised, only work and time mean something"
    )
    console.print(told, style="yellow", highlight=False)


def _shown_by(command: CommonOptions) -> frozenset[str]:
    """Observations that a command's world and recording have; empty where one of them does not say."""
    env, recording = command.env, command.data.recording
    tasks = env.tasks if env.is_named else []
    sources = [describe(env.type, task, **env.chosen()).observations for task in tasks]
    sources += [] if recording is None else [recording.observations]
    return frozenset[str]().union(*sources) if all(sources) else frozenset()


def tell_absent(loaded: LoadedPolicy, place: str) -> None:
    """Say, in one line, which cameras of the policy's nobody has in a world or a recording."""
    if loaded.absent:
        console.print(
            f"{place} has no {', '.join(loaded.absent)}: the policy acts without, as in lerobot; if it is "
            "there by another name, say so: --rename_map",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )


def loading(command: CommonOptions) -> Callable[[], LoadedPolicy]:
    """Return what loads the policy that `load` has loaded, in another process: it can be pickled."""
    policy = command.policy
    kinds = _kinds(told(command)[0], command)
    return partial(
        load_policy,
        policy.path,
        policy.device,
        kinds,
        policy.dtype,
        dict(command.rename_map),
        statistics=_lent(command),
        action_names=_named(command),
        has=_shown_by(command),
    )


_FEW = 2
"""Made-up observations that random weights are shown at most: one is as good as another."""


def _built(command: CommonOptions) -> LoadedPolicy:
    """Build the architecture that a command names in a checkpoint's place."""
    policy = command.policy
    if not command.BUILDS:
        raise BadSetting(
            f"policy.type={policy.type!r} builds a published architecture with random weights, which vivace "
            "calibrate, export and bench take; give --policy.path"
        )
    given = {
        "policy.path": policy.path != PolicyOptions.path,
        "env": command.env.is_named,
        "data": command.data.is_named,
        "rename_map": bool(command.rename_map),
    }
    if others := [f"--{name}" for name, is_given in given.items() if is_given]:
        raise BadSetting(
            f"{', '.join(others)} beside --policy.type={policy.type}: random weights have learned from no "
            "world or data; leave it out, or give a checkpoint alone"
        )
    for name in ("samples", "judged_samples"):
        setattr(command.accel, name, min(getattr(command.accel, name), _FEW))
    loaded = build_published(policy.type, policy.chosen(), policy.device, policy.dtype)
    command.loop.fresh_actions(loaded.staged.spec)
    command.env.control_hz = control_hz(command, loaded.staged.spec)
    return replace(loaded, staged=executing(loaded.staged, command.loop.n_action_steps))


def settle_world(command: CommonOptions) -> None:
    """Where a command names no world, take the one in which the plan beside the checkpoint was calibrated.

    That is if one is needed: to judge in, or for want of recorded data. A checkpoint of whose world nothing
    is known has none.
    """
    env = command.env
    if not env.is_named and (command.RUNS_LOOP or not command.data.is_named):
        env.type, env.task = calibrated_in(command.policy.path)
        if env.is_named:
            console.print(f"world: {env.named}, where its plan was calibrated", highlight=False)
    if env.is_named:
        env.task = ",".join(env.tasks)


def calibrated_in(path: str) -> tuple[str, str]:
    """Type and tasks of the world in which the plan beside a checkpoint was calibrated; empty if unknown."""
    try:
        found = read_json(resolve(path) / FILE_NAME)["measurements"]["env"]
        kind, _, task = found.partition("/")
    except (VivaceError, OSError, KeyError, TypeError, AttributeError):
        return "", ""  # whoever needs the plan says what is wrong with it
    return kind, task


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a recording, or a task of a world, says of those who act in it."""

    control_hz: float | None = None
    """Control rate [Hz]; None: it does not say."""
    action_kinds: tuple[ActionKind, ...] = ()
    """What each number of an action means; empty: it does not say it of all."""
    size: int | None = None
    """Numbers of an action; None: it does not say."""
    instruction: str = INSTRUCTION
    """What a policy is told that reads one."""


def told(command: CommonOptions) -> list[Told]:
    """Return what each task of a command's world says, else each text of its recording, else nobody."""
    env = command.env
    if env.is_named:
        tasks = [describe(env.type, task, **env.chosen()) for task in env.tasks]
        return [
            Told(
                control_hz=task.control_hz,
                action_kinds=task.action_kinds,
                size=task.action_dim or len(task.action_kinds) or None,
                instruction=task.instruction,
            )
            for task in tasks
        ]
    recording = command.data.recording
    if recording is None:
        return [Told()]
    kinds = kinds_of_names(recording.action_names)
    known = () if ActionKind.UNKNOWN in kinds else kinds
    size = len(recording.action_names) or None
    texts = recording.instructions or (INSTRUCTION,)
    return [
        Told(control_hz=recording.control_hz, action_kinds=known, size=size, instruction=text)
        for text in texts
    ]


def instructions(command: CommonOptions) -> list[str]:
    """Texts that a policy is told by what a command names, each once."""
    asked = command.env.instruction
    return [asked] if asked else list(dict.fromkeys(one.instruction for one in told(command)))


def _place(command: CommonOptions) -> str:
    env, data = command.env, command.data
    return f"{env.type} {env.task}" if env.is_named else data.repo or data.file


def _kinds(known: Told, command: CommonOptions) -> tuple[ActionKind, ...]:
    """What actions mean: as world or recording say, else as the user does.

    Raises:
        BadSetting: the two contradict each other.
    """
    asked = command.env.action_kinds
    if not asked:
        return known.action_kinds
    said = read_kinds(asked, known.size or len(asked), "--env.action_kinds")
    if known.action_kinds and said != known.action_kinds:
        raise BadSetting(
            f"--env.action_kinds says {', '.join(said)}, but the actions of {_place(command)} are "
            f"{', '.join(known.action_kinds)}; leave it out"
        )
    return said


def control_hz(command: CommonOptions, spec: PolicySpec) -> float | None:
    """Return the rate a command asks for [Hz], else the policy's, else that of its recording or tasks.

    None if nobody says it and there is no world.

    Raises:
        BadSetting: nobody asked, the policy does not say, and the tasks differ.
    """
    asked, trained = command.env.control_hz, spec.control_hz
    if asked is not None:
        if trained not in (None, asked):
            console.print(
                f"the policy was trained at {trained:g} Hz and runs at {asked:g} Hz", style="yellow"
            )
        return asked
    if trained is not None:
        return trained
    rates = {one.control_hz for one in told(command)}
    known = sorted(rate for rate in rates if rate is not None)
    if command.env.is_named and (len(rates) != 1 or not known):
        said = (
            f"control rates are {', '.join(f'{hz:g}' for hz in known)} Hz" if known else "rate is not known"
        )
        raise BadSetting(
            f"the tasks' own {said}, and the policy does not say at which it was trained; give "
            "--env.control_hz"
        )
    return known[0] if known else None


def session(
    command: CommonOptions, loaded: LoadedPolicy, execution: Execution | None = None, task: str = ""
) -> Session:
    """Run a policy under an execution, told what to do in a task, the command's first when not given."""
    env = command.env
    text = env.instruction
    if not text:
        text = instruction(env.type, task, **env.chosen()) if task else told(command)[0].instruction
    spec = (loaded.as_trained if execution is None else execution).policy.spec
    return Session(loaded, execution, text, command.loop.settled(spec.mode).chunking)


def env_maker(command: CommonOptions, spec: PolicySpec, task: str = "") -> Callable[[], Any]:
    """Return what makes a task's environment, for the policy that will act in it.

    Raises:
        BadSetting: no world is named.
    """
    check_world(command)
    env = command.env
    options = {"control_hz": env.control_hz, "spec": spec, **env.chosen()}
    return partial(make, env.type, task or env.tasks[0], **options)


def check_world(command: CommonOptions) -> None:
    """Raise `BadSetting` unless a command names a world, or `settle_world` has found one."""
    if not command.env.is_named:
        raise BadSetting(
            "success is judged in a world, and none is named: give --env.type and --env.task, such as "
            "--env.task=push-v3"
        )


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

    How its chunks are executed is the user's choice first, then the plan's. Made in another dtype it is run
    all the same, for its decisions are those of the same weights, and told.
    """
    plan = AccelerationPlan.load(Path(command.accel.path) if command.accel.path else loaded.path)
    plan.check(loaded.fingerprint)
    runs_in = loaded.dtype
    made_in = plan.measurements.get("dtype", runs_in)
    if made_in != runs_in:
        console.print(f"the plan was made in {made_in}, the policy runs in {runs_in}", style="yellow")
    return plan.executed(command.loop.execution)
