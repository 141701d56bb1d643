"""Samplers are diffusers' own, bit for bit where operations are the same; flow samplers solve an ODE."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

from vivace.policies.errors import BadSetting
from vivace.policies.noise import GlobalNoise
from vivace.policies.samplers import NoiseSchedule, make_flow_sampler, make_sampler


def denoiser(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x + t / 50)


def run(sampler, x, denoise=denoiser):
    memory = ()
    for step in sampler.steps:
        x, memory = step.advance(x, denoise(x, step.t), memory, GlobalNoise())
    return x


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize(
    ("name", "kind", "n_steps"),
    [
        ("ddpm", DDPMScheduler, 100),
        ("ddpm", DDPMScheduler, 25),
        ("ddim", DDIMScheduler, 10),
        ("ddim", DDIMScheduler, 1),
    ],
)
def test_bit_equal_to_diffusers(name, kind, n_steps, clip_sample, prediction_type):
    schedule = NoiseSchedule(prediction_type=prediction_type, clip_sample=clip_sample)
    scheduler = schedule.scheduler(kind)
    scheduler.set_timesteps(n_steps)
    torch.manual_seed(0)
    start = torch.randn(2, 8, 3)
    torch.manual_seed(1)
    theirs = start
    for t in scheduler.timesteps:
        theirs = scheduler.step(denoiser(theirs, t), t, theirs).prev_sample
    torch.manual_seed(1)
    assert torch.equal(theirs, run(make_sampler(name, n_steps, schedule), start))


@pytest.mark.parametrize("clip_sample", [True, False])
@pytest.mark.parametrize("n_steps", [1, 2, 5, 20])
def test_dpm_solver_agrees_with_diffusers(n_steps, clip_sample):
    schedule = NoiseSchedule(clip_sample=clip_sample)
    scheduler = schedule.scheduler(
        DPMSolverMultistepScheduler,
        algorithm_type="dpmsolver++",
        solver_order=2,
        lambda_min_clipped=-5.1,
        thresholding=clip_sample,
        sample_max_value=1.0,
    )
    scheduler.set_timesteps(n_steps)
    torch.manual_seed(0)
    start = torch.randn(2, 8, 3)
    theirs = start
    for t in scheduler.timesteps:
        theirs = scheduler.step(denoiser(theirs, t), t, theirs).prev_sample
    ours = run(make_sampler("dpmsolver++", n_steps, schedule), start)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("rk4", 4)])
def test_flow_samplers_have_their_order(name, order):
    """dx/dt = x over [0, 1]: the error falls by 2^order when the step is halved."""
    start = torch.ones(1, 1, 1, dtype=torch.float64)

    def error(n_steps):
        found = run(make_flow_sampler(name, n_steps), start, lambda x, t: x)
        return abs(found.item() - torch.e)

    assert error(8) / error(16) == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize(("name", "n_steps", "message"), [
    ("heun", 4, r"unknown sampler 'heun'; known samplers: ddpm, ddim, dpmsolver\+\+"),
    ("ddim", 0, r"asked for 0 steps; .* choose 1\.\.100"),
    ("ddim", 101, r"asked for 101 steps"),
])  # fmt: skip
def test_what_cannot_be_sampled_is_refused(name, n_steps, message):
    with pytest.raises(BadSetting, match=message):
        make_sampler(name, n_steps, NoiseSchedule())


def test_flow_samplers_refuse_too():
    with pytest.raises(BadSetting, match="unknown flow sampler 'ddim'"):
        make_flow_sampler("ddim", 4)
    with pytest.raises(BadSetting, match="asked for 0 steps"):
        make_flow_sampler("euler", 0)


def samplers():
    for prediction_type in ("epsilon", "sample", "v_prediction"):
        for clip_sample in (True, False):
            schedule = NoiseSchedule(prediction_type=prediction_type, clip_sample=clip_sample)
            for name, n_steps in (
                ("ddpm", 20),
                ("ddim", 7),
                ("ddim", 1),
                ("dpmsolver++", 1),
                ("dpmsolver++", 6),
            ):
                yield make_sampler(name, n_steps, schedule)
    yield make_flow_sampler("euler", 5)
    yield make_flow_sampler("rk4", 3)


@pytest.mark.parametrize("sampler", samplers(), ids=lambda sampler: f"{sampler.name}-{len(sampler)}")
def test_the_numbers_of_a_step_say_what_it_does(sampler):
    """Step by step from the same sample, since some of these steps blow differences up."""
    generator = torch.Generator().manual_seed(0)
    x, memory, numbers = torch.randn(2, 8, 3, generator=generator), (), ()
    for step in sampler.steps:
        out, noise = denoiser(x, step.t), torch.randn(2, 8, 3, generator=generator)
        theirs, numbers = step.table.advance(x.numpy(), out.numpy(), numbers, noise.numpy)
        x, memory = step.advance(x, out, memory, lambda shape, like, noise=noise: noise)
        torch.testing.assert_close(torch.from_numpy(theirs), x, atol=1e-5, rtol=1e-4)
        assert step.table.t == pytest.approx(float(step.t))
        assert len(numbers) == len(memory)
