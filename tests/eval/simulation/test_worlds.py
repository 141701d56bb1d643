"""Worlds that are not ours through the verbs: C9, G13, and what an evaluation says of a score."""

import json

import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors

from vivace.eval.cli import main
from vivace.eval.simulation.env_robot import EnvRobot
from vivace.eval.simulation.rollout import RolloutSettings, rollout
from vivace.eval.training.fit import save
from vivace.policies.errors import BadSetting, UnknownEnvironment
from vivace.policies.spec import ActionKind, PolicySpec
from vivace.policies.tiny.policies import tiny_diffusion

FEW = ("--accel.episodes=1", "--accel.samples=2", "--accel.judged_episodes=1", "--accel.judged_samples=2")


@pytest.fixture(scope="session")
def pusht_policy(tmp_path_factory):
    """lerobot's diffusion as trained on pusht, in miniature and with random weights; it sees two moments."""
    policy = tiny_diffusion(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (2,)),
            "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 96, 96)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (2,))},
    )
    low, high = torch.tensor([13.0, 25.0]), torch.tensor([504.0, 511.0])
    stats = {key: {"min": low, "max": high} for key in ("observation.state", "action")}
    ones = torch.ones(3, 1, 1)
    stats["observation.image"] = {"mean": 0.5 * ones, "std": 0.25 * ones, "min": 0 * ones, "max": ones}
    folder = tmp_path_factory.mktemp("pusht") / "checkpoint"
    save(policy, *make_pre_post_processors(policy.config, dataset_stats=stats), folder)
    asked = [f"--policy.path={folder}", "--env.type=pusht", "--env.max_steps=12", *FEW]
    assert main(["calibrate", *asked, "--accel.techniques=[hoist]"]) == 0
    return folder


@pytest.mark.sim
@pytest.mark.long
def test_c9_a_lerobot_diffusion_policy_on_pusht_under_latency_in_three_modes(pusht_policy, tmp_path, capsys):
    """Acceptance 5, short: episodes end, the coverage is told with its interval, the modes differ."""
    command = ["eval", f"--policy.path={pusht_policy}", "--env.type=pusht", "--env.max_steps=12", *FEW,
               "--eval.n_episodes=2", "--eval.lineup=false", "--eval.video=false", "--bench.repeats=1",
               "--eval.timed_chunks=1", "--eval.curve=[0.3]", "--eval.curve_modes=[sync,async,rtc]",
               "--latency.type=constant", "--latency.seconds=0.3", f"--output_dir={tmp_path}"]  # fmt: skip
    assert main(command) == 0
    told = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    found = json.loads((tmp_path / "results.json").read_text())
    environment = found["environment"]
    assert (environment["type"], environment["task"], environment["control_hz"]) == (
        "pusht",
        "PushT-v0",
        10.0,
    )
    for run in found["runs"]:
        assert run["score"]["n"] == run["n"] == 2
        assert 0 <= run["score"]["mean"] == told["runs"][run["name"]]["score"] <= 1
        assert run["ticks"]["fallback"] > 0, "the world moved while the policy thought"
        assert all(0 <= episode["score"] <= 1 for episode in run["episodes"])
    assert [line["mode"] for line in found["curve"].values()] == ["sync", "async", "rtc"]
    stored = {
        mode: (tmp_path / f"episodes/accelerated{mode}_0.3s.jsonl").read_text()
        for mode in ("", "_async", "_rtc")
    }
    assert len(set(stored.values())) == 3
    assert "mean best score" in (tmp_path / "report.html").read_text()


class Line:
    """A point that is told where to be; it says so of itself, and how near it is at its second step only."""

    control_hz = 10.0
    max_episode_steps = None

    def reset(self, *, seed):
        self.at, self.ticks, self.told = 3.0, 0, []
        self.initial_action = (self.at,)
        return {"robot": {"state": np.array([self.at])}}, {}

    def step(self, action):
        self.told.append(float(action[0]))
        self.ticks += 1
        info = {"score": 0.25 * self.ticks} if self.ticks == 2 else {}
        return {"robot": {"state": action.copy()}}, 0.0, False, self.ticks >= 4, info

    def close(self): ...


