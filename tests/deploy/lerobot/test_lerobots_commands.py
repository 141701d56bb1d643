"""lerobot's own commands, in processes of their own, before and after `vivace accelerate`."""

import json
import re

import lerobot_commands as commands
import numpy as np
import pytest
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot_commands import PUSHT, install_plugin, pusht_checkpoint, run, write_plugin
from lerobot_policies import saved

from vivace.eval.cli import main
from vivace.eval.training.fit import save
from vivace.eval.training.recipe import statistics
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.tiny.policies import tiny_dp_transformer

IDENTITY = ["--calibrate=true", "--accel.techniques=[]", "--accel.samples=1", "--accel.judged_samples=1"]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    return install_plugin(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="module")
def spy(tmp_path_factory):
    return write_plugin(tmp_path_factory.mktemp("spy"), "lerobot_env_spy", commands.SPY)


@pytest.fixture(scope="module")
def robot(tmp_path_factory):
    return write_plugin(tmp_path_factory.mktemp("robot"), "lerobot_robot_five_joints", commands.ROBOT)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pusht_checkpoint(tmp_path_factory.mktemp("pusht") / "checkpoint")


def ended_well(found):
    assert found.returncode == 0, found.stdout[-3000:]
    return found.stdout


def evaluated(checkpoint, folder, plugins, **variables):
    """What lerobot-eval told the environments to do (steps, B, 2), its results, and what it said."""
    flags = [*PUSHT, "--eval.n_episodes=2", "--eval.batch_size=2", "--eval.use_async_envs=false", "--seed=7"]
    where = [f"--policy.path={checkpoint}", "--policy.device=cpu", f"--output_dir={folder / 'out'}"]
    folder.mkdir()
    told = folder / "actions.npy"
    said = ended_well(
        run("lerobot-eval", *where, *flags, plugins=plugins, cwd=folder, SPY=str(told), **variables)
    )
    results = json.loads((folder / "out" / "eval_info.json").read_text())
    return np.load(told), results["overall"], said


LOADED = """
import logging, sys, torch
logging.basicConfig(level=logging.INFO)
from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
from lerobot.policies.factory import get_policy_class
policy = get_policy_class("diffusion").from_pretrained(sys.argv[1])
seen = {"observation.state": torch.ones(1, 2), "observation.environment_state": torch.ones(1, 16)}
print(policy.select_action(seen).shape)
"""


def test_lerobot_finds_the_plugin_by_its_name(base, tmp_path):
    """The quick one: a process of lerobot's that imports the plug-in, loads a policy and runs it."""
    name = "lerobot_policy_vivace"
    there = write_plugin(tmp_path, name, (commands.PLUGIN / f"{name}.py").read_text())
    said = ended_well(run("python", "-c", LOADED, base, plugins=(there,), cwd=tmp_path))
    assert f"Imported third-party plugin: {name}" in said
    assert (
        "vivace: diffusion runs under exact work alone (hoist): on this observation its actions are" in said
    )
    assert "torch.Size([1, 2])" in said


@pytest.mark.long
def test_lerobot_eval_before_and_after(base, plugin, spy, tmp_path):
    """Acceptance 4: the identity plan bit for bit, exact work to rounding, and the plug-in switched off."""
    assert main(["accelerate", str(base), str(tmp_path / "same"), *IDENTITY]) == 0
    assert main(["accelerate", str(base), str(tmp_path / "fast")]) == 0
    before, results, _ = evaluated(base, tmp_path / "before", (spy,))
    for name, checkpoint, variables, largest in (
        ("identity", tmp_path / "same", {}, 0),
        ("exact", tmp_path / "fast", {}, 1e-2),
        ("plug-in", base, {}, 1e-2),
        ("off", base, {"VIVACE": "off"}, 0),
    ):
        actions, found, said = evaluated(checkpoint, tmp_path / name, (spy, plugin), **variables)
        assert actions.shape == before.shape == (24, 2, 2)
        assert np.abs(actions - before).max() <= largest, name
        assert (largest == 0) == np.array_equal(actions, before), name
        assert found["pc_success"] == results["pc_success"]
        assert found["avg_sum_reward"] == pytest.approx(
            results["avg_sum_reward"], abs=0 if not largest else 1
        )
        assert ("vivace: diffusion runs under exact work alone (hoist)" in said) == (name == "plug-in")


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    """A policy of ours for the robot, with the plan that changes nothing."""
    features = {"observation.state": PolicyFeature(FeatureType.STATE, (5,))}
    output = {"action": PolicyFeature(FeatureType.ACTION, (5,))}
    policy = tiny_dp_transformer(input_features=features, output_features=output)
    numbers = np.random.default_rng(0).uniform(-9, 9, (50, 5)).astype(np.float32)
    stats = dict.fromkeys(("observation.state", "action"), statistics(numbers))
    folder = tmp_path_factory.mktemp("arm")
    save(policy, *make_dp_transformer_pre_post_processors(policy.config, stats), folder / "base")
    assert main(["accelerate", str(folder / "base"), str(folder / "out"), *IDENTITY]) == 0
    return folder / "out"


def acted(told) -> np.ndarray:
    return np.array([list(json.loads(line).values()) for line in told.read_text().splitlines()])


