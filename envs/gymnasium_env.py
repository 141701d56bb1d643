"""Any gymnasium environment as a world: `--env.type=gym --env.id=… --env.keys=…`."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import gymnasium
import numpy as np

from vivace.envs.protocol import TaskInfo
from vivace.policies.arrays import is_image
from vivace.policies.errors import BadSetting, UnknownEnvironment
from vivace.policies.spec import ENVIRONMENT, IMAGE, IMAGES, STATE, ActionKind, PolicySpec

Read = Callable[[Any], dict[str, np.ndarray]]
Write = Callable[[np.ndarray], np.ndarray]
_USUAL = {"pixels": IMAGE, "agent_pos": STATE, "environment_state": ENVIRONMENT}
"""Names that gymnasium environments made for lerobot use -> its keys."""


@dataclass(kw_only=True)
class ScoreOptions:
    """What gymnasium does not say of an environment."""

    score: str = ""
    """Key of info that says how well it goes, more is better, or reward; an episode's best counts."""
    initial_action: list[float] = field(default_factory=list)
    """What to hold before the first action where actions are absolute; the state, if it is as long."""


@dataclass(kw_only=True)
class GymOptions(ScoreOptions):
    """Which environment, and what its observations are called."""

    id: str = ""
    """As of gymnasium.make, e.g. gym_pusht/PushT-v0; package:name imports the package first."""
    keys: dict[str, str] = field(default_factory=dict)
    """Its keys -> lerobot's, e.g. '{pixels: observation.image, agent_pos: observation.state}'; nested ones
    with dots, "" for an observation that is one array; several may go to one, in that order."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """For gymnasium.make."""
    success_key: str = "is_success"
    """Key of info that says whether the task is done; nested ones with dots."""


class GymnasiumWorld:
    """One gymnasium environment in lerobot's keys: a `World`.

    Args:
        env: a single environment, not a vector of them.
        read: makes lerobot's keys of its observation.
        write: makes its action of one (A,) in the policy's units.
        control_hz: rate of its steps [Hz].
        max_episode_steps: steps after which an episode is truncated; None if it has no end.
        success_key: of info.
        score: of info, or reward; none when empty.
        start: returns what is held before the first action, of the first observation.
    """

    def __init__(
        self,
        env: Any,
        read: Read,
        write: Write,
        *,
        control_hz: float,
        max_episode_steps: int | None,
        success_key: str = "is_success",
        score: str = "",
        start: Callable[[Mapping[str, np.ndarray]], tuple[float, ...] | None] = lambda values: None,
    ) -> None:
        self.env, self.control_hz, self.max_episode_steps = env, control_hz, max_episode_steps
        self.initial_action: tuple[float, ...] | None = None
        """What is held before the first action of this episode (A,)."""
        self._read, self._write, self._start = read, write, start
        self._success_key, self._score = success_key, score
        self._ticks = 0

    def reset(self, *, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin the episode that a seed decides."""
        seen, info = self.env.reset(seed=seed)
        values = self._read(seen)
        self._ticks, self.initial_action = 0, self._start(values)
        return values, info

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Advance by one control period.

        Raises:
            UnknownEnvironment: info lacks the score that was asked for.
        """
        seen, reward, terminated, truncated, info = self.env.step(self._write(action))
        self._ticks += 1
        is_cut = self.max_episode_steps is not None and self._ticks >= self.max_episode_steps
        told = {"is_success": found} if (found := dotted(info, self._success_key)) is not None else {}
        if self._score:
            told["score"] = reward if self._score == "reward" else self._scored(info)
        return self._read(seen), float(reward), bool(terminated), bool(truncated or is_cut), {**info, **told}

    def render(self) -> np.ndarray:
        """Return a frame, HWC uint8; raises `RuntimeError` where the environment draws none."""
        frame = self.env.render()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3:
            raise RuntimeError(f"the environment draws no frames but {type(frame).__name__}")
        return np.ascontiguousarray(frame, dtype=np.uint8)

    def close(self) -> None:
        """Free what it holds."""
        self.env.close()

    def _scored(self, info: Mapping[str, Any]) -> float:
        found = dotted(info, self._score)
        if found is None:
            raise UnknownEnvironment(
                f"info has no {self._score!r} to score by, but {', '.join(map(str, info)) or 'nothing'}; "
                "give another --env.score, such as reward"
            )
        return float(found)


class GymWorlds:
    """The type "gym": a `WorldType` of every environment that gymnasium can make."""

    Options = GymOptions
    is_open = True

    def __init__(self) -> None:
        self._known: dict[str, TaskInfo] = {}

    def task_names(self) -> tuple[str, ...]:
        """It names none: what is made is its id."""
        return ()

    def own_task(self, **options: Any) -> str:
        """Return the id: the only name there is."""
        return GymOptions(**options).id

    def describe(self, task: str, **options: Any) -> TaskInfo:
        """Make the environment once and return what it says of itself."""
        key = repr(options)
        if key not in self._known:
            asked = GymOptions(**options)
            env = _made(asked)
            try:
                self._known[key] = TaskInfo(
                    control_hz=own_rate(env)[0],
                    action_dim=action_dim(env),
                    observations=tuple((asked.keys or usual_keys(env.observation_space)).values()),
                )
            finally:
                env.close()
        return self._known[key]

    def make(
        self,
        task: str,
        *,
        control_hz: float | None = None,
        spec: PolicySpec | None = None,
        max_steps: int | None = None,
        **options: Any,
    ) -> GymnasiumWorld:
        """Make it, its observations named as `keys` says.

        Raises:
            BadSetting: it cannot be made, its rate is another or not known, its actions are no real numbers,
                or the policy needs an observation that has no name.
        """
        asked = GymOptions(**options)
        env = _made(asked, {} if max_steps is None else {"max_episode_steps": max_steps})
        try:
            action_dim(env)
            keys = asked.keys or usual_keys(env.observation_space)
            _check_keys(env.observation_space, keys, spec)
            return GymnasiumWorld(
                env,
                reader(keys),
                lambda action: np.asarray(action, env.action_space.dtype),
                control_hz=_rate(env, control_hz),
                max_episode_steps=getattr(env.spec, "max_episode_steps", None),
                success_key=asked.success_key,
                score=asked.score,
                start=starter(spec, asked.initial_action),
            )
        except BaseException:
            env.close()
            raise


GYM = GymWorlds()


def dotted(values: Mapping[str, Any], key: str) -> Any:
    """Return what is under a key, of nested mappings one with dots; None if nothing is."""
    found: Any = values
    for name in [key] if key in values else key.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return None
        found = found[name]
    return found


def leaves(space: gymnasium.Space[Any], before: str = "") -> Iterator[tuple[str, gymnasium.Space[Any]]]:
    """Name, nested ones with dots, and space of every array in an observation; "" of one that is an array."""
    if isinstance(space, gymnasium.spaces.Dict):
        for name, inner in space.spaces.items():
            yield from leaves(inner, f"{before}.{name}" if before else str(name))
    else:
        yield before, space


def usual_keys(space: gymnasium.Space[Any]) -> dict[str, str]:
    """Return lerobot's keys of the observations whose names, or shapes where there is but one, say it."""
    found: dict[str, str] = {}
    for name, inner in leaves(space):
        shape = inner.shape or ()
        if not name:
            found[name] = IMAGE if len(shape) == 3 else STATE
        elif name.startswith("observation."):
            found[name] = name
        elif name in _USUAL:
            found[name] = _USUAL[name]
        elif name.startswith("pixels."):
            found[name] = IMAGES + name.removeprefix("pixels.")
    return found


