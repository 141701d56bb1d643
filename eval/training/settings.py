"""Options of the verbs that make checkpoints: collect, train, distill."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import draccus

from vivace.eval.training.trainer import TrainSettings


@dataclass(kw_only=True)
class ArchitectureOptions(draccus.ChoiceRegistry):
    """What is trained; `--policy.type` picks the kind."""

    @classmethod
    def default_choice_name(cls) -> str:
        """Kind when none is given."""
        return "dp_transformer"


@ArchitectureOptions.register_subclass("dp_transformer")
@dataclass(kw_only=True)
class DPTransformerOptions(ArchitectureOptions):
    """Size of a dp_transformer."""

    n_layer: int = 8
    """Layers of the decoder."""
    n_head: int = 4
    """Attention heads."""
    n_emb: int = 256
    """Width."""
    horizon: int = 16
    """Actions of a chunk (H)."""
    n_obs_steps: int = 2
    """Observations that are looked at."""
    n_action_steps: int = 8
    """Actions of a chunk that are executed."""
    p_drop_attn: float = 0.0
    """Dropout of attention, in training."""


@dataclass(kw_only=True)
class VLAOptions(ArchitectureOptions):
    """Size of a miniature VLA's vision and language side; both vision backbones have the same."""

    image_size: int = 128
    """Edge of the images it sees [px]."""
    patch_size: int = 16
    """Edge of a patch [px]."""
    vision_layers: int = 5
    """Blocks of each backbone; the features are those of the last but one."""
    vision_width: int = 128
    """Width of each backbone."""
    vision_heads: int = 2
    """Attention heads of each backbone."""
    language_layers: int = 12
    """Layers of the language model."""
    language_width: int = 192
    """Width of the language model."""
    language_heads: int = 3
    """Attention heads of the language model."""
    language_mlp: int = 384
    """Width of its MLPs."""
    horizon: int = 16
    """Actions of a chunk (H)."""
    n_action_steps: int = 8
    """Actions of a chunk that are executed."""
    layer_drop: float = 0.0
    """Share of the language layers a training row may skip, so that layer_skip finds some to drop."""
    patch_drop: float = 0.0
    """Share of the patches a training row may lose, so that token_select can."""
    TRAINING: ClassVar[tuple[str, ...]] = ("layer_drop", "patch_drop")
    """Config fields that matter in training only: these count, also when a checkpoint is gone on from."""

    @property
    def pretrained(self) -> str:
        """Name of a pretrained language model; empty: one with random weights."""
        return ""

    def acting(self, words: int) -> dict[str, Any]:
        """Config fields of how it acts, for a tokenizer of so many words."""
        return {"language_vocabulary": words}


@ArchitectureOptions.register_subclass("cogact")
@dataclass(kw_only=True)
class CogACTOptions(VLAOptions):
    """Size of a miniature cogact."""

    action_layers: int = 6
    """Layers of the action head."""
    action_width: int = 128
    """Width of the action head."""
    action_heads: int = 2
    """Attention heads of the action head."""
    guidance_scale: float = 1.5
    """Weight of the condition when it acts; 1: no guidance."""
    repeated_diffusion_steps: int = 4
    """Noises that a demonstrated moment is learned with at once."""
    language_model: str = ""
    """A pretrained language model instead of one with random weights, its sizes and tokenizer: smollm2."""
    TRAINING: ClassVar[tuple[str, ...]] = (*VLAOptions.TRAINING, "repeated_diffusion_steps")

    @property
    def pretrained(self) -> str:
        """Name of a pretrained language model."""
        return self.language_model

    def acting(self, words: int) -> dict[str, Any]:
        """Add the action head's size."""
        return super().acting(words) | {"action_head": "custom"}


@ArchitectureOptions.register_subclass("token_vla")
@dataclass(kw_only=True)
class TokenVLAOptions(VLAOptions):
    """Size of a miniature token VLA."""

    n_action_bins: int = 256
    """Values that a number of an action may have, each a token."""
    token_noise: float = 0.0
    """Share of the earlier action tokens a training row may read wrong, so that it looks at the scene."""
    TRAINING: ClassVar[tuple[str, ...]] = (*VLAOptions.TRAINING, "token_noise")

    def acting(self, words: int) -> dict[str, Any]:
        """Put the action tokens behind the words."""
        vocabulary = words + self.n_action_bins
        return super().acting(vocabulary) | {"vocabulary_end": vocabulary}


