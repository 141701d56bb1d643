"""Consistency training of a policy that writes tokens (CEED-VLA, arXiv 2506.13725, section 3).

    L_C  = mean over tokens i of KL( Q-(. | Y*_{<i}, x) || Q(. | Y_{<i}, x) )
    L_AR = mean over tokens i of -log Q( y_i | y_{<i}, x )
    L    = L_C + w L_AR

Y is a state of a Jacobi trajectory of the teacher, Y* its fixed point; Q- is the student itself without
gradient, its running average, or the teacher. y is the mixed label: the teacher's answer where its actions
are within `delta_max` of the demonstration's on average, the demonstration's tokens elsewhere.

The paper sums over tokens and leaves delta_max and w open; here both losses are means, w = 1, delta_max = 0.1
of the normalised range [-1, 1]. Y is drawn anew, uniformly among a trajectory's states, at every step.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vivace.policies.errors import BadSetting
from vivace.policies.families.token_vla.policy import TokenVLAPolicy

TARGETS = ("self", "average", "teacher")


@dataclass(frozen=True, kw_only=True)
class ConsistencySettings:
    """What the student is taught."""

    target: str = "self"
    """Q-: self (stop-gradient copy), average (of the weights, EMA), teacher."""
    ar_weight: float = 1.0
    """w"""
    delta_max: float = 0.1
    """Largest mean error of the teacher's actions that still makes its answer the label."""

    def __post_init__(self) -> None:
        """The target must be known, weights not negative."""
        if self.target not in TARGETS:
            raise BadSetting(f"distill target={self.target!r}; choose one of {', '.join(TARGETS)}")
        if self.ar_weight < 0 or self.delta_max < 0:
            raise BadSetting(
                f"distill ar_weight={self.ar_weight}, delta_max={self.delta_max}; 0 or more is needed"
            )


def mixed_labels(policy: TokenVLAPolicy, answer: Tensor, actions: Tensor, delta_max: float) -> Tensor:
    """Labels (B, n) of teacher's answers (B, n) and demonstrated normalised actions (B, H, A)."""
    error = (policy.detokenize(answer) - actions.clamp(-1, 1)).abs().flatten(1).mean(1, keepdim=True)
    return torch.where(error <= delta_max, answer, policy.tokenize(actions))


def consistency_loss(
    policy: TokenVLAPolicy,
    batch: dict[str, Tensor],
    state: Tensor,
    answer: Tensor,
    label: Tensor,
    settings: ConsistencySettings,
    target: TokenVLAPolicy | None = None,
) -> Tensor:
    """Loss of a batch.

    Args:
        policy: the student.
        batch: images and the prompt's tokens.
        state: Y (B, n).
        answer: Y* (B, n).
        label: y (B, n).
        settings: weights.
        target: who says Q-; the student itself when None.
    """
    at_state, at_answer, at_label = policy.hidden(batch, state, answer, label)
    if target is None:
        wanted = policy.lm_head(at_answer).detach()
    else:
        with torch.no_grad():
            wanted = target.logits(batch, answer)
    said = policy.lm_head(at_state).float().log_softmax(-1)
    consistency = (
        F.kl_div(said, wanted.float().log_softmax(-1), log_target=True, reduction="none").sum(-1).mean()
    )
    logits = policy.lm_head(at_label).float()
    return consistency + settings.ar_weight * F.cross_entropy(logits.flatten(0, 1), label.flatten())
