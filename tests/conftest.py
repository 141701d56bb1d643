"""Options of the whole suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regen-golden",
        action="store_true",
        help="rewrite tests/golden/*.npz and print the largest change; the commit must say why",
    )
    parser.addoption(
        "--soak-ticks",
        type=int,
        default=20_000,
        help="length of the soak in virtual time; a million takes a few minutes",
    )
    parser.addoption(
        "--every-python",
        action="store_true",
        help="try the robot side on Python 3.10 to 3.13, those that this machine has",
    )
