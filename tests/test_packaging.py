"""What is installed is what is here."""

import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

SOURCE = Path(__file__).parents[1]
FOLDERS = ("policies", "accel", "envs", "eval", "deploy")


def test_every_folder_of_modules_is_packaged(tmp_path):
    """The list is found when it is built, so a folder can only be missed for want of an `__init__.py`."""
    command = [sys.executable, "setup.py", "--quiet", "egg_info", f"--egg-base={tmp_path}"]
    subprocess.run(command, cwd=SOURCE, check=True, capture_output=True)
    (listed,) = tmp_path.glob("*.egg-info/SOURCES.txt")
    packed = {Path(line) for line in listed.read_text().splitlines()}
    modules = {
        file.relative_to(SOURCE)
        for folder in FOLDERS
        for file in (SOURCE / folder).rglob("*.py")
        if "zoo" not in file.parts
    }
    assert modules <= packed
    settings = tomllib.loads((SOURCE / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(settings["package-data"]) == {f"vivace.{folder}" for folder in FOLDERS}
    assert all((SOURCE / folder / "py.typed").is_file() for folder in FOLDERS)


def test_entry_points_lead_somewhere():
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    places = project["scripts"] | project["entry-points"]["vivace.robots"]
    assert set(places) == {"dataset", "lerobot", "vivace", "vivace-ros"}
    for name, place in places.items():
        assert callable(EntryPoint(name, place, "").load())