@ArchitectureOptions.register_subclass("smolvla")
@dataclass(kw_only=True)
class SmolVLAOptions(ArchitectureOptions):
    """Size of a miniature of lerobot's SmolVLA."""

    image_size: int = 128
    """Edge of the images it sees [px]."""
    patch_size: int = 16
    """Edge of a patch [px]."""
    vision_layers: int = 4
    """Blocks of the vision tower."""
    vision_width: int = 128
    """Width of the vision tower."""
    vision_heads: int = 2
    """Attention heads of the vision tower."""
    vision_mlp: int = 478
    """Width of its MLPs."""
    scale_factor: int = 1
    """Edge of a square of patches that the connector makes one token of."""
    language_layers: int = 8
    """Layers of the language model, and of the expert."""
    language_width: int = 192
    """Width of the language model."""
    language_heads: int = 3
    """Attention heads of the language model, and of the expert."""
    language_mlp: int = 384
    """Width of its MLPs."""
    expert_width: float = 0.75
    """Width of the expert, as a share of the language model's."""
    state_size: int = 4
    """Numbers of the state that it is shown, from the first; it is blind to the others."""
    horizon: int = 16
    """Actions of a chunk (H)."""
    n_action_steps: int = 8
    """Actions of a chunk that are executed."""
    num_steps: int = 10
    """Steps from noise to actions, when it acts."""
    noises: int = 4
    """Noises that a demonstrated moment is learned with at once."""


@dataclass(kw_only=True)
class LearningOptions:
    """What training from demonstrations needs, whatever is learned."""

    data: list[str]
    """Folders of LeRobotDatasets."""
    train: TrainSettings = field(default_factory=TrainSettings)
    threads: int | None = None
    """torch threads; when not given as many as are measured to be fastest."""
    half: bool = False
    """Store the weights as float16: half the size; they are computed with in float32."""
    output_dir: str
    """Folder of the training and, in pretrained_model, the checkpoint."""


@dataclass(kw_only=True)
class TrainCommand(LearningOptions):
    """Train a policy on demonstrations; an interrupted run in output_dir continues.

    Example: vivace train --data='[data/push-v3]' --policy.n_layer=6 --policy.n_emb=128
    --train.steps=7000 --output_dir=outputs/train/push
    """

    policy: ArchitectureOptions = field(default_factory=DPTransformerOptions)
    state_weight: float = 1.0
    """VLAs: weight of a loss that reads the simulator's state out of the prompt's last token, in training."""
    head_only: int = 0
    """cogact: train the action head alone, on features of so many moments, computed once; 0: everything."""
    start: str | None = None
    """Checkpoint to go on from, zoo/<name> or a folder: its sizes, tokenizer and statistics stay."""
    backbone: str | None = None
    """VLAs: checkpoint of another kind to take vision, projector, language model and tokenizer from."""


@dataclass(kw_only=True)
class DistillOptions:
    """What a student is taught, and from how many trajectories."""

    trajectories: int = 10_000
    """Moments of the demonstrations whose Jacobi trajectories are collected."""
    batch_size: int = 64
    """Trajectories decoded together."""
    target: str = "self"
    """Whose distribution at the fixed point is the target: self, average, teacher."""
    ar_weight: float = 1.0
    """Weight of the autoregressive loss."""
    delta_max: float = 0.1
    """Largest mean action error [normalised] of a teacher's answer that is still a label."""
    lora_rank: int = 0
    """Train low-rank adapters of the language model alone, merged at the end; 0: all weights."""


@dataclass(kw_only=True)
class DistillCommand(LearningOptions):
    """Teach a token VLA to settle in few passes; an interrupted run in output_dir continues.

    Example: vivace distill --teacher=zoo/halfway-tokens --data='[data/drawer-open-halfway]'
    --train.steps=1000 --output_dir=outputs/train/distilled
    """

    teacher: str
    """Checkpoint whose trajectories are learned."""
    student: str | None = None
    """Checkpoint the student begins as; the teacher itself when not given."""
    distill: DistillOptions = field(default_factory=DistillOptions)
