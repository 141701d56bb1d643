"""How much may be dropped: error of a policy against the number of language layers that are gone."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vivace.accel.technique import CalibrationData, with_language
from vivace.accel.techniques.layer_skip import LayerSkip, LayerSkipOptions, keep, layer_importance
from vivace.policies.execution import Execution, eagerly, sample
from vivace.policies.language.llama import StagedLlama
from vivace.policies.language.prefix import PrefixRows
from vivace.policies.sampling.noise import EpisodeNoise


@torch.inference_mode()
def policy_curve(execution: Execution, data: CalibrationData, rule: str) -> list[dict[str, float]]:
    """Error of the language stage's answer and of the actions, for every number of layers dropped.

    Args:
        execution: the policy, all its layers.
        data: observations.
        rule: how layers are chosen, see `LayerSkipOptions`.

    Returns:
        {"dropped", "hidden_error": 1 - cosine similarity, "action_error": mean absolute} a point.
    """
    execution = eagerly(execution)
    policy = with_language(execution, LayerSkip.kind)
    n = len(policy.language.layers)
    feature, actions = policy.said(policy.encode(data.batch)), _sample(execution, data)
    scores = layer_importance(execution, data.batch)
    points = []
    for dropped in range(n):
        kept = keep(execution, data.batch, LayerSkipOptions(n_dropped=dropped, rule=rule), scores)
        twin: Any = policy.with_layers(kept)
        fewer = replace(execution, policy=twin)
        found = twin.said(twin.encode(data.batch))
        likeness = F.cosine_similarity(found.float(), feature.float(), dim=-1)
        points.append(
            {
                "dropped": dropped,
                "hidden_error": float(1 - likeness.mean()),
                "action_error": float((_sample(fewer, data) - actions).abs().mean()),
            }
        )
    return points


def _sample(execution: Execution, data: CalibrationData) -> Tensor:
    return sample(execution, data.batch, EpisodeNoise(data.noise_keys))


@torch.inference_mode()
def text_curve(model: Any, tokens: Tensor, is_text: Tensor) -> tuple[list[float], list[dict[str, float]]]:
    """Importance of a language model's layers on texts alone, and the error of the last token's final state.

    Args:
        model: transformers' `LlamaModel`.
        tokens: (B, L) ids, padding on the right.
        is_text: (B, L), False on padding.

    Returns:
        I(l) of every layer, and {"dropped", "hidden_error"} for every number of the least important dropped.
    """
    whole, prefix = StagedLlama(model), PrefixRows((), is_text[:, 1:])
    h = model.embed_tokens(tokens)
    scores: list[float] = []

    def look(view: Any) -> None:
        likeness = F.cosine_similarity(view.before, view.h, dim=-1) * is_text
        scores.append(1.0 - float((likeness.sum(1) / is_text.sum(1)).mean()))

    last = (torch.arange(len(tokens)), is_text.sum(1) - 1)
    final = whole(h, prefix, select=look)[last]
    order = sorted(range(len(scores)), key=scores.__getitem__)
    points = []
    for dropped in range(len(scores)):
        kept = tuple(sorted(order[dropped:]))
        likeness = F.cosine_similarity(StagedLlama(model, kept)(h, prefix)[last], final, dim=-1)
        points.append({"dropped": dropped, "hidden_error": float(1 - likeness.mean())})
    return scores, points