def reader(keys: Mapping[str, str]) -> Read:
    """Return what makes lerobot's keys of an observation; what goes to one key is joined in order."""
    sources: dict[str, list[str]] = {}
    for name, key in keys.items():
        sources.setdefault(key, []).append(name)

    def read(seen: Any) -> dict[str, np.ndarray]:
        found = {}
        for key, names in sources.items():
            parts = [np.asarray(seen if not name else dotted(seen, name)) for name in names]
            if is_image(key):
                found[key] = parts[0]
            else:
                found[key] = np.concatenate([np.ravel(part) for part in parts]).astype(np.float32)
        return found

    return read


def starter(
    spec: PolicySpec | None, given: Sequence[float]
) -> Callable[[Mapping[str, np.ndarray]], tuple[float, ...] | None]:
    """Return what says what is held before the first action, of the first observation.

    As given; else nothing moves if zeros are held, or absolute targets are where the state says the robot is.
    """

    def start(values: Mapping[str, np.ndarray]) -> tuple[float, ...] | None:
        if spec is None:
            return tuple(given) or None
        if given:
            if len(given) != spec.action_dim:
                raise BadSetting(
                    f"--env.initial_action has {len(given)} numbers; {spec.action_dim} are needed, as many "
                    "as an action has"
                )
            return tuple(given)
        if ActionKind.ABSOLUTE not in spec.action_kinds:
            return None
        state = values.get(STATE)
        if state is None or state.shape != (spec.action_dim,):
            raise BadSetting(
                "nobody says what to hold before the first action, and zeros would be a target far away: "
                f"give --env.initial_action='[…]', {spec.action_dim} numbers"
            )
        kinds = zip(state.tolist(), spec.action_kinds, strict=True)
        return tuple(value if kind == ActionKind.ABSOLUTE else 0.0 for value, kind in kinds)

    return start


