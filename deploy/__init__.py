"""The robot side: clock, chunk queue, guard, worker and the one control loop; free of torch."""

import importlib

_LAZY = {
    "bundle": ("Bundle",),
    "budget": ("LatencyBudget", "Rung"),
    "chunk_queue": ("ChunkQueue", "Queued"),
    "clock": ("Clock", "VirtualClock", "WallClock"),
    "guard": ("ActionGuard", "Limits"),
    "limits": ("load_limits",),
    "loop": ("ControlLoop", "LoopSettings", "Mode", "Source", "TickRecord", "make_queue"),
    "ort_policy": ("OrtPolicy",),
    "process_worker": ("ProcessWorker", "bundles"),
    "deadman": ("Deadman", "DeadmanSettings"),
    "robot": ("Robot",),
    "robot_access": ("open_robot",),
    "robot_process": ("RobotProcess",),
    "watchdog": ("Watchdog", "WatchdogSettings"),
    "worker": ("BatchedInference", "Predict", "Request", "SimulatedWorker", "Worker"),
}
_HOME = {name: module for module, names in _LAZY.items() for name in names}
__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
