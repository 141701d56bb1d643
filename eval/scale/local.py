"""Workers that are processes of this computer."""

import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from vivace.eval.scale.schedule import Died, Failed, News, Ready

_CONTEXT = get_context("spawn")  # a forked process would inherit torch's threads and OpenGL's state
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Read when libraries are loaded, so they are set before a worker imports any."""
_PATIENCE_S = 5.0

Arguments = Callable[[Any], tuple[Any, ...]]
"""Unit -> arguments of `Running.run`."""


class LocalCrew:
    """Processes, each with a pipe of its own: one that is killed leaves no lock to the others.

    Args:
        start: pickled `Start`.
        threads: of each.
        arguments: what a worker is told of a unit.
    """

    def __init__(self, start: bytes, threads: int, arguments: Arguments) -> None:
        self._start, self._threads, self._arguments = start, threads, arguments
        self._processes: dict[int, tuple[BaseProcess, Connection]] = {}
        self._begun = 0

    def begin(self) -> int:
        """Start one more process."""
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=serve, args=(theirs,))
        with _environment(dict.fromkeys(THREADS, str(self._threads))):
            process.start()
        theirs.close()  # so that its end is the end of the pipe
        self._begun += 1
        self._processes[self._begun] = process, ours
        _send(ours, self._start)
        return self._begun

    def give(self, worker: int, unit: Any) -> None:
        """Send a unit."""
        _send(self._processes[worker][1], pickle.dumps(self._arguments(unit)))

    def news(self) -> list[tuple[int, News]]:
        """Wait for what processes send, or for the end of one."""
        numbers = {connection: number for number, (_, connection) in self._processes.items()}
        return [(numbers[ready], self._read(numbers[ready])) for ready in wait(list(numbers))]  # type: ignore[index]

    def close(self) -> None:
        """End all of them."""
        for process, connection in self._processes.values():
            connection.close()
            process.terminate()
        for process, _ in self._processes.values():
            process.join(_PATIENCE_S)
            if process.is_alive():
                process.kill()
                process.join()
        self._processes.clear()

    def _read(self, worker: int) -> News:
        process, connection = self._processes[worker]
        try:
            found: News = pickle.loads(connection.recv_bytes())
            return found
        except (EOFError, OSError):
            del self._processes[worker]
            connection.close()
            process.join(_PATIENCE_S)
            return Died(_how(process.exitcode))


def serve(connection: Connection) -> None:
    """Be a worker, until nobody asks any more."""
    from vivace.eval.scale.worker import Worker  # imports torch, after the environment is set

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who asks ends workers
    os.dup2(2, 1)  # what loading prints; stdout is the results'
    try:
        try:
            worker = Worker(connection.recv_bytes())
            connection.send_bytes(pickle.dumps(Ready()))
            while True:
                for found in worker.run(*pickle.loads(connection.recv_bytes())):
                    connection.send_bytes(pickle.dumps(found))
        except Exception as error:
            connection.send_bytes(pickle.dumps(Failed(sendable(error))))
    except (EOFError, OSError):  # who asked is gone
        return


def sendable(error: Exception) -> Exception:
    """Return an error as it travels; one that cannot, as its text."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def _send(connection: Connection, message: bytes) -> None:
    try:
        connection.send_bytes(message)
    except OSError:  # it died; that is read later
        return


def _how(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        why = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return f"was ended by {name}{why}"
    return f"ended with code {code}"


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables that a process started meanwhile inherits."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
