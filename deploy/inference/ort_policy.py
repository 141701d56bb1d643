"""Run a bundle with numpy and ONNX Runtime."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.bundle.golden import Golden
from vivace.deploy.inference.ort_graph import Graphs, OrtGraph, Runtime
from vivace.deploy.inference.ort_sampler import Denoiser, Writer
from vivace.deploy.inference.tokenize import InstructionTokenizer
from vivace.deploy.system.deadline import Deadline
from vivace.policies.arrays import batch_layout, enter_observations, enter_previous, is_image
from vivace.policies.carry import (
    LATENT,
    LOOKED,
    NOTHING,
    PAST,
    SEEN,
    Carry,
    Slot,
    followed,
    slots_of,
)
from vivace.policies.errors import BadBundle, BadSetting, ObservationMismatch, UnsupportedPolicy
from vivace.policies.sampling.real_time_chunking import (
    CUT_SHORT,
    NO_DENOISING,
    Continuation,
    RealTimeChunking,
    continuation,
)
from vivace.policies.sampling.streams import Streams
from vivace.policies.spec import DELAY, PREVIOUS, check_actions
from vivace.policies.training_range import PLAUSIBLE_SPANS, furthest

ROUGH = 10
"""How much further golden chunks may be off where a provider computes with shorter numbers, such as TF32."""


class OrtPolicy:
    """An exported policy, ready to run; takes what `policies.session.Session` takes.

    Args:
        bundle: the bundle, or its folder; "folder#plan" for one of its plans.
        providers: execution providers to try, first one first: cpu, cuda, tensorrt, openvino; those that this
            installation lacks are an error.
        threads: of one inference; ONNX Runtime's own choice when None.
        task: instruction, for policies that read one; `task` may be set anew between two chunks.
        chunking: how chunks continue the ones before; they do not when None. Without an exact Jacobian.
        shares_threads: its graphs use the process's one pool of threads (`share_threads`), not one each.
        plausible_spans: an observation with a number further outside of what training saw is refused, in
            spans of that (`Bundle.ranges`).
        graphs: where graphs are loaded, for plans that share them; with it providers and threads are its own.

    Raises:
        BadBundle: it cannot be read, or does not do here what it did at export (`replay`).
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        providers: Sequence[str] = ("cpu",),
        threads: int | None = None,
        task: str = "",
        chunking: RealTimeChunking | None = None,
        shares_threads: bool = False,
        plausible_spans: float = PLAUSIBLE_SPANS,
        graphs: Graphs | None = None,
    ) -> None:
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self.spec, self.task, self.chunking = self.bundle.spec, task, chunking
        self._check_chunking()
        self.cut_short = 0
        """Chunks that were returned unfinished, to be in time."""
        if not plausible_spans >= 0:
            raise BadSetting(f"plausible_spans={plausible_spans}; 0 or more is needed; inf: take anything")
        self._plausible_spans = plausible_spans
        self.outside = 0
        """Observations with a number outside of what training saw, the refused ones among them."""
        self.implausible = 0
        """Observations that were refused for it."""
        self._tokenize = InstructionTokenizer(self.bundle)
        graphs = graphs or Graphs(Runtime.of(providers, threads, shares_threads))
        self._is_exact = graphs.runtime_of(self.bundle).is_exact
        program = self.bundle.program
        loaded = {index: graphs.load(self.bundle, index) for index in program.graphs}
        self._encode = loaded[program.encode].bind({})
        self._perceive = None if program.perceive is None else loaded[program.perceive].bind({})
        self._slot = Slot()
        """What the last chunk left, where one episode is run at a time."""
        self._sampler = self._bound(loaded)
        self.golden_error = 0.0 if self.bundle.recorded is None else self.replay(self.bundle.recorded)
        """How far its golden chunk is from the recorded one, see `replay`."""

    def predict(
        self,
        observations: Mapping[str, np.ndarray],
        noise_keys: Sequence[tuple[int, ...]],
        deadline_s: float | None = None,
    ) -> np.ndarray:
        """Predict chunks (B, H - first_action, A) in the robot's units, one row after the other.

        Args:
            observations: key -> (B, To, ...), newest last; images are HWC uint8 in [0, 255]. What else they
                may hold is as of `policies.session.Session.predict`.
            noise_keys: one key per row naming its noise stream, e.g. (episode seed, tick).
            deadline_s: when the chunks must be there, on the monotonic clock [s]: if time runs out between
                two denoising steps, or two passes of Jacobi decoding, what is known by then is returned.

        Raises:
            ObservationMismatch: a key is missing, a shape or kind differs, a value is not finite or far from
                what training saw, or there is no row.
            NonFiniteActions: an action is NaN or infinite.
        """
        if not noise_keys:
            raise ObservationMismatch("the batch holds no observation; give at least one")
        seen = enter_observations(observations, batch_layout(self.spec, len(noise_keys)))
        if PREVIOUS in observations:
            seen[PREVIOUS], seen[DELAY] = enter_previous(observations, self.spec, len(noise_keys))
        slots = slots_of(observations, self._slot, len(noise_keys))
        follows = followed(observations, noise_keys)
        rows = [
            self._chunk(
                {name: value[row : row + 1] for name, value in seen.items()}, key, deadline_s, slot, before
            )
            for row, (key, slot, before) in enumerate(zip(noise_keys, slots, follows, strict=True))
        ]
        actions: np.ndarray = np.concatenate(rows)
        check_actions(actions, self.spec.type)
        return actions

    def _chunk(
        self,
        observations: Mapping[str, np.ndarray],
        key: tuple[int, ...],
        deadline_s: float | None,
        slot: Slot,
        before: tuple[tuple[int, ...], int],
    ) -> np.ndarray:
        draft, follow = self._draft(observations), self._follow(observations)
        batch, deadline = self.prepare(observations), Deadline(deadline_s)
        if self.bundle.program.carries:
            chunk, past = before
            carry = slot.get(self, chunk)
            carry = {**carry, PAST: np.array([past])} if carry else carry
            normalised, left = self.sample_after(batch, Streams([key]), carry, follow, deadline)
            slot.put(self, key, left)
        else:
            normalised = self.sample(batch, Streams([key]), draft, follow, deadline)
        self.cut_short += deadline.was_met_early
        return self.restored(normalised[:, self.spec.first_action :], observations)

    def prepare(self, observations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Normalise one observation {key: (1, To, ...)} and add the tokens, by the policy's names."""
        seen = enter_observations(observations, batch_layout(self.spec, rows=1))
        self._check_plausible(seen)
        ready = normalised(self.bundle, seen)
        return ready | self._tokenize(self.task, ready)

    def restored(self, actions: np.ndarray, observations: Mapping[str, np.ndarray]) -> np.ndarray:
        """Actions (B, n, A) in the robot's units of normalised ones, predicted from {key: (B, To, ...)}."""
        found, relative = self.bundle.actions.restore(actions), self.bundle.relative
        return found if relative is None else found + relative.base(observations)

    def normalised(self, actions: np.ndarray, observations: Mapping[str, np.ndarray]) -> np.ndarray:
        """Normalised actions (B, n, A) of ones in the robot's units, seen from {key: (B, To, ...)}."""
        relative = self.bundle.relative
        seen = actions if relative is None else actions - relative.base(observations)
        return self.bundle.actions.normalize(seen)

    def replay(self, golden: Golden) -> float:
        """Do again what was recorded at export; returns how far the chunks differ, in units of the policy.

        Raises:
            BadBundle: they differ by more than the bundle's tolerance.
        """
        settings, unit = self.bundle.program.golden, self.bundle.actions.span / self.bundle.actions.gain
        if settings is None:
            raise BadBundle(
                f"{self.bundle.folder} does not say how its golden chunk was made; export it again"
            )
        kept, errors = (self.task, self.chunking, self.cut_short, self.outside), []
        tolerance = settings.tolerance * (1 if self._is_exact else ROUGH)
        try:
            self.task = settings.task
            key, following = settings.noise_key, settings.next_key
            for chunking, given, deadline_s, wanted, noise in (
                (None, {}, None, golden.chunk, key),
                (None, settings.follows, None, golden.after, following),
                (None, {}, 0.0, golden.cut, key),
                (RealTimeChunking(), golden.before, None, golden.continued, key),
            ):
                self.chunking = chunking
                if wanted is not None:
                    found = self.predict(golden.batch | given, [noise], deadline_s)[0]
                    errors.append((np.abs(found - wanted) / unit).max())
            if golden.logits is not None:
                scale = max(1.0, float(np.abs(golden.logits).max()))
                errors.append(np.abs(self.logits - golden.logits).max() / scale)
        finally:
            self.task, self.chunking, self.cut_short, self.outside = kept
        worst = float(np.max(errors))  # NaN if one is
        if not worst <= tolerance:
            raise BadBundle(
                f"{self.bundle.folder} gives other actions here than where it was exported: its golden chunk "
                f"is off by {worst:.2g}, at most {tolerance:g} is allowed; export it again, on a "
                "machine like this one"
            )
        return worst

    @property
    def logits(self) -> np.ndarray:
        """Logits (V,) of the first token of the last chunk, of a policy that writes tokens."""
        found: np.ndarray = self._encode.outputs["logits"].host[0]
        return found

    def _check_plausible(self, seen: Mapping[str, np.ndarray]) -> None:
        """Raise `ObservationMismatch` if a number is far outside of what training saw."""
        most = 0.0
        for key, known in self.bundle.ranges.items():
            found = furthest(key, seen[key], known, self.bundle.observations[key].span)
            most = max(most, found.spans)
            if not most <= self._plausible_spans:
                self.outside, self.implausible = self.outside + 1, self.implausible + 1
                raise ObservationMismatch(
                    f"{found.told}, at most {self._plausible_spans:g} are taken; check the sensor and its "
                    "unit, or raise plausible_spans"
                )
        self.outside += most > 0

    def sample(
        self,
        batch: Mapping[str, np.ndarray],
        noise: Streams,
        draft: np.ndarray | None = None,
        follow: Continuation | None = None,
        deadline: Deadline | None = None,
    ) -> np.ndarray:
        """Sample one chunk of normalised actions (1, H, A) from one normalised observation.

        Args:
            batch: the observation.
            noise: of one row.
            draft: of a policy that writes tokens, those of what the chunk before means (n,).
            follow: what the chunk continues.
            deadline: when it must be there.
        """
        deadline = deadline or Deadline()
        if isinstance(self._sampler, Denoiser):
            return self.sample_after(batch, noise, NOTHING, follow, deadline)[0]
        self._encode({name: batch[name] for name in self._encode.inputs})
        if self._sampler is None:
            return self._encode.outputs["actions"].host.copy()
        return self._sampler.sample(batch, noise, draft, deadline)

    def sample_after(
        self,
        batch: Mapping[str, np.ndarray],
        noise: Streams,
        carry: Carry,
        follow: Continuation | None = None,
        deadline: Deadline | None = None,
    ) -> tuple[np.ndarray, Carry]:
        """Sample one chunk of normalised actions (1, H, A) that comes after another.

        Only of a policy that denoises.

        Args:
            batch: one normalised observation.
            noise: of one row.
            carry: what the chunk before left, and how many of its actions are past; `NOTHING`: there is none.
            follow: what the chunk continues.
            deadline: when it must be there.

        Returns:
            The chunk, and what it leaves to the next.
        """
        assert isinstance(self._sampler, Denoiser)
        left = self._read(batch, carry)
        actions, latent = self._sampler.sample(noise, follow, deadline or Deadline(), carry)
        return actions, {**left, LATENT: latent}

    def _read(self, batch: Mapping[str, np.ndarray], carry: Carry) -> Carry:
        """Make the context of an observation, of what was seen before where that will do.

        Returns:
            What it leaves to the next one.
        """
        looking = {name: batch[name] for name in self._encode.inputs}
        if self._perceive is None:
            self._encode(looking)
            return NOTHING
        if carry and carry[LOOKED] < self.bundle.program.looks_every:
            seen, looked = carry[SEEN], carry[LOOKED]
        else:
            outputs = self._encode(looking)
            seen = {name: np.array(buffer.value.numpy()) for name, buffer in outputs.items()}
            looked = 0
        felt = {name: batch[name] for name in self._perceive.inputs if name in batch}
        self._perceive({**felt, **seen})
        return {SEEN: seen, LOOKED: looked + 1}

    def _bound(self, graphs: Mapping[int, OrtGraph]) -> Denoiser | Writer | None:
        """What makes a chunk of the first graph's outputs; None: the chunk is one."""
        context, program = (self._perceive or self._encode).outputs, self.bundle.program.tokens
        if self.bundle.program.is_whole:
            return None
        if program is None:
            return Denoiser(self.bundle, graphs, context)
        return Writer(program, graphs[program.extend], context, self.spec.action_dim)

    def _draft(self, observations: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Tokens (n,) of what the chunk before means; None if nothing is known or no tokens are written."""
        program, previous = self.bundle.program.tokens, observations.get(PREVIOUS)
        if program is None or previous is None:
            return None
        actions = np.full((1, self.spec.horizon, self.spec.action_dim), np.nan, np.float32)
        n = min(previous.shape[1], self.spec.horizon)
        actions[:, :n] = previous[:, :n]
        return program.tokenize(self.normalised(actions, observations)[0])

    def _check_chunking(self) -> None:
        if self.chunking is None:
            return
        if self.spec.is_cut:
            raise UnsupportedPolicy(CUT_SHORT.format(self.spec.type))
        if not self.bundle.program.steps:
            raise UnsupportedPolicy(NO_DENOISING.format(self.spec.type))
        if not self.bundle.program.continues:
            raise UnsupportedPolicy(
                f"policy {self.spec.type!r} continues chunks in a way of its own, which a bundle lacks; use "
                "mode async or sync, or run the checkpoint"
            )
        if self.chunking.jacobian == "exact":
            raise BadSetting(
                "a bundle has no backward pass: rtc jacobian='exact' needs torch; use 'identity'"
            )

    def _follow(self, observations: Mapping[str, np.ndarray]) -> Continuation | None:
        """Return what the chunk continues; None if it does not, or nothing is known."""
        previous = observations.get(PREVIOUS)
        if previous is None or self.chunking is None:
            return None
        delay = observations.get(DELAY, np.zeros(1, np.int64))
        actions, weights = continuation(
            self.chunking, previous, delay, self.spec.first_action, self.spec.horizon
        )
        return Continuation(self.chunking, self.normalised(actions, observations), weights)


def normalised(bundle: Bundle, seen: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What entered as observations {key: (1, To, ...)}, as the policy reads them, by its names."""
    return {
        bundle.policy_name(key): bundle.observations[key].normalize(_chw(key, value))
        if key in bundle.observations
        else _chw(key, value)
        for key, value in seen.items()
    }


def _chw(key: str, value: np.ndarray) -> np.ndarray:
    """What entered as float32; images become CHW in [0, 1]."""
    return np.moveaxis(value, -1, -3).astype(np.float32) / np.float32(255) if is_image(key) else value
