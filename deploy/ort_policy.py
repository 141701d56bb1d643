"""Run a bundle with numpy and ONNX Runtime."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from vivace.deploy.bundle import Bundle, Graph
from vivace.deploy.deadline import Deadline
from vivace.deploy.token_decoding import Prompted, TokenProgram, decode
from vivace.policies.chunking import NO_DENOISING, Continuation, RealTimeChunking, continuation
from vivace.policies.errors import BadBundle, BadSetting, UnsupportedPolicy
from vivace.policies.step_table import Memory
from vivace.policies.streams import Streams
from vivace.policies.types import DELAY, PREVIOUS, check_observation

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
"""Name -> ONNX Runtime's."""
TOKENS, MASK = "observation.language.tokens", "observation.language.attention_mask"
CACHE = "cache"
"""Prefix of the names of what one step leaves to the next."""
NEXT = "next."
"""Before the name of a cache entry: it is the one of the next step."""
PAST = "past."
"""Before the names of what a token policy has read."""
CONTEXT = "context"
"""Prefix of the names of what `encode` makes of an observation."""


def share_threads(threads: int | None) -> None:
    """Make the one pool of threads that all policies of this process share; before any of them is loaded.

    Only for a process that runs nothing else with ONNX Runtime: from then on every session must share it.

    Args:
        threads: how many; one for every core this process may use when None.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ort.set_global_thread_pool_sizes(threads or allowed or 1, 1)


class OrtPolicy:
    """An exported policy, ready to run; takes what `policies.session.Session` takes.

    Args:
        bundle: the bundle, or its folder.
        providers: execution providers to try, first one first: cpu, cuda, tensorrt, openvino; those that this
            installation lacks are an error.
        threads: of one inference; ONNX Runtime's own choice when None.
        task: instruction, for policies that read one; `task` may be set anew between two chunks.
        chunking: how chunks continue the ones before; they do not when None. Without an exact Jacobian.
        shares_threads: its graphs use the process's one pool of threads (`share_threads`), not one each.
    """

    def __init__(
        self,
        bundle: Bundle | str | Path,
        providers: Sequence[str] = ("cpu",),
        threads: int | None = None,
        task: str = "",
        chunking: RealTimeChunking | None = None,
        shares_threads: bool = False,
    ) -> None:
        started = time.perf_counter()
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self.spec, self.task, self.chunking = self.bundle.spec, task, chunking
        self._check_chunking()
        self.cut_short = 0
        """Chunks that were returned unfinished, to be in time."""
        self._providers = _available(providers)
        self._threads, self._shares_threads = threads, shares_threads
        self._sessions = [self._session(graph) for graph in self.bundle.graphs]
        self._prompts: dict[str, dict[str, np.ndarray]] = {}
        self.load_s = time.perf_counter() - started
        """How long loading took [s]."""

    def predict(
        self,
        observations: Mapping[str, np.ndarray],
        noise_keys: Sequence[tuple[int, ...]],
        deadline_s: float | None = None,
    ) -> np.ndarray:
        """Predict chunks (B, H - first_action, A) in the robot's units, one row after the other.

        Args:
            observations: key -> (B, To, ...), newest last; images are HWC uint8 in [0, 255].
            noise_keys: one key per row naming its noise stream, e.g. (episode seed, tick).
            deadline_s: when the chunks must be there, on the monotonic clock [s]: if time runs out between
                two denoising steps, or two passes of Jacobi decoding, what is known by then is returned.

        Raises:
            ObservationMismatch: a key is missing, a shape differs or a value is not finite.
        """
        rows = [
            self._chunk({key: value[row : row + 1] for key, value in observations.items()}, noise, deadline_s)
            for row, noise in enumerate(noise_keys)
        ]
        return np.concatenate(rows)

    def _chunk(
        self, observations: Mapping[str, np.ndarray], key: tuple[int, ...], deadline_s: float | None
    ) -> np.ndarray:
        draft, follow = self._draft(observations), self._follow(observations)
        batch, deadline = self.prepare(observations), Deadline(deadline_s)
        normalised = self.sample(batch, Streams([key]), draft, follow, deadline)
        self.cut_short += deadline.was_met_early
        return self.bundle.actions.restore(normalised[:, self.spec.first_action :])

    def prepare(self, observations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Normalise one observation {key: (1, To, ...)} and add the prompt's tokens."""
        wanted = self.spec.observation_shapes
        seen = {key: _chw(key, value) for key, value in observations.items() if key in wanted}
        check_observation(seen, {key: (1, self.spec.n_obs_steps, *shape) for key, shape in wanted.items()})
        ready = {
            key: self.bundle.observations[key].normalize(value) if key in self.bundle.observations else value
            for key, value in seen.items()
        }
        return ready | self._prompt()

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
        context = self._run(self.bundle.encode, batch)
        if self.bundle.tokens is not None:
            return self._write(self.bundle.tokens, context, batch, noise, draft, deadline)
        shape = (self.spec.horizon, self.spec.action_dim)
        x = noise(shape)
        memory: Memory = ()
        cache: dict[str, Any] = {}
        for index, step in enumerate(self.bundle.steps):
            given = {"x": x, "t": np.float32(step.table.t), "at": np.int64(index)}
            found = self._run(step.graph, given | context | cache)
            out = found.pop("out").numpy()
            fresh = {name.removeprefix(NEXT): value for name, value in found.items()}
            cache = fresh | {new: cache[old] for new, old in step.carried.items()}
            if follow is not None:
                out = follow.correct(step.table, out, follow.error(step.table, x, out))
            if index + 1 < len(self.bundle.steps) and deadline.is_too_near():
                x = step.table.cleaned(x, out)
                break
            x, memory = step.table.advance(x, out, memory, lambda: noise(shape))
        if self.bundle.finish is None:
            return x
        actions: np.ndarray = self._run(self.bundle.finish, {"x": x} | context)["actions"].numpy()
        return actions

    def _draft(self, observations: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Tokens (n,) of what the chunk before means; None if nothing is known or no tokens are written."""
        program, previous = self.bundle.tokens, observations.get(PREVIOUS)
        if program is None or previous is None:
            return None
        actions = np.full((self.spec.horizon, self.spec.action_dim), np.nan, np.float32)
        n = min(previous.shape[1], self.spec.horizon)
        actions[:n] = previous[0, :n]
        return program.tokenize(self.bundle.actions.normalize(actions))

    def _check_chunking(self) -> None:
        if self.chunking is None:
            return
        if self.bundle.tokens is not None:
            raise UnsupportedPolicy(NO_DENOISING.format(self.spec.type))
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
        return Continuation(self.chunking, self.bundle.actions.normalize(actions), weights)

    def _write(
        self,
        program: TokenProgram,
        context: dict[str, Any],
        batch: Mapping[str, np.ndarray],
        noise: Streams,
        draft: np.ndarray | None,
        deadline: Deadline,
    ) -> np.ndarray:
        """Decode the tokens of a chunk; what was read stays where ONNX Runtime has it."""
        past = {name: value for name, value in context.items() if name.startswith(PAST)}

        def extend(tokens: np.ndarray, kept: int) -> np.ndarray:
            given = {"tokens": tokens[None].astype(np.int64), "kept": np.array([kept], np.int64)}
            found = self._run(program.extend, given | past)
            logits: np.ndarray = found.pop("logits").numpy()[0]
            past.update({name.removeprefix(NEXT): value for name, value in found.items()})
            return logits

        prompted = Prompted(context["logits"].numpy()[0], batch[TOKENS][batch[MASK]], draft)
        tokens, _ = decode(program, prompted, extend, noise, self.spec.action_dim, deadline)
        return program.detokenize(tokens, self.spec.action_dim)

    def _run(self, graph: int, given: Mapping[str, Any]) -> dict[str, Any]:
        """Run a graph on arrays and ONNX Runtime's own values; returns the latter, left where they are."""
        session = self._sessions[graph]
        binding = session.io_binding()
        for name in self.bundle.graphs[graph].inputs:
            value = given[name]
            if isinstance(value, ort.OrtValue):
                binding.bind_ortvalue_input(name, value)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
        names = list(self.bundle.graphs[graph].outputs)
        for name in names:
            binding.bind_output(name, self._device)
        session.run_with_iobinding(binding)
        return dict(zip(names, binding.get_outputs(), strict=True))

    @property
    def _device(self) -> str:
        on_gpu = self._providers[0] in (PROVIDERS["cuda"], PROVIDERS["tensorrt"])
        return "cuda" if on_gpu else "cpu"

    def _session(self, graph: Graph) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.force_spinning_stop", "1")  # the next graph needs the core
        options.use_per_session_threads = not self._shares_threads
        if self._threads and not self._shares_threads:
            options.intra_op_num_threads = self._threads
        path = self.bundle.path(graph.file)
        try:
            session = ort.InferenceSession(str(path), options, providers=self._providers)
        except Exception as error:  # ONNX Runtime raises its own kinds, without a common base
            raise BadBundle(f"{path} cannot be loaded ({_first_line(error)}); export it again") from error
        for kind, declared, found in (
            ("input", graph.inputs, session.get_inputs()),
            ("output", graph.outputs, session.get_outputs()),
        ):
            shapes = {
                value.name: tuple(n if isinstance(n, int) else -1 for n in value.shape) for value in found
            }
            if shapes != dict(declared):
                raise BadBundle(
                    f"{path} has {kind}s {shapes}, the manifest says {dict(declared)}; export it again"
                )
        return session

    def _prompt(self) -> dict[str, np.ndarray]:
        """What the present instruction means to the policy; nothing if it reads none."""
        if not self.bundle.prompt:
            return {}
        if self.task not in self._prompts:
            self._prompts = {self.task: self._tokens(self.task)}
        return self._prompts[self.task]

    def _tokens(self, task: str) -> dict[str, np.ndarray]:
        """Token ids of an instruction, padded, and their mask."""
        settings = self.bundle.prompt
        ids = self.bundle.prompts.get(task.strip().lower()) or self._encode(task)
        length = settings["length"]
        if len(ids) > length:
            raise BadSetting(
                f"instruction {task!r} makes {len(ids)} tokens with its prompt, this policy reads at most "
                f"{length}; shorten it"
            )
        tokens = np.full((1, length), settings["pad"], np.int64)
        tokens[0, : len(ids)] = ids
        return {TOKENS: tokens, MASK: np.arange(length)[None] < len(ids)}

    def _encode(self, task: str) -> tuple[int, ...]:
        known = ", ".join(repr(text) for text in self.bundle.prompts)
        if not task.strip():
            raise BadSetting(f"this policy reads an instruction, but none was given; it knows {known}")
        settings = self.bundle.prompt
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise BadSetting(
                f"instruction {task!r} was not tokenised at export, and the package tokenizers is not "
                f"installed; install it, or give one of {known}"
            ) from error
        if "template" not in settings:
            raise BadSetting(f"this bundle holds the instructions {known} only; export it with {task!r} too")
        tokenizer = Tokenizer.from_file(str(self.bundle.path(settings["tokenizer"])))
        text = settings["template"].format(instruction=task.strip().lower())
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        return (settings["bos"], *ids, *settings["suffix"])


def _available(names: Sequence[str]) -> list[str]:
    """ONNX Runtime's names of execution providers; the CPU always stands behind them."""
    present = ort.get_available_providers()
    usable = [name for name, full in PROVIDERS.items() if full in present]
    for name in names:
        if name not in usable:
            raise BadSetting(
                f"execution provider {name!r} is not one of this ONNX Runtime's: {', '.join(usable)}; "
                "install the build of onnxruntime for your device"
            )
    return list(dict.fromkeys([*(PROVIDERS[name] for name in names), PROVIDERS["cpu"]]))


def _chw(key: str, value: np.ndarray) -> np.ndarray:
    """An observation as float32; images become CHW in [0, 1]."""
    value = np.asarray(value)
    if key.startswith("observation.image") and value.ndim >= 3:
        return np.moveaxis(value, -1, -3).astype(np.float32) / np.float32(255)
    return value.astype(np.float32)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
