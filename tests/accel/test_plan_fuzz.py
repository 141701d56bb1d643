"""Mutations of plans: each is refused by one `VivaceError`, means the same, or is a valid other plan."""

import copy
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lerobot_policies import build, features
from torch import Tensor

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.plan import AccelerationPlan
from vivace.accel.registry import techniques
from vivace.accel.technique import CalibrationData, Need
from vivace.policies.errors import VivaceError
from vivace.policies.execution import Execution, as_trained, eagerly, sample
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import stage
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.spec import Fingerprint
from vivace.policies.tiny.policies import (
    tiny_cogact,
    tiny_diffusion,
    tiny_dp_transformer,
    tiny_token_vla,
)

KEYS = ((1, 0),)
DENOISING = {"num_inference_steps": 4, "num_train_timesteps": 10}
MAKERS = {
    "denoising": lambda folder: tiny_dp_transformer(n_layer=1, **DENOISING),
    "language": lambda folder: tiny_cogact(
        language_layers=2, action_layers=1, num_inference_steps=4, horizon=4
    ),
    "tokens": lambda folder: tiny_token_vla(language_layers=2, horizon=2, n_action_steps=1),
    "joint": lambda folder: build(
        "xvla",
        folder,
        **features(cameras=1),
        num_denoising_steps=4,
        resize_imgs_with_padding=(16, 16),
        depth=1,
    ),
    "vision": lambda folder: build("smolvla", folder, **features(), num_vlm_layers=2, num_steps=4),
    "convolutions": lambda folder: tiny_diffusion(num_train_timesteps=10, num_inference_steps=4),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "mlp_prune": {"sparsity": 0.8, "rank": 2},
    "step_schedule": {"n_steps": 3},
    "guidance": {"method": "linear", "full_steps": 1},
    "block_cache": {"updates": 2, "bubbling": 1},
    "forecast": {"updates": 2, "bubbling": 1, "order": 2},
    "jacobi": {"init": "marginal"},
}
"""Kind -> options; of others the first of the technique's own examples."""
STRANGE = (
    None, True, False, -1, 0, 1, 2, 3, 1.5, -0.5, 1e300, math.nan, math.inf, 2**31, 2**63, 10**400, "",
    "full", "ddim", [], {}, [0], [[0, 1]], [0.5], {"a": 1}, "x" * 500,
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A policy, a plan that fits it, and what to run it on."""

    staged: Any
    mark: Fingerprint
    data: CalibrationData
    plan: AccelerationPlan


@pytest.fixture(scope="module")
def policies(tmp_path_factory) -> dict[str, tuple[Any, Fingerprint, CalibrationData]]:
    made = {}
    for name, make in MAKERS.items():
        policy = make(tmp_path_factory.mktemp(name))
        generator, n = torch.Generator().manual_seed(1), policy.config.n_obs_steps
        batch = {
            key: torch.rand(1, n, *feature.shape, generator=generator)
            for key, feature in policy.config.input_features.items()
        }
        if name not in ("denoising", "convolutions"):
            batch["observation.language.tokens"] = torch.arange(16)[None]
            batch["observation.language.attention_mask"] = torch.ones(1, 16, dtype=torch.bool)
        staged = stage(policy)
        made[name] = staged, fingerprint(policy, staged.spec.block_ids), CalibrationData(batch, KEYS)
    return made


@pytest.fixture
def subject(request, policies) -> Subject:
    technique = techniques()[request.param]
    options = OPTIONS.get(request.param, next(iter(technique.examples.values())))
    staged, mark, data = policies[suited(technique.needs)]
    if Need.GPU in technique.needs:  # calibrated there alone, and without settings
        return Subject(staged, mark, data, AccelerationPlan(mark, (technique(),)))
    return Subject(staged, mark, data, calibrate(staged, mark, data, [(request.param, options)]))


def suited(needs: tuple[Need, ...]) -> str:
    """Name of a policy that has what a technique needs."""
    if Need.TOKENS in needs:
        return "tokens"
    if {Need.JOINT, Need.DEAD_WORK, Need.SIGHT}.intersection(needs):
        return "joint"
    if {Need.VISION, Need.EAGER, Need.CAMERAS, Need.RENEWAL}.intersection(needs):
        return "vision"
    if Need.CONVOLUTIONS in needs:
        return "convolutions"
    return "language" if {Need.LANGUAGE, Need.GUIDANCE}.intersection(needs) else "denoising"


every_kind = pytest.mark.parametrize("subject", list(techniques()), indirect=True)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of everything inside plain data, itself first."""
    yield path
    names = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for name in names:
        yield from places(value[name], (*path, name))


def at(data: Any, path: tuple[Any, ...]) -> Any:
    for name in path:
        data = data[name]
    return data


def mutate(data: dict[str, Any], draw: random.Random) -> None:
    """Change something in place: now and then anywhere, mostly inside a technique."""
    techniques = data.get("techniques")
    inside = isinstance(techniques, list) and techniques and draw.random() < 0.8
    root, within = (techniques[0], list(places(techniques[0]))[1:]) if inside else (data, [])
    root = root if within else data
    path = draw.choice(within or list(places(data))[1:])
    parent, name = at(root, path[:-1]), path[-1]
    value = parent[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**62
    if is_number and draw.random() < 0.5:
        parent[name] = draw.choice((value + 1, value - 1, -value, value * 2, value + 0.5, float(value)))
    elif isinstance(value, list) and draw.random() < 0.6:
        shuffle(value, draw)
    elif isinstance(parent, dict) and draw.random() < 0.4:
        rename(parent, name, draw)
    elif isinstance(parent, list) and draw.random() < 0.3:
        del parent[name]
    else:
        parent[name] = copy.deepcopy(draw.choice(STRANGE))


def shuffle(items: list[Any], draw: random.Random) -> None:
    """Truncate, extend, reverse, repeat or mix a list."""
    some = draw.choice(items) if items else draw.choice(STRANGE)
    change = draw.randrange(5)
    if change == 0:
        del items[draw.randrange(len(items) + 1) :]
    elif change == 1:
        items.append(copy.deepcopy(some))
    elif change == 2:
        items.reverse()
    elif change == 3:
        items.insert(0, copy.deepcopy(draw.choice(STRANGE)))
    else:
        draw.shuffle(items)


def rename(settings: dict[str, Any], name: str, draw: random.Random) -> None:
    """Delete a key, call it otherwise, or add one."""
    value = settings.pop(name)
    if draw.random() < 0.6:
        settings[draw.choice((name + "s", name.upper(), "extra", "kind", "tensors"))] = value


def mutate_tensors(tensors: dict[str, Tensor], draw: random.Random) -> None:
    """Damage one tensor: its name, shape, dtype or values."""
    name = draw.choice(list(tensors))
    tensor = tensors.pop(name)
    changes = (
        lambda: {},
        lambda: {name + "s": tensor},
        lambda: {name: tensor, "hoist.table": tensor},
        lambda: {name: tensor[:1]},
        lambda: {name: tensor[..., :1]},
        lambda: {name: tensor[:0]},
        lambda: {name: tensor.flatten()},
        lambda: {name: tensor.transpose(0, -1).contiguous()},
        lambda: {name: tensor.double()},
        lambda: {name: torch.full_like(tensor.float(), torch.nan)},
        lambda: {name: tensor - 1000},
        lambda: {name: tensor + 1000},
        lambda: {name: tensor.flip(0)},
    )
    tensors |= draw.choice(changes)()


def run(execution: Execution, subject: Subject) -> Tensor:
    """Its actions; nothing is compiled, which takes half a minute and depends on no setting of a plan."""
    return sample(eagerly(execution), subject.data.batch, EpisodeNoise(KEYS))


def outcomes(subject: Subject, n: int, seed: str) -> dict[str, int]:
    """Mutate a plan n times; returns how many were refused, meant the same, and were valid others."""
    draw, shape = random.Random(seed), run(as_trained(subject.staged), subject).shape
    plain = json.dumps(subject.plan.to_json())
    (technique,) = subject.plan.techniques
    tensors = {f"{technique.kind}.{k}": v for k, v in getattr(technique, "tensors", {}).items()}
    counts = {"refused": 0, "same": 0, "other": 0}
    for _ in range(n):
        data, damaged = json.loads(plain), dict(tensors)
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            if damaged and draw.random() < 0.2:
                mutate_tensors(damaged, draw)
            else:
                mutate(data, draw)
        try:
            plan = AccelerationPlan.from_json(data, damaged)
            execution = accelerate(subject.staged, plan, subject.mark)
            text = json.dumps(plan.to_json())
            if text == plain and all(damaged.get(name) is tensor for name, tensor in tensors.items()):
                counts["same"] += 1
                continue
            assert AccelerationPlan.from_json(json.loads(text), damaged) == plan
            actions = run(execution, subject)
        except VivaceError:
            counts["refused"] += 1
            continue
        assert actions.shape == (shape[0], execution.policy.spec.horizon, shape[2])
        assert actions.isfinite().all()
        counts["other"] += 1
    return counts


@every_kind
def test_mutated_plans_are_refused_or_valid(request, subject):
    n = -(-request.config.getoption("--plan-mutations") // len(techniques()))
    counts = outcomes(subject, n, request.node.callspec.params["subject"])
    assert sum(counts.values()) == n
    assert counts["refused"] > n // 3
    assert counts["other"] > 0 or n < 500  # of few settings few others are valid


def edited(name: str, value: Any) -> Any:
    return lambda settings, tensors: settings.update({name: value})


REFUSED = [
    ("block_cache", edited("updates", {"action.0.mlp": [0, 1.5]}), r"updates\.action\.0\.mlp\[1\] is 1\.5"),
    ("block_cache", edited("updates", {"action.0.mlp": [0, 2, 1]}), "needed are ascending steps from 0"),
    ("block_cache", edited("updates", {"action.0.mlp": [1, 2]}), "needed are ascending steps from 0"),
    ("forecast", edited("n_steps", 2**31), "calibrated for 2147483648 steps, but .* runs 4"),
    ("step_schedule", edited("n_steps", 10**9), r"n_steps=1000000000; choose 1\.\.1000"),
    ("patch_select", edited("layer", 1.5), r"patch_select layer is 1\.5; needed is a whole number"),
    (
        "guidance",
        edited("coefficients", [[], [0.5], [], [0.5] * 5]),
        r"\[0, 1, 0, 5\] coeff",
    ),
    ("guidance", edited("coefficients", [[], [0.5] * 9, [], [0.5] * 5]), r"need \[0, 3, 0, 7\]"),
    ("guidance", edited("coefficients", [[], [math.nan] * 3, [], []]), r"coefficients\.1\.0 is nan"),
    ("guidance", edited("coefficients", []), r"has \[\] coefficients"),
    ("guidance", edited("steps", ["full", "linear", "conditional", "full"]), "either conditional or linear"),
    ("guidance", edited("steps", ["full", "magic", "full", "full"]), r"steps\[1\] is 'magic'; needed is one"),
    ("guidance", edited("agreement", [1.0]), "the agreement of 1 steps, of 4"),
    ("layer_skip", edited("importance", [0.5]), "the importance of 1 layers, the language model has 2"),
    ("mlp_prune", edited("kept", [[0, 0], [1]]), "needed are ascending channels of each"),
    ("mlp_prune", edited("kept", [[-1, 0], [1]]), "needed are ascending channels of each"),
    (
        "mlp_prune",
        lambda s, t: t.pop("mlp_prune.1.up"),
        r"has tensors \['0\.down', '0\.up', '1\.down'",
    ),
    (
        "mlp_prune",
        lambda s, t: t.update({"mlp_prune.1.up": torch.ones(32, 3)}),
        r"needs .*\(3, 32\)",
    ),
    ("mlp_prune", lambda s, t: t.update({"mlp_prune.0.up": torch.full((32, 2), torch.nan)}), "needs finite"),
    ("mlp_prune", lambda s, t: t.update({"mlp_prune.0.up": torch.ones(32, 2).double()}), "float64"),
    ("jacobi", edited("table", [1]), "a table of 1 tokens, a chunk of this policy has 6, of ids"),
    ("jacobi", edited("table", [700] * 6), r"of ids 0\.\.639"),
    ("sjd", edited("temperature", 1e-300), r"temperature=1e-300; it must be above 0 .*, 1e-06\.\.1e\+06"),
    ("token_recycling", edited("parents", [0, 0, 3, 0, 0, 0]), "needed are parents before their children"),
    ("token_recycling", edited("ranks", [0, 3, 0, 0, 0, 0]), r"as many ranks of 0\.\.2"),
    ("token_recycling", edited("rates", [0.5]), "has 6 nodes and 1 rates; needed"),
    ("token_recycling", lambda s, t: t["token_recycling.table"].sub_(1000), "this policy's actions are 384"),
    ("stand", edited("order", 4), r"a tensor 'contexts' .*; this policy needs finite torch\.int32 \(.*, 6\)"),
    ("stand", edited("nodes", 2**31), r"stand k=8, nodes=2147483648, .* 2 <= nodes <= 1024"),
    ("stand", edited("n_tokens", 7), "calibrated on chunks of 7 tokens, this policy's have 6"),
    ("stand", lambda s, t: t["stand.chances"].add_(1), "ids, chances or lengths out of range"),
    ("stand", lambda s, t: t["stand.contexts"][:, 0].fill_(9), "ids, chances or lengths out of range"),
]
"""Kind, what is done to its settings and tensors, and what the refusal says."""


@pytest.mark.parametrize(
    ("subject", "change", "message"),
    REFUSED,
    indirect=["subject"],
    ids=[f"{kind}-{i}" for i, (kind, *_) in enumerate(REFUSED)],
)
def test_what_a_technique_cannot_be_is_named(subject, change, message):
    (technique,) = subject.plan.techniques
    data = json.loads(json.dumps(subject.plan.to_json()))
    tensors = {f"{technique.kind}.{k}": v.clone() for k, v in getattr(technique, "tensors", {}).items()}
    change(data["techniques"][0], tensors)
    with pytest.raises(VivaceError, match=message):
        accelerate(subject.staged, AccelerationPlan.from_json(data, tensors))
