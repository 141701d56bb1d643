"""`vivace doctor`: does this installation do what it should, or a checkpoint what it does in lerobot?"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.markup import escape

from vivace.accel.apply import accelerate
from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.deploy.export.lerobot_path import path_error
from vivace.envs.registry import describe, installed_types, instruction, make
from vivace.eval.machine import machine, versions
from vivace.eval.obstacles import in_a_line
from vivace.eval.options import DataOptions, PolicyOptions
from vivace.eval.subject import INSTRUCTION, calibrated_in, tell_absent
from vivace.eval.terminal import console
from vivace.policies.checkpoint.find import ZOO
from vivace.policies.errors import BadSetting, NoRendering
from vivace.policies.execution import as_trained, sample
from vivace.policies.load import LoadedPolicy, load_policy
from vivace.policies.placement import Placement
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.session import Session


@dataclass(kw_only=True)
class OnePolicy(PolicyOptions):
    """A checkpoint to check in the place of this installation."""

    # a class of its own, for draccus reads defaults off classes
    path: str = ""
    """As of other verbs; when not given this installation is checked, with every bundled checkpoint."""


@dataclass(kw_only=True)
class DoctorCommand:
    """Check this installation: versions, simulator, rendering, GPUs, bundled checkpoints, parity.

    With --policy.path that checkpoint alone: whether it does here what it does in lerobot's own loop, from an
    observation to the robot's actions.

    Example: vivace doctor --policy.path=CHECKPOINT --data.repo=DATASET
    """

    policy: OnePolicy = field(default_factory=OnePolicy)
    data: DataOptions = field(default_factory=DataOptions)
    rename_map: dict[str, str] = field(default_factory=dict)
    """As of other verbs."""
    instruction: str = ""
    """What a language-conditioned policy is told; when not given what was recorded, else the text of the
    world in which the plan beside the checkpoint was calibrated."""


_TICKS = 100
_PATH_TOLERANCE = 1e-4
"""Of actions, from an observation in the robot's units."""


def run(command: DoctorCommand) -> tuple[dict[str, Any], bool]:
    """Run every check; exit code 1 if one fails."""
    console.print({**versions(), **machine(Placement())})
    outcome = {}
    for name, check in _checks(command).items():
        try:
            outcome[name] = check()
            console.print(f"[green]ok[/]      {name}: {outcome[name]}", highlight=False)
        except Exception as error:  # of every kind: whatever is wrong with an installation, it is told
            outcome[name] = f"failed: {(told := in_a_line(error))}"
            console.print(f"[red]failed[/]  {name}: {escape(told)}", highlight=False)
    return {"checks": outcome}, not any(text.startswith("failed") for text in outcome.values())


def _checks(command: DoctorCommand) -> dict[str, Callable[[], str]]:
    """Name -> what checks it; raises `VivaceError` if a checkpoint or data that is named cannot be read."""
    policy = command.policy
    if policy.path:
        recording = command.data.recording
        has = () if recording is None else recording.observations
        loaded = load_policy(policy.path, policy.device, (), policy.dtype, command.rename_map, has=has)
        tell_absent(loaded, command.data.repo or command.data.file)
        return {policy.path: partial(_as_in_lerobot, loaded, *_observation(command, loaded))}
    checks: dict[str, Callable[[], str]] = {
        "simulator": _simulator,
        "rendering": _rendering,
        "gpu": _gpu,
    }
    for folder in sorted(ZOO.glob("*/config.json")):
        checks[f"zoo/{folder.parent.name}"] = partial(_checkpoint, folder.parent.name)
    return checks


def _observation(
    command: DoctorCommand, loaded: LoadedPolicy
) -> tuple[str, dict[str, np.ndarray] | None, str]:
    """What the policy is told, what it sees (None: something made up), and where that is from."""
    recording, spec = command.data.recording, loaded.staged.spec
    if recording is None:
        return command.instruction or _text(command.policy.path), None, "an observation made up"
    episode = (command.data.episodes or recording.episodes)[0]
    moment = recording.read([episode], spec.observation_shapes, spec.n_obs_steps).moment(episode, 0)
    seen = {key: moment[key][-1] for key in spec.observation_shapes}
    told = command.instruction or moment["task"] or INSTRUCTION
    return told, seen, f"the first {recording.moment_name} of episode {episode} of {recording.name}"


