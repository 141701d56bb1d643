"""README.md is short, its links lead somewhere, its verbs exist, and its Python runs as it stands."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from vivace.eval.cli import VERBS, _parse
from vivace.policies.errors import VivaceError

SOURCE = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *(f"{f}/README.md" for f in ("policies", "accel", "envs", "eval", "deploy")),
]

CARDS = [str(card.relative_to(SOURCE)) for card in sorted(SOURCE.glob("policies/zoo/*/README.md"))]


def test_readme_is_short():
    assert len((SOURCE / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_verbs_exist(page):
    text = (SOURCE / page).read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert ((SOURCE / page).parent / target).exists(), target
    assert set(re.findall(r"(?:^|`)vivace ([a-z]+)", text, re.MULTILINE)) <= set(VERBS)


@pytest.mark.parametrize("page", PAGES)
def test_every_table_is_filled(page):
    """`vivace report --into=PAGE` writes between the marks."""
    text = (SOURCE / page).read_text()
    found = re.findall(r"<!-- table: (.*?) -->\n(.*?)<!-- end -->", text, re.DOTALL)
    assert len(found) == text.count("<!-- table: ")
    assert [asked for asked, table in found if not table.startswith("|")] == []


def flags(text: str) -> list[tuple[str, list[str]]]:
    """Verb and flags of every command of a page, on a line of its own or in running text."""
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found = [line for line in lines if re.match(r"vivace [a-z]+ .*--", line)]
    found += re.findall(r"`(vivace [a-z]+ [^`]*--[^`]*)`", text)
    split = [shlex.split(command, comments=True)[1:] for command in found]
    return [(verb, [word for word in words if word.startswith("--")]) for verb, *words in split]


@pytest.mark.parametrize("page", [*PAGES, *CARDS])
def test_every_flag_of_a_page_is_known(page):
    wrong = []
    for verb, given in flags((SOURCE / page).read_text()):
        try:
            _parse(verb, given)
        except VivaceError as error:  # what a sentence leaves out, or stands for a value, may be missing
            wrong += [f"vivace {verb}: {error}"] if re.search("unrecognized|renamed", str(error)) else []
    assert not wrong


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
