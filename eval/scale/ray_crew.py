"""Workers that are actors of a Ray cluster, kept alive from unit to unit."""

import os
import socket
from typing import Any

from vivace.eval.scale.local import THREADS, Arguments
from vivace.eval.scale.schedule import Died, Failed, News, Ready
from vivace.eval.scale.worker import Worker
from vivace.policies.errors import BadSetting, in_one_line

_SHARED = ("MUJOCO_GL", "PYOPENGL_PLATFORM", "HF_HUB_OFFLINE", "HF_HOME", "PYTHONPATH", "VIVACE_TRACEBACK")
"""What of the environment an actor gets too."""
_PATIENCE_S = 5.0


class RayCrew:
    """Actors, as many at once as the cluster has CPUs for.

    Args:
        address: "auto" or host:port.
        start: pickled `Start`.
        threads: of each, and the CPUs that it takes.
        arguments: what a worker is told of a unit.

    Raises:
        BadSetting: nobody answers at the address, or the cluster has too few CPUs.
    """

    def __init__(self, address: str, start: bytes, threads: int, arguments: Arguments) -> None:
        import ray

        self._ray, self._arguments = ray, arguments
        self._is_ours = not ray.is_initialized()
        if self._is_ours:
            _connect(ray, address)
        self.n = int(ray.cluster_resources().get("CPU", 0)) // threads
        if not self.n:
            raise BadSetting(f"the Ray cluster has fewer than {threads} CPUs; lower --scale.threads")
        named = {name: os.environ[name] for name in _SHARED if name in os.environ}
        variables = named | dict.fromkeys(THREADS, str(threads))
        options = {"num_cpus": threads, "runtime_env": {"env_vars": variables}, "max_restarts": 0}
        self._actor = ray.remote(Worker).options(**options)
        self._start = ray.put(start)
        self._actors: list[Any] = []
        self._awaited: dict[Any, int] = {}
        """What Ray is asked for -> who answers: a stream of results, or that an actor is there."""

    def begin(self) -> int:
        """Start one more actor."""
        actor: Any = self._actor.remote(self._start)
        self._actors.append(actor)
        self._awaited[actor.__ray_ready__.remote()] = len(self._actors) - 1
        return len(self._actors) - 1

    def give(self, worker: int, unit: Any) -> None:
        """Ask an actor for the results of a unit, as a stream."""
        run = self._actors[worker].run.options(num_returns="streaming")
        self._awaited[run.remote(*self._arguments(unit))] = worker

    def news(self) -> list[tuple[int, News]]:
        """Wait for results, or for the end of an actor."""
        (ready, *_), _ = self._ray.wait(list(self._awaited), num_returns=1)
        worker = self._awaited[ready]
        found = self._read(ready)
        return [] if found is None else [(worker, found)]

    def close(self) -> None:
        """End all actors, and Ray if it was begun or joined here."""
        for actor in self._actors:
            self._ray.kill(actor)
        if self._is_ours:
            self._ray.shutdown()

    def _read(self, ready: Any) -> News | None:
        """Read one answer; None at the end of a stream, whose last result said so."""
        errors = self._ray.exceptions
        try:
            if isinstance(ready, self._ray.ObjectRef):
                del self._awaited[ready]
                self._ray.get(ready)
                return Ready()
            found: News = self._ray.get(next(ready))
            return found
        except StopIteration:
            del self._awaited[ready]
            return None
        except errors.RayTaskError as error:
            self._awaited.pop(ready, None)
            cause = error.cause
            return Failed(cause if isinstance(cause, Exception) else error)
        except errors.RayError as error:
            self._awaited.pop(ready, None)
            return Died(f"was lost ({in_one_line(error, 100)})")


def _connect(ray: Any, address: str) -> None:
    """Join a cluster; with "auto" the one of this computer, or a new one."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    quiet = {"log_to_driver": False, "logging_level": "warning"}
    if address == "auto":
        try:
            ray.init(**quiet)
        except Exception as error:  # Ray has no class of its own for it
            raise BadSetting(
                f"Ray cannot be joined or begun on this computer ({in_one_line(error)})"
            ) from error
        return
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), _PATIENCE_S):
            pass
        ray.init(address=address, **quiet)
    except (OSError, ValueError, OverflowError, ConnectionError, RuntimeError) as error:
        raise BadSetting(
            f"no Ray answers at scale.ray={address} ({in_one_line(error)}); give host:port of a cluster's "
            "head, or auto"
        ) from error
