"""Videos of one episode under several runs, side by side, each frame saying what the robot executed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image, ImageDraw

from vivace.policies.files import replacing

_COLOURS = {"chunk": (15, 157, 138), "stale": (230, 159, 0), "fallback": (213, 60, 60)}
_BAR_PX = 26


def caption(frame: np.ndarray, title: str, source: str, tick: int, control_hz: float) -> np.ndarray:
    """Return a frame (H, W, 3) uint8 with a bar below: run, what was executed, time."""
    height, width = frame.shape[:2]
    canvas = Image.new("RGB", (width, height + _BAR_PX), _COLOURS[source])
    canvas.paste(Image.fromarray(frame))
    draw = ImageDraw.Draw(canvas)
    draw.text((6, height + 7), f"{title}: {source}", fill=(255, 255, 255))
    draw.text((width - 48, height + 7), f"{tick / control_hz:5.2f} s", fill=(255, 255, 255))
    return np.asarray(canvas)


def side_by_side(films: Mapping[str, Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Join films frame by frame; one that is over shows its last frame."""
    length = max(len(frames) for frames in films.values())
    return [
        np.concatenate([frames[min(i, len(frames) - 1)] for frames in films.values()], axis=1)
        for i in range(length)
    ]


def write_video(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    """Write frames (H, W, 3) uint8 as H.264, whole or not at all."""
    even = [frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2] for frame in frames]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, ending=path.suffix) as file:
        imageio.imwrite(file, np.stack(even), plugin="FFMPEG", fps=fps, codec="libx264", macro_block_size=2)
