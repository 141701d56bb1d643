"""What a robot's computer has: our wheel and what it depends on, in a fresh environment, one a Python."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

SOURCE = Path(__file__).parents[2]
OURS = ".".join(map(str, sys.version_info[:2]))
NUMPY = {"3.10": "1.26.*", "3.11": "2.*", "3.12": "2.*", "3.13": "2.*"}
"""Python -> the numpy it is tried with; JetPack 6 and ROS 2 Humble have the first pair."""
WITH_ROS = {
    f"vivace.deploy.ros2.{name}"
    for name in ("deadman", "inputs", "lifecycle", "node_launch", "outputs", "process", "topics")
}
"""Modules that import ROS 2 when they are imported."""


class RobotsPython(NamedTuple):
    """A Python with our wheel."""

    python: Path
    version: str

    @property
    def is_ours(self) -> bool:
        """Whether it is the Python that runs the tests, with the same numpy and ONNX Runtime."""
        return self.version == OURS

    def run(self, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        """Run it, away from the checkout."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        command = [str(argument) for argument in (self.python, *arguments)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, **options
        )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "robots_python" in metafunc.fixturenames:
        asked = tuple(NUMPY) if metafunc.config.getoption("every_python") else (OURS, "3.10")
        metafunc.parametrize("robots_python", asked, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("every_python"):
        left_out = [item for item in items if item.get_closest_marker("every_python")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session")
def robot_modules() -> list[str]:
    """Modules of the robot side that can be imported without ROS 2."""
    import tomllib  # Python 3.10 lacks it

    settings = tomllib.loads((SOURCE / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    named = next(c["source_modules"] for c in settings if c["name"] == "the robot side runs without torch")
    return [module for name in named for module in _modules(name) if module not in WITH_ROS]


@pytest.fixture(scope="session")
def numpy_of() -> dict[str, str]:
    """Python -> the numpy it is tried with."""
    return NUMPY


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all processes of this run of the tests have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def wheel(shared: Path) -> Path:
    """Our wheel, built from a copy of the checkout: building leaves things behind."""
    from filelock import FileLock

    folder = shared / "wheel"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            tree = shared / "tree"
            for name in ("policies", "accel", "envs", "eval", "deploy"):
                shutil.copytree(SOURCE / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            for name in ("pyproject.toml", "README.md", "LICENSE"):
                shutil.copy(SOURCE / name, tree / name)
            _pip("wheel", "--no-deps", "--wheel-dir", folder, tree)
    return next(folder.glob("vivace-*.whl"))


@pytest.fixture
def robots_python(request: pytest.FixtureRequest, wheel: Path, shared: Path) -> RobotsPython:
    """A Python with our wheel without extras; skipped where there is no such Python."""
    from filelock import FileLock

    wanted, folder = request.param, shared / f"python{request.param}"
    found = _interpreter(wanted)
    if found is None:
        pytest.skip(f"no Python {wanted} on this machine")
    numpy = f"numpy=={NUMPY[wanted]}"
    versions = [f"{n}=={version(n)}" for n in ("numpy", "onnxruntime")] if wanted == OURS else [numpy]
    with FileLock(f"{folder}.lock"):
        if not (folder / "ready").exists():
            subprocess.run([found, "-m", "venv", "--without-pip", folder], check=True)
            _pip("--python", folder / "bin" / "python", "install", "--no-compile", wheel, *versions)
            (folder / "ready").touch()
    return RobotsPython(folder / "bin" / "python", wanted)


@pytest.fixture
def equipped(robots_python: RobotsPython, wheel: Path, shared: Path) -> RobotsPython:
    """The same with the extra `run` and pytest."""
    folder = shared / f"equipped{robots_python.version}"
    if not folder.exists():
        subprocess.run([robots_python.python, "-m", "venv", "--without-pip", folder], check=True)
        wanted = (f"{wheel}[run]", f"numpy=={NUMPY[robots_python.version]}", "pytest", "hypothesis")
        _pip("--python", folder / "bin" / "python", "install", "--no-compile", *wanted)
    return RobotsPython(folder / "bin" / "python", robots_python.version)


def _modules(name: str) -> list[str]:
    """A module, or those of a room."""
    place = SOURCE.joinpath(*name.split(".")[1:])
    if not place.is_dir():
        return [name]
    return sorted(
        ".".join(("vivace", *file.relative_to(SOURCE).with_suffix("").parts))
        for file in place.rglob("*.py")
        if file.stem != "__init__"
    )


def _pip(*arguments: object) -> None:
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *map(str, arguments)], check=True)


def _interpreter(wanted: str) -> str | None:
    """Path of a Python of this version; None if there is none."""
    if wanted == OURS:
        return sys.executable
    managed = Path.home().glob(f".pyenv/versions/{wanted}.*/bin/python")
    for place in (shutil.which(f"python{wanted}"), *managed):
        asked = [place, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        if (
            place
            and subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == wanted
        ):
            return str(place)
    return None
