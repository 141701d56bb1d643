"""OpenGL, which a computer need not have: MuJoCo steps without it, and a picture says what it lacks.

MUJOCO_GL chooses it: egl (no display, with or without a GPU), osmesa (no display, on the CPU), glfw (a
display). With some of them `import mujoco` fails as a whole where their library is missing.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from vivace.policies.errors import NoRendering, VivaceError

_REMEDIES = {
    "egl": "install its driver (Debian, Ubuntu: apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri; the "
    "GPU's own driver brings one too), or set MUJOCO_GL=osmesa",
    "osmesa": "install its library (Debian, Ubuntu: apt-get install libosmesa6), or set MUJOCO_GL=egl",
    "glfw": "give it a display (DISPLAY), or set MUJOCO_GL=egl, which needs none",
}
_BINDINGS = (
    "OpenGL",
    "glfw",
    *(f"mujoco.{name}" for name in ("egl", "osmesa", "glfw", "gl_context", "renderer", "rendering")),
    "dm_control._render",
)
"""Packages that call OpenGL."""
_OWN_PLATFORM = ("egl", "osmesa")
"""Values of MUJOCO_GL that PYOPENGL_PLATFORM must not contradict."""
_NONE = "disable"
"""MUJOCO_GL of a mujoco that does not look for OpenGL."""
_failed: Exception | None = None
"""Why there is no OpenGL, once that is known."""


def load_mujoco() -> None:
    """Import mujoco, without OpenGL if that cannot be had; nothing if mujoco is not installed."""
    global _failed
    try:
        import_module("mujoco")
    except ModuleNotFoundError:
        return
    except Exception as error:  # of every kind: bindings that find no library fail where they happen to
        asked = os.environ.get("MUJOCO_GL")
        os.environ["MUJOCO_GL"] = _NONE
        try:
            import_module("mujoco")
        finally:
            os.environ.pop("MUJOCO_GL")
            if asked is not None:
                os.environ["MUJOCO_GL"] = asked
        _failed = error


@contextmanager
def drawing() -> Iterator[None]:
    """Meanwhile nothing but drawing is done.

    Raises:
        NoRendering: it failed, because there is no OpenGL, or because it was lost in the middle.
    """
    if _failed is not None:
        raise NoRendering(_line(_failed)) from _failed
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # glfw's, of what the error says too
            yield
    except VivaceError:
        raise
    except Exception as error:  # of every kind
        raise NoRendering(_line(error)) from error


def why_not_drawn(error: BaseException) -> str:
    """Say what an error that came out of OpenGL needs; empty for any other."""
    frames = traceback.walk_tb(error.__traceback__)
    modules = (str(frame.f_globals.get("__name__", "")) for frame, _ in frames)
    return _line(error) if any(module.startswith(_BINDINGS) for module in modules) else ""


def opened(make: Callable[[], Any]) -> Any:
    """Make a renderer; one that could not be made is not tried again, since glfw ends the process then."""
    global _failed
    context = getattr(sys.modules.get("mujoco"), "GLContext", None)
    if context is not None and not hasattr(context, "_context"):
        context._context = None  # mujoco 3.12: one that could not be made would complain when it goes
    try:
        return make()
    except Exception as error:  # of every kind
        _failed = error
        raise


def _line(error: BaseException) -> str:
    asked = os.environ.get("MUJOCO_GL", "").lower().strip()
    remedy = _REMEDIES.get(asked or "glfw", f"set MUJOCO_GL to one of {', '.join(_REMEDIES)}")
    if asked in _OWN_PLATFORM and (platform := os.environ.get("PYOPENGL_PLATFORM", asked)) != asked:
        remedy = f"unset PYOPENGL_PLATFORM, which says {platform}"
    what = f"MUJOCO_GL={asked}" if asked else "MUJOCO_GL not set"
    why = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"no picture can be drawn with {what} ({why}); {remedy}"
