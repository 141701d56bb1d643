"""What a denoiser should say, by prediction type: a perfect one has no loss, and samplers undo the noise."""

import pytest
import torch

from vivace.policies.errors import BadSetting
from vivace.policies.families.cogact.policy import CogACTConfig
from vivace.policies.families.dp_transformer.policy import DPTransformerConfig
from vivace.policies.sampling.noise import GlobalNoise
from vivace.policies.sampling.noise_schedule import PREDICTION_TYPES, NoiseSchedule
from vivace.policies.sampling.samplers import make_sampler
from vivace.policies.tiny.policies import tiny_cogact, tiny_dp_transformer

EVERY_TYPE = pytest.mark.parametrize("kind", PREDICTION_TYPES)


def perfect(schedule, clean, noisy, t):
    """What is right to say about `noisy`, worked out from the clean actions alone."""
    ab = schedule._alphas_cumprod[t].view(-1, 1, 1)
    noise = (noisy - ab.sqrt() * clean) / (1 - ab).sqrt()
    return {"epsilon": noise, "sample": clean, "v_prediction": ab.sqrt() * noise - (1 - ab).sqrt() * clean}[
        schedule.prediction_type
    ]


class Knowing(torch.nn.Module):
    """A denoiser that knows the clean actions (B, H, A), each repeated; `offset` is added to what it says."""

    def __init__(self, schedule, clean, offset):
        super().__init__()
        self.schedule, self.clean, self.offset = schedule, clean, offset

    def forward(self, x, t, *_):
        clean = self.clean.repeat_interleave(len(x) // len(self.clean), dim=0)
        return perfect(self.schedule, clean, x, t) + self.offset


@EVERY_TYPE
@pytest.mark.parametrize(("offset", "wanted"), [(0.0, 0.0), (0.5, 0.25)])
def test_a_perfect_dp_transformer_has_no_loss(kind, offset, wanted):
    policy = tiny_dp_transformer(prediction_type=kind)
    actions = torch.rand(4, 8, 3) * 2 - 1
    policy.model = Knowing(policy.schedule, actions, offset)
    loss = policy.loss({"observation.state": torch.zeros(4, 2, 5)}, actions)
    assert loss.item() == pytest.approx(wanted, abs=1e-4)


@EVERY_TYPE
@pytest.mark.parametrize(("offset", "wanted"), [(0.0, 0.0), (0.5, 0.25)])
def test_a_perfect_cogact_head_has_no_loss(kind, offset, wanted):
    policy = tiny_cogact(prediction_type=kind)
    actions = torch.rand(4, 8, 3) * 2 - 1
    head = Knowing(policy.schedule, actions, offset)
    head.z_embedder = policy.action_model.net.z_embedder
    policy.action_model.net = head
    assert policy.action_loss(torch.zeros(4, 32), actions).item() == pytest.approx(wanted, abs=1e-4)


@EVERY_TYPE
@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmsolver++"])
def test_samplers_recover_the_clean_sample_from_what_is_right_to_say(kind, name):
    schedule = NoiseSchedule(prediction_type=kind)
    clean = torch.rand(2, 8, 3, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    x, memory = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(1)), ()
    for step in make_sampler(name, 20, schedule).steps:
        said = perfect(schedule, clean, x, step.t.expand(2))
        x, memory = step.advance(x, said, memory, GlobalNoise(torch.Generator().manual_seed(2)))
    torch.testing.assert_close(x, clean, atol=1e-3, rtol=0)


@pytest.mark.parametrize("config", [DPTransformerConfig, CogACTConfig])
def test_an_unknown_type_is_refused_before_there_are_weights(config):
    with pytest.raises(
        BadSetting, match="prediction_type='noise'; choose one of epsilon, sample, v_prediction"
    ):
        config(prediction_type="noise", device="cpu")
