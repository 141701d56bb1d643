"""Fast offscreen rendering of a MuJoCo world, for headless machines without a GPU."""

import atexit
import hashlib
from collections import OrderedDict
from functools import cache
from threading import current_thread
from typing import Any

import mujoco
import numpy as np

from vivace.envs.opengl import drawing, opened

_UPSIDE_DOWN = frozenset({"corner2"})
"""Meta-World's cameras whose image has to be turned by 180 degrees."""


_OPEN: OrderedDict[tuple[Any, ...], Any] = OrderedDict()
"""Thread, model and size -> its open renderer, the last used one last.

To open one takes a quarter of a second without a GPU, which is most of what a short episode costs: textures
and meshes are sent again, though worlds of one task are alike in all that a renderer holds."""
_MOST_OPEN = 8

CLOSE_UP = "close_up"
"""Not a camera of the model: a view of the table from the front right, near enough for small images."""


class Camera:
    """Draws one world; its renderer, made at the first frame, is shared by all cameras of worlds alike.

    Shadows, reflections and multisampling are off: they cost about 90 % of the time in software
    rendering and carry nothing a policy needs.
    """

    def __init__(
        self, model: mujoco.MjModel, height: int, width: int, alike: bytes = b"", marks: bool = True
    ) -> None:
        """Remember the world; nothing is allocated yet.

        Args:
            model: the world; its shadow and multisampling quality are set to zero.
            height: image height [px].
            width: image width [px].
            alike: `looks` of the model as it was loaded, which resets write into; cameras that are given the
                same share a renderer.
            marks: whether sites, such as Meta-World's goals, are drawn.
        """
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        model.vis.global_.offwidth = max(model.vis.global_.offwidth, width)
        model.vis.global_.offheight = max(model.vis.global_.offheight, height)
        self._model = model
        self._size = height, width
        self._alike = alike
        self._option = mujoco.MjvOption()
        if not marks:
            self._option.sitegroup[:] = 0

    def image(self, data: mujoco.MjData, camera: str) -> np.ndarray:
        """Render the world from a named camera, upright.

        Args:
            data: state of the world the camera was made for.
            camera: name of a camera in the model, or `CLOSE_UP`.

        Returns:
            Image, HWC RGB uint8 in [0, 255].

        Raises:
            NoRendering: this computer cannot draw.
        """
        view = _close_up() if camera == CLOSE_UP else _fixed(self._model, camera)
        with drawing():
            renderer = self._renderer()
            everything = mujoco.mjtCatBit.mjCAT_ALL.value
            mujoco.mjv_updateScene(self._model, data, self._option, None, view, everything, renderer.scene)
            flags = renderer.scene.flags
            flags[:] = 0
            flags[mujoco.mjtRndFlag.mjRND_CULL_FACE] = 1
            flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = 1
            image = renderer.render()
        return image[::-1, ::-1].copy() if camera in _UPSIDE_DOWN else image

    def _renderer(self) -> Any:
        """The open renderer of worlds like this one, in this thread, which alone may draw with it."""
        self._alike = self._alike or looks(self._model)
        key = (current_thread(), self._alike, self._size)
        if key not in _OPEN:
            while len(_OPEN) >= _MOST_OPEN:
                _OPEN.popitem(last=False)[1].close()
            _OPEN[key] = opened(lambda: mujoco.Renderer(self._model, *self._size))
            _close_at_exit()
        _OPEN.move_to_end(key)
        return _OPEN[key]


@cache
def _close_at_exit() -> None:
    """As soon as the rendering library is there: mujoco's own destructors come after it, and complain."""
    atexit.register(close_renderers)


def close_renderers() -> None:
    """Free all rendering contexts; a later frame opens a new one."""
    while _OPEN:
        _OPEN.popitem()[1].close()


def looks(model: mujoco.MjModel) -> bytes:
    """What tells a model from others, while nothing was written into it since it was loaded."""
    whole = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, whole)
    return hashlib.blake2b(whole.data, digest_size=16).digest()


def _fixed(model: mujoco.MjModel, camera: str) -> mujoco.MjvCamera:
    view = mujoco.MjvCamera()
    view.type, view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED.value, model.camera(camera).id
    return view


def _close_up() -> mujoco.MjvCamera:
    view = mujoco.MjvCamera()
    view.lookat[:] = [0.0, 0.7, 0.1]
    view.distance, view.azimuth, view.elevation = 1.15, 150.0, -30.0
    return view
