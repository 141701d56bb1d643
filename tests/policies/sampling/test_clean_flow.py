"""Samplers of clean predictions of a flow: by hand, and in numbers as in tensors."""

import numpy as np
import pytest
import torch

from vivace.policies.errors import BadSetting
from vivace.policies.sampling.clean_flow import CLEAN_FLOWS, make_clean_flow_sampler


def run(sampler, x, predict):
    """Every x that the denoiser is asked about, and the chunk; in tensors, and by the tables."""
    seen, memory, table_x, table_memory = [], (), x.numpy(), ()
    for step in sampler.steps:
        seen.append(x)
        out = predict(x, step.t)
        x, memory = step.advance(x, out, memory, None)
        table_x, table_memory = step.table.advance(table_x, out.numpy(), table_memory, None)
        np.testing.assert_allclose(table_x, x.numpy(), rtol=1e-6, atol=1e-6)
    return seen, x


def test_the_noise_stays_the_chunks_own_or_is_what_x_means():
    """Noise 8, predictions 4, 0, 2, 2 at times 1, 3/4, 1/2, 1/4."""
    said = {1.0: 4.0, 0.75: 0.0, 0.5: 2.0, 0.25: 2.0}
    wanted = {
        "renoise": [8, 0.75 * 8 + 0.25 * 4, 0.5 * 8, 0.25 * 8 + 0.75 * 2],
        "euler": [8, 0.75 * 8 + 0.25 * 4, 7 * 2 / 3, 7 / 3 + 1],
    }
    for name, points in wanted.items():
        sampler = make_clean_flow_sampler(name, 4)
        seen, chunk = run(
            sampler, torch.full((1, 2, 3), 8.0), lambda x, t: torch.full_like(x, said[float(t)])
        )
        torch.testing.assert_close(torch.stack(seen)[:, 0, 0, 0], torch.tensor(points, dtype=torch.float32))
        assert (chunk == 2).all()
        assert sampler.n_draws == 1


@pytest.mark.parametrize("name", CLEAN_FLOWS)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_a_perfect_prediction_is_reached_on_the_straight_line(name, n):
    noise, clean = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    sampler = make_clean_flow_sampler(name, n)
    seen, chunk = run(sampler, noise, lambda x, t: clean)
    assert torch.equal(chunk, clean)
    for x, step in zip(seen, sampler.steps, strict=True):
        torch.testing.assert_close(x, step.table.alpha * clean + step.table.sigma * noise)
        assert step.table.t == step.table.sigma


def test_what_there_is_not_is_refused():
    with pytest.raises(BadSetting, match="unknown sampler 'ddim'; known samplers: renoise, euler"):
        make_clean_flow_sampler("ddim", 4)
    with pytest.raises(BadSetting, match="'renoise' was asked for 0 steps; choose at least 1"):
        make_clean_flow_sampler("renoise", 0)
    with pytest.raises(BadSetting, match="steps of one width, not spacing 'leading'"):
        make_clean_flow_sampler("euler", 4, "leading")