@pytest.mark.long
def test_lerobot_rollout_sync(arm, plugin, robot, tmp_path):
    told = tmp_path / "actions.jsonl"
    flags = ["--robot.type=five_joints", "--duration=3", "--fps=10", "--return_to_initial_position=false"]
    said = ended_well(
        run(
            *("lerobot-rollout", f"--policy.path={arm}", "--device=cpu", "--play_sounds=false", *flags),
            plugins=(robot, plugin),
            cwd=tmp_path,
            ACTED_INTO=str(told),
        )
    )
    assert "Policy loaded: type=vivace" in said
    assert len(acted(told)) > 5
    assert np.abs(np.diff(acted(told), axis=0)).max() > 0


@pytest.mark.long
def test_lerobot_rollout_records_episodes(arm, plugin, robot, tmp_path):
    """lerobot-record itself runs no policies since 0.6; this is what took its place."""
    told = tmp_path / "actions.jsonl"
    dataset = ["--dataset.repo_id=we/rollout_arm", f"--dataset.root={tmp_path / 'data'}",
               "--dataset.single_task=reach", "--dataset.num_episodes=1", "--dataset.episode_time_s=2",
               "--dataset.reset_time_s=0", "--dataset.push_to_hub=false", "--dataset.fps=10"]  # fmt: skip
    flags = ["--robot.type=five_joints", "--strategy.type=episodic", "--fps=10", "--play_sounds=false"]
    ended_well(
        run(
            *("lerobot-rollout", f"--policy.path={arm}", "--device=cpu", *flags, *dataset),
            plugins=(robot, plugin),
            cwd=tmp_path,
            ACTED_INTO=str(told),
        )
    )
    info = json.loads(next(tmp_path.glob("data*/meta/info.json")).read_text())
    assert (info["total_episodes"], info["robot_type"]) == (1, "five_joints")
    assert info["total_frames"] > 3


@pytest.mark.long
def test_lerobot_record_is_not_disturbed(plugin, robot, tmp_path):
    flags = ["--robot.type=five_joints", "--teleop.type=five_joints_leader", "--play_sounds=false",
             "--dataset.repo_id=we/arm", f"--dataset.root={tmp_path / 'data'}", "--dataset.single_task=reach",
             "--dataset.num_episodes=1", "--dataset.episode_time_s=1", "--dataset.reset_time_s=0",
             "--dataset.push_to_hub=false", "--dataset.fps=10"]  # fmt: skip
    said = ended_well(
        run(
            *("lerobot-record", *flags),
            plugins=(robot, plugin),
            cwd=tmp_path,
            ACTED_INTO=str(tmp_path / "actions.jsonl"),
        )
    )
    assert "Could not import third-party plugin" not in said  # one that succeeds is told too early
    assert json.loads(next(tmp_path.glob("data*/meta/info.json")).read_text())["total_frames"] > 3


@pytest.mark.long
def test_lerobot_rollout_with_real_time_chunking(plugin, robot, tmp_path):
    checkpoint = tmp_path / "out"
    assert main(["accelerate", str(saved("smolvla")), str(checkpoint)]) == 0
    told = tmp_path / "actions.jsonl"
    flags = ["--robot.type=five_joints", "--robot.cameras_of=2", "--duration=8", "--fps=10",
             "--inference.type=rtc", "--inference.queue_threshold=3", "--inference.rtc.execution_horizon=5",
             "--return_to_initial_position=false", "--play_sounds=false",
             "--task=put the red cube on the plate"]  # fmt: skip
    said = ended_well(
        run(
            *(
                "lerobot-rollout",
                f"--policy.path={checkpoint}",
                "--device=cpu",
                "--play_sounds=false",
                *flags,
            ),
            plugins=(robot, plugin),
            cwd=tmp_path,
            ACTED_INTO=str(told),
            ACTED="4",
        )
    )
    assert "RTC inference error" not in said
    assert len(acted(told)) > 8
    assert "Policy loaded: type=vivace" in said


@pytest.mark.long
def test_lerobot_train_trains_our_transformer(plugin, tmp_path):
    """`lerobot-train --policy.type=dp_transformer`, and lerobot-eval's path of what comes out of it."""
    from strangers_robot import record

    dataset = record(tmp_path / "data", episodes=2, frames=20)
    policy = ["--policy.type=dp_transformer", "--policy.device=cpu", "--policy.push_to_hub=false",
              "--policy.n_layer=2", "--policy.n_emb=32", "--policy.n_head=2", "--policy.horizon=8",
              "--policy.n_action_steps=4", "--policy.num_train_timesteps=10",
              "--policy.resize_shape=[64,64]"]  # fmt: skip
    job = ["--steps=2", "--batch_size=2", "--num_workers=0", "--save_freq=2", "--log_freq=1",
           f"--output_dir={tmp_path / 'out'}", "--wandb.enable=false"]  # fmt: skip
    said = ended_well(
        run(
            *("lerobot-train", "--dataset.repo_id=stranger/cups", f"--dataset.root={dataset}", *policy, *job),
            plugins=(plugin,),
            cwd=tmp_path,
        )
    )
    assert re.search(r"loss:\d", said)
    assert main(["accelerate", str(tmp_path / "out"), str(tmp_path / "fast")]) == 0
