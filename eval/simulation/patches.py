"""Which patches a plan keeps: drawn on the camera's image, inference by inference, through one episode."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vivace.eval.simulation.rollout import RolloutSettings, rollout
from vivace.policies.arrays import is_image
from vivace.policies.language.prefix import LayerView, Survivors, survivors
from vivace.policies.session import Session

_DIM = 0.25
"""Brightness of a patch that was dropped."""
_EDGE_PX = 320


def kept_patches(session: Session, observations: Mapping[str, np.ndarray]) -> Tensor | None:
    """Return the indices (B, K) of the patches that stay, over all cameras; None if all do."""
    found: list[Tensor] = []
    execution: Any = session.execution

    def select(view: LayerView) -> Tensor | Survivors | None:
        kept = execution.select(view)
        if kept is not None:
            found.append(survivors(kept).patches)
        return kept

    with torch.inference_mode():
        execution.policy.encode(session.prepare(observations), execution.language, select)
    return found[0] if found else None


def shade(images: Sequence[np.ndarray], kept: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """Draw cameras side by side, dropped patches dark, (edge, cameras * edge, 3) uint8.

    Args:
        images: one (H, W, 3) uint8 per camera.
        kept: indices of the patches that stay, over all cameras.
        counts: patches of each camera; each camera's form a square grid.
    """
    frames, first = [], 0
    for image, n in zip(images, counts, strict=True):
        side = round(n**0.5)
        stays = np.isin(np.arange(first, first + n), kept).reshape(side, side)
        size = (_EDGE_PX, _EDGE_PX)
        light = np.asarray(Image.fromarray(stays).resize(size, Image.Resampling.NEAREST))
        large = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)).astype(np.float32)
        frames.append((large * np.where(light, 1.0, _DIM)[..., None]).astype(np.uint8))
        first += n
    return np.concatenate(frames, axis=1)


def patch_frames(
    session: Session, make_env: Callable[[], Any], seed: int, max_steps: int | None = None
) -> list[np.ndarray]:
    """Run one episode in a frozen world and draw every inference; empty if no patch is dropped."""
    cameras = [key for key in session.spec.observation_shapes if is_image(key)]
    frames: list[np.ndarray] = []

    def predict(observations: Mapping[str, np.ndarray], noise_keys: Sequence[tuple[int, ...]]) -> np.ndarray:
        kept = kept_patches(session, observations)
        if kept is not None:
            policy: Any = session.execution.policy
            images = [observations[key][0, -1] for key in cameras]
            frames.append(shade(images, kept[0].cpu().numpy(), policy.n_patches))
        return session.predict(observations, noise_keys)

    rollout(
        make_env,
        predict,
        session.spec,
        RolloutSettings(n_episodes=1, batch_size=1, seed=seed, max_steps=max_steps),
    )
    return frames
