"""What is installed is what is here."""

import tomllib
from importlib.metadata import entry_points
from pathlib import Path

SOURCE = Path(__file__).parents[1]
FOLDERS = ("policies", "accel", "envs", "eval", "deploy")


def test_every_room_is_packaged():
    settings = tomllib.loads((SOURCE / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {
        "vivace." + ".".join(init.parent.relative_to(SOURCE).parts)
        for folder in FOLDERS
        for init in (SOURCE / folder).rglob("__init__.py")
        if "zoo" not in init.parts
    }
    assert set(settings["packages"]) == found
    assert set(settings["package-data"]) == {f"vivace.{folder}" for folder in FOLDERS}
    assert all((SOURCE / folder / "py.typed").is_file() for folder in FOLDERS)


def test_entry_points_lead_somewhere():
    found = [point for point in entry_points(group="vivace.robots") if point.value.startswith("vivace.")]
    scripts = [
        point for point in entry_points(group="console_scripts") if point.name in ("vivace", "vivace-ros")
    ]
    assert {point.name for point in found + scripts} == {"metaworld", "lerobot", "vivace", "vivace-ros"}
    assert all(callable(point.load()) for point in found + scripts)
