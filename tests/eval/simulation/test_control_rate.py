"""At which rate a policy is run: as asked for, else as it was trained, else as the task is."""

import json
from dataclasses import replace

import numpy as np
import pytest

from vivace.envs import Demonstrations
from vivace.eval.cli import main
from vivace.eval.live.parts import settled_hz
from vivace.eval.live.settings import RunCommand
from vivace.eval.options import CommonOptions, EnvOptions
from vivace.eval.subject import control_hz, env_maker
from vivace.policies.errors import BadSetting
from vivace.policies.load import load_policy
from vivace.policies.spec import PolicySpec

SPEC = PolicySpec(
    type="fake",
    action_dim=4,
    horizon=8,
    n_obs_steps=1,
    n_action_steps=4,
    observation_shapes={"observation.state": (39,)},
    action_kinds=(),
    blocks=(),
)


def command(task: str, asked: float | None = None) -> CommonOptions:
    return CommonOptions(env=EnvOptions(task=task, control_hz=asked))


def test_what_is_asked_for_comes_first_then_the_policys_rate_then_the_tasks(capsys):
    trained = replace(SPEC, control_hz=40.0)
    assert control_hz(command("reach-v3", 50.0), SPEC) == 50.0
    assert control_hz(command("reach-v3"), trained) == 40.0
    assert control_hz(command("reach-v3"), SPEC) == 80.0
    assert control_hz(command("reach-moving"), SPEC) == 20.0
    assert capsys.readouterr().err == ""
    assert control_hz(command("reach-v3", 50.0), trained) == 50.0
    assert "was trained at 40 Hz and runs at 50 Hz" in capsys.readouterr().err


def test_tasks_of_two_rates_are_not_run_at_either():
    with pytest.raises(BadSetting, match=r"own control rates are 20, 80 Hz, .* give --env.control_hz"):
        control_hz(command("reach-moving,push-v3"), SPEC)
    assert control_hz(command("reach-moving,push-v3", 20.0), SPEC) == 20.0


@pytest.mark.sim
def test_the_world_is_made_for_the_rate():
    env = env_maker(command("reach-v3", 25.0), SPEC)()
    assert env.control_hz == 25.0


def test_a_run_on_a_robot_needs_a_rate():
    assert settled_hz(RunCommand(bundle="b", control_hz=50.0), SPEC) == 50.0
    assert settled_hz(RunCommand(bundle="b"), replace(SPEC, control_hz=40.0)) == 40.0
    with pytest.raises(BadSetting, match="bundle b does not say at which rate .* give --control_hz"):
        settled_hz(RunCommand(bundle="b"), SPEC)


def test_demonstrations_of_two_rates_are_not_joined():
    def shown(hz: float) -> Demonstrations:
        zeros = np.zeros((2, 4), np.float32)
        return Demonstrations(zeros, zeros, np.zeros(2, np.int64), control_hz=hz)

    assert Demonstrations.join([shown(20.0), shown(20.0)]).control_hz == 20.0
    with pytest.raises(BadSetting, match="rates of 20.0 Hz, 80.0 Hz; a policy learns one rate"):
        Demonstrations.join([shown(20.0), shown(80.0)])


@pytest.mark.sim
def test_a_trained_policy_knows_its_rate(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = ["collect", "--env.task=reach-v3", "--env.control_hz=40", "--collect.episodes=1"]
    assert main([*data, "--output_dir=data"]) == 0
    size = ["--policy.n_layer=1", "--policy.n_emb=16", "--policy.n_head=2", "--train.batch_size=4"]
    assert main(["train", "--data=[data]", *size, "--train.steps=1", "--output_dir=out"]) == 0
    config = json.loads((tmp_path / "out/pretrained_model/config.json").read_text())
    assert config["control_hz"] == 40.0
    assert load_policy(tmp_path / "out/pretrained_model").staged.spec.control_hz == 40.0


def test_shipped_policies_say_their_rate():
    assert load_policy("zoo/pick-place").staged.spec.control_hz == 80.0
