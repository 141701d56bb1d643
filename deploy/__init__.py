"""The robot side: clock, chunk queue, guard, worker and the one control loop; free of torch."""

import importlib

_LAZY = {
    "bundle.bundle": ("Bundle",),
    "loop.budget": ("LatencyBudget", "Rung"),
    "loop.chunk_queue": ("ChunkQueue", "Queued"),
    "loop.clock": ("Clock", "VirtualClock", "WallClock"),
    "loop.guard": ("ActionGuard", "Limits"),
    "robots.limits": ("load_limits",),
    "loop.loop": ("ControlLoop", "Source", "TickRecord", "build_loop"),
    "loop.settings": ("LoopSettings", "Mode"),
    "inference.ort_policy": ("OrtPolicy",),
    "workers.process_worker": ("ProcessWorker", "bundles"),
    "deadman.deadman": ("Deadman", "DeadmanSettings"),
    "loop.robot": ("Robot",),
    "deadman.robot_access": ("open_robot",),
    "deadman.robot_process": ("RobotProcess",),
    "loop.watchdog": ("Watchdog", "WatchdogSettings"),
    "workers.worker": ("BatchedInference", "Predict", "Request", "SimulatedWorker", "Worker"),
}
_HOME = {name: module for module, names in _LAZY.items() for name in names}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
