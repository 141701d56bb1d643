"""What CONTRIBUTING promises: a policy and a world of somebody else's package, without a file of ours edited.

The two modules below are all there is of them, written to a folder and found as installed packages are, by
their entry points. Read them as the shortest examples of each.
"""

import json
from importlib import import_module

import pytest
import torch

from vivace.envs import make, task_names
from vivace.eval.cli import main
from vivace.eval.training.fit import save
from vivace.policies.execution import as_trained, sample
from vivace.policies.load import load_policy
from vivace.policies.sampling.noise import EpisodeNoise

POLICY = '''
"""A policy of six blocks that draws actions towards a goal, as lerobot wants one, and its staged form."""

from dataclasses import dataclass, field

import torch
from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import nn

from vivace.policies.block import Block, compute, through
from vivace.policies.forms import DenoisingForm, policy_spec
from vivace.policies.language.prefix import keep_all
from vivace.policies.sampling.noise import GlobalNoise
from vivace.policies.sampling.samplers import OWN, make_flow_sampler

N_STEPS = 20


@PreTrainedConfig.register_subclass("toy")
@dataclass
class ToyConfig(PreTrainedConfig):
    n_obs_steps: int = 1
    horizon: int = 4
    n_action_steps: int = 2
    normalization_mapping: dict = field(
        default_factory=lambda: dict.fromkeys(("STATE", "ACTION"), NormalizationMode.IDENTITY)
    )
    observation_delta_indices = reward_delta_indices = None

    @property
    def action_delta_indices(self):
        return list(range(self.horizon))

    def get_optimizer_preset(self): ...

    def get_scheduler_preset(self): ...

    def validate_features(self): ...


class ToyPolicy(PreTrainedPolicy):
    config_class, name = ToyConfig, "toy"

    def __init__(self, config, **kwargs):
        super().__init__(config)
        self.goal = nn.Linear(4, 2, bias=False)
        self.pulls = nn.ParameterList(nn.Parameter(torch.tensor(0.2)) for _ in range(6))
        with torch.no_grad():
            self.goal.weight.copy_(torch.tensor([[-1.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 1.0]]))

    def sample_actions(self, state, draw):
        x = draw((len(state), self.config.horizon, 2), state)
        goal = self.goal(state)[:, None]
        for width in torch.linspace(0, 1, N_STEPS + 1).diff().tolist():
            h = x
            for pull in self.pulls:
                h = h + pull * (goal - h)
            x = x + width * (6 * (h - x))
        return x

    def predict_action_chunk(self, batch, **kwargs):
        return self.sample_actions(batch["observation.state"], GlobalNoise())

    def select_action(self, batch, **kwargs):
        return self.predict_action_chunk(batch)[:, 0]

    def forward(self, batch): ...

    def get_optim_params(self): ...

    def reset(self): ...


class StagedToy(DenoisingForm):
    def __init__(self, policy, action_kinds=()):
        self.policy = policy.eval()
        self.sampler = self.resample("euler", N_STEPS)
        self.blocks = tuple(
            Block(f"action.{i}.pull", lambda h, goal, pull=pull: pull * (goal - h))
            for i, pull in enumerate(policy.pulls)
        )
        self.spec = policy_spec(policy.config, self.blocks, action_kinds)

    def encode(self, batch, run=compute, select=keep_all):
        return self.policy.goal(batch["observation.state"][:, 0])[:, None]

    def condition(self, step, context):
        return context

    def denoise(self, x, condition, run=compute):
        h = x
        for block in self.blocks:
            h = through(run, block, h, condition)
        return 6 * (h - x)

    def resample(self, name, n_steps, spacing=OWN):
        return make_flow_sampler(name, n_steps, spacing)

    def _hoisted(self, sampler):
        return self
'''

