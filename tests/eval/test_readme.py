"""README.md is short, its links lead somewhere, its verbs exist, and its Python runs as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

from vivace.eval.cli import VERBS

SOURCE = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"{f}/README.md" for f in ("policies", "accel", "envs", "eval", "deploy")),
]


def test_readme_is_short():
    assert len((SOURCE / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_verbs_exist(page):
    text = (SOURCE / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert ((SOURCE / page).parent / target).exists(), target
    assert set(re.findall(r"(?:^|`)vivace ([a-z]+)", text, re.MULTILINE)) <= set(VERBS)


def test_the_python_of_readme_makes_a_policy_faster(checkpoint):
    text = (SOURCE / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in code.splitlines() if line and not line.startswith("from ")]) <= 8
    state = np.random.default_rng(0).uniform(-1, 1, (3, 2, 39)).astype(np.float32)
    names = {"observations": {"observation.state": state}, "noise_keys": [(0, 0), (0, 1), (1, 0)]}
    exec(code.replace('"CHECKPOINT"', repr(str(checkpoint))), names)
    assert names["actions"].shape == (3, 7, 4)
    assert [technique.kind for technique in names["plan"].techniques] == ["hoist", "block_cache"]
    plain = names["Session"](names["loaded"]).predict(names["observations"], names["noise_keys"])
    assert 0 < np.abs(names["actions"] - plain).max() < 10
