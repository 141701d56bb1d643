"""Options of the whole suite."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--mutations",
        type=int,
        default=200,
        help="mutated inputs of each kind; ten thousand take some minutes",
    )
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
