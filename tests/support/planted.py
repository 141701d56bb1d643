"""A policy and a world of which it is known what wins: fewer steps and a block cache, and neither alone.

The policy draws an action towards the goal that it sees, x' = 12 (goal + blocks(x - goal) - x), in 20 Euler
steps. A step is 12/n wide, so that with n < 9 steps the action does not settle. What the blocks give changes
little from step to step: updated five times it is nearly right, updated once it is not. The goal moves on,
and the last action must be near it. A chunk takes as long as its counted work, 2.6 control periods as
trained; the budget is one period. So the steps alone that keep it do not settle, the cache alone keeps it at
no number of updates, and ten steps with five updates solve what as trained solves without a budget.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import make_default_policy_processor_steps, make_policy_processor_pipelines
from torch import Tensor, nn

from vivace.accel.flops import count_flops
from vivace.accel.technique import CalibrationData
from vivace.envs.protocol import TaskInfo
from vivace.envs.registry import register_world
from vivace.eval.measure.latencies import Measured
from vivace.eval.measure.timing import Rounds
from vivace.eval.training.fit import save
from vivace.policies.block import Block, Runner, compute, through
from vivace.policies.execution import Execution
from vivace.policies.forms import DenoisingForm, policy_spec
from vivace.policies.language.prefix import keep_all
from vivace.policies.load import register_adapter
from vivace.policies.sampling.noise import GlobalNoise
from vivace.policies.sampling.samplers import OWN, make_flow_sampler
from vivace.policies.spec import ActionKind

STEPS, BLOCKS, WIDTH = 20, 4, 16
TICKS, HZ = 10, 20.0
NEAR, DRIFT = 0.3, 0.06
PERIODS = 2.6
"""Control periods that a chunk takes as trained."""
WILD = 3.0
"""Actions beyond are those of samplers that diverge; a fragile world does not stand them."""
STATE = "observation.state"


@PreTrainedConfig.register_subclass("planted")
@dataclass
class PlantedConfig(PreTrainedConfig):
    n_obs_steps: int = 1
    horizon: int = 6
    n_action_steps: int = 4
    normalization_mapping: dict[str, Any] = field(
        default_factory=lambda: dict.fromkeys(("STATE", "ACTION"), NormalizationMode.IDENTITY)
    )
    observation_delta_indices = reward_delta_indices = None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.horizon))

    def get_optimizer_preset(self) -> Any: ...

    def get_scheduler_preset(self) -> Any: ...

    def validate_features(self) -> None: ...


class PlantedPolicy(PreTrainedPolicy):
    config_class, name = PlantedConfig, "planted"

    def __init__(self, config: Any, **kwargs: Any):
        super().__init__(config)
        wide, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0)))
        self.wide, self.same = (nn.Linear(*size, bias=False) for size in ((2, WIDTH), (WIDTH, WIDTH)))
        turn = torch.tensor([[0.0, -0.5], [0.5, 0.0]]) / BLOCKS
        self.turn = nn.Parameter(turn)
        with torch.no_grad():
            self.wide.weight.copy_(wide[:, :2])
            self.same.weight.copy_(torch.eye(WIDTH))

    def through_wide(self, x: Tensor, times: int) -> Tensor:
        """x itself, after work."""
        h = self.wide(x)
        for _ in range(times):
            h = self.same(h)
        return h @ self.wide.weight

    def correction(self, x: Tensor, goal: Tensor) -> Tensor:
        return self.through_wide(x - goal, 1) @ self.turn.T

    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        goal, noise = batch[STATE][:, None], GlobalNoise()
        x = noise((len(goal), self.config.horizon, 2), goal)
        for width in torch.linspace(0, 1, STEPS + 1).diff().tolist():
            pulls = sum((self.correction(x, goal) for _ in range(BLOCKS)), torch.zeros_like(x))
            x = x + width * 12 * (goal + pulls - self.through_wide(x, 3))
        return x

    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        return self.predict_action_chunk(batch)[:, 0]

    def forward(self, batch: dict[str, Tensor]) -> Any: ...

    def get_optim_params(self) -> Any: ...

    def reset(self) -> None: ...


class StagedPlanted(DenoisingForm):
    def __init__(self, policy: Any, action_kinds: Any = ()):
        self.policy = policy.eval()
        self.sampler = self.resample("euler", STEPS)
        self.blocks = tuple(
            Block(f"action.{i}.mlp", lambda h, x, goal: policy.correction(x, goal)) for i in range(BLOCKS)
        )
        self.spec = policy_spec(policy.config, self.blocks, action_kinds)

    def encode(self, batch: dict[str, Tensor], run: Runner = compute, select: Any = keep_all) -> Tensor:
        return batch[STATE][:, 0][:, None]

    def condition(self, step: Any, context: Tensor) -> Tensor:
        return context

    def denoise(self, x: Tensor, condition: Tensor, run: Runner = compute) -> Tensor:
        h = torch.zeros_like(x)
        for block in self.blocks:
            h = through(run, block, h, x, condition)
        return 12 * (condition + h - self.policy.through_wide(x, 3))

    def resample(self, name: str, n_steps: int, spacing: str = OWN) -> Any:
        return make_flow_sampler(name, n_steps, spacing)

    def _hoisted(self, sampler: Any) -> Any:
        return self


class PlantedWorld:
    control_hz = HZ
    max_episode_steps = TICKS

    def __init__(self, is_fragile: bool = False) -> None:
        self.is_fragile = is_fragile

    def reset(self, *, seed: int, options: Any = None) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        random = np.random.default_rng(seed)
        self.goal, way = random.uniform(-1, 1, 2), random.uniform(0, 2 * np.pi)
        self.drift, self.ticks = DRIFT * np.array([np.cos(way), np.sin(way)]), 0
        return self.seen(), {}

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        self.ticks += 1
        if self.is_fragile and np.abs(action).max() > WILD:
            raise FloatingPointError("the world came apart")
        is_near = bool(np.linalg.norm(action - self.goal) < NEAR)  # where it is while the action acts
        self.goal = self.goal + self.drift
        is_over = self.ticks >= TICKS
        return self.seen(), 0.0, False, is_over, {"is_success": is_over and is_near}

    def seen(self) -> dict[str, np.ndarray]:
        return {STATE: self.goal.astype(np.float32)}

    def close(self) -> None: ...


def task_names() -> tuple[str, ...]:
    return ("follow", "fragile")


def describe(task: str) -> TaskInfo:
    return TaskInfo(control_hz=HZ, action_kinds=(ActionKind.ABSOLUTE,) * 2, instruction="follow the goal")


def make(task: str, *, control_hz: float | None = None, **options: Any) -> PlantedWorld:
    return PlantedWorld(task == "fragile")


def planted_checkpoint(folder: Path) -> Path:
    """Save the policy as lerobot saves one, and make it and its world known."""
    register_adapter("planted", "planted:StagedPlanted")
    register_world("planted", "planted")
    config = PlantedConfig(
        input_features={STATE: PolicyFeature(FeatureType.STATE, (2,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        device="cpu",
    )
    steps = make_default_policy_processor_steps(config, {}, normalizer_device="cpu")
    pipelines = make_policy_processor_pipelines(
        input_steps=[steps.add_batch_dim, steps.to_device, steps.normalize],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )
    save(PlantedPolicy(config), *pipelines, folder)
    return folder


def latency_s(execution: Execution, trained: Execution) -> float:
    """Time of a chunk [s]: as its counted work is to that as trained, which takes `PERIODS` periods."""
    one = {STATE: torch.zeros(1, 1, 2)}
    return PERIODS / HZ * count_flops(execution, one).total / count_flops(trained, one).total


def planted_latencies(runs: Mapping[str, Any], data: CalibrationData, rounds: Rounds) -> Measured:
    """Latencies of sessions as `latency_s` plants them, in place of a clock's."""
    times_s = {
        key: [latency_s(run.execution, run.loaded.as_trained)] * rounds.more[key] for key, run in runs.items()
    }
    return Measured(times_s, {})
