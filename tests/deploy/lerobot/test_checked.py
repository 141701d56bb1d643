"""What is left out of a policy that lerobot loaded is held against lerobot's own chunk first."""

import logging
from shutil import copytree

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot_commands import pusht_checkpoint
from policy_cases import observations

from vivace.accel.plan import AccelerationPlan
from vivace.accel.techniques.block_cache import BlockCache
from vivace.deploy.lerobot import plugin
from vivace.deploy.lerobot.checked import CheckedChunks
from vivace.eval.observations.shapes import made_up
from vivace.policies.load import load_policy
from vivace.policies.session import Session


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return pusht_checkpoint(tmp_path_factory.mktemp("pusht") / "checkpoint", n_obs_steps=1)


@pytest.fixture
def lerobots(checkpoint):
    return DiffusionPolicy.from_pretrained(checkpoint)


def chunks(policy, n=2):
    torch.manual_seed(3)
    seen = observations(policy)
    return [policy.predict_action_chunk(dict(seen)) for _ in range(n)], torch.random.get_rng_state()


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.INFO, logger="vivace")
    return caplog


def test_exact_work_is_left_out_and_draws_stay_those_of_lerobot(checkpoint, lerobots, told):
    theirs, state = chunks(lerobots)
    plugin.drop_in(lerobots, str(checkpoint))
    ours, after = chunks(lerobots)
    assert isinstance(lerobots.diffusion.generate_actions, CheckedChunks)
    assert torch.equal(after, state)
    assert torch.equal(ours[0], theirs[0]), "the first chunk is lerobot's own"
    assert 0 < (ours[1] - theirs[1]).abs().max() < 1e-5, "the second one is not"
    (line,) = told.messages
    assert line.startswith(
        "vivace: diffusion runs under exact work alone (hoist): on this observation its act"
    )
    assert "from lerobot's own at most, 1e-05 allowed (float32); VIVACE=off leaves it out" in line


def test_lerobots_own_stays_where_actions_differ(checkpoint, lerobots, told, monkeypatch):
    theirs, state = chunks(lerobots)
    made = CheckedChunks.made
    monkeypatch.setattr(CheckedChunks, "made", lambda self, *args, **said: made(self, *args, **said) + 2e-5)
    plugin.drop_in(lerobots, str(checkpoint))
    ours, after = chunks(lerobots)
    assert all(map(torch.equal, ours, theirs))
    assert torch.equal(after, state)
    (line,) = told.messages
    assert line.startswith(
        "vivace: diffusion stays lerobot's own: under hoist its actions are 2e-05 from ler"
    )


def test_lerobots_own_stays_where_ours_fails(checkpoint, lerobots, told, monkeypatch):
    theirs, _ = chunks(lerobots)

    def fail(self, *args, **said):
        torch.randn(3)
        raise RuntimeError("no")

    monkeypatch.setattr(CheckedChunks, "made", fail)
    plugin.drop_in(lerobots, str(checkpoint))
    assert all(map(torch.equal, chunks(lerobots)[0], theirs))
    assert told.messages == ["vivace: diffusion stays lerobot's own: RuntimeError: no"]


def test_after_training_it_is_checked_again(checkpoint, lerobots, told):
    plugin.drop_in(lerobots, str(checkpoint))
    chunks(lerobots)
    with torch.no_grad():
        for parameter in lerobots.parameters():
            parameter.mul_(1.01)
    ours = chunks(lerobots)[0][1]
    assert len(told.messages) == 2
    lerobots.diffusion.generate_actions.remove()
    assert (ours - chunks(lerobots)[0][1]).abs().max() < 1e-5


@pytest.fixture
def planned(checkpoint, tmp_path):
    """The same checkpoint with a plan beside it."""
    loaded = load_policy(checkpoint)
    data = made_up(Session(loaded), 1, 0)
    cached = BlockCache.calibrate(loaded.as_trained, data, {"method": "uniform", "updates": 5})
    copytree(checkpoint, tmp_path / "planned")
    AccelerationPlan(loaded.fingerprint, (cached,)).save(tmp_path / "planned")
    return tmp_path / "planned"


def test_a_plan_beside_the_checkpoint_is_run(planned, lerobots, told):
    plugin.drop_in(lerobots, str(planned))
    before, _ = chunks(lerobots)
    assert told.messages == [
        "vivace: diffusion runs under its plan (block_cache), an approximation by block_cache; VIVACE=off "
        "leaves it out"
    ]
    lerobots.diffusion.generate_actions.remove()
    assert (before[1] - chunks(lerobots)[0][1]).abs().max() > 1e-4


def test_another_policys_plan_is_told_and_left_out(planned, told):
    config = PreTrainedConfig.from_pretrained(planned)
    config.num_inference_steps = 5  # as lerobot's command line may change it
    policy = DiffusionPolicy.from_pretrained(planned, config=config)
    plugin.drop_in(policy, str(planned))
    assert "its config differ" in told.messages[0]
    chunks(policy)
    assert "exact work alone (hoist)" in told.messages[1]


@pytest.fixture
def installed(monkeypatch):
    """Our plug-in's changes of lerobot's classes, undone afterwards."""
    for cls in (PreTrainedPolicy, *plugin._descendants(PreTrainedPolicy)):
        for name in {"from_pretrained", "__init_subclass__"} & vars(cls).keys():
            monkeypatch.setattr(cls, name, vars(cls)[name])


def test_what_lerobot_loads_is_changed_and_what_we_load_is_not(checkpoint, installed, monkeypatch):
    monkeypatch.delenv("VIVACE", raising=False)
    plugin.install()
    plugin.install()
    policy = DiffusionPolicy.from_pretrained(checkpoint)
    assert isinstance(policy.diffusion.generate_actions, CheckedChunks)
    ours = load_policy(checkpoint).policy
    assert not isinstance(ours.diffusion.generate_actions, CheckedChunks)

    class Later(DiffusionPolicy):
        @classmethod
        def from_pretrained(cls, pretrained_name_or_path, **kwargs):
            return super().from_pretrained(pretrained_name_or_path, **kwargs)

    later = Later.from_pretrained(checkpoint).diffusion.generate_actions
    assert isinstance(later, CheckedChunks)
    assert later.original == later.policy.diffusion.generate_actions.original


def test_it_can_be_switched_off(checkpoint, installed, monkeypatch):
    monkeypatch.setenv("VIVACE", "off")
    plugin.install()
    policy = DiffusionPolicy.from_pretrained(checkpoint)
    assert not isinstance(policy.diffusion.generate_actions, CheckedChunks)
    assert "vivace" in type(policy.config).get_known_choices(), "our types are there all the same"
