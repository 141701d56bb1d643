"""Decoding with numpy alone: chunks of one token."""

import numpy as np
import pytest

from vivace.deploy.bundle.token_program import Decoder, TokenProgram
from vivace.deploy.inference.token_decoding import Prompted, decode
from vivace.policies.sampling.streams import Streams

JACOBI = {"kind": "jacobi", "table": (3,)}


@pytest.mark.parametrize("decoder", [
    {"kind": "greedy"},
    {"kind": "greedy_executed"},
    JACOBI | {"init": "prompt"},
    JACOBI | {"init": "previous"},
    JACOBI | {"init": "marginal"},
])  # fmt: skip
def test_a_chunk_of_one_token(decoder):
    program = TokenProgram(0, n=1, executed=1, n_bins=4, end=8, decoder=Decoder(**decoder))
    prompted = Prompted(np.eye(8)[5], np.arange(3), None)

    def extend(tokens, first):
        raise AssertionError("nothing is left to read")

    tokens, passes = decode(program, prompted, extend, Streams([(1, 0)]), action_dim=1)
    assert (tokens.tolist(), passes) == ([5], 0)
    assert program.detokenize(tokens, 1).shape == (1, 1, 1)
