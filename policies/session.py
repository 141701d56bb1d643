"""From observations in the robot's units to chunks in the robot's units."""

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from lerobot.lerobot_types import TransitionKey
from lerobot.processor import (
    NormalizerProcessorStep,
    RelativeActionsProcessorStep,
    create_transition,
    to_relative_actions,
)
from lerobot.utils.constants import ACTION
from torch import Tensor

from vivace.policies.arrays import batch_layout, enter_observations, enter_previous, is_image
from vivace.policies.batch import Batch, assembled, join
from vivace.policies.carry import Slot, followed, slots_of
from vivace.policies.errors import ObservationMismatch, UnsupportedPolicy
from vivace.policies.execution import (
    Decoding,
    Denoising,
    Execution,
    as_trained,
    begin_with_noise,
    check_continuing,
    eagerly,
    sample,
)
from vivace.policies.features import renames
from vivace.policies.following import sample_episodes
from vivace.policies.forms import check_one_size
from vivace.policies.load import LoadedPolicy
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.real_time_chunking import Continuation, RealTimeChunking, continuation
from vivace.policies.spec import DELAY, PREVIOUS, PolicySpec
from vivace.policies.staged import TokenPolicy
from vivace.policies.stopwatch import Mark, ignore
from vivace.policies.training_range import PLAUSIBLE_SPANS, furthest, training_ranges

_MARKS = ("_is_pad", "_padding_mask")
"""Ends of lerobot's names of what is no observation but padding, (B, ...)."""


class Inputs(NamedTuple):
    """What `sample` takes."""

    batch: Batch
    """Normalised observations."""
    draft: Tensor | None = None
    """Of a policy that writes tokens: those the chunks before mean (B, n), -1 where nothing is known."""
    follow: Continuation | None = None
    """What the chunks continue; None if they do not, or nothing is known."""


