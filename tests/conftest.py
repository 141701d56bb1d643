"""Options of the whole suite, and the signals that it needs."""

import gc
import logging
import os
import signal
import sys

import pytest

COLLECTED = pytest.StashKey[list[pytest.Item]]()


@pytest.fixture(autouse=True)
def _as_many_threads() -> None:
    """Every test begins with the threads that the suite was begun with, whatever the one before chose."""
    if "torch" in sys.modules and "OMP_NUM_THREADS" in os.environ:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def _logs_are_open() -> None:
    """A library that was first imported inside a test keeps that test's captured stderr, closed by now."""
    for logger in (logging.root, *logging.Logger.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "closed", False):
                handler.stream = sys.__stderr__


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--mutations",
        type=int,
        default=100,
        help="mutated inputs of each kind; ten thousand take some minutes",
    )
    parser.addoption(
        "--plan-mutations",
        type=int,
        default=2000,
        help="damaged plans that are read and run; ten thousand take two minutes",
    )
    parser.addoption(
        "--regen-golden",
        action="store_true",
        help="rewrite tests/golden/*.npz and print the largest change; the commit must say why",
    )
    parser.addoption(
        "--bundle-mutations",
        type=int,
        default=80,
        help="damaged bundles that are loaded; ten thousand take some minutes",
    )
    parser.addoption(
        "--soak-ticks",
        type=int,
        default=10_000,
        help="length of the soak in virtual time; a million takes a few minutes",
    )
    parser.addoption(
        "--endings",
        default="7",
        help="runs of a robot that are ended in as many ways, or the numbers of some, such as 50,122; "
        "200 take a quarter of an hour",
    )
    parser.addoption(
        "--limits-mutations",
        type=int,
        default=500,
        help="damaged limits files and URDFs that are read, of each; ten thousand take a minute",
    )
    parser.addoption(
        "--deadman-kills",
        type=int,
        default=2,
        help="loops that are killed to measure the dead man's switch; a hundred take some minutes",
    )
    parser.addoption(
        "--deadman-ticks",
        type=int,
        default=20,
        help="ticks over which the cost of a robot in a process of its own is measured",
    )
    parser.addoption(
        "--every-python",
        action="store_true",
        help="try the robot side on Python 3.10 to 3.13, those that this machine has",
    )
    parser.addoption(
        "--on",
        default="cuda",
        help="device of the tests in tests/gpu; cpu tries the tests themselves where there is no GPU",
    )


@pytest.fixture(scope="session")
def collected(request: pytest.FixtureRequest) -> list[pytest.Item]:
    """All tests that were collected, those too that are left out of this run."""
    return request.config.stash[COLLECTED]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[COLLECTED] = list(items)


def pytest_collection_finish() -> None:
    """What was imported stays: a search for garbage, with which every timing begins, need not look at it."""
    gc.collect()
    gc.freeze()


def pytest_configure() -> None:
    """Let signals arrive that a shell lets its background jobs ignore, here and in every child."""
    for name in ("SIGINT", "SIGQUIT", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: a quarter of the suite's time is waiting for other processes."""
    return (os.cpu_count() or 1) + 1
