"""lerobot's own environments as worlds: `--env.type=pusht` and the like, as its users type them.

The environment, what is made of its observations and of actions, and the options are lerobot's own:
`EnvConfig`, `make_env`, `preprocess_observation` and the environment's processors. Every field of its
`EnvConfig` is a flag.
"""

import io
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field, fields, make_dataclass
from functools import cache, partial
from typing import Any, get_type_hints

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.envs import make_env, make_env_pre_post_processors, preprocess_observation
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import env_to_policy_features
from lerobot.utils.constants import ACTION

from vivace.envs.gymnasium_env import GymnasiumWorld, ScoreOptions, action_dim, leaves, own_rate, starter
from vivace.envs.protocol import TaskInfo
from vivace.policies.arrays import is_image
from vivace.policies.errors import BadSetting, UnknownEnvironment
from vivace.policies.plugins import register_plugins
from vivace.policies.spec import STATE, ActionKind, PolicySpec

_OURS = {"metaworld": "lerobot_metaworld"}
"""lerobot's type that is named as one of ours -> its name here."""
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
_NO_WORLDS = ("gym_manipulator",)
"""A real robot: `vivace run --robot.type=lerobot`."""
_NO_FLAGS = ("task", "features", "features_map", "max_parallel_tasks", "disable_env_checker")
"""Fields of an `EnvConfig` that are no options of a world; the task is `--env.task`."""
_TASKS = {"metaworld": "push-v3"}
"""Type -> its task when none is asked for, where lerobot's own does not exist."""
_INSTALL = {
    "pusht": "lerobot[pusht]==0.6.1",
    "aloha": "lerobot[aloha]==0.6.1",
    "libero": "lerobot[libero]==0.6.1",
    "metaworld": "lerobot[metaworld]==0.6.1",
}
"""Type -> what pip installs for it; lerobot's documentation tells of the others."""


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What lerobot does not say of an environment."""

    kinds: tuple[ActionKind, ...]
    score: str = ""
    start: tuple[float, ...] = ()
    """What to hold before the first action; the state, if kinds are absolute and this is empty."""


_DELTA, _ABSOLUTE = (ActionKind.DELTA,), (ActionKind.ABSOLUTE,)
_KNOWN = {
    "pusht": _Known(kinds=_ABSOLUTE * 2, score="coverage"),
    "aloha": _Known(kinds=_ABSOLUTE * 14, score="reward"),
    "metaworld": _Known(kinds=_DELTA * 3 + _ABSOLUTE, start=(0.0,) * 4),
    "libero": _Known(kinds=_DELTA * 6 + _ABSOLUTE, start=(0.0,) * 6 + (-1.0,)),
    "libero_plus": _Known(kinds=_DELTA * 6 + _ABSOLUTE, start=(0.0,) * 6 + (-1.0,)),
}
"""By type, in the control mode that is lerobot's default."""