def _text(path: str) -> str:
    """What a policy was told in the world in which the plan beside it was calibrated."""
    env_type, tasks = calibrated_in(path)
    return instruction(env_type, tasks.split(",")[0]) if env_type else INSTRUCTION


def _simulator() -> str:
    """Step every type of world that is installed; the bundled checkpoints' own must be."""
    told = []
    for env_type in installed_types():
        env, zeros = make(env_type), np.zeros(describe(env_type).action_dim or 0, np.float32)
        env.reset(seed=0)
        began = time.perf_counter()
        for _ in range(_TICKS):
            env.step(zeros)
        rate = _TICKS / (time.perf_counter() - began)
        env.close()
        told.append(f"{env_type} {rate:.0f} ticks of {1e3 / env.control_hz:g} ms a second")
    if not told:
        raise BadSetting("no simulator is installed; pip install 'vivace[sim]'")
    return ", ".join(told)


def _rendering() -> str:
    told = []
    for env_type in installed_types():
        env = make(env_type)
        env.reset(seed=0)
        frame = env.render()
        env.close()
        if frame.max() == frame.min():
            raise NoRendering(
                f"the frame of {env_type} that was drawn is empty; set MUJOCO_GL=egl, or osmesa"
            )
        told.append(f"{env_type} {frame.shape[1]} x {frame.shape[0]} px")
    return ", ".join(told)


_GPU_TOLERANCE = 1e-3
"""Of normalised actions: a GPU sums in another order, and samplers magnify rounding."""


def _gpu() -> str:
    """Name the GPUs that torch sees, and run a checkpoint on the first."""
    if not torch.cuda.is_available():
        return "torch sees none; policies run on the CPU"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    chunks = []
    for device in ("cpu", "cuda"):
        loaded = load_policy("zoo/reach", device)
        chunks.append(sample(as_trained(loaded.staged), Session(loaded).blank(), EpisodeNoise([(0, 0)])))
    error = float((chunks[1].cpu() - chunks[0]).abs().max())
    if not error <= _GPU_TOLERANCE:
        raise RuntimeError(f"zoo/reach acts otherwise on {names[0]}: {error:.2g} from the CPU's actions")
    return f"{', '.join(names)}; zoo/reach within {error:.1g} of the CPU's actions"


def _checkpoint(name: str) -> str:
    """Check a bundled one: bit for bit what it does in lerobot."""
    return _as_in_lerobot(load_policy(f"zoo/{name}"), _text(f"zoo/{name}"), tolerance=0.0)


def _as_in_lerobot(
    loaded: LoadedPolicy,
    text: str,
    seen: Mapping[str, np.ndarray] | None = None,
    source: str = "an observation made up",
    tolerance: float = _PATH_TOLERANCE,
) -> str:
    """Check that a policy does what it does in lerobot's own loop; and run its plan, if it has one."""
    error = path_error(loaded, text, seen)
    if not error <= tolerance:
        raise RuntimeError(
            f"from observation to action it is {error:.2g} off lerobot's own path, on {source}"
        )
    equal = f"lerobot's own path within {error:.1g} on {source}"
    if not (loaded.path / FILE_NAME).exists():
        return f"{equal}; no plan"
    batch = Session(loaded, task=text).blank()
    plan = AccelerationPlan.load(loaded.path)
    execution = accelerate(loaded.staged, plan, loaded.fingerprint)
    began = time.perf_counter()
    sample(execution, batch, EpisodeNoise([(0, 0)]))
    ms = 1e3 * (time.perf_counter() - began)
    return f"{equal}; plan {'+'.join(t.kind for t in plan.techniques)} {ms:.0f} ms a chunk"
