"""Meta-World's 50 manipulation tasks as gymnasium environments with lerobot's observation keys.

The world's time passes as the clock says: a control tick is 1 / control_hz seconds of physics. Meta-World's
own step is 5 physics steps of 2.5 ms in which the hand is commanded by up to 1 cm, so its own rate is 80 Hz
and an action of 1 is 0.8 m/s; both hold at every control rate. At 80 Hz this is Meta-World bit for bit, at
20 Hz a tick is four of its steps with the same action.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box, Dict
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.sawyer_xyz_env import SawyerXYZEnv

from vivace.envs.metaworld.camera import CLOSE_UP, Camera, looks
from vivace.envs.metaworld.tasks import task_descriptions
from vivace.envs.registry import nearest
from vivace.policies.errors import BadSetting, UnknownEnvironment
from vivace.policies.spec import IMAGE, ActionKind

STATE_KEY = "observation.state"
IMAGE_KEY = "observation.images."
ONLY_CAMERA = "corner2"
"""The one that "observation.image" is of, as in lerobot's Meta-World."""
STATE_DIM = 39
ACTION_DIM = 4
METAWORLD_HZ = 80.0
"""Rate of Meta-World's own step."""
_FRAMES = 5
"""Physics steps in one of Meta-World's."""
_DISPLACEMENT_M = 0.01
"""What an action of 1 commands in one of Meta-World's steps."""
SPEED_M_S = _DISPLACEMENT_M * METAWORLD_HZ
"""Speed of the commanded hand position at an action of 1, along each axis [m/s]."""

_NOW, _BEFORE = slice(0, 18), slice(18, 36)
"""Parts of the state."""

_MODEL_FIELDS = ("body_pos", "body_quat", "geom_pos", "geom_quat", "site_pos", "site_quat", "site_rgba")
"""Parts of the model that Meta-World's resets write into."""


class Glance(dict[str, np.ndarray]):
    """An observation whose images are rendered when they are first looked at, before the next step."""

    def __init__(self, env: "MetaWorld", values: dict[str, np.ndarray]) -> None:
        super().__init__(values)
        self._env, self._moment = env, env.moment

    def __missing__(self, key: str) -> np.ndarray:
        if key not in self._env.image_shapes:
            raise KeyError(key)
        if self._env.moment != self._moment:
            raise BadSetting(
                f"{key!r} was looked at after the world had moved on; make it without lazy_images"
            )
        self[key] = self._env.look(key)
        return self[key]