class Session:
    """A loaded policy under one execution.

    Args:
        loaded: checkpoint with processors.
        execution: how to run it; the checkpoint's own way when not given.
        task: instruction, for policies that read one.
        chunking: how chunks continue the ones before; they do not when None.
    """

    def __init__(
        self,
        loaded: LoadedPolicy,
        execution: Execution | None = None,
        task: str = "",
        chunking: RealTimeChunking | None = None,
    ):
        self.loaded = loaded
        self.execution = execution or as_trained(loaded.staged)
        self.spec = self.execution.policy.spec
        self.task = task
        self.chunking = chunking
        self._writer = self.execution.policy if isinstance(self.execution, Decoding) else None
        """The policy, if it writes tokens."""
        self._placement = self.execution.policy.placement
        names = renames(loaded.preprocess)
        self._own = [names.get(key, key) for key in self.spec.observation_shapes]
        """The policy's own names of its observations."""
        self._white = torch.tensor(255.0, device=self._placement.device)
        self._slot = Slot()
        """What the last chunk left, where one episode is run at a time."""
        self._unseen = dict(training_ranges(loaded.preprocess, self.spec, names))
        """What training saw, until the first observation has been held against it."""
        check_begins(self.execution, loaded.preprocess)
        if chunking is not None:
            check_continuing(self.execution, chunking)
            self._check_normalises()

    def eagerly(self) -> "Session":
        """Return a session of what its execution computes, launched operation by operation."""
        if self.execution.eager is None:
            return self
        return Session(self.loaded, eagerly(self.execution), self.task, self.chunking)

    def prepare(self, observations: Mapping[str, Any]) -> Batch:
        """Normalise observations {key: (B, To, ...)}; images are HWC uint8 in [0, 255].

        The checkpoint's preprocessor is shown what lerobot's own loop shows it, one observation (B, ...) at a
        time, oldest first, and all that it returns is handed on: observations with their time axis, the rest
        as of the newest. "task" may hold one instruction a row; without it the session's own is told.

        Raises:
            ObservationMismatch: a key is missing, a shape differs, a value is not finite, or there is no row.
        """
        ready = [self._preprocessed(moment) for moment in self._moments(observations)]
        return assembled(ready, self._own, _rows(observations, self.spec))

    def _preprocessed(self, moment: dict[str, Any]) -> dict[str, Any]:
        """What the checkpoint's preprocessor makes of one moment."""
        try:
            return self.loaded.preprocess(moment)
        except ValueError as error:  # what a step that stacks pictures ends in
            check_one_size({key: it.shape[-2:] for key, it in moment.items() if is_image(key)}, error)
            raise

    def _moments(self, observations: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What the preprocessor is shown of every time step, oldest first."""
        rows = _rows(observations, self.spec)
        seen = enter_observations(observations, batch_layout(self.spec, rows), self.spec.resizes)
        frames = {key: self._enter(key, value) for key, value in seen.items()}
        told: dict[str, Any] = {
            key: torch.from_numpy(np.asarray(observations[key]))
            for key in observations
            if key.endswith(_MARKS)
        }
        told["task"] = self._tasks(observations, rows)
        return [
            {key: value[:, t] for key, value in frames.items()} | told for t in range(self.spec.n_obs_steps)
        ]

    def inputs(self, observations: Mapping[str, Any]) -> Inputs:
        """Return what `sample` takes of observations and of the chunks before, as of `predict`."""
        if len(alone := self._alone(observations)) > 1:
            parts = [self.inputs(one) for one in alone]
            return Inputs(join([part.batch for part in parts]), follow=_together(parts))
        batch = self.prepare(observations)
        if self._unseen:
            self._look(observations)
        placed, weights = self._placed(observations)
        if placed is None:
            return Inputs(batch)
        known = self._normalised(placed)
        if self._writer is not None:
            return Inputs(batch, draft=_draft(self._writer, known))
        if self.chunking is None or weights is None:
            return Inputs(batch)
        return Inputs(batch, follow=Continuation(self.chunking, known, self._placement.move(weights)))

    def _look(self, observations: Mapping[str, Any]) -> None:
        """Say so, once, if the first observation is far outside of what training saw; zeros are none yet."""
        seen = {key: np.asarray(observations[key]) for key in self._unseen}
        if not any(value.any() for value in seen.values()):
            return
        worst = max(furthest(key, seen[key], known) for key, known in self._unseen.items())
        if not worst.spans <= PLAUSIBLE_SPANS:
            _tell(f"{worst.told}, {PLAUSIBLE_SPANS:g} are plausible; check the sensor and its unit")
        self._unseen = {}

    def _alone(self, observations: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Observations one by one, of an opaque policy: it is run row by row, and so are its processors."""
        rows = _rows(observations, self.spec) if self.execution.is_opaque else 1
        return [_row(observations, i, self.spec) for i in range(rows)] if rows > 1 else []

    def _normalised(self, actions: Tensor) -> Tensor:
        """Actions (B, H, A) as the policy means them, of those in the robot's units.

        Relative to the state that was prepared last, where they are, and normalised: what lerobot's own
        real-time chunking does to the rest of a chunk. Texts and pictures are not read again.
        """
        pipeline: Any = self.loaded.preprocess
        for step in pipeline.steps:
            if isinstance(step, RelativeActionsProcessorStep) and step.enabled:
                state: Any = step.get_cached_state()
                actions = to_relative_actions(actions, state, step._build_mask(actions.shape[-1]))
            elif isinstance(step, NormalizerProcessorStep):
                actions = step(create_transition(action=actions))[TransitionKey.ACTION]
        return actions

    def _check_normalises(self) -> None:
        """Raise `UnsupportedPolicy` if the preprocessor brings actions to the policy's in a way of its own.

        What chunks continue is normalised as lerobot's real-time chunking does it, by the steps it knows.
        evo1 widens actions before, groot normalises them in a step of its own.
        """
        probe = self._placement.move(torch.ones(1, self.spec.horizon, self.spec.action_dim))
        ones = {key: np.ones_like(value) for key, value in self.blank_observation().items()}
        whole: dict[str, Any] = self._preprocessed(self._moments(ones)[-1] | {ACTION: probe.clone()})
        changed = whole[ACTION]
        is_widened = changed.shape != probe.shape
        if is_widened or not np.allclose(changed.cpu().numpy(), self._normalised(probe).cpu().numpy()):
            raise UnsupportedPolicy(
                f"policy {self.spec.type!r} has its actions widened or normalised by its processors in a way "
                "of its own, so no chunk of it can continue another; use mode async or sync"
            )

    def _enter(self, key: str, value: np.ndarray) -> Tensor:
        """What entered, on the device, float32; images travel as uint8 and become CHW in [0, 1] there.

        They are divided by a tensor: by a number CUDA multiplies by its reciprocal, which rounds otherwise.
        """
        tensor = self._placement.move(torch.from_numpy(np.ascontiguousarray(value))).float()
        return tensor.movedim(-1, -3) / self._white if is_image(key) else tensor

    def _placed(self, observations: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """What the chunks before mean (B, H, A), in the robot's units, and how much of it is to be followed.

        Both are None where it does not matter or nothing is known, the weights (B, H, 1) of a policy that
        writes tokens too: those guess by it.
        """
        if PREVIOUS not in observations:
            return None, None
        previous, delay = enter_previous(observations, self.spec, _rows(observations, self.spec))
        horizon = self.spec.horizon
        if self.chunking is not None:
            placed = continuation(self.chunking, previous, delay, self.spec.first_action, horizon)
            actions, weights = map(torch.from_numpy, placed)
            return self._placement.move(actions), weights
        if self._writer is None:
            return None, None
        actions = torch.full((len(previous), horizon, self.spec.action_dim), torch.nan)
        n = min(previous.shape[1], horizon)
        actions[:, :n] = torch.from_numpy(previous[:, :n])
        return self._placement.move(actions), None

    def _tasks(self, observations: Mapping[str, Any], rows: int) -> list[str]:
        """One instruction a row: the observations' own "task" where they bring it, else the session's."""
        return list(observations.get("task", [self.task] * rows))

    def blank(self) -> Batch:
        """A normalised observation of zeros, batch 1: enough to count work and to check shapes."""
        return self.prepare(self.blank_observation())

    def blank_observation(self) -> dict[str, np.ndarray]:
        """An observation of zeros, batch 1, as the robot would give it."""
        return {key: np.zeros(shape, dtype) for key, (shape, dtype) in batch_layout(self.spec, 1).items()}

    def predict(
        self,
        observations: Mapping[str, Any],
        noise_keys: Sequence[tuple[int, ...]],
        mark: Mark = ignore,
    ) -> np.ndarray:
        """Predict chunks (B, H - first_action, A) in the robot's units.

        Args:
            observations: key -> (B, To, ...), newest last; under "action.previous" what the chunks before
                mean for now and later (B, n, A), NaN where nothing is known, which may be left out; under
            noise_keys: one key per row naming its noise stream, e.g. (episode seed, tick).
            mark: told when each stage is over.

        Raises:
            ObservationMismatch: the observations, or how many there are, do not fit.
            NonFiniteActions: an action is NaN or infinite.
            UnsupportedPolicy: actions are of another size than the config says.
        """
        rows = _rows(observations, self.spec)
        if rows != len(noise_keys):
            raise ObservationMismatch(
                f"there are {rows} observations and {len(noise_keys)} noise keys; one key a row is needed"
            )
        if len(alone := self._alone(observations)) > 1:
            return np.concatenate(
                [self.predict(one, [key], mark) for one, key in zip(alone, noise_keys, strict=True)]
            )
        batch, draft, follow = self.inputs(observations)
        mark("prepare")
        match self.execution:
            case Denoising(carries=True) as execution:
                slots = slots_of(observations, self._slot, rows)
                follows = followed(observations, noise_keys)
                actions = sample_episodes(execution, batch, noise_keys, slots, follows, follow, mark)
            case execution:
                actions = sample(execution, batch, EpisodeNoise(noise_keys), draft, follow, mark)
        actions = self.loaded.postprocess(actions[:, self.spec.first_action :])
        if actions.shape[-1] != self.spec.action_dim:
            raise UnsupportedPolicy(
                f"policy {self.spec.type!r} and its postprocessor give actions of {actions.shape[-1]} "
                f"numbers, config.json says {self.spec.action_dim}; mend output_features"
            )
        found: np.ndarray = actions.cpu().numpy()
        mark("finish")
        return found


@cache
def _tell(text: str) -> None:
    """Log a warning, once a process: rows of a table are shown the same observations."""
    logging.getLogger("vivace").warning(text)


def check_begins(execution: Execution, preprocess: Any) -> None:
    """Raise `UnsupportedPolicy` if chunks begin with others that mean something else by now.

    Args:
        execution: how they are made.
        preprocess: the checkpoint's pipeline.
    """
    if not isinstance(execution, Denoising) or execution.begin is begin_with_noise:
        return
    steps = [step for step in preprocess.steps if isinstance(step, RelativeActionsProcessorStep)]
    if any(step.enabled for step in steps):
        raise UnsupportedPolicy(
            f"actions of policy {execution.policy.spec.type!r} are relative to the state they were predicted "
            "in, so no chunk can begin with an earlier one; leave warm_start out of the plan"
        )


def _rows(observations: Mapping[str, Any], spec: PolicySpec) -> int:
    """How many observations there are; raises `ObservationMismatch` if none."""
    rows = next(
        (len(np.atleast_1d(observations[k])) for k in spec.observation_shapes if k in observations), 1
    )
    if not rows:
        raise ObservationMismatch("the batch holds no observation; give at least one")
    return rows


def _row(observations: Mapping[str, Any], i: int, spec: PolicySpec) -> dict[str, Any]:
    """One of several observations, alone."""
    keys = (*spec.observation_shapes, PREVIOUS, DELAY, "task")
    wanted = [key for key in observations if key in keys or key.endswith(_MARKS)]
    return {key: observations[key][i : i + 1] for key in wanted}


def _together(parts: Sequence[Inputs]) -> Continuation | None:
    """What the chunks of single observations continue, in one; None unless all do."""
    follows = [part.follow for part in parts if part.follow is not None]
    if len(follows) < len(parts):
        return None
    actions, weights = (torch.cat([getattr(it, name) for it in follows]) for name in ("actions", "weights"))
    return Continuation(follows[0].settings, actions, weights)


def _draft(policy: TokenPolicy, actions: Tensor) -> Tensor:
    """Tokens (B, n) of normalised actions (B, H, A), -1 where they are not known."""
    is_known = actions.isfinite().all(-1)
    tokens = policy.tokenize(actions.nan_to_num())
    known = is_known.repeat_interleave(tokens.shape[1] // policy.spec.horizon, dim=1)
    return torch.where(known, tokens, -1) if known.shape == tokens.shape else tokens
