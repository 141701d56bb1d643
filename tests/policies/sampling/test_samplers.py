"""Samplers are diffusers' own, bit for bit where operations are the same; flow samplers solve an ODE."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from lerobot.policies.common.flow_matching import euler_integrate

from vivace.policies.errors import BadSetting
from vivace.policies.sampling.clean_flow import make_clean_flow_sampler
from vivace.policies.sampling.noise import GlobalNoise
from vivace.policies.sampling.noise_schedule import NoiseSchedule
from vivace.policies.sampling.sampler import presumed
from vivace.policies.sampling.samplers import make_flow_sampler, make_sampler
from vivace.policies.sampling.step_table import remembered

DIFFUSERS = ("leading", "trailing", "linspace")
"""Spacings that diffusers has."""


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


@pytest.mark.parametrize("noise_at", [0, 1])
@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("rk4", 4)])
def test_flow_samplers_have_their_order(name, order, noise_at):
    """dx/dt = x over [0, 1] or back: the error falls by 2^order when the step is halved."""
    start = torch.ones(1, 1, 1, dtype=torch.float64)

    def error(n_steps):
        found = run(make_flow_sampler(name, n_steps, noise_at=noise_at), start, lambda x, t: x)
        return abs(found.item() - torch.e ** (1 - 2 * noise_at))

    assert error(8) / error(16) == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize("n_steps", [1, 3, 10])
def test_a_flow_from_one_to_zero_is_lerobots_bit_for_bit(n_steps):
    start = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    theirs = euler_integrate(lambda x, t: torch.tanh(x + t[:, None, None]), start, n_steps)
    ours = run(make_flow_sampler("euler", n_steps, noise_at=1), start, lambda x, t: torch.tanh(x + t))
    assert torch.equal(ours, theirs)


def test_a_flow_from_one_to_zero_knows_its_noise_and_its_actions():
    """As lerobot trains pi0 and smolvla: x_t = t n + (1 - t) a, and the denoiser says n - a."""
    generator = torch.Generator().manual_seed(0)
    noise, actions = (torch.randn(2, 8, 3, generator=generator) for _ in range(2))
    for step in make_flow_sampler("rk4", 4, noise_at=1).steps:
        table = step.table
        x = step.t * noise + (1 - step.t) * actions
        torch.testing.assert_close(table.alpha * actions + table.sigma * noise, x, atol=1e-6, rtol=0)
        clean = torch.from_numpy(table.cleaned(x.numpy(), (noise - actions).numpy()))
        torch.testing.assert_close(clean, actions, atol=1e-6, rtol=0)


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
    yield make_flow_sampler("euler", 6, noise_at=1)
    yield make_flow_sampler("rk4", 2, noise_at=1)


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


SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def theirs(kind, sampler_steps, schedule, start, **options):
    """Diffusers' own loop; None where it has no finite answer."""
    scheduler = schedule.scheduler(kind, **options)
    scheduler.set_timesteps(sampler_steps)
    x = start
    for t in scheduler.timesteps:
        x = scheduler.step(denoiser(x, t), t, x).prev_sample
    return x if x.isfinite().all() else None


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("beta_schedule", SCHEDULES)
@pytest.mark.parametrize(("total", "counts"), [(20, range(1, 21)), (50, (49, 50)), (100, (98, 99, 100))])
def test_dpm_solver_is_finite_at_every_number_of_steps(total, counts, beta_schedule, prediction_type):
    """And diffusers' wherever that is finite: it divides by zero where two of its timesteps are the same."""
    schedule = NoiseSchedule(
        num_train_timesteps=total,
        beta_schedule=beta_schedule,
        prediction_type=prediction_type,
        clip_sample=False,
    )
    start = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    options = {"algorithm_type": "dpmsolver++", "solver_order": 2, "lambda_min_clipped": -5.1}
    for n_steps in counts:
        ours = run(make_sampler("dpmsolver++", n_steps, schedule), start)
        assert ours.isfinite().all(), n_steps
        wanted = theirs(DPMSolverMultistepScheduler, n_steps, schedule, start, **options)
        if wanted is not None:
            torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)


