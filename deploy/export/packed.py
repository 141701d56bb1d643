"""What groot's processors do, as a bundle can hold it: numbers, a prompt, and a part of the encode graph.

They are lerobot's own for GR00T N1.7. One step packs what a robot sees: it normalises the state and cuts it
to [-1, 1], pads it, and puts the cameras in order. One hands pictures and instruction to Qwen3-VL's
processor. One brings actions back. Pictures are framed, resized and cut into patches inside the graph
(`policies.vla.qwen3_pictures`), bit for bit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from lerobot.policies.groot.processor_groot import (
    GrootActionUnpackUnnormalizeStep,
    GrootN17ActionDecodeStep,
    GrootN17PackInputsStep,
    GrootN17VLMEncodeStep,
)
from lerobot.policies.groot.utils import stat_dim_from_entry
from lerobot.utils.constants import ACTION
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from vivace.deploy.bundle.form import INSTRUCTION, MASK, TOKENS
from vivace.deploy.bundle.normalization import Normalization
from vivace.policies.batch import Batch
from vivace.policies.errors import UnsupportedPolicy
from vivace.policies.load import LoadedPolicy
from vivace.policies.spec import STATE
from vivace.policies.vla.qwen3_pictures import Framing, Patching, patches_of
from vivace.policies.vla.qwen3_vision import Pictures

PACKS, READS = GrootN17PackInputsStep, GrootN17VLMEncodeStep
BRINGS_BACK: tuple[type, ...] = (GrootActionUnpackUnnormalizeStep, GrootN17ActionDecodeStep)
_BICUBIC = 3


@dataclass(frozen=True)
class Packing:
    """What is done to an observation inside the graph."""

    cameras: tuple[str, ...]
    """The policy's names of the pictures, in the order of the prompt."""
    framings: tuple[Framing, ...]
    """Of each."""
    patching: Patching
    pictures: Pictures
    """Those that come out."""
    moves: tuple[float, ...]
    """1 of each number of the state; 0 of one that never changed in training, which the policy reads as 0."""
    width: int
    """Of the state that the policy reads."""
    embodiment: int
    template: str
    """The prompt."""
    is_formal: bool
    """The instruction is written without punctuation, in lower case."""
    tokenizer: Any
    """Qwen's."""

    def __call__(self, batch: Batch) -> Batch:
        """Make what the policy reads of normalised observations (1, 1, ...) and the prompt (1, L)."""
        given = [(batch[key][:, -1], how) for key, how in zip(self.cameras, self.framings, strict=True)]
        patches = [patches_of([picture], framing, self.patching) for picture, framing in given]
        state = batch[STATE][:, -1:] * batch[STATE].new_tensor(self.moves)
        return {
            "input_ids": batch[TOKENS],
            "attention_mask": batch[MASK].long(),
            "pixel_values": torch.cat(patches),
            "state": F.pad(state, (0, self.width - state.shape[-1])),
            "embodiment_id": torch.full((1,), self.embodiment, device=state.device),
        }


def entered(staged: Any, packs: Packing | None) -> Any:
    """Return a policy that does to observations itself what a graph of it does; itself without any."""
    return staged if packs is None else staged.preparing(packs, packs.pictures)


def reads_packed(loaded: LoadedPolicy) -> bool:
    """Whether a checkpoint's processors are groot's."""
    pipeline: Any = loaded.preprocess
    return any(type(step) is PACKS for step in pipeline.steps)


