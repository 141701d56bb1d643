"""A checkpoint of type `vivace`: what is written, and the policy that lerobot makes of it."""

import json
import logging
import os
from itertools import islice
from shutil import copytree
from types import SimpleNamespace

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot_commands import pusht_checkpoint
from lerobot_policies import saved
from safetensors.torch import load_file, save_file

from vivace.accel.apply import exact_plan
from vivace.accel.plan import AccelerationPlan
from vivace.deploy.lerobot import checkpoint as writing
from vivace.deploy.lerobot.checkpoint import COPIED, HARD, SYMBOLIC, write
from vivace.deploy.lerobot.configuration_vivace import VivaceConfig
from vivace.deploy.lerobot.modeling_vivace import VivacePolicy
from vivace.policies.errors import BadSetting, PlanMismatch, PolicyNotFound, UnsupportedPolicy
from vivace.policies.load import load_policy
from vivace.policies.spec import ChunkExecution

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return pusht_checkpoint(tmp_path_factory.mktemp("pusht") / "checkpoint")


@pytest.fixture(scope="module")
def loaded(base):
    return load_policy(base)


@pytest.fixture(scope="module")
def same(loaded, tmp_path_factory):
    """It with the plan that changes nothing; read only."""
    folder = tmp_path_factory.mktemp("same") / "out"
    assert write(loaded, AccelerationPlan(loaded.fingerprint), folder) == HARD
    return folder


def executed(policy, n=10):
    random = torch.Generator().manual_seed(1)
    torch.manual_seed(3)
    policy.reset()

    def moments():
        while True:
            keys = policy.config.input_features.items()
            yield {key: torch.rand(2, *feature.shape, generator=random) for key, feature in keys}

    return torch.stack([policy.select_action(one) for one in islice(moments(), n)])


def lerobots(folder, **changes):
    config = PreTrainedConfig.from_pretrained(folder, **changes)
    return get_policy_class(config.type).from_pretrained(pretrained_name_or_path=folder, config=config)


def test_weights_are_linked_and_the_rest_is_the_bases(base, same):
    there = {file.name for file in same.iterdir()}
    assert there == {file.name for file in base.iterdir()} | {"acceleration.json"}
    for name in there - {"acceleration.json", "config.json"}:
        assert (same / name).read_bytes() == (base / name).read_bytes()
        assert (same / name).samefile(base / name) == (name == WEIGHTS)
    config = json.loads((same / "config.json").read_text())
    assert config["base"] == json.loads((base / "config.json").read_text())


def test_lerobot_makes_the_same_actions_of_it_bit_for_bit(base, same):
    policy = lerobots(same)
    assert isinstance(policy, VivacePolicy)
    assert torch.equal(executed(policy), executed(lerobots(base)))
    assert policy.chunks.present is not None
    pipelines = make_pre_post_processors(policy.config, str(same))
    assert [len(it.steps) for it in pipelines] == [4, 2]


def test_without_what_nobody_reads_rounding_changes(loaded, base, tmp_path):
    write(loaded, exact_plan(loaded.staged, loaded.fingerprint), tmp_path / "fast")
    difference = (executed(lerobots(tmp_path / "fast")) - executed(lerobots(base))).abs().max()
    assert 0 < difference < 1e-5


def test_our_own_commands_take_it_for_its_base_with_its_plan(loaded, same):
    again = load_policy(same)
    assert again.fingerprint == loaded.fingerprint
    AccelerationPlan.load(same).check(again.fingerprint)


