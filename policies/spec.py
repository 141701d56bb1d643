"""What travels between a robot, a policy and the loop, and what a policy is; free of torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from vivace.policies.backports import Self, StrEnum
from vivace.policies.errors import BadSetting, NonFiniteActions
from vivace.policies.plain_data import SELDOM, Between, Longest

STATE, ENVIRONMENT = "observation.state", "observation.environment_state"
"""lerobot's names of what a robot feels, and of what is told of the world."""
IMAGE, IMAGES = "observation.image", "observation.images."
"""lerobot's names of the only camera, and of each of several, whose own name follows."""
PREVIOUS = "action.previous"
"""Key under which a batch of observations holds (B, n, A) what the chunks before mean for now and later, in
the robot's units, NaN where they say nothing; left out if none says anything."""
DELAY = "action.delay"
"""Key beside it: ticks (B,) until the chunks that are asked for will be there."""


Count = Annotated[int, Between(1, 4096)]
Text = Annotated[str, Longest(500)]
Shape = Annotated[tuple[Annotated[int, Between(1, 2**16)], ...], Longest(4)]


class ActionKind(StrEnum):
    """What one action dimension means, hence what is safe when no fresh action exists."""

    ABSOLUTE = "absolute"
    """A target (joint angle, gripper command): the fallback holds the last one."""
    DELTA = "delta"
    """A displacement per control period: the fallback is zero."""
    VELOCITY = "velocity"
    """A rate: the fallback ramps down to zero."""
    UNKNOWN = "unknown"
    """Nobody said. No control loop runs with it."""


@dataclass(frozen=True)
class BlockInfo:
    """What is known of a block without running it."""

    id: Text
    """`stage.index.branch`, e.g. "action.3.mlp"."""
    additive: bool = True
    """Its output is added to the residual stream, or replaces it."""


@dataclass(frozen=True, kw_only=True)
class ActionRange:
    """What the actions were that a policy learned from: one number a dimension, in the robot's units."""

    low: tuple[float, ...]
    high: tuple[float, ...]
    step: tuple[float, ...]
    """Largest change between two control periods, above 0."""
    bounds_from: str
    """Where low and high are from, in words."""
    step_from: str
    """Where the step is from."""


class Mode(StrEnum):
    """How thinking and acting overlap."""

    SYNC = "sync"
    """Act, then think."""
    ASYNC = "async"
    """Think while acting."""
    RTC = "rtc"
    """Think while acting; each chunk is made to continue the one before (real-time chunking)."""

    @classmethod
    def _missing_(cls, value: object) -> Self:
        raise BadSetting(f"mode={value!r} is unknown; the modes: {', '.join(cls)}")


