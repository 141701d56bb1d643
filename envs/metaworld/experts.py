"""Scripted experts: the action that solves a task, as a function of the observed state alone."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from metaworld.policies import ENV_POLICY_MAP

from vivace.envs.demonstrations import NoiseSettings
from vivace.envs.metaworld.dynamic import MovingReach
from vivace.envs.metaworld.world import ACTION_DIM, METAWORLD_HZ, SPEED_M_S
from vivace.envs.registry import nearest
from vivace.policies.errors import UnknownEnvironment

Expert = Callable[[np.ndarray], np.ndarray]
"""State (39,) -> action (4,) in [-1, 1]."""

_FINGERS_BELOW_HAND = np.array([0.0, 0.0, 0.045])
"""From between the fingers to the observed hand position [m]."""
_GAIN = 10.0
"""Action per metre of error; 1 is 0.8 m/s."""


def expert(task: str, control_hz: float | None = None) -> Expert:
    """Return the scripted expert of a task; it has no memory, so a state has one label.

    Args:
        task: a Meta-World task or one of our own.
        control_hz: rate at which it acts [Hz]; the task's own when None.

    Raises:
        UnknownEnvironment: no expert is known for the task.
    """
    if task == "reach-moving":
        return partial(_follow_goal, tick_s=1.0 / (control_hz or MovingReach.own_hz))
    if task == "push-disturbed":
        return _push_knocked_puck
    task = task.replace("-halfway", "-v3")  # the same positions in the state, another start
    if task not in ENV_POLICY_MAP:
        known = ("reach-moving", "push-disturbed", *ENV_POLICY_MAP)
        raise UnknownEnvironment(
            f"task {task!r} has no scripted expert; the nearest that has: {', '.join(nearest(task, known))}"
        )
    make_policy: Callable[[], Any] = ENV_POLICY_MAP[task]
    policy = make_policy()

    def act(state: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Constant(s) may be too high": the action is clipped here
            action = policy.get_action(np.asarray(state, np.float64))
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    return act


def _follow_goal(state: np.ndarray, tick_s: float) -> np.ndarray:
    """Steer the fingers onto the goal, feeding its velocity forward so that they do not trail it."""
    hand, goal, goal_before = state[:3], state[36:39], state[22:25]
    lead = (goal - goal_before) / (_GAIN * SPEED_M_S * tick_s)
    return _move(hand, goal + lead + _FINGERS_BELOW_HAND, 0.0)


def _push_knocked_puck(state: np.ndarray) -> np.ndarray:
    """Go above the puck with open fingers, descend, grip, push; start again when it was knocked away."""
    hand, opening, puck, goal = state[:3], state[3], state[4:7] + [-0.005, 0.0, 0.0], state[36:39]
    if np.linalg.norm(hand[:2] - puck[:2]) > 0.02:
        return _move(hand, puck + [0.0, 0.0, 0.1], -1.0)
    if hand[2] - puck[2] > 0.05:
        return _move(hand, puck + [0.0, 0.0, 0.03], -1.0)
    return _move(hand, hand if opening > 0.73 else goal, 1.0)


def _move(hand: np.ndarray, target: np.ndarray, gripper: float) -> np.ndarray:
    return np.append(np.clip(_GAIN * (target - hand), -1.0, 1.0), gripper).astype(np.float32)


class ActionNoise:
    """Perturbs the executed actions of one episode; a function of its seed.

    Noise is correlated in time (an AR(1) process). Bursts either push the hand one way for 50 to 125 ms or
    let it stand still for up to 20 ticks, as a loop does while it waits for its policy.
    """

    def __init__(self, settings: NoiseSettings, seed: int, control_hz: float = METAWORLD_HZ) -> None:
        """Draw the episode's noise scale.

        Args:
            settings: scales and burst rate.
            seed: of the episode; another stream than the one that places the objects.
            control_hz: control rate [Hz].
        """
        self._shove_ticks = control_hz / METAWORLD_HZ
        self._settings = settings
        self._random = np.random.default_rng([seed, 2])
        self.scale = float(self._random.choice(settings.scales, p=settings.probabilities))
        self._noise: np.ndarray = np.zeros(ACTION_DIM)
        self._executed: np.ndarray = np.zeros(ACTION_DIM, np.float32)
        self._burst_left = 0
        self._shove: np.ndarray = np.zeros(3)

    def __call__(self, action: np.ndarray) -> np.ndarray:
        """Return the action to execute in place of the expert's, (4,) in [-1, 1]."""
        if self.scale == 0.0:
            return action
        settings, random = self._settings, self._random
        if self._burst_left == 0 and random.random() < settings.burst_probability:
            stands_still = random.random() < 0.6
            if stands_still:
                self._burst_left = int(random.integers(4, 20))
            else:
                self._burst_left = max(1, round(random.integers(4, 10) * self._shove_ticks))
            self._shove = np.zeros(3) if stands_still else random.uniform(-0.7, 0.7, 3)
        fresh = random.standard_normal(ACTION_DIM) * [1.0, 1.0, 1.0, 0.3]
        self._noise = settings.memory * self._noise + (1.0 - settings.memory**2) ** 0.5 * self.scale * fresh
        executed: np.ndarray = action + self._noise
        if self._burst_left > 0:
            self._burst_left -= 1
            executed = np.append(self._shove, self._executed[3])
        self._executed = np.clip(executed, -1.0, 1.0).astype(np.float32)
        return self._executed
