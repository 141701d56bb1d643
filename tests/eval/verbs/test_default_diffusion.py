"""The benchmark of lerobot's default Diffusion Policy is of that policy, and its recordings fit it."""

import default_diffusion
import torch
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

from vivace.eval.observations.observe import observe
from vivace.eval.options import AccelOptions, CommonOptions, DataOptions, PolicyOptions
from vivace.eval.subject import load


def test_it_has_the_size_that_is_said():
    with torch.device("meta"):
        policy = DiffusionPolicy(default_diffusion.config())
    assert round(sum(p.numel() for p in policy.parameters()) / 1e6) == 263
    assert (policy.config.noise_scheduler_type, policy.config.num_train_timesteps) == ("DDPM", 100)


def test_its_recordings_fit_it(tmp_path, monkeypatch):
    monkeypatch.setattr(default_diffusion, "EPISODES", 2)
    default_diffusion.main(tmp_path, 16, 32, 64)
    asked = CommonOptions(
        policy=PolicyOptions(path=str(tmp_path / "policy")),
        data=DataOptions(repo=str(tmp_path / "data")),
        accel=AccelOptions(samples=2),
    )
    loaded = load(asked)
    data = observe(asked, loaded)
    assert loaded.staged.spec.control_hz == default_diffusion.FPS
    assert data.batch["observation.image"].shape == (2, 2, 3, 96, 96)