class MetaWorld(gymnasium.Env[Any, np.ndarray]):
    """One Meta-World task; an episode is a function of its reset seed and its actions, bit for bit.

    Observation: "observation.state", float32 (39,): hand xyz [m], gripper opening in [0, 1], object
    positions [m] and quaternions (14, zero-padded), the same 18 numbers one tick earlier, goal xyz [m];
    with `image_size` also "observation.images.<camera>", HWC uint8.
    Action: float32 (4,) in [-1, 1]: hand displacement in a tick (1 is 0.8 m/s) and gripper command.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": METAWORLD_HZ}
    physics_hz: ClassVar[float] = _FRAMES * METAWORLD_HZ
    """Rate of the physics' own steps [Hz]."""
    own_hz: ClassVar[float] = METAWORLD_HZ
    """Control rate when none is asked for [Hz]."""
    episode_s: ClassVar[float] = 3.75
    """Length of an episode when none is asked for [s]."""
    base_task: ClassVar[str] = ""
    """Meta-World task whose world a derived environment uses; empty: the task asked for."""
    instruction: ClassVar[str] = ""
    """Text for language-conditioned policies; empty: lerobot's text for the task."""
    shows_goal: ClassVar[bool] = True
    """Whether Meta-World's goal marks are drawn in the observation images."""
    action_names: ClassVar[tuple[str, ...]] = ("x", "y", "z", "gripper")
    action_kinds: ClassVar[tuple[ActionKind, ...]] = (ActionKind.DELTA,) * 3 + (ActionKind.ABSOLUTE,)

    def __init__(
        self,
        task: str,
        *,
        image_size: int = 0,
        cameras: tuple[str, ...] = (ONLY_CAMERA,),
        image_sizes: Mapping[str, tuple[int, int]] | None = None,
        control_hz: float | None = None,
        max_episode_steps: int | None = None,
        terminate_on_success: bool = False,
        render_size: int = 320,
        lazy_images: bool = False,
    ) -> None:
        """Load the world of a task.

        Args:
            task: Meta-World's name, e.g. "push-v3".
            image_size: edge of the square observation images [px]; 0 leaves images out.
            cameras: cameras of the observation images.
            image_sizes: instead of both, key -> (height, width) [px] of each observation image.
            control_hz: control rate [Hz], at most the physics' own; the task's own when None.
            max_episode_steps: ticks after which an episode is truncated; `episode_s` of them when None.
            terminate_on_success: whether success ends the episode.
            render_size: edge of the square frames that `render` returns [px].
            lazy_images: render an observation's images only when they are looked at, which must be before
                the next step; a policy that sees one tick in eight then renders one in eight.

        Raises:
            UnknownEnvironment: Meta-World has no such task, or the task no such camera.
            BadSetting: the control rate is not in the physics' range, `max_episode_steps` below 1, or a size
                negative.
        """
        self.control_hz = self.own_hz if control_hz is None else float(control_hz)
        _check_settings(self, max_episode_steps, image_size, render_size)
        self.task = task
        self.terminate_on_success = terminate_on_success
        self.render_mode = "rgb_array"
        self._world = _load_world(self.base_task or task)
        model = self._world.model
        self.max_episode_steps = max_episode_steps or max(1, round(self.episode_s * self.control_hz))
        self.task_description = self.instruction or task_descriptions()[task]
        self._pristine = {name: getattr(model, name).copy() for name in _MODEL_FIELDS}
        if image_sizes is None:
            image_sizes = {IMAGE_KEY + name: (image_size, image_size) for name in cameras if image_size}
        else:
            cameras = tuple(map(_camera, image_sizes)) or cameras
        _check_cameras(model, cameras)
        alike = looks(model) if image_sizes else b""  # 20 ms, which many worlds have no use for
        self._eyes = {size: Camera(model, *size, alike, self.shows_goal) for size in {*image_sizes.values()}}
        """(height, width) -> what draws images of that size."""
        self._film = Camera(model, render_size, render_size, alike)
        self._ticks = 0
        self._before: np.ndarray = np.zeros(_NOW.stop)
        self._lazy_images = lazy_images
        self.moment = 0
        """Counts resets and steps: tells one state of the world from another."""
        self.image_shapes = {key: (*size, 3) for key, size in image_sizes.items()}
        """Key -> HWC shape of the images in an observation."""
        spaces = {key: Box(0, 255, shape, np.uint8) for key, shape in self.image_shapes.items()}
        self.observation_space = Dict({STATE_KEY: Box(-np.inf, np.inf, (STATE_DIM,), np.float32), **spaces})
        self.action_space = Box(-1.0, 1.0, (ACTION_DIM,), np.float32)

    @property
    def ticks(self) -> int:
        """Ticks of this episode that are over."""
        return self._ticks

    @property
    def time_s(self) -> float:
        """How long this episode has run, by the physics [s]."""
        return self._frames / self.physics_hz

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin the episode that `seed` determines; without a seed the next one of this environment."""
        super().reset(seed=seed)
        episode_seed = seed if seed is not None else int(self.np_random.integers(2**31))
        world = self._world
        for name, value in self._pristine.items():
            getattr(world.model, name)[:] = value
        # Twice with one random vector, as Meta-World's frozen tasks do: many tasks read, while they place
        # their objects, positions that only the first pass brings up to date.
        world._freeze_rand_vec = False
        self._pace(_FRAMES)  # resets step too, and the last tick may have been a shorter one
        MujocoEnv.reset(world, seed=episode_seed)
        world._freeze_rand_vec = True
        MujocoEnv.reset(world)
        self._ticks = self._frames = 0
        self._begin(np.random.default_rng([episode_seed, 1]))
        state = world._get_obs()
        self._before = state[_NOW].copy()
        return self._observation(state), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Advance the world by one control tick; `info["is_success"]` tells whether the task is done now."""
        command = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        self._ticks += 1
        end = round(self._ticks / self.control_hz * self.physics_hz)
        while self._frames < end:
            state, reward, info = self._advance(command, min(_FRAMES, end - self._frames))
        is_success = self._judge(bool(info["success"]))
        info = {**info, "is_success": is_success}
        terminated = is_success and self.terminate_on_success
        truncated = self._ticks >= self.max_episode_steps
        return self._observation(state), reward, terminated, truncated, info

    def _advance(self, command: np.ndarray, frames: int) -> tuple[np.ndarray, float, dict[str, Any]]:
        """Run up to one of Meta-World's steps, with its share of the displacement."""
        world, began_s = self._world, self.time_s
        self._frames += frames
        self._disturb(began_s, self.time_s)
        self._pace(frames)
        world.curr_path_length = 0  # Meta-World would end the episode by its own count
        state, reward, _, _, info = world.step(command)
        return state, float(reward), info

    def _pace(self, frames: int) -> None:
        """Let Meta-World's next step run so many physics steps, with their share of the displacement."""
        self._world.frame_skip, self._world.action_scale = frames, _DISPLACEMENT_M * frames / _FRAMES

    def render(self) -> np.ndarray:
        """Return a frame for a video, a view of the table from nearby, HWC RGB uint8."""
        return self._film.image(self._world.data, CLOSE_UP)

    def _begin(self, random: np.random.Generator) -> None:
        """Draw what happens in this episode; called once the world is reset."""

    def _disturb(self, began_s: float, ends_s: float) -> None:
        """Move the world before it runs from one time of the episode [s] to another, whatever the action."""

    def _judge(self, is_success: bool) -> bool:
        """Turn Meta-World's success at the end of this tick into this environment's."""
        return is_success

    def _show(self, state: np.ndarray) -> np.ndarray:
        """Turn Meta-World's state into this environment's, (39,)."""
        return state

    def _observation(self, state: np.ndarray) -> dict[str, np.ndarray]:
        self.moment += 1
        state[_BEFORE], self._before = self._before, state[_NOW].copy()
        values = {STATE_KEY: self._show(state).astype(np.float32)}
        if self._lazy_images:
            return Glance(self, values)
        return values | {key: self.look(key) for key in self.image_shapes}

    def look(self, key: str) -> np.ndarray:
        """Render one of the observation's images now, HWC uint8."""
        if key not in self.image_shapes:
            raise BadSetting(f"this environment was made without {key!r}")
        return self._eyes[self.image_shapes[key][:2]].image(self._world.data, _camera(key))

    @property
    def scene(self) -> tuple[Any, Any]:
        """MuJoCo's (model, data), for a window."""
        return self._world.model, self._world.data


