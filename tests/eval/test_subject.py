"""What a command's policy is loaded as."""

import pytest

from vivace.accel.plan import FILE_NAME, AccelerationPlan
from vivace.eval import cli
from vivace.eval import subject as plans
from vivace.eval.verbs.export import ExportCommand
from vivace.policies.errors import BadSetting
from vivace.policies.spec import ActionKind


def test_actions_mean_what_the_environment_says_unless_export_is_told_otherwise(monkeypatch, tiny_loaded):
    asked = []

    def load_policy(path, device, kinds, *others):
        asked.append(kinds)
        return tiny_loaded

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
