"""The 7-billion form costs what EfficientVLA prints (arXiv 2506.10100, tables 1 and 2), from shapes alone."""

import pytest

from vivace.eval.measure.cost import vla_costs
from vivace.policies.families.cogact.policy import full_size
from vivace.policies.families.cogact.staged import StagedCogACT


@pytest.fixture(scope="module")
def costs():
    return {row.name: row for row in vla_costs(StagedCogACT(full_size()))}


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "millions", "gflops"),
    [("vision", 802.3, 405.5), ("language", 6738.9, 3726.6), ("action", 89.0, 57.96)],
)
def test_modules(costs, module, millions, gflops):
    row = costs["none"]
    assert row.parameters[module] / 1e6 == pytest.approx(millions, rel=0.01)
    assert row.paper[module] / 1e9 == pytest.approx(gflops, rel=0.01)


@pytest.mark.long
@pytest.mark.parametrize(
    ("plan", "percent", "billions"),
    [("L28 T112", 45.1, 5.87), ("L28 T56", 32.9, 5.87), ("L22 T112", 38.2, 4.86), ("L22 T56", 28.9, 4.86)],
)
def test_plans(costs, plan, percent, billions):
    row, base = costs[plan], costs["none"]
    assert 100 * sum(row.paper.values()) / sum(base.paper.values()) == pytest.approx(percent, abs=0.5)
    assert sum(row.parameters.values()) / 1e9 == pytest.approx(billions, abs=0.01)
    assert sum(row.full.values()) < sum(row.paper.values())