def test_it_can_be_made_of_one_again(loaded, same, tmp_path):
    write(load_policy(same), AccelerationPlan(loaded.fingerprint), tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_text() == (same / "config.json").read_text()


def test_nothing_is_overwritten(loaded, same, tmp_path):
    plan = AccelerationPlan(loaded.fingerprint)
    before = sorted((file.name, file.stat().st_mtime_ns) for file in same.iterdir())
    with pytest.raises(BadSetting, match=r"out is there already; give a folder that is not, or remove it"):
        write(loaded, plan, same)
    assert sorted((file.name, file.stat().st_mtime_ns) for file in same.iterdir()) == before


def test_links_that_cross_no_disks(loaded, base, tmp_path, monkeypatch):
    plan = AccelerationPlan(loaded.fingerprint)

    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(writing.os, "link", refuse)
    assert write(loaded, plan, tmp_path / "soft") == SYMBOLIC
    assert (tmp_path / "soft" / WEIGHTS).readlink() == (base / WEIGHTS).resolve()
    assert load_policy(tmp_path / "soft").fingerprint == loaded.fingerprint
    monkeypatch.setattr(writing.os, "symlink", refuse)
    with pytest.raises(BadSetting, match="can be linked to .* neither way; give a folder on the same disk"):
        write(loaded, plan, tmp_path / "none")
    assert os.listdir(tmp_path) == ["soft"], "it is there whole or not at all"
    assert write(loaded, plan, tmp_path / "copy", copies=True) == COPIED
    assert (tmp_path / "copy" / WEIGHTS).read_bytes() == (base / WEIGHTS).read_bytes()


def test_what_does_not_come_apart_is_refused(tmp_path):
    opaque = load_policy(saved("gaussian_actor"))
    with pytest.raises(
        UnsupportedPolicy, match="'gaussian_actor' does not come apart, so there is nothing to"
    ):
        write(opaque, AccelerationPlan(opaque.fingerprint), tmp_path / "out")


@pytest.mark.parametrize("kind", ["groot", "evo1", "xvla"])
def test_what_lerobot_knows_by_its_class_is_refused(kind):
    known = SimpleNamespace(policy=SimpleNamespace(config=SimpleNamespace(type=kind)))
    with pytest.raises(UnsupportedPolicy, match=f"joins the processors of '{kind}' together by their type"):
        writing.check_base(known)


def test_settings_of_the_command_line_reach_the_base(same):
    policy = lerobots(same, cli_overrides=["--n_action_steps=2", "--device=cpu"])
    assert (policy.config.n_action_steps, policy.base.config.n_action_steps) == (2, 2)
    rtc = RTCConfig()
    policy.config.rtc_config = rtc
    assert policy.config.rtc_config is rtc
    assert policy.config.horizon == policy.base.config.horizon == 8
    assert policy.config.observation_delta_indices == [-1, 0]
    assert not policy.supports_rtc(), "lerobot's diffusion has none"
    with pytest.raises(AttributeError, match="nonsense"):
        _ = policy.config.nonsense


def test_as_many_actions_are_executed_as_the_plan_was_chosen_for(loaded, base, tmp_path, caplog):
    plan = AccelerationPlan(loaded.fingerprint, execution=ChunkExecution(n_action_steps=2))
    write(loaded, plan, tmp_path / "out")
    policy = lerobots(tmp_path / "out")
    assert (policy.config.n_action_steps, policy.base.config.n_action_steps) == (2, 2)
    twos = lerobots(base, cli_overrides=["--n_action_steps=2"])
    assert torch.equal(executed(policy), executed(twos))
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]
    fours = lerobots(tmp_path / "out", cli_overrides=["--n_action_steps=4"])
    assert torch.equal(executed(fours), executed(lerobots(base, cli_overrides=["--n_action_steps=4"])))
    assert fours.chunks.present.policy.spec.n_action_steps == 4, "lerobot's queue executes as many"
    assert "chosen for 2 executed of a chunk, lerobot executes 4" in caplog.text


def test_other_weights_than_the_plans_are_refused(same, tmp_path):
    copytree(same, tmp_path / "out")
    weights = load_file(tmp_path / "out" / WEIGHTS)
    save_file({name: value * 1.01 for name, value in weights.items()}, tmp_path / "out" / WEIGHTS)
    with pytest.raises(PlanMismatch, match="its weights differ"):
        lerobots(tmp_path / "out")


def test_it_is_saved_as_it_was_loaded(same, tmp_path):
    policy = lerobots(same)
    policy.save_pretrained(tmp_path)
    for name in ("config.json", "acceleration.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((same / name).read_text())
    assert load_file(tmp_path / WEIGHTS).keys() == load_file(same / WEIGHTS).keys()


def test_there_is_no_training_and_no_building_from_nothing(same, base):
    policy = lerobots(same)
    for wanted in (policy.get_optim_params, lambda: policy.forward({})):
        with pytest.raises(UnsupportedPolicy, match="is for running, not for training: .* train"):
            wanted()
    with pytest.raises(
        UnsupportedPolicy, match="is not built from nothing: vivace accelerate CKPT OUT makes"
    ):
        VivacePolicy(policy.config)
    with pytest.raises(PolicyNotFound, match="names no base; it is made by vivace accelerate"):
        VivaceConfig()
    with pytest.raises(PolicyNotFound, match="has as its base is no config of lerobot 0.6: "):
        VivaceConfig(base={"type": "diffusion", "nonsense": 1})
    with pytest.raises(PolicyNotFound, match="is of type 'diffusion', needed is 'vivace'"):
        VivacePolicy.from_pretrained(base)