class LerobotWorld(GymnasiumWorld):
    """A `World` that lerobot made; where it has initial states in a list, the seed picks one."""

    def reset(self, *, seed: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin the episode that a seed decides, its place in a list of initial states too."""
        if hasattr(self.env.unwrapped, "init_state_id"):  # LIBERO's, counted up by resets
            self.env.unwrapped.init_state_id = seed
        return super().reset(seed=seed)


class LerobotWorlds:
    """A `WorldType` of one of lerobot's types."""

    is_open = True

    def __init__(self, env_type: str) -> None:
        self.env_type = env_type
        self._type = _THEIRS.get(env_type, env_type)
        self._config: Any = EnvConfig.get_choice_class(self._type)
        self._infos: dict[str, TaskInfo] = {}

    @property
    def Options(self) -> type:  # noqa: N802  a class, as of any `WorldType`
        """The fields of its `EnvConfig`, and what lerobot does not say."""
        return _options(self._config, _KNOWN.get(self._type))

    def task_names(self) -> tuple[str, ...]:
        """Return lerobot's default; it lists no others."""
        default = _TASKS.get(self._type, _default(self._config, "task"))
        return (default,) if isinstance(default, str) else ()

    def describe(self, task: str, **options: Any) -> TaskInfo:
        """Make the environment once and return what it says of itself."""
        key = repr((task, options))
        if key not in self._infos:
            config, _ = self._configured(task, options)
            env = self._single(config)
            try:
                known = self._known(config)
                self._infos[key] = TaskInfo(
                    control_hz=_rate(self.env_type, config, env, None),
                    action_kinds=known.kinds if known else (),
                    action_dim=action_dim(env),
                    instruction=_instruction(env),
                    observations=tuple(env_to_policy_features(config)),
                )
            finally:
                env.close()
        return self._infos[key]

    def make(
        self,
        task: str,
        *,
        control_hz: float | None = None,
        spec: PolicySpec | None = None,
        max_steps: int | None = None,
        **options: Any,
    ) -> LerobotWorld:
        """Make the environment as lerobot does, and check that it is what was asked for.

        Raises:
            BadSetting: a package is missing, lerobot refuses, an option has no effect, or it steps at
                another rate.
            UnknownEnvironment: the policy was trained in another world.
        """
        config, own = self._configured(task, options)
        if control_hz is not None and config.fps != control_hz and float(control_hz).is_integer():
            config.fps = int(control_hz)  # where lerobot passes it on; else it is refused
        _check_state(self.env_type, spec)
        env = self._single(config)
        try:
            _check_sizes(self.env_type, config, env.observation_space)
            read, write = _processors(config, spec, _instruction(env))
            known = self._known(config)
            return LerobotWorld(
                env,
                read,
                write,
                control_hz=_rate(self.env_type, config, env, control_hz),
                max_episode_steps=max_steps or _longest(self.env_type, config, env),
                score=own.score,
                start=starter(spec, own.initial_action or (known.start if known else ())),
            )
        except BaseException:
            env.close()
            raise

    def _known(self, config: Any) -> _Known | None:
        is_usual = getattr(config, "control_mode", None) == getattr(self._config, "control_mode", None)
        return _KNOWN.get(self._type) if is_usual else None

    def _configured(self, task: str, options: Mapping[str, Any]) -> tuple[Any, Any]:
        """Lerobot's config, and what it does not say."""
        names = {f.name for f in fields(ScoreOptions)}
        try:
            own = self.Options(**options)
            given = {name: value for name, value in vars(own).items() if name not in names}
            return self._config(task=task, **given), own
        except (ValueError, TypeError) as error:
            raise BadSetting(f"lerobot's {self.env_type} cannot be made so: {error}") from error

    def _single(self, config: Any) -> Any:
        """Make one environment; lerobot prints what it makes, and stdout is for results."""
        try:
            with redirect_stdout(printed := io.StringIO()), _unanswered(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of simulators' own imports
                made = make_env(config, n_envs=1, use_async_envs=False)
        except ImportError as error:
            package = f"pip install '{_INSTALL[self._type]}'" if self._type in _INSTALL else "see its pages"
            raise BadSetting(
                f"environment type {self.env_type!r} is lerobot's and needs a package that is missing "
                f"({error}): {package}; envs/README.md says what goes together"
            ) from error
        except EOFError as error:
            question = " ".join(printed.getvalue().split())
            raise BadSetting(
                f"environment type {self.env_type!r} asks a question first: {question or error}; answer it "
                "where it can be seen, by importing its package in Python, or set the package up beforehand "
                "(LIBERO: LIBERO_CONFIG_PATH, see envs/README.md)"
            ) from error
        except Exception as error:  # whatever a simulator raises of a name it does not know
            raise BadSetting(
                f"lerobot cannot make {self.env_type!r} with task {config.task!r} "
                f"({type(error).__name__}: {error}); give another --env.task or other options"
            ) from error
        found = [vector for tasks in made.values() for vector in tasks.values()]
        if len(found) != 1:
            for vector in found:
                vector.close()
            raise BadSetting(
                f"{config.task!r} is {len(found)} tasks of lerobot's {self.env_type}; choose one, e.g. "
                "--env.task_ids='[0]'"
            )
        return found[0].envs[0]


def lerobot_names() -> tuple[str, ...]:
    """Return the types, also those of lerobot_env_* packages; one named as ours has lerobot_ before it."""
    register_plugins()
    return tuple(_OURS.get(name, name) for name in EnvConfig.get_known_choices() if name not in _NO_WORLDS)


@cache
def lerobot_world(env_type: str) -> LerobotWorlds:
    """Return one of lerobot's types."""
    return LerobotWorlds(env_type)


@contextmanager
def _unanswered() -> Iterator[None]:
    """Meanwhile whoever asks for input gets `EOFError`: the question is not seen, so nobody would answer."""
    asked, sys.stdin = sys.stdin, io.StringIO()
    try:
        yield
    finally:
        sys.stdin = asked


def _options(config: Any, known: _Known | None) -> type:
    """A dataclass of the fields that are flags, each with lerobot's type and default."""
    types = get_type_hints(config)
    flags: list[tuple[str, Any, Any]] = [
        (f.name, types[f.name], field(default=f.default, default_factory=f.default_factory))
        for f in fields(config)
        if f.init and f.name not in _NO_FLAGS
    ]
    flags.append(("score", str, field(default=known.score if known else "")))
    return make_dataclass(f"{config.__name__}Options", flags, bases=(ScoreOptions,), kw_only=True)


def _processors(
    config: Any, spec: PolicySpec | None, instruction: str
) -> tuple[Callable[[Any], dict[str, np.ndarray]], Callable[[np.ndarray], np.ndarray]]:
    """What lerobot makes of an observation and of an action, as numpy arrays.

    Raises:
        BadSetting: lerobot has processors of its own for this type of policy, which make of pictures what is
            none any more: here a world gives pictures, and the policy's own processors do the rest.
    """
    before, after = config.get_env_processors()
    policy_type = "" if spec is None else spec.type
    policy = PreTrainedConfig.get_known_choices().get(policy_type)
    if policy is not None:
        # lerobot picks them by the class of the policy's config, and reads nothing in it
        theirs = make_env_pre_post_processors(config, policy.__new__(policy))
        steps = [type(step).__name__ for pipeline in theirs for step in pipeline.steps]
        if steps != [type(step).__name__ for pipeline in (before, after) for step in pipeline.steps]:
            raise BadSetting(
                f"lerobot evaluates policies of type {policy_type!r} with processors of their own "
                f"({', '.join(steps)}), which a world here does not have; evaluate it with lerobot-eval"
            )
    return partial(_read, before, instruction), partial(_write, after)


def _read(before: Callable[..., Any], instruction: str, seen: Any) -> dict[str, np.ndarray]:
    if not isinstance(seen, Mapping):
        raise BadSetting(
            "lerobot reads observations by name, and with this obs_type there is but an array; take another "
            "--env.obs_type, such as pixels_agent_pos"
        )
    ready = before(preprocess_observation(_batch_of_one(seen)) | {"task": [instruction]})
    return {
        key: _picture(value[0]) if is_image(key) else value[0].numpy()
        for key, value in ready.items()
        if key.startswith("observation.") and isinstance(value, torch.Tensor)
    }


def _write(after: Callable[..., Any], action: np.ndarray) -> np.ndarray:
    told = torch.from_numpy(np.ascontiguousarray(action, np.float32))[None]
    found: np.ndarray = after({ACTION: told})[ACTION][0].numpy()
    return found


def _batch_of_one(seen: Any) -> Any:
    """An observation as a vector of one environment gives it."""
    if isinstance(seen, Mapping):
        return {key: _batch_of_one(value) for key, value in seen.items()}
    return np.ascontiguousarray(seen)[None]


def _picture(image: torch.Tensor) -> np.ndarray:
    """HWC uint8 of a picture that lerobot made CHW in [0, 1]; exact, for it divided by 255."""
    pixels = image.mul(255.0).round_().to(torch.uint8).permute(1, 2, 0)
    return np.ascontiguousarray(pixels.numpy())


def _instruction(env: Any) -> str:
    """What the environment asks for in words, as lerobot's evaluation reads it."""
    for name in ("task_description", "task"):
        try:
            return str(env.get_wrapper_attr(name))
        except AttributeError:
            continue
    return ""


def _default(config: Any, name: str) -> Any:
    """Lerobot's own value of an option, None if there is no such option."""
    return next((f.default for f in fields(config) if f.name == name), None)


def _is_set(config: Any, name: str) -> bool:
    """Whether an option has another value than lerobot's own."""
    default = _default(config, name)
    return getattr(config, name, default) != default


def _rate(env_type: str, config: Any, env: Any, asked_hz: float | None) -> float:
    """Rate of its steps [Hz]: what the environment says, else lerobot's fps, which has no effect in some."""
    own_hz, is_sure = own_rate(env)
    if not is_sure or own_hz is None:
        own_hz = float(_default(config, "fps"))
    wanted = config.fps if asked_hz is None and _is_set(config, "fps") else asked_hz
    if wanted not in (None, own_hz):
        raise BadSetting(
            f"{wanted:g} Hz were asked for, but a step of lerobot's {env_type} is 1/{own_hz:g} s of its "
            f"physics; run it at --env.control_hz={own_hz:g}"
        )
    return own_hz


def _longest(env_type: str, config: Any, env: Any) -> int | None:
    """Steps after which lerobot ends an episode; an option that it does not pass on is refused."""
    longest: int | None = None
    for find in (lambda: env.get_wrapper_attr("_max_episode_steps"), lambda: env.spec.max_episode_steps):
        try:
            longest = longest or find()
        except AttributeError:
            continue
    asked = getattr(config, "episode_length", None)
    if _is_set(config, "episode_length") and asked != longest:
        raise BadSetting(
            f"lerobot's {env_type} ends after {longest} steps whatever episode_length says; give "
            "--env.max_steps"
        )
    return longest


def _check_sizes(env_type: str, config: Any, space: Any) -> None:
    """Refuse a size of pictures that was asked for and that lerobot does not pass on."""
    for name, at in (("observation_height", 0), ("observation_width", 1)):
        if not _is_set(config, name):
            continue
        shapes = [inner.shape or () for _, inner in leaves(space)]
        found = {shape[at] for shape in shapes if len(shape) == 3}
        if found != {getattr(config, name)}:
            raise BadSetting(
                f"lerobot's {env_type} gives pictures of {', '.join(map(str, sorted(found)))} px whatever "
                f"{name} says; leave it out"
            )


def _check_state(env_type: str, spec: PolicySpec | None) -> None:
    """Refuse a policy of our Meta-World in lerobot's: another state, and another picture."""
    wanted = None if spec is None else spec.observation_shapes.get(STATE)
    if env_type == "lerobot_metaworld" and wanted == (39,):
        raise UnknownEnvironment(
            "the policy feels 39 numbers, those of --env.type=metaworld; lerobot's Meta-World gives 4, and "
            "another picture: evaluate it there"
        )