def packing(loaded: LoadedPolicy, sizes: Mapping[str, tuple[int, int]]) -> Packing:
    """Return what groot's processors do to an observation.

    Args:
        loaded: the checkpoint.
        sizes: height and width of every camera's pictures, by the policy's names.

    Raises:
        UnsupportedPolicy: they do something that no graph can.
    """
    _check_config(loaded.policy.config)
    packs, reads = (_step(loaded.preprocess, kind) for kind in (PACKS, READS))
    images = reads.proc.image_processor
    _check_images(reads, images)
    ordered = packs._ordered_image_keys(dict.fromkeys(sizes))
    cameras = tuple(ordered) * max(1, packs.video_horizon or 1)
    framings = tuple(_framing(reads, images, sizes[key]) for key in cameras)
    scale = 1.0 / images.rescale_factor
    mean, std = (tuple((torch.tensor(it) * scale).tolist()) for it in (images.image_mean, images.image_std))
    patching = Patching(images.patch_size, images.merge_size, images.temporal_patch_size, mean, std)
    grids = tuple((1, *(side // images.patch_size for side in framing.sizes[-1])) for framing in framings)
    pictures = Pictures(grids, 1, images.merge_size, is_padded=True)
    return Packing(
        cameras=cameras,
        framings=framings,
        patching=patching,
        pictures=pictures,
        moves=tuple((_span(packs) != 0).astype(float).tolist()) if _numbers_of(packs, STATE) else (1.0,),
        width=packs.max_state_dim,
        embodiment=packs.embodiment_mapping.get(packs.embodiment_tag, 0),
        template=_template(reads, pictures.counts),
        is_formal=packs.formalize_language,
        tokenizer=reads.proc.tokenizer,
    )


def normalization_of(step: Any, shape: tuple[int, ...]) -> Normalization | None:
    """How groot's packing normalises a state of this shape; None: not at all."""
    if not _numbers_of(step, STATE):
        return None
    low, span = (np.broadcast_to(it, shape).astype(np.float32) for it in (_low(step), _span(step)))
    return Normalization(low, np.where(span == 0, 1, span), 2.0, -1.0, clips=step.clip_outliers)


def restoring(step: Any, action_dim: int) -> Normalization | None:
    """How groot's last step brings actions back; None: not at all.

    Raises:
        UnsupportedPolicy: it does so in a way that is no range of each number.
    """
    if type(step) is GrootN17ActionDecodeStep:
        if step.raw_stats is None or step.modality_config is None:
            return None
        clips, (low, high) = True, _decoded(step)
    else:
        stats = (step.stats or {}).get(ACTION)
        if step.libero_gripper_action:
            _refuse(step, "turns the gripper into a sign (action_decode_transform=libero)")
        if not step.normalize_min_max or not stats:
            return None
        clips, (low, high) = step.clip_normalized_action, (_array(stats[name]) for name in ("min", "max"))
    low, high = low[:action_dim], high[:action_dim]
    if low.shape != (action_dim,) or high.shape != (action_dim,):
        _refuse(step, f"has statistics of {low.size} numbers for actions of {action_dim}")
    if not (high > low).all():
        _refuse(step, f"holds number {int(np.argmin(high > low))} of an action still, whatever is predicted")
    return Normalization(low, high - low, 2.0, -1.0, clips=clips)


def _decoded(step: Any) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest numbers of all groups of an action, in their order."""
    config = step.modality_config.get("action", {})
    names = ("q01", "q99") if step.use_percentiles else ("min", "max")
    if step.use_relative_action:
        _refuse(step, "makes actions of offsets, group by group (use_relative_action)")
    if step.action_decode_transform is not None:
        _refuse(step, f"transforms them (action_decode_transform={step.action_decode_transform})")
    groups = [step.raw_stats.get("action", {}).get(key, {}) for key in config.get("modality_keys", [])]
    groups = [group for group in groups if stat_dim_from_entry(group)]
    found = [[_array(group[name]) for group in groups] for name in names]
    if not groups or any(part.ndim != 1 for parts in found for part in parts):
        _refuse(step, "has statistics of every action of a chunk, or none")
    low, high = (np.concatenate(parts) for parts in found)
    return low, high


def _check_config(config: Any) -> None:
    if config.use_relative_actions:
        raise UnsupportedPolicy(
            "policy 'groot' has use_relative_actions, whose actions lerobot selects only as whole chunks; a "
            "bundle cannot"
        )
    if config.use_bf16:
        raise UnsupportedPolicy(
            "policy 'groot' computes in bfloat16 (use_bf16), graphs are made of float32: set it to false in "
            "config.json, and choose theirs by --export.precision"
        )


def _check_images(reads: Any, images: Any) -> None:
    if reads.use_albumentations:
        _refuse(reads, "resizes pictures by OpenCV (use_albumentations)")
    if not (images.do_rescale and images.do_normalize and images.resample == _BICUBIC):
        _refuse(reads, "has an image processor that does not rescale, normalise and resize bicubically")


def _framing(reads: Any, images: Any, size: tuple[int, int]) -> Framing:
    """How a camera's pictures are resized: by groot's step, then by Qwen's processor."""
    if reads.image_target_size is None:
        _refuse(reads, "leaves pictures as large as they are (image_target_size is null)")
    target = tuple(reads.image_target_size)
    edge, part = reads.shortest_image_edge or target[0], reads.crop_fraction
    if part is None and reads.image_crop_size is not None:
        part = reads.image_crop_size[0] / float(target[0])
    crop = max(1, round(edge * part)) if part is not None and 0.0 < part < 1.0 else edge
    last = target
    if images.do_resize:
        bounds = {"min_pixels": images.size.shortest_edge, "max_pixels": images.size.longest_edge}
        last = smart_resize(target[0], target[1], factor=images.patch_size * images.merge_size, **bounds)
    is_square = size[0] == size[1]
    return Framing(reads.letter_box_transform and not is_square, edge, crop, (target, last))


def _template(reads: Any, counts: Sequence[int]) -> str:
    """The prompt as Qwen's processor writes it: every picture's token as often as it has patches."""
    content: list[dict[str, Any]] = [{"type": "image"} for _ in counts]
    content.append({"type": "text", "text": INSTRUCTION})
    conversation = [{"role": "user", "content": content}]
    text: str = reads.proc.apply_chat_template(conversation, tokenize=False, add_generation_prompt=False)
    token: str = reads.proc.image_token
    first, *rest = text.split(token)
    if len(rest) != len(counts):
        _refuse(reads, f"writes {len(rest)} pictures into a prompt of {len(counts)}")
    return first + "".join(token * n + part for n, part in zip(counts, rest, strict=True))


def _numbers_of(step: Any, key: str) -> Mapping[str, Any]:
    """Statistics that a packing step normalises by; none: it does not."""
    return (step.stats or {}).get(key, {}) if step.normalize_min_max else {}


def _low(step: Any) -> np.ndarray:
    return _array(_numbers_of(step, STATE)["min"])


def _span(step: Any) -> np.ndarray:
    span: np.ndarray = _array(_numbers_of(step, STATE)["max"]) - _low(step)
    return span


def _array(values: Any) -> np.ndarray:
    found: np.ndarray = torch.as_tensor(values).detach().cpu().float().numpy()
    return found


def _step(pipeline: Any, kind: type) -> Any:
    """The one step of a kind."""
    found = [step for step in pipeline.steps if type(step) is kind]
    if len(found) != 1:
        raise UnsupportedPolicy(
            f"groot's processors have {len(found)} steps {kind.__name__}, one is needed; save the processors "
            "again by lerobot's make_pre_post_processors"
        )
    return found[0]


def _refuse(step: Any, what: str) -> NoReturn:
    raise UnsupportedPolicy(f"processor step {type(step).__name__} {what}, which a bundle cannot")
