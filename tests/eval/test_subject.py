"""What a command's policy is loaded as."""

import pytest

from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.eval import cli
from vivace.eval import subject as plans
from vivace.eval.options import DataOptions, EnvOptions, PolicyOptions
from vivace.eval.verbs.eval import EvalCommand
from vivace.eval.verbs.export import ExportCommand
from vivace.policies import load
from vivace.policies.errors import BadSetting
from vivace.policies.spec import ActionKind


def test_actions_mean_what_the_environment_says_unless_export_is_told_otherwise(monkeypatch, checkpoint):
    asked = []

    def load_policy(path, device, kinds, *others, **more):
        asked.append(kinds)
        return load.load_policy(checkpoint, device, kinds)

    monkeypatch.setattr(plans, "load_policy", load_policy)
    plans.load(ExportCommand())
    plans.load(ExportCommand(), ["velocity"])
    assert asked == [(ActionKind.DELTA,) * 3 + (ActionKind.ABSOLUTE,), (ActionKind.VELOCITY,) * 4]
    with pytest.raises(
        BadSetting, match="--export.action_kinds has 'speed'; needed: absolute, delta, velocity"
    ):
        plans.load(ExportCommand(), ["speed"])


def test_a_plan_made_in_another_dtype_is_run_and_told(tiny_loaded, tmp_path, capsys):
    for made_in in ("float32", "bfloat16"):
        plan = AccelerationPlan(tiny_loaded.fingerprint, (), {"dtype": made_in})
        plan.save(tmp_path / FILE_NAME)
        command = ExportCommand()
        command.accel.path = str(tmp_path / FILE_NAME)
        assert plans.load_plan(command, tiny_loaded) == plan
        told = "the plan was made in bfloat16, the policy runs in float32" in capsys.readouterr().err
        assert told == (made_in == "bfloat16")


@pytest.mark.parametrize(("env", "data", "world"), [
    ({}, {}, "metaworld/reach-moving"),
    ({"task": "push-v3"}, {}, "metaworld/push-v3"),
    ({"type": "metaworld", "task": "push-v3"}, {}, "metaworld/push-v3"),
    ({}, {"repo": "somewhere"}, ""),
])  # fmt: skip
def test_a_world_is_the_one_named_or_the_one_its_plan_was_calibrated_in(env, data, world):
    command = ExportCommand(env=EnvOptions(**env), data=DataOptions(**data))
    plans.settle_world(command)
    assert (command.env.named if command.env.is_named else "") == world


def test_a_checkpoint_of_whose_world_nothing_is_known_is_not_run_in_ours(tmp_path):
    """It is seen through shapes; and judged nowhere until a world is named."""
    for content in (None, "{", "[]", '{"measurements": {"env": ""}}', '{"measurements": {"env": 3}}'):
        if content is not None:
            (tmp_path / FILE_NAME).write_text(content)
        for name in ("config.json", "model.safetensors"):
            (tmp_path / name).touch()
        command = EvalCommand(policy=PolicyOptions(path=str(tmp_path)))
        plans.settle_world(command)
        assert not command.env.is_named
    assert plans.told(command) == [plans.Told()]
    with pytest.raises(BadSetting, match="success is judged in a world, and none is named: give --env.type"):
        plans.env_maker(command, None)


def test_an_evaluation_needs_a_world_beside_its_data():
    command = EvalCommand(data=DataOptions(repo="somewhere"))
    plans.settle_world(command)
    assert command.env.named == "metaworld/reach-moving"


@pytest.mark.parametrize(("options", "message"), [
    ({"repo": "a", "file": "b"}, "data.repo and data.file are both given"),
    ({"repo": "a", "seed": -1}, "data.seed=-1; 0 or more is needed"),
    ({"episodes": [1]}, "data.episodes and data.seed choose from data.repo or data.file; give one"),
])  # fmt: skip
def test_data_options_that_do_not_go_together(options, message):
    with pytest.raises(BadSetting, match=message):
        DataOptions(**options)


def test_observations_are_renamed_as_asked(checkpoint, capsys):
    """A13: `--rename_map` as lerobot has it."""
    asked = [f"--policy.path={checkpoint}", '--rename_map={"observation.agent": "observation.state"}']
    loaded = plans.load(cli._parse("explain", asked))
    assert list(loaded.staged.spec.observation_shapes) == ["observation.agent"]
    plans.load_plan(cli._parse("explain", asked), loaded)  # it is the same policy's
    asked[-1] = '--rename_map={"observation.agent": "observation.stat"}'
    assert cli.main(["explain", *asked]) == 2
    assert (
        "rename_map renames to 'observation.stat', which the policy does not have" in capsys.readouterr().err
    )