def test_a_repeated_timestep_of_dpm_solver_changes_nothing():
    """As many denoiser calls as asked for; the result is that of the distinct timesteps alone."""
    sampler = make_sampler("dpmsolver++", 20, NoiseSchedule(num_train_timesteps=20))
    times = [int(step.t) for step in sampler.steps]
    distinct = [
        step for step, following in zip(sampler.steps, [*times[1:], -1], strict=True) if step.t != following
    ]
    assert len(times) == 20 > len(distinct)
    start = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(sampler, start), run(replace(sampler, steps=tuple(distinct)), start))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("spacing", DIFFUSERS)
@pytest.mark.parametrize(("name", "kind"), [("ddpm", DDPMScheduler), ("ddim", DDIMScheduler)])
def test_spacings_are_diffusers_bit_for_bit(name, kind, spacing, prediction_type):
    """With DDIM where diffusers steps to its own next timestep, which it takes to be T // n away."""
    schedule = NoiseSchedule(num_train_timesteps=20, prediction_type=prediction_type)
    start = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    compared = 0
    for n_steps in range(1, 21):
        sampler = make_sampler(name, n_steps, schedule, spacing)
        times = [int(step.t) for step in sampler.steps]
        scheduler = schedule.scheduler(kind, timestep_spacing=spacing)
        scheduler.set_timesteps(n_steps)
        assert times == scheduler.timesteps.tolist()
        follows = [t - 20 // n_steps for t in times] == [*times[1:], times[-1] - 20 // n_steps]
        if name == "ddim" and not (follows and times[-1] < 20 // n_steps):
            continue
        compared += 1
        torch.manual_seed(1)
        wanted = theirs(kind, n_steps, schedule, start, timestep_spacing=spacing)
        torch.manual_seed(1)
        assert torch.equal(wanted, run(sampler, start))
    assert compared == {"ddpm": 20}.get(name, {"leading": 20, "trailing": 6, "linspace": 2}[spacing])


@pytest.mark.parametrize("spacing", DIFFUSERS)
@pytest.mark.parametrize("beta_schedule", SCHEDULES)
def test_spacings_of_dpm_solver_are_diffusers(beta_schedule, spacing):
    schedule = NoiseSchedule(num_train_timesteps=20, beta_schedule=beta_schedule, clip_sample=False)
    start = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(0))
    options = {"algorithm_type": "dpmsolver++", "solver_order": 2, "lambda_min_clipped": -5.1}
    for n_steps in range(1, 16):
        ours = run(make_sampler("dpmsolver++", n_steps, schedule, spacing), start)
        assert ours.isfinite().all()
        wanted = theirs(
            DPMSolverMultistepScheduler, n_steps, schedule, start, timestep_spacing=spacing, **options
        )
        if wanted is not None and n_steps < 14:  # beyond, diffusers' trailing may ask for timestep -1
            torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmsolver++"])
@pytest.mark.parametrize("total", [50, 100])
def test_trailing_spacing_gives_as_many_steps_as_asked_for(name, total):
    """Diffusers gives 30 for 29 of 50, the last at timestep -1."""
    schedule = NoiseSchedule(num_train_timesteps=total)
    for n_steps in (29, 31, total - 3, total - 1, total):
        sampler = make_sampler(name, n_steps, schedule, "trailing")
        assert len(sampler) == n_steps
        assert min(int(step.t) for step in sampler.steps) >= 0


@pytest.mark.parametrize("name", ["ddim", "dpmsolver++"])
def test_quadratic_spacing_is_denser_the_less_noise_there_is(name):
    """As many timesteps as asked for, none twice, from the last of training to the first."""
    schedule = NoiseSchedule(num_train_timesteps=100)
    for n_steps in (1, 2, 5, 10, 40):
        times = [int(step.t) for step in make_sampler(name, n_steps, schedule, "quadratic").steps]
        assert len(times) == n_steps
        assert times == sorted(set(times), reverse=True)
    times = [int(step.t) for step in make_sampler("ddim", 8, schedule, "quadratic").steps]
    assert (times[0], times[-1]) == (99, 0)
    widths = [a - b for a, b in pairwise(times)]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "quadratic"])
