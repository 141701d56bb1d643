"""Sample chunks with the graphs of a bundle: by denoising, or token by token."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from vivace.deploy.bundle.bundle import Bundle
from vivace.deploy.bundle.form import MASK, NEXT, PAST, TOKENS
from vivace.deploy.bundle.token_program import TokenProgram
from vivace.deploy.inference.kept import Kept
from vivace.deploy.inference.ort_graph import Buffer, Call, OrtGraph
from vivace.deploy.inference.token_decoding import Prompted, decode
from vivace.deploy.system.deadline import Deadline
from vivace.policies.sampling.real_time_chunking import Continuation
from vivace.policies.sampling.step_table import Memory
from vivace.policies.sampling.streams import Streams


class Denoiser:
    """The steps of a plan, bound to each other: a step writes where the later ones read.

    Args:
        bundle: of a policy that denoises.
        graphs: those that the plan calls, loaded, by their index.
        context: what `encode` writes.

    Raises:
        BadBundle: a step reuses what no earlier one kept.
    """

    def __init__(self, bundle: Bundle, graphs: Mapping[int, OrtGraph], context: Mapping[str, Buffer]) -> None:
        program = bundle.program
        self._spec, self._schedule = bundle.spec, program.steps
        self._steps: list[Call] = []
        kept = Kept([bundle.graphs[step.graph] for step in program.steps], graphs[program.encode].device)
        shared: dict[str, Buffer] = {}  # x and out are the same for all steps
        for step in program.steps:
            declared = bundle.graphs[step.graph]
            now = {
                "t": Buffer.of(np.array(step.table.t, np.float32)),
                "at": Buffer.of(np.array(step.at, np.int64)),
            }
            given, into = kept.step(declared, step.weights)
            call = graphs[step.graph].bind({**now, **shared, **context, **given}, {**shared, **into})
            shared = {"x": call.inputs["x"], "out": call.outputs["out"]}
            self._steps.append(call)
        self._finish = None if program.finish is None else graphs[program.finish].bind(context)

    def sample(self, noise: Streams, follow: Continuation | None, deadline: Deadline) -> np.ndarray:
        """Return a chunk of normalised actions (1, H, A); arguments as of `OrtPolicy.sample`."""
        shape = self._spec.latent_shape
        x = noise(shape)
        follow = None if follow is None else _widened(follow, x.shape[-1])
        memory: Memory = ()
        for index, (step, call) in enumerate(zip(self._schedule, self._steps, strict=True)):
            out = call({"x": x})["out"].host.copy()
            if follow is not None:
                out = follow.correct(step.table, out, follow.error(step.table, x, out))
            if index + 1 < len(self._steps) and deadline.is_too_near():
                x = step.table.cleaned(x, out)
                break
            x, memory = step.table.advance(x, out, memory, lambda: noise(shape))
        if follow is not None:
            x = follow.hold(x)
        return x if self._finish is None else self._finish({"x": x})["actions"].host.copy()


def _widened(follow: Continuation, width: int) -> Continuation:
    """What chunks continue, as wide as what is denoised: numbers that a robot lacks are 0, as in training."""
    missing = width - follow.actions.shape[-1]
    return replace(follow, actions=np.pad(follow.actions, ((0, 0), (0, 0), (0, missing))))


class Writer:
    """The graph that reads tokens, bound once for each number of them and each place of what was read.

    Args:
        program: how a chunk is written.
        graph: that reads more tokens, loaded.
        context: what the prompt's graph writes.
        action_dim: numbers of an action.
    """

    def __init__(
        self, program: TokenProgram, graph: OrtGraph, context: Mapping[str, Buffer], action_dim: int
    ) -> None:
        self._program, self._graph, self._action_dim = program, graph, action_dim
        self._first = context["logits"]
        self._logits = np.zeros((program.n, self._first.host.shape[-1]), self._first.host.dtype)
        self._read = {name: value for name, value in context.items() if name.startswith(PAST)}
        self._also: dict[str, Buffer] = {}
        """Second place of what was read: a pass reads one place and writes the other."""
        self._calls: dict[tuple[int, bool], Call] = {}
        first = self._call(1, is_back=False)
        self._also = {
            name.removeprefix(NEXT): value for name, value in first.outputs.items() if name.startswith(NEXT)
        }

    def sample(
        self, batch: Mapping[str, np.ndarray], noise: Streams, draft: np.ndarray | None, deadline: Deadline
    ) -> np.ndarray:
        """Return a chunk of normalised actions (1, H, A); arguments as of `OrtPolicy.sample`."""
        is_back = True

        def extend(tokens: np.ndarray, kept: int) -> np.ndarray:
            nonlocal is_back
            is_back = not is_back
            given = {"tokens": tokens[None], "kept": np.array([kept])}
            logits: np.ndarray = self._call(len(tokens), is_back)(given)["logits"].host[0]
            return logits

        prompted = Prompted(self._first.host[0], batch[TOKENS][batch[MASK]], draft)
        tokens, _ = decode(self._program, prompted, extend, noise, self._action_dim, deadline)
        return self._program.detokenize(tokens, self._action_dim)

    def _call(self, n: int, is_back: bool) -> Call:
        """Return the call that reads n tokens, and writes to the second place, or back to the first."""
        if (n, is_back) not in self._calls:
            given = self._read | self._also if is_back else self._read
            into = {NEXT + name: self._read[name] if is_back else self._also[name] for name in self._also}
            logits = Buffer.of(self._logits[None, :n])
            self._calls[n, is_back] = self._graph.bind(given, into | {"logits": logits}, n)
        return self._calls[n, is_back]