@dataclass(frozen=True, kw_only=True)
class ChunkExecution:
    """How the loop executes chunks, where it is not as the policy has it."""

    mode: Mode | None = field(default=None, metadata=SELDOM)
    """How thinking and acting overlap; the loop's usual mode when None."""
    n_action_steps: Count | None = None
    """Actions of a chunk that are fresh; the policy's own number when None."""
    request_at: Annotated[int, Between(0, 4096)] | None = None
    """Ask for the next chunk when at most so many are left; as many as the latency takes when None."""

    def __post_init__(self) -> None:
        """One cannot ask before the first is executed."""
        n, at = self.n_action_steps, self.request_at
        if n is not None and at is not None and at > n:
            raise BadSetting(f"request_at={at} of n_action_steps={n}; needed: 0..{n}, or nothing")

    def over(self, other: "ChunkExecution") -> "ChunkExecution":
        """Return what it says, and of what it leaves open what another says, as far as they go together."""
        found = {**other.chosen, **self.chosen}
        if self.request_at is None and "n_action_steps" in found and "request_at" in found:
            found["request_at"] = min(found["request_at"], found["n_action_steps"])
        return ChunkExecution(**found)

    @property
    def chosen(self) -> dict[str, Any]:
        """What it says."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        """In words: "mode rtc, 4 actions executed, the next asked for with 4 left"; else nothing."""
        n, at = self.n_action_steps, self.request_at
        told = [] if self.mode is None else [f"mode {self.mode}"]
        told += [] if n is None else [f"{n} action{'s' if n > 1 else ''} executed"]
        return ", ".join([*told, *([] if at is None else [f"the next asked for with {at} left"])])


@dataclass(frozen=True, kw_only=True)
class PolicySpec:
    """Shapes and meaning of a policy's inputs and outputs."""

    type: Text
    """lerobot's policy type, e.g. "dp_transformer"."""
    action_dim: Count
    horizon: Count
    """Actions predicted at once (H)."""
    n_obs_steps: Annotated[int, Between(1, 64)]
    n_action_steps: Count
    """Actions executed of a chunk before the next one is asked for."""
    mode: Mode | None = field(default=None, metadata=SELDOM)
    """A plan's choice: how thinking and acting overlap, where the user does not say it."""
    request_at: Annotated[int, Between(0, 4096)] | None = field(default=None, metadata=SELDOM)
    """A plan's choice: where the robot does not wait for chunks, the next one is asked for when at most so
    many of these are left; None: as many as the latency takes."""
    observation_shapes: Annotated[Mapping[Text, Shape], Longest(64)]
    """Input key -> shape of one observation, e.g. {"observation.state": (39,)}."""
    action_kinds: Annotated[tuple[ActionKind, ...], Longest(4096)]
    blocks: Annotated[tuple[BlockInfo, ...], Longest(2**16)]
    """Blocks in the order they run; empty for an opaque policy."""
    control_hz: Annotated[float, Between(1e-3, 1e5)] | None = None
    """Control rate of the demonstrations it was trained on [Hz]; None: the checkpoint does not say."""
    action_range: ActionRange | None = None
    """What the actions were that it learned from; None: not known, as of a policy that was not exported."""
    latent_dim: Count | None = field(default=None, metadata=SELDOM)
    """Numbers of an action as it is denoised, where they are more than the robot's; None: they are those."""
    latent_horizon: Count | None = field(default=None, metadata=SELDOM)
    """Actions that are denoised at once, where they are more than a chunk has; None: they are those."""
    is_cut: bool = field(default=False, metadata=SELDOM)
    """Whether a chunk ends before what the policy predicts does: nothing is known of what comes behind it, so
    no chunk can begin with another, or continue it."""
    temporal_ensemble: Annotated[float, Between(-100, 100)] | None = field(default=None, metadata=SELDOM)
    """What is executed is the mean of what all chunks so far mean for it, older ones weighing exp(this) times
    as much as the next newer; None: the newest chunk alone counts."""
    resizes: bool = field(default=False, metadata=SELDOM)
    """Whether pictures may be of any size: the policy brings them to its own. A bundle's may not."""

    def __post_init__(self) -> None:
        """What is denoised holds the action."""
        if self.latent_dim is not None and self.latent_dim < self.action_dim:
            raise BadSetting(
                f"latent_dim={self.latent_dim}, but actions have {self.action_dim} numbers; needed are as "
                "many, or more"
            )
        if self.latent_horizon is not None and self.latent_horizon < self.horizon:
            raise BadSetting(
                f"latent_horizon={self.latent_horizon}, but a chunk has {self.horizon} actions; needed are "
                "as many, or more"
            )

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Shape of what is denoised: actions at once, and numbers of each."""
        return self.latent_horizon or self.horizon, self.latent_dim or self.action_dim

    @property
    def first_action(self) -> int:
        """Index of the predicted action that belongs to the newest observation."""
        return self.n_obs_steps - 1

    @property
    def block_ids(self) -> tuple[str, ...]:
        """Block ids in the order they run."""
        return tuple(block.id for block in self.blocks)


@dataclass(frozen=True)
class Observation:
    """What the robot saw at one control tick."""

    values: Mapping[str, np.ndarray]
    """lerobot keys -> one observation without batch axis; images HWC uint8 in [0, 255]."""
    tick: int
    time_s: float
    task: str = ""


@dataclass(frozen=True)
class Chunk:
    """Actions of one inference; `actions[i]` is meant for tick `tick + i`."""

    actions: np.ndarray
    """(n, A), in the robot's units."""
    tick: int
    """Tick of the observation the chunk was computed from."""
    ready_s: float
    """When it became available [s]."""


def check_actions(actions: Any, policy_type: str) -> None:
    """Raise `NonFiniteActions` if chunks (B, ...), an array or a tensor on the CPU, hold NaN or infinity."""
    values = np.asarray(actions)
    bad = np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))
    if len(bad):
        raise NonFiniteActions(
            f"policy {policy_type!r} gave NaN or infinity in {len(bad)} of {len(values)} chunks, in row "
            f"{bad[0]} first; finite actions are needed; check its plan, sampler and weights: vivace explain"
        )


@dataclass(frozen=True)
class Fingerprint:
    """What a plan was made for."""

    policy_type: str
    config: str
    """Hash of the policy's config."""
    weights: str
    """Hash of every tensor."""
    processors: str
    """Hash of what its processors compute with, the statistics of normalisation among it."""
    blocks: tuple[str, ...]
    former_config: str = field(default="", compare=False, repr=False, metadata=SELDOM)
    """Hash of the config as it was taken when that of how a policy is executed counted; empty in a plan."""

    def differs(self, made_for: "Fingerprint") -> tuple[str, ...]:
        """Names of what differs between this policy and the one that a plan or a bundle was made for."""
        same = {
            "policy_type": made_for.policy_type == self.policy_type,
            "config": made_for.config in (self.config, self.former_config),
            "weights": made_for.weights == self.weights,
            "processors": made_for.processors == self.processors,
            "blocks": made_for.blocks == self.blocks,
        }
        return tuple(name for name, is_same in same.items() if not is_same)

    def __str__(self) -> str:
        span = f"{self.blocks[0]} … {self.blocks[-1]}" if self.blocks else "no blocks"
        marks = f"config {self.config[:8]}, weights {self.weights[:8]}, processors {self.processors[:8]}"
        return f"{self.policy_type!r} ({marks}, {span})"
