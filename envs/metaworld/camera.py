"""Fast offscreen rendering of a MuJoCo world, for headless machines without a GPU."""

import weakref
from types import TracebackType
from typing import Any

import mujoco
import numpy as np

from vivace.envs.opengl import drawing, opened
from vivace.policies.backports import Self

_UPSIDE_DOWN = frozenset({"corner2"})
"""Meta-World's cameras whose image has to be turned by 180 degrees."""


CLOSE_UP = "close_up"
"""Not a camera of the model: a view of the table from the front right, near enough for small images."""


class Camera:
    """One offscreen renderer, made at the first frame.

    Shadows, reflections and multisampling are off: they cost about 90 % of the time in software
    rendering and carry nothing a policy needs.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int, marks: bool = True) -> None:
        """Remember the world; nothing is allocated yet.

        Args:
            model: the world; its shadow and multisampling quality are set to zero at the first frame.
            height: image height [px].
            width: image width [px].
            marks: whether sites, such as Meta-World's goals, are drawn.
        """
        self._model = model
        self._height = height
        self._width = width
        self._renderer: Any = None  # a mujoco without OpenGL knows no Renderer
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
        with drawing():
            renderer = self._renderer or self._open()
            view = _close_up() if camera == CLOSE_UP else camera
            renderer.update_scene(data, camera=view, scene_option=self._option)
            flags = renderer.scene.flags
            flags[:] = 0
            flags[mujoco.mjtRndFlag.mjRND_CULL_FACE] = 1
            flags[mujoco.mjtRndFlag.mjRND_SKYBOX] = 1
            image = renderer.render()
        return image[::-1, ::-1].copy() if camera in _UPSIDE_DOWN else image

    def close(self) -> None:
        """Free the rendering context; a later frame opens a new one."""
        if self._renderer is not None:
            self._closer()
            self._renderer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> Any:
        self._model.vis.quality.offsamples = 0
        self._model.vis.quality.shadowsize = 0
        self._model.vis.global_.offwidth = max(self._model.vis.global_.offwidth, self._width)
        self._model.vis.global_.offheight = max(self._model.vis.global_.offheight, self._height)
        self._renderer = opened(lambda: mujoco.Renderer(self._model, self._height, self._width))
        # At exit mujoco's own destructors come after the rendering library is gone, and complain.
        self._closer = weakref.finalize(self, self._renderer.close)
        return self._renderer


def _close_up() -> mujoco.MjvCamera:
    view = mujoco.MjvCamera()
    view.lookat[:] = [0.0, 0.7, 0.1]
    view.distance, view.azimuth, view.elevation = 1.15, 150.0, -30.0
    return view
