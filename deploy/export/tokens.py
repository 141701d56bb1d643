"""Export a policy that writes tokens: the prompt with room for a chunk behind it, and reading more tokens."""

from typing import Any

import torch
from torch import Tensor

from vivace.accel.decoding import decoding_of
from vivace.accel.technique import Seam
from vivace.accel.techniques.greedy import executed_tokens
from vivace.deploy.bundle.form import NEXT, PAST
from vivace.deploy.bundle.program import Origin, Program
from vivace.deploy.bundle.token_program import Decoder, TokenProgram
from vivace.deploy.export.graph_writer import GraphWriter
from vivace.deploy.export.traced import Observing, Traced, made_of
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.execution import Decoding
from vivace.policies.language.decoding import chain
from vivace.policies.language.past import Past
from vivace.policies.plain_data import build
from vivace.policies.shapes import fixed_shapes
from vivace.policies.staged import Batch, has_language, writes_bins

_SEAMS = (Seam.WEIGHTS, Seam.VISION, Seam.LAYERS, Seam.PATCHES)


@fixed_shapes()
def export_tokens(writer: GraphWriter, execution: Decoding, batch: Batch) -> Program:
    """Export a token policy under a plan; graphs that were made of the same are taken as they are.

    Args:
        writer: where the graphs go.
        execution: the policy and how it is run.
        batch: one normalised observation.

    Raises:
        UnsupportedPolicy: its tokens are of another kind than token_vla's.
    """
    policy = _in_bins(execution)
    encode, extend = _graphs(writer, execution, len(policy.language.layers), batch)
    decoding = decoding_of(execution)
    settings = build(Decoder, "decoder", decoding.in_bundle() if decoding else {})
    bins = policy.bins
    tokens = TokenProgram(extend, policy.n_tokens, executed_tokens(policy), bins.n, bins.end, settings)
    return Program(encode, tokens=tokens)


def check_tokens(execution: Decoding) -> None:
    """Raise `UnsupportedPolicy` if a policy's tokens are of another kind than token_vla's."""
    _in_bins(execution)


def _in_bins(execution: Decoding) -> Any:
    policy = execution.policy
    if writes_bins(policy) and has_language(policy):
        return policy
    raise UnsupportedPolicy(
        f"policy {policy.spec.type!r} writes tokens of its own kind; token_vla can be exported"
    )


def _graphs(writer: GraphWriter, execution: Decoding, n_layers: int, batch: Batch) -> tuple[int, int]:
    digest = made_of(execution, _SEAMS, writer.precision)
    origins = Origin("prompt", digest), Origin("extend", digest)
    found, more = (writer.find(origin) for origin in origins)
    if found is not None and more is not None:
        return found, more
    encode = _Prefix(execution, list(batch))
    logits, *leaves = encode(*batch.values())
    names = _past_names(n_layers)
    first = writer.add(origins[0], encode, batch, ["logits", *names])
    width = min(4, execution.policy.n_tokens)
    device = execution.policy.placement.device
    tokens = torch.full((1, width), execution.policy.action_ids[0], device=device)
    inputs = {"tokens": tokens, "kept": torch.zeros(1, dtype=torch.long, device=device)}
    inputs |= dict(zip(names, leaves, strict=True))
    fresh = [NEXT + name for name in names if name.startswith((PAST + "keys", PAST + "values"))]
    extend = writer.add(
        origins[1], _Extend(execution, n_layers), inputs, ["logits", *fresh], dynamic={"tokens": 1}
    )
    return first, extend


def _past_names(n_layers: int) -> list[str]:
    parts = [f"{PAST}{part}.{i}" for part in ("keys", "values", "prompt") for i in range(n_layers)]
    return [*parts, PAST + "positions"]


class _Prefix(Observing):
    """Normalised observations -> logits of the first token, what was read, with room for a chunk."""

    def __init__(self, execution: Decoding, keys: list[str]):
        super().__init__(execution, keys)
        self._n_tokens = execution.policy.n_tokens

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Read the prefix."""
        prefix = self.encoded(values)
        past = prefix.past.with_room(self._n_tokens)
        return prefix.logits, *past.keys, *past.values, *past.prompt, past.n_positions


class _Extend(Traced):
    """Tokens in a row, how many are kept before them, what was read -> logits, keys and values."""

    def __init__(self, execution: Decoding, n_layers: int):
        super().__init__(execution)
        self._run, self._n_layers = execution, n_layers

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Read more tokens."""
        run, n = self._run, self._n_layers
        tokens, kept, *leaves = given
        keys, values, seen = (tuple(leaves[i * n : (i + 1) * n]) for i in range(3))
        past = Past(keys, values, seen, leaves[-1], kept)
        logits, past = run.policy.extend(tokens, past, *chain(tokens.shape[1], tokens.device), run.language)
        return logits, *past.keys, *past.values
