"""What is timed has nothing left to compile."""

from dataclasses import replace

import torch

from vivace.accel.technique import CalibrationData
from vivace.eval.latencies import compile_graphs
from vivace.policies.decoding import greedy
from vivace.policies.load import stage
from vivace.policies.staged import Execution
from vivace.policies.tiny import tiny_token_vla


def test_graphs_are_compiled_on_every_observation():
    seen = []

    def watched(policy, prompt, noise, draft=None, run=None):
        seen.append(prompt.ids.tolist())
        return greedy(policy, prompt, noise, draft)

    policy = stage(tiny_token_vla(language_layers=1, horizon=2, n_action_steps=2))
    tokens = torch.arange(48).reshape(3, 16)
    batch = {
        "observation.images.front": torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        "observation.language.tokens": tokens,
        "observation.language.attention_mask": torch.ones(3, 16, dtype=torch.bool),
    }
    data = CalibrationData(batch, [(0, 0), (0, 1), (0, 2)], None)
    compile_graphs(replace(Execution.of(policy), decoder=watched), data)
    assert seen == [[row] for row in tokens.tolist()]