LINE = PolicySpec(
    type="fake", action_dim=1, horizon=4, n_obs_steps=1, n_action_steps=2, blocks=(),
    observation_shapes={"robot.state": (1,)}, action_kinds=(ActionKind.ABSOLUTE,),
)  # fmt: skip


def to_five(observations, keys):
    assert observations["robot.state"].shape == (len(keys), 1, 1)
    return np.full((len(keys), 4, 1), 5.0, np.float32)


def test_g13_a_nested_world_without_success_holds_what_it_says_until_the_first_chunk():
    from vivace.eval.simulation.latency_model import ConstantLatency

    worlds = []

    def make():
        worlds.append(Line())
        return worlds[-1]

    settings = RolloutSettings(n_episodes=1, max_steps=4, latency=ConstantLatency(seconds=0.15))
    (result,) = rollout(make, to_five, LINE, settings)
    assert worlds[0].told[:2] == [3.0, 3.0], "not zero, which would be a target far away"
    assert worlds[0].told[-1] > 3.0
    assert (result.score, result.success) == (0.5, False)
    (frozen,) = rollout(make, to_five, LINE, RolloutSettings(n_episodes=1, max_steps=4))
    assert worlds[1].told == [5.0] * 4, "without latency as in a frozen world, action for action"
    assert frozen.timeline == "cccc"


def test_a_world_without_an_end_needs_one():
    with pytest.raises(BadSetting, match="an episode of this environment has no end; give --env.max_steps"):
        rollout(Line, to_five, LINE, RolloutSettings(n_episodes=1))


def test_a_world_that_never_says_how_it_went_is_refused_wherever_it_was_cut():
    class Silent(Line):
        def step(self, action):
            return *super().step(action)[:4], {"near": 1}

    with pytest.raises(UnknownEnvironment, match="info has keys near, and 'is_success' at no step"):
        rollout(Silent, to_five, LINE, RolloutSettings(n_episodes=1, max_steps=3))
    robot = EnvRobot(Line(), 10.0)
    robot.reset(0)
    assert robot.score is None


BAD = [
    (["--env.type=pusht"], "actions here have 2 dimensions (absolute, absolute), the policy's have 4"),
    (["--env.type=gym", "--env.id=Pendulum-v1"], "in gym Pendulum-v1 have 1 dimensions, the policy's have 4"),
    (["--env.type=gym", "--env.id=CartPole-v1"], "the environment's actions are Discrete(2)"),
    (["--env.type=gym"], "--env.type=gym needs --env.id"),
    (["--env.type=pusht", "--env.wheels=3"], "unrecognized arguments: --env.wheels=3"),
    (["--env.task=reach-v3", "--env.obs_type=pixels"], "unrecognized arguments: --env.obs_type=pixels"),
    (["--env.task=reach-v3", "--env.action_kinds=[absolute]"], "leave it out"),
    (["--env.type", "gibson"], "environment type 'gibson' does not exist; the types: "),
]


@pytest.mark.sim
@pytest.mark.parametrize(("given", "message"), BAD)
def test_a_world_and_a_policy_that_do_not_fit_are_one_line(given, message, checkpoint, capsys):
    """A world's actions of another length than the policy's were taken silently once."""
    assert main(["calibrate", f"--policy.path={checkpoint}", *given]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in told


@pytest.mark.sim
def test_action_kinds_that_nobody_knows_are_asked_for_by_flag(pusht_policy, capsys):
    asked = ["calibrate", f"--policy.path={pusht_policy}", "--env.type=gym", *FEW, "--env.max_steps=9",
             "--env.id=gym_pusht/PushT-v0", "--env.kwargs={obs_type: pixels_agent_pos}",
             "--accel.techniques=[hoist]", f"--output_dir={pusht_policy.parent}/gym"]  # fmt: skip
    assert main(asked) == 2
    assert "--env.action_kinds='[…]'" in capsys.readouterr().err
    assert main([*asked, "--env.action_kinds=[absolute]", "--env.score=coverage"]) == 0


@pytest.mark.sim
def test_collect_in_a_world_without_experts_is_one_line(tmp_path, capsys):
    assert main(["collect", "--env.type=pusht", f"--output_dir={tmp_path}/data"]) == 2
    assert "environment type 'pusht' has no scripted experts to collect from" in capsys.readouterr().err
