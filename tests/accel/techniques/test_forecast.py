"""Forecast weights: exact on polynomials, lower order until history is there, published coefficients."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vivace.accel.techniques.forecast import Forecast, adams_bashforth_weights, fused_weights, taylor_weights
from vivace.policies.errors import BadSetting


def predict(weights, history, f):
    return sum(w * f(s) for w, s in zip(weights, history, strict=False))


def test_order_zero_is_reuse():
    assert taylor_weights([10, 5, 0], 13, 0).tolist() == [1.0]


def test_taylor_is_the_papers_formula_for_equal_gaps():
    # D1 = F0 - F1, D2 = F0 - 2 F1 + F2; F + D1 k/N + D2 k^2 / (2 N^2), N = 5, k = 3
    weights = taylor_weights([10, 5, 0], 13, 2)
    expected = np.array([1, 0, 0]) + 0.6 * np.array([1, -1, 0]) + 0.18 * np.array([1, -2, 1])
    np.testing.assert_allclose(weights, expected)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 9))
def test_first_order_forecasts_are_exact_on_lines(gaps, ahead):
    history = np.cumsum([0, *gaps])[::-1].tolist()
    step = history[0] + ahead

    def line(s):
        return 3 * s - 2

    for order in range(1, 5):
        assert predict(taylor_weights(history, step, order), history, line) == pytest.approx(line(step))
    for order in range(1, 4):
        assert predict(adams_bashforth_weights(history, step, order), history, line) == pytest.approx(
            line(step)
        )
    assert predict(fused_weights(history, step), history, line) == pytest.approx(line(step))


def test_lower_order_until_history_is_there():
    assert len(taylor_weights([0], 3, 4)) == 1
    assert len(taylor_weights([4, 0], 6, 4)) == 2


def test_adams_bashforth_coefficients():
    np.testing.assert_allclose(adams_bashforth_weights([2, 1, 0], 3, 2), [1 + 1.5, -1.5 - 0.5, 0.5])
    weights = adams_bashforth_weights([3, 2, 1, 0], 4, 3)
    np.testing.assert_allclose(weights, [1 + 23 / 12, -39 / 12, 21 / 12, -5 / 12])


def test_refusals():
    with pytest.raises(BadSetting, match=r"order 5; taylor takes 0\.\.4"):
        Forecast(n_steps=4, updates={}, order=5)
    with pytest.raises(BadSetting, match="rule 'spline' is not one of taylor"):
        Forecast(n_steps=4, updates={}, rule="spline")