def _check_settings(env: MetaWorld, max_episode_steps: int | None, image_size: int, render_size: int) -> None:
    if not 0 < env.control_hz <= env.physics_hz:
        raise BadSetting(
            f"control_hz is {env.control_hz}, but the physics runs at {env.physics_hz:g} Hz; choose a rate "
            f"above 0 and at most that (the task's own is {env.own_hz:g} Hz)"
        )
    if max_episode_steps is not None and max_episode_steps < 1:
        raise BadSetting(f"max_episode_steps is {max_episode_steps}; at least 1 is needed")
    if image_size < 0 or render_size < 1:
        raise BadSetting(
            f"image_size is {image_size} and render_size {render_size} px; give image_size >= 0 and "
            "render_size >= 1"
        )


def _load_world(task: str) -> SawyerXYZEnv:
    """Load a Meta-World task with a visible goal, randomised by its own seeded generator."""
    if task not in ALL_V3_ENVIRONMENTS:
        raise UnknownEnvironment(
            f"Meta-World has no task {task!r}; the nearest of its {len(ALL_V3_ENVIRONMENTS)} tasks: "
            f"{', '.join(nearest(task, tuple(ALL_V3_ENVIRONMENTS)))}"
        )
    world = ALL_V3_ENVIRONMENTS[task]()
    world._partially_observable = False
    world.__dict__.pop("sawyer_observation_space", None)  # cached with the goal hidden, clips the state
    world.seeded_rand_vec = True
    world._set_task_called = True
    return world


def _camera(key: str) -> str:
    """Name of the camera that an observation image is of."""
    return ONLY_CAMERA if key == IMAGE else key.removeprefix(IMAGE_KEY)


def _check_cameras(model: mujoco.MjModel, cameras: Sequence[str]) -> None:
    known = [*(model.camera(i).name for i in range(model.ncam)), CLOSE_UP]
    for camera in cameras:
        if camera not in known:
            raise UnknownEnvironment(f"this task has no camera {camera!r}; its cameras: {', '.join(known)}")
    if not cameras:
        raise BadSetting(f"cameras is empty; name at least one of {', '.join(known)}")