@pytest.mark.parametrize("n_steps", [3, 7, 13, 20])
def test_ddim_recovers_the_clean_sample_with_every_spacing(spacing, n_steps):
    """Where diffusers' own steps do not meet: a perfect denoiser's answer is exact at every step."""
    schedule = NoiseSchedule(num_train_timesteps=20, clip_sample=False)
    clean, noise = torch.randn(2, 2, 8, 3, generator=torch.Generator().manual_seed(0))
    sampler = make_sampler("ddim", n_steps, schedule, spacing)
    first = sampler.steps[0].table
    x, memory = first.alpha * clean + first.sigma * noise, ()
    for step in sampler.steps:
        torch.testing.assert_close(
            x, step.table.alpha * clean + step.table.sigma * noise, atol=1e-4, rtol=1e-4
        )
        x, memory = step.advance(x, (x - step.table.alpha * clean) / step.table.sigma, memory, None)
    torch.testing.assert_close(x, clean, atol=1e-4, rtol=1e-4)


def test_what_has_no_such_spacing_is_refused():
    with pytest.raises(
        BadSetting,
        match="unknown spacing 'auto'; known spacings: leading, trailing, linspace, quadratic, own",
    ):
        make_sampler("ddim", 4, NoiseSchedule(), "auto")
    with pytest.raises(
        BadSetting, match=r"'dpmsolver\+\+' with leading spacing .* 99 steps; choose 1..98, or linspace"
    ):
        make_sampler("dpmsolver++", 99, NoiseSchedule(), "leading")
    with pytest.raises(
        BadSetting, match="'euler' has steps of one width, not spacing 'trailing'; choose 'own'"
    ):
        make_flow_sampler("euler", 4, "trailing")


def test_an_unknown_process_is_refused_in_one_line():
    with pytest.raises(
        BadSetting, match="prediction_type='noise'; choose one of epsilon, sample, v_prediction"
    ):
        NoiseSchedule(prediction_type="noise")
    with pytest.raises(BadSetting, match="DDIMScheduler knows no beta_schedule='cosine'; choose linear"):
        make_sampler("ddim", 4, NoiseSchedule(beta_schedule="cosine"))


@pytest.mark.parametrize(
    "sampler",
    [make_sampler("dpmsolver++", 6, NoiseSchedule()), make_clean_flow_sampler("renoise", 5)],
    ids=["what was predicted", "the noise"],
)
def test_what_a_late_step_remembers_is_the_same_without_torch(sampler):
    x, out = torch.randn(1, 4, 2), torch.randn(1, 4, 2)
    tables = [step.table for step in sampler.steps]
    assert len(sampler.beginnings) == len(sampler)
    for index in sampler.beginnings[1:]:
        wanted = presumed(sampler, sampler.steps[index], x, out)
        found = tables[index].presumed(remembered(tables[:index]), x.numpy(), out.numpy())
        assert len(found) == len(wanted) == len(tables[index].memory)
        for mine, theirs in zip(found, wanted, strict=True):
            np.testing.assert_allclose(mine, theirs.numpy(), atol=1e-5)


def test_widths_of_parts_bend_a_flow():
    """Two parts, the first three times as wide: of four steps two pass 3/4 of the time."""
    up = [(float(step.t), step.table.out) for step in make_flow_sampler("euler", 4, (3.0, 1.0)).steps]
    assert np.allclose(up, [(0.0, 0.375), (0.375, 0.375), (0.75, 0.125), (0.875, 0.125)])
    down = [
        (float(step.t), step.table.out)
        for step in make_flow_sampler("euler", 4, (3.0, 1.0), noise_at=1).steps
    ]
    assert np.allclose(down, [(1.0, -0.375), (0.625, -0.375), (0.25, -0.125), (0.125, -0.125)])


def test_widths_of_one_size_are_the_plain_schedule():
    for noise_at in (0, 1):
        plain, same = (make_flow_sampler("euler", 5, one, noise_at=noise_at) for one in ("own", (2.0, 2.0)))
        assert [step.table.t for step in same.steps] == pytest.approx([step.table.t for step in plain.steps])
    clean = make_clean_flow_sampler("euler", 5, (1.0, 1.0, 1.0))
    assert [step.table.t for step in clean.steps] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmsolver++"])
@pytest.mark.parametrize("widths", [(0.01, 1.0), (1.0, 0.01), (1.0, 0.2, 1.0)])
def test_uneven_timesteps_are_as_many_as_asked_for_and_none_twice(name, widths):
    for n in (1, 2, 7, 20, 40):
        sampler = make_sampler(name, n, NoiseSchedule(num_train_timesteps=100), widths)
        times = [int(step.t) for step in sampler.steps]
        assert len(times) == n
        assert all(a > b >= 0 for a, b in zip(times, times[1:], strict=False))
