"""Options of the whole suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regen-golden",
        action="store_true",
        help="rewrite tests/golden/*.npz and print the largest change; the commit must say why",
    )
    parser.addoption(
        "--bundle-mutations",
        type=int,
        default=400,
        help="damaged bundles that are loaded; ten thousand take some minutes",
    )
    parser.addoption(
        "--soak-ticks",
        type=int,
        default=20_000,
        help="length of the soak in virtual time; a million takes a few minutes",
    )
    parser.addoption(
        "--limits-mutations",
        type=int,
        default=1500,
        help="damaged limits files and URDFs that are read, of each; ten thousand take a minute",
    )
