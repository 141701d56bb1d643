"""Without OpenGL worlds step and pictures are refused in a line that says what to install (D10)."""

import os
import subprocess
import sys

import mujoco
import pytest

from vivace.envs.metaworld.camera import close_renderers
from vivace.envs.opengl import drawing, why_not_drawn
from vivace.envs.registry import make
from vivace.eval.obstacles import obstacle
from vivace.policies.errors import BadSetting, NoRendering

pytestmark = pytest.mark.sim

WORLD = """
import numpy as np
from vivace.envs.registry import make
from vivace.policies.errors import NoRendering
env = make("metaworld", "reach-v3", image_size=16, lazy_images=True)
env.reset(seed=0)
seen, *_ = env.step(np.zeros(4, np.float32))
print(seen["observation.state"].shape)
for _ in range(2):
    try:
        seen["observation.images.corner2"]
    except NoRendering as error:
        print(error)
env.close()
"""


@pytest.mark.parametrize(("surroundings", "why", "remedy"), [
    ({"MUJOCO_GL": "osmesa", "LD_LIBRARY_PATH": "", "PYOPENGL_PLATFORM": None},
     "with MUJOCO_GL=osmesa (", "apt-get install libosmesa6), or set MUJOCO_GL=egl"),
    ({"MUJOCO_GL": "glfw", "DISPLAY": None, "WAYLAND_DISPLAY": None},
     "with MUJOCO_GL=glfw (FatalError: ", "give it a display (DISPLAY), or set MUJOCO_GL=egl"),
    ({"MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_DIRS": "/nonexistent"},
     "with MUJOCO_GL=egl (ImportError: ", "apt-get install libegl1 libegl-mesa0 libgl1-mesa-dri; "),
    ({"MUJOCO_GL": "magic"},
     "with MUJOCO_GL=magic (RuntimeError: ", "set MUJOCO_GL to one of egl, osmesa, glfw"),
    ({"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "osmesa"},
     "with MUJOCO_GL=egl (", "unset PYOPENGL_PLATFORM, which says osmesa"),
], ids=["osmesa", "glfw", "egl", "unknown", "contradicted"])  # fmt: skip
def test_a_world_steps_without_opengl_and_a_picture_says_what_it_lacks(surroundings, why, remedy):
    environment = {name: text for name, text in (os.environ | surroundings).items() if text is not None}
    done = subprocess.run(
        [sys.executable, "-c", WORLD], env=environment, capture_output=True, text=True, check=False
    )
    told = done.stdout.splitlines()
    if surroundings["MUJOCO_GL"] == "osmesa" and len(told) == 1:
        pytest.skip("this computer has OSMesa's library")
    assert done.returncode == 0, done.stderr
    assert told[0] == "(39,)"
    assert "Traceback" not in done.stderr, "nor does a context that could not be made complain when it goes"
    assert len(told) == 3
    assert told[1] == told[2], "every picture, not only the first"
    assert why in told[1]
    assert told[1].startswith("no picture can be drawn ")
    assert remedy in told[1]


def test_a_context_that_is_lost_in_the_middle(monkeypatch):
    env = make("metaworld", "reach-v3")
    env.reset(seed=0)
    assert env.render().any()

    def lost(self):
        raise mujoco.FatalError("OpenGL error 0x505")

    monkeypatch.setattr(mujoco.Renderer, "render", lost)
    with pytest.raises(NoRendering, match=r"\(FatalError: OpenGL error 0x505\)"):
        env.render()
    monkeypatch.undo()
    assert env.render().any(), "and it goes on once it is there again"
    env.close()


def test_what_else_goes_wrong_while_drawing_keeps_its_name():
    with pytest.raises(BadSetting, match="as it was"), drawing():
        raise BadSetting("as it was")
    assert why_not_drawn(ValueError("no frame of OpenGL is in it")) == ""


def test_an_error_out_of_the_bindings_of_another_world_is_known_by_where_it_was_raised():
    from OpenGL import GL

    close_renderers()  # those of other tests
    with pytest.raises(Exception) as info:  # noqa: PT011
        GL.glGetString(GL.GL_VERSION).decode()  # there is no context
    if any(frame.name.startswith("gl") or "OpenGL" in str(frame.path) for frame in info.traceback[1:]):
        assert obstacle(info.value).startswith("no picture can be drawn with MUJOCO_GL")