def action_dim(env: Any) -> int:
    """Return how many numbers an action has; raises `BadSetting` where it is not a row of real numbers."""
    space = env.action_space
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise BadSetting(
            f"the environment's actions are {space}; policies here give real numbers, Box of shape (n,): "
            "wrap the environment, or take another"
        )
    return int(space.shape[0])


def own_rate(env: Any) -> tuple[float | None, bool]:
    """Return the rate of an environment's steps [Hz] as it says, None if it does not, and whether it is sure.

    A `dt` may be that of the physics' steps, and how fast a film is to be played (render_fps) is but a hint:
    they are sure where they agree, as in gymnasium's own, and nothing where they do not.
    """
    inner = env.unwrapped
    for name in ("control_hz", "control_freq"):
        if isinstance(value := getattr(inner, name, None), (int, float)) and value > 0:
            return float(value), True
    fps = (getattr(inner, "metadata", None) or {}).get("render_fps")
    dt = getattr(inner, "dt", None)
    if not isinstance(dt, (int, float)) or dt <= 0:
        return (float(fps) if fps else None), False
    return (round(1.0 / dt, 6), True) if fps and round(1.0 / dt) == round(fps) else (None, False)


def _rate(env: Any, asked_hz: float | None) -> float:
    own_hz, is_sure = own_rate(env)
    rate = own_hz if asked_hz is None else asked_hz
    if rate is None:
        raise BadSetting(
            "the environment does not say how long a step is, or its dt and render_fps differ; give "
            "--env.control_hz"
        )
    if is_sure and rate != own_hz:
        raise BadSetting(
            f"control_hz={rate:g}, but a step of this environment is 1/{own_hz:g} s; run it at "
            f"--env.control_hz={own_hz:g}"
        )
    return float(rate)


def _check_keys(space: gymnasium.Space[Any], keys: Mapping[str, str], spec: PolicySpec | None) -> None:
    """Refuse names that the environment lacks, and a policy's observations that nothing is named for."""
    known = dict(leaves(space))
    has = ", ".join(f"{name or repr(name)} {inner.shape}" for name, inner in known.items())
    if wrong := [name for name in keys if name not in known]:
        raise BadSetting(f"--env.keys names {wrong[0]!r}, but the environment's observations are {has}")
    missing = [] if spec is None else [key for key in spec.observation_shapes if key not in keys.values()]
    if missing:
        raise BadSetting(
            f"the policy needs {missing[0]!r}, and nothing is named so; the environment's observations are "
            f"{has}: name them by --env.keys='{{…: {missing[0]}}}'"
        )


def _made(asked: GymOptions, more: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """Make the environment, with frames for a film where it draws any."""
    if not asked.id:
        raise BadSetting("--env.type=gym needs --env.id, as of gymnasium.make, e.g. gym_pusht/PushT-v0")
    try:
        try:
            return _imported(asked.id, {"render_mode": "rgb_array", **more, **asked.kwargs})
        except TypeError:  # it takes no render_mode, or kwargs are wrong: then this fails too
            return _imported(asked.id, {**more, **asked.kwargs})
    except (gymnasium.error.Error, ImportError, TypeError, ValueError, AttributeError) as error:
        raise BadSetting(
            f"gymnasium cannot make {asked.id!r} ({type(error).__name__}: {error}); install its package, or "
            "name it: --env.id=package:name"
        ) from error


def _imported(name: str, kwargs: Mapping[str, Any]) -> Any:
    """Make one; an environment of a package that is not imported yet is looked for in that of its name."""
    if ":" not in name and name not in gymnasium.registry and "/" in name:
        name = f"{name.partition('/')[0]}:{name}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of simulators' own imports
        return gymnasium.make(name, disable_env_checker=True, **kwargs)
