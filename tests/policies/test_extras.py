"""A package that is missing is named with the extra that brings it (issue 17, section 5; G8's extras)."""

import ast
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from vivace.policies.errors import BadSetting
from vivace.policies.extras import EXTRAS, how_to_install
from vivace.policies.registry import Registry

SOURCE = Path(__file__).parents[2]
FOLDERS = ("policies", "accel", "envs", "eval", "deploy")
OF_ROS_ALONE = {"tf2_ros", "launch", "launch_ros"}
"""What comes with a ROS installation and is on no index."""


def imported() -> set[str]:
    """Every package that a module of ours imports anywhere, also in a function."""
    found = set()
    for file in (path for folder in FOLDERS for path in (SOURCE / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                found |= {name.name.partition(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"vivace"}


def brought(extra: str) -> set[str]:
    """Distributions that an extra installs, with all that they need."""
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(project["optional-dependencies"][extra] if extra else ())]
    waiting, found = [Requirement(text) for text in texts], {}
    while waiting:
        one = waiting.pop()
        name, extras = canonicalize_name(one.name), frozenset(one.extras)
        if extras <= found.get(name, frozenset()) and name in found:
            continue
        found[name] = found.get(name, frozenset()) | extras
        try:
            needed = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        waiting += [
            n
            for n in needed
            if any(n.marker is None or n.marker.evaluate({"extra": e}) for e in ("", *extras))
        ]
    return set(found)


def test_every_package_that_is_imported_has_its_extra():
    assert imported() - OF_ROS_ALONE <= set(EXTRAS)


@pytest.mark.parametrize("extra", sorted(set(EXTRAS.values())))
def test_the_extra_brings_the_package(extra):
    here, given = packages_distributions(), brought(extra)
    for package, its in EXTRAS.items():
        if its == extra and package in here:
            assert {canonicalize_name(name) for name in here[package]} & given, (package, extra)


def test_what_is_said():
    missing = how_to_install(ModuleNotFoundError("No module named 'onnx.helper'", name="onnx.helper"))
    assert missing == (
        f"no package 'onnx' in {sys.executable}; pip install 'vivace[export]', or 'vivace[all]' for every "
        "verb; Python 3.12 or newer"
    )
    assert how_to_install(ModuleNotFoundError(name="rich")).endswith("; pip install 'vivace[run]'")
    assert how_to_install(ModuleNotFoundError(name="numpy")).endswith("; pip install 'vivace'")
    assert how_to_install(ModuleNotFoundError(name="my_robot")).endswith(
        "install it, e.g. pip install my_robot"
    )
    old = how_to_install(ImportError("cannot import name 'x' from 'lerobot'", name="lerobot"))
    assert "'lerobot' of" in old
    assert "cannot be used (cannot import name 'x' from 'lerobot'); pip install 'vivace[torch]'" in old
    theirs = "'transformers' is required but not installed. Install it with: pip install 'lerobot[smolvla]'"
    assert how_to_install(ImportError(theirs)) == theirs
    assert how_to_install(ImportError("what?")) == ""
    assert how_to_install(ModuleNotFoundError(name="vivace.no_such_room")) == "", "our own mistake"


def test_what_a_registry_cannot_import_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    (tmp_path / "their_world.py").write_text("import metaworld\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadSetting, match=r"no package 'metaworld' in .*; pip install 'vivace\[sim\]'"):
        Registry("world", "no.group", {"theirs": "their_world"}).find("theirs")
