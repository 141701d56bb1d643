"""The support tables of policies/README.md are what tests show: `make table` writes them anew."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import ADAPTED, EVERY, checkpoint
from policy_cases import POLICIES
from safetensors.torch import load_file
from support_table import LACKS, by_row, by_type, lacking, rewritten, shown, shows

from vivace.accel.registry import techniques
from vivace.accel.technique import Seam
from vivace.policies.load import ADAPTERS, load_policy

TESTS = Path(__file__).parents[1]
README = TESTS.parent / "policies" / "README.md"
TECHNIQUES = {
    kind: f"`{kind}`" + ", exact" * (technique.seam == Seam.EXACT)
    for kind, technique in techniques().items()
    if technique.__module__.startswith("vivace.")
}
COMMANDS = {"eval": "eval", "bench": "bench", "calibrate": "calibrate", "export": "export", "rtc": "rtc"}
PLAIN = {"plain": "plain, largest difference"}
ROWS = {
    "load": "load",
    **PLAIN,
    "exact": "exact work left out",
    **COMMANDS,
    "lerobot-eval": "`lerobot-eval`",
    **TECHNIQUES,
}
"""Row -> how the table calls it."""
OPAQUE = tuple(kind for kind in EVERY if kind not in ADAPTED)


def test_every_adapter_is_tried():
    assert {name.split("-")[0] for name in POLICIES} == set(ADAPTED)
    assert set(ADAPTED) <= set(EVERY)


@pytest.mark.shows("load")
@pytest.mark.parametrize("kind", ADAPTED)
def test_a_checkpoint_is_loaded_and_taken_apart(kind):
    loaded = load_policy(checkpoint(kind))
    assert isinstance(loaded.staged, ADAPTERS.find(kind))
    found, wanted = loaded.policy.state_dict(), load_file(checkpoint(kind) / "model.safetensors")
    assert wanted
    assert all(found[name].equal(value) for name, value in wanted.items())


def test_the_tables_in_the_readme_are_what_tests_show(collected, request):
    needed = {path for path in TESTS.rglob("test_*.py") if "shows(" in path.read_text()}
    if not needed <= {test.path for test in collected}:
        pytest.skip("not all tests that show something were collected; make table does it")
    cells = shown(collected)
    assert not lacking(cells, ROWS, ADAPTED)
    assert not lacking(cells, PLAIN | COMMANDS, OPAQUE)
    text = README.read_text()
    wanted = rewritten(text, "support", by_row(cells, ROWS, ADAPTED))
    wanted = rewritten(wanted, "opaque", by_type(cells, PLAIN | COMMANDS, OPAQUE))
    if request.config.getoption("--regen-golden"):
        README.write_text(wanted)
    assert README.read_text() == wanted, "write it anew: make table"


def marked(*marks, **parameters):
    """A collected test."""
    return SimpleNamespace(
        nodeid="test_it",
        callspec=SimpleNamespace(params=parameters),
        iter_markers=lambda name: [it.mark for it in marks if it.name == name],
    )


def test_a_cell_is_what_a_test_is_marked_to_show():
    cells = shown(
        [
            marked(pytest.mark.shows("export"), kind="act"),
            marked(pytest.mark.shows("export", by="subject"), subject="pi0-two-cameras"),
            marked(shows("eval", "groot", "no: blind"), kind="act"),
            marked(pytest.mark.long, kind="xvla"),
        ]
    )
    assert cells == {("export", "act"): "yes", ("export", "pi0"): "yes", ("eval", "groot"): "no: blind"}
    assert lacking(cells, ["export"], ["act", "groot"]) == ["export of groot"]
    assert by_type(cells, {"export": "export"}, ["act"]).splitlines()[2] == "| `act` | yes |"
    assert by_row(cells, {"eval": "`eval`"}, ["groot"]).splitlines()[2] == "| `eval` | no: blind |"


@pytest.mark.parametrize("others_first", [False, True])
def test_one_form_of_a_type_is_enough_and_tests_may_not_contradict(others_first):
    works, lacks, refused = (marked(shows("hoist", "act", says)) for says in ("yes", LACKS, "no"))
    both = [lacks, works] if others_first else [works, lacks]
    assert shown(both) == {("hoist", "act"): "yes"}
    with pytest.raises(pytest.UsageError, match="test_it says '.*' of .*'hoist', 'act'.*, another test"):
        shown([works, refused] if others_first else [refused, works])


def test_a_table_is_put_where_it_belongs():
    text = "a\n<!-- one -->\nold\n<!-- end of one -->\nb"
    assert rewritten(text, "one", "new") == text.replace("old", "new")
    with pytest.raises(pytest.UsageError, match="there is no <!-- two -->"):
        rewritten(text, "two", "new")
