"""Similarity and volatility of recorded outputs, against their definitions."""

import pytest
import torch

from vivace.accel.record import mean_difference, record
from vivace.accel.technique import CalibrationData
from vivace.policies.errors import CalibrationError
from vivace.policies.execution import as_trained
from vivace.policies.load import stage
from vivace.policies.tiny.policies import tiny_dp_transformer


@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_mean_difference_is_the_mean_over_pairs(steps):
    features = torch.randn(3, steps, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    differences = [
        (features[:, i] - features[:, j]).abs().mean() for i in range(steps) for j in range(i + 1, steps)
    ]
    expected = sum(differences) / len(differences) if differences else 0.0
    assert float(mean_difference(features)) == pytest.approx(float(expected))


def test_a_trace_has_every_block_and_unit_diagonals():
    staged = stage(tiny_dp_transformer())
    data = CalibrationData({"observation.state": torch.rand(2, 2, 5)}, ((1, 0), (2, 0)))
    trace = record(as_trained(staged), data)
    assert list(trace.similarity) == list(staged.spec.block_ids) == list(trace.volatility)
    for matrix in trace.similarity.values():
        assert matrix.shape == (10, 10)
        assert matrix.diagonal() == pytest.approx(1, abs=1e-5)
        assert matrix == pytest.approx(matrix.T, abs=1e-6)
    assert all(value > 0 for value in trace.volatility.values())


def test_a_policy_that_gives_nan_is_refused():
    policy = tiny_dp_transformer()
    with torch.no_grad():
        policy.model.decoder.layers[1].norm3.weight[0] = torch.nan
    data = CalibrationData({"observation.state": torch.rand(1, 2, 5)}, ((1, 0),))
    with pytest.raises(CalibrationError, match=r"block 'action\.\d\.\w+' gave NaN or infinity"):
        record(as_trained(stage(policy)), data)