WORLD = '''
"""A point in a plane that is driven to a goal."""

import gymnasium
import numpy as np

from vivace.envs.protocol import TaskInfo
from vivace.policies.spec import ActionKind


class ToyWorld(gymnasium.Env):
    def __init__(self, control_hz):
        self.control_hz = control_hz

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at, self.goal = self.np_random.uniform(-1, 1, (2, 2))
        self.ticks = 0
        return self.seen(), {}

    def step(self, action):
        self.at = self.at + np.clip(action, -1, 1) / self.control_hz
        self.ticks += 1
        is_near = bool(np.linalg.norm(self.at - self.goal) < 0.2)
        return self.seen(), 0.0, False, self.ticks >= 60, {"is_success": is_near}

    def seen(self):
        return {"observation.state": np.concatenate([self.at, self.goal]).astype(np.float32)}


def task_names():
    return ("go", "come")


def describe(task):
    kinds = (ActionKind.VELOCITY,) * 2
    return TaskInfo(control_hz=10.0, action_kinds=kinds, instruction=f"{task} to the goal")


def make(task, *, control_hz=None, **options):
    return ToyWorld(control_hz or 10.0)
'''

ENTRY_POINTS = "[vivace.policies]\ntoy = toy_policy:StagedToy\n[vivace.envs]\ntoy = toy_world\n"
FEW = ("--accel.episodes=1", "--accel.samples=2", "--accel.judged_episodes=1", "--accel.judged_samples=2",
       "--env.type=toy", "--env.task=go")  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A package that offers both is installed, and somebody has trained its policy."""
    package = tmp_path / "package"
    facts = package / "toy-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(ENTRY_POINTS)
    (package / "toy_policy.py").write_text(POLICY)
    (package / "toy_world.py").write_text(WORLD)
    monkeypatch.syspath_prepend(package)
    monkeypatch.chdir(tmp_path)

    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.processor import make_default_policy_processor_steps, make_policy_processor_pipelines

    toy = import_module("toy_policy")
    config = toy.ToyConfig(
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (4,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
        device="cpu",
    )
    steps = make_default_policy_processor_steps(config, {}, normalizer_device="cpu")
    pipelines = make_policy_processor_pipelines(
        input_steps=[steps.add_batch_dim, steps.to_device, steps.normalize],
        output_steps=[steps.unnormalize, steps.to_cpu],
    )
    save(toy.ToyPolicy(config), *pipelines, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_a_policy_and_a_world_of_a_package_are_calibrated_explained_timed_and_evaluated(
    checkpoint, tmp_path, capsys
):
    assert task_names("toy") == ("go", "come")
    assert make("toy", "go", control_hz=5.0).control_hz == 5.0

    loaded = load_policy(checkpoint)
    assert type(loaded.staged).__name__ == "StagedToy"
    state = torch.linspace(-1, 1, 8).view(2, 4)
    plain = loaded.policy.sample_actions(state, EpisodeNoise([(0, 0), (1, 0)]))
    batch = {"observation.state": state[:, None]}
    actions = sample(as_trained(loaded.staged), batch, EpisodeNoise([(0, 0), (1, 0)]))
    assert torch.equal(actions, plain)

    ask = [f"--policy.path={checkpoint}", *FEW]
    assert main(["calibrate", *ask, "--accel.techniques=[block_cache]"]) == 0
    assert (checkpoint / "acceleration.json").is_file()
    assert main(["explain", *ask]) == 0
    assert "action.1.pull" in capsys.readouterr().out
    assert (
        main(
            [
                "bench",
                *ask,
                "--bench.compile=false",
                "--bench.repeats=2",
                "--bench.only=[bac,accelerated]",
                "--output_dir=bench",
            ]
        )
        == 0
    )
    rows = {
        row["name"]: row for row in json.loads((tmp_path / "bench" / "results.json").read_text())["pareto"]
    }
    assert {"plain", "accelerated"} < set(rows)
    assert rows["plain"]["action_error"] == 0 < rows["accelerated"]["action_error"] < 0.1

    ask += ["--eval.n_episodes=3", "--eval.timed_chunks=2", "--eval.lineup=false", "--eval.curve=[]"]
    assert main(["eval", *ask, "--latency.type=none", "--output_dir=eval"]) == 0
    found = json.loads((tmp_path / "eval" / "results.json").read_text())
    runs = {run["name"]: (run["successes"], run["n"]) for run in found["runs"]}
    assert runs["plain"] == runs["accelerated"] == (3, 3)
    environment = found["environment"]
    assert (environment["type"], environment["control_hz"], environment["physics_hz"]) == ("toy", 10.0, None)
    assert found["video"] is None, "this world has nothing to film"
