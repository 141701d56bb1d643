"""Find the packages: no setting of setuptools puts folders that lie flat here under the name vivace."""

from setuptools import find_packages, setup

FOLDERS = ("policies", "accel", "envs", "eval", "deploy")

setup(
    packages=[
        f"vivace.{package}"
        for folder in FOLDERS
        for package in (folder, *(f"{folder}.{room}" for room in find_packages(folder)))
    ]
)
