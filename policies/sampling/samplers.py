"""Samplers as tables of coefficients: diffusers' schedulers, made pure.

A diffusers scheduler computes its coefficients and updates the sample in one stateful call. Here the
coefficients are read from the scheduler once, and `advance` applies them in the scheduler's own order of
operations, so that DDPM and DDIM are bit-equal to it; no attribute is written while sampling, and an
exported policy needs only the numbers.

Sources: DDPM arXiv 2006.11239 eq. 7; DDIM 2010.02502 eq. 12; DPM-Solver++ 2211.01095 (2M, midpoint);
spacings of the timesteps 2305.08891 table 2; flow matching Euler and RK4 as in lerobot's multi_task_dit.

Deviations from diffusers: a step of DDIM ends where the next one begins (diffusers assumes a distance of
T // n, which leaves noise behind if spacing is not "leading" and n does not divide T); "trailing" gives as
many steps as were asked for, none before timestep 0; a timestep that DPM-Solver++ repeats, because there are
no more, changes nothing (diffusers divides by zero).
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from vivace.policies.errors import BadSetting
from vivace.policies.sampling.noise import Noise
from vivace.policies.sampling.noise_schedule import NoiseSchedule
from vivace.policies.sampling.sampler import Memory, Sampler, Step, Update
from vivace.policies.sampling.step_table import StepTable

_LAMBDA_MIN = -5.1
"""Smallest log-SNR / 2 at which DPM-Solver++ starts; before it a cosine schedule is noise alone."""

SPACINGS = ("leading", "trailing", "linspace", "quadratic")
"""How fewer timesteps are spread over those of training: from 0 on, up to the last, both ends; both ends and
the denser the less noise there is (DDIM, appendix D.2)."""
OWN = "own"
"""The spacing that diffusers takes when nothing is said: linspace for DPM-Solver++, else leading."""
Spacing = str | tuple[float, ...]
"""A name, or how wide steps are in equal parts of the schedule, relative to each other (`falling_times`)."""


def make_sampler(name: str, n_steps: int, schedule: NoiseSchedule, spacing: Spacing = OWN) -> Sampler:
    """Build a diffusion sampler by name.

    Args:
        name: "ddpm", "ddim" or "dpmsolver++".
        n_steps: denoiser calls, 1..num_train_timesteps.
        schedule: the process the denoiser was trained with.
        spacing: of the calls' timesteps, one of `SPACINGS`, `OWN`, or widths of steps.

    Raises:
        BadSetting: unknown name or spacing, or a number of steps outside the range.
    """
    if name not in _BUILDERS:
        raise BadSetting(f"unknown sampler {name!r}; known samplers: {', '.join(_BUILDERS)}")
    if not 1 <= n_steps <= schedule.num_train_timesteps:
        raise BadSetting(
            f"sampler {name!r} was asked for {n_steps} steps; the policy was trained with "
            f"{schedule.num_train_timesteps}, choose 1..{schedule.num_train_timesteps}"
        )
    if spacing == OWN:
        spacing = "linspace" if name == "dpmsolver++" else "leading"
    if isinstance(spacing, tuple):
        check_parts(spacing)
    elif spacing not in SPACINGS:
        raise BadSetting(f"unknown spacing {spacing!r}; known spacings: {', '.join((*SPACINGS, OWN))}")
    return Sampler(name, _BUILDERS[name](n_steps, schedule, spacing))


def ddim_at(timesteps: Sequence[int], schedule: NoiseSchedule) -> Sampler:
    """Build a DDIM sampler of these timesteps, descending."""
    return Sampler("ddim", _ddim_at(timesteps, schedule))


def falling_times(widths: Sequence[float], n_steps: int) -> list[float]:
    """Return where n steps begin, from 1 (noise alone) on; the last one ends at 0.

        s(u) = w_j in part j of J,    time(i) = 1 - S(i / n) / S(1),    S(u) = integral of s from 0 to u

    With J = n the widths of the steps are those given, so that every set of times can be said; fewer of them
    bend the schedule, and mean the same whatever the number of steps.

    Args:
        widths: w_j, positive, of equal parts of the schedule; only their ratios count.
        n_steps: how many.
    """
    parts = np.concatenate([[0.0], np.cumsum(widths)]) / np.sum(widths)
    passed = np.interp(np.arange(n_steps) / n_steps, np.linspace(0, 1, len(parts)), parts)
    return [float(1 - share) for share in passed]


def check_parts(widths: Sequence[float]) -> None:
    """Raise `BadSetting` unless widths of steps are positive and finite, and there are some."""
    if not widths or not all(0 < width < np.inf for width in widths):
        raise BadSetting(f"widths of steps {list(widths)}; at least one is needed, each above 0 and finite")


def _timesteps(spacing: Spacing, n: int, count: int, total: int) -> list[int]:
    """Spread n timesteps, descending, over the first `count` of `total` ones, with diffusers' rounding."""
    found: np.ndarray
    if isinstance(spacing, tuple):
        rounded = (np.array(falling_times(spacing, n)) * count).round().astype(int) - 1
        rounded = np.maximum(rounded, np.arange(n)[::-1])  # none twice if there are enough
        below = np.minimum.accumulate(rounded + np.arange(n))  # each at least one below the one before
        found = (below - np.arange(n)).clip(max=count - 1)
    elif spacing == "leading":
        found = np.arange(n)[::-1] * (count // n)
    elif spacing == "linspace":
        found = np.linspace(0, count - 1, n).round()[::-1]
    elif spacing == "quadratic":
        squares = (np.linspace(0, (count - 1) ** 0.5, n) ** 2).round()
        found = np.maximum(squares, np.arange(n)).clip(max=count - 1)[::-1]  # none twice if there are enough
    else:
        found = np.arange(count, -total, -total / n)[:n].round() - 1
    return [int(t) for t in found.clip(min=0)]


def _clean(x: Tensor, out: Tensor, ab: Tensor, schedule: NoiseSchedule) -> Tensor:
    """Predicted clean sample; `ab` is the cumulative product of alphas at this step."""
    if schedule.prediction_type == "epsilon":
        x0 = (x - (1 - ab) ** 0.5 * out) / ab**0.5
    elif schedule.prediction_type == "sample":
        x0 = out
    else:
        x0 = (ab**0.5) * x - ((1 - ab) ** 0.5) * out
    if schedule.clip_sample:
        x0 = x0.clamp(-schedule.clip_sample_range, schedule.clip_sample_range)
    return x0


def _cleaning(ab: Any, schedule: NoiseSchedule) -> dict[str, Any]:
    """`_clean` in numbers."""
    ab = float(ab)
    coefficients = {
        "epsilon": (ab**-0.5, -((1 - ab) ** 0.5) / ab**0.5),
        "sample": (0.0, 1.0),
        "v_prediction": (ab**0.5, -((1 - ab) ** 0.5)),
    }
    clean_x, clean_out = coefficients[schedule.prediction_type]
    clip = schedule.clip_sample_range if schedule.clip_sample else None
    return {
        "alpha": ab**0.5,
        "sigma": (1 - ab) ** 0.5,
        "clean_x": clean_x,
        "clean_out": clean_out,
        "clip": clip,
    }


def _ddpm(n_steps: int, schedule: NoiseSchedule, spacing: Spacing) -> tuple[Step, ...]:
    scheduler = schedule.scheduler(DDPMScheduler)
    total = schedule.num_train_timesteps
    scheduler.set_timesteps(timesteps=_timesteps(spacing, n_steps, total, total))

    def step(index: int, t: Tensor) -> Step:
        previous = scheduler.previous_timestep(t)
        ab = scheduler.alphas_cumprod[t]
        ab_previous = scheduler.alphas_cumprod[previous] if previous >= 0 else scheduler.one
        alpha = ab / ab_previous
        c_clean = (ab_previous**0.5 * (1 - alpha)) / (1 - ab)
        c_x = alpha**0.5 * (1 - ab_previous) / (1 - ab)
        sigma = scheduler._get_variance(t) ** 0.5 if t > 0 else None

        def advance(x: Tensor, out: Tensor, memory: Memory, noise: Noise) -> tuple[Tensor, Memory]:
            x0 = _clean(x, out, ab, schedule)
            mean = c_clean * x0 + c_x * x
            return (mean if sigma is None else mean + sigma * noise(tuple(x.shape), x)), memory

        table = StepTable(
            t=float(t),
            **_cleaning(ab, schedule),
            clean=float(c_clean),
            x=float(c_x),
            noise=0.0 if sigma is None else float(sigma),
        )
        return Step(index, t, advance, table)

    return tuple(step(index, t) for index, t in enumerate(scheduler.timesteps))


def _ddim(n_steps: int, schedule: NoiseSchedule, spacing: Spacing) -> tuple[Step, ...]:
    total = schedule.num_train_timesteps
    return _ddim_at(_timesteps(spacing, n_steps, total, total), schedule)


def _ddim_at(timesteps: Sequence[int], schedule: NoiseSchedule) -> tuple[Step, ...]:
    """DDIM at these timesteps, descending; the last one goes to the clean sample."""
    scheduler = schedule.scheduler(DDIMScheduler)

    def step(index: int, t: Tensor) -> Step:
        is_last = index == len(timesteps) - 1
        ab = scheduler.alphas_cumprod[t]
        ab_previous = (
            scheduler.final_alpha_cumprod if is_last else scheduler.alphas_cumprod[timesteps[index + 1]]
        )

        def advance(x: Tensor, out: Tensor, memory: Memory, noise: Noise) -> tuple[Tensor, Memory]:
            x0 = _clean(x, out, ab, schedule)
            if schedule.prediction_type == "epsilon":
                eps = out
            elif schedule.prediction_type == "sample":
                eps = (x - ab**0.5 * out) / (1 - ab) ** 0.5
            else:
                eps = (ab**0.5) * out + ((1 - ab) ** 0.5) * x
            return ab_previous**0.5 * x0 + (1 - ab_previous) ** 0.5 * eps, memory

        a, b = float(ab), float(ab_previous)
        eps_x, eps_out = {
            "epsilon": (0.0, 1.0),
            "sample": ((1 - a) ** -0.5, -(a**0.5) * (1 - a) ** -0.5),
            "v_prediction": ((1 - a) ** 0.5, a**0.5),
        }[schedule.prediction_type]
        table = StepTable(
            t=float(t),
            **_cleaning(ab, schedule),
            clean=b**0.5,
            x=(1 - b) ** 0.5 * eps_x,
            out=(1 - b) ** 0.5 * eps_out,
        )
        return Step(index, t, advance, table)

    return tuple(step(index, torch.tensor(t)) for index, t in enumerate(timesteps))


def _dpm_solver(n_steps: int, schedule: NoiseSchedule, spacing: Spacing) -> tuple[Step, ...]:
    """Second-order multistep; first order at the first and last step, as diffusers runs it.

    With diffusers' settings for a cosine schedule (`lambda_min_clipped`), and clean samples clipped where the
    policy clips them (its `thresholding` at the same range): without either it diverges on robot actions.
    """
    scheduler = schedule.scheduler(
        DPMSolverMultistepScheduler,
        algorithm_type="dpmsolver++",
        solver_order=2,
        lambda_min_clipped=_LAMBDA_MIN,
    )
    scheduler.set_timesteps(timesteps=_dpm_timesteps(n_steps, scheduler, spacing))
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas)
    lam = torch.log(alpha) - torch.log(sigma)
    n = len(scheduler.timesteps)

    def step(i: int, t: Tensor) -> Step:
        earlier = max((j for j in range(i) if lam[j] != lam[i]), default=None)  # what memory is of
        cleaning = {"t": float(t), **_cleaning(alpha[i] ** 2, schedule)}
        if lam[i + 1] == lam[i]:
            kept = () if earlier is None else ("m0",)
            table = StepTable(**cleaning, x=1.0, memory=(0.0,) * len(kept), keep=kept)
            return Step(i, t, lambda x, out, memory, noise: (x, memory), table)
        h = lam[i + 1] - lam[i]
        ratio, gain = sigma[i + 1] / sigma[i], alpha[i + 1] * (torch.exp(-h) - 1.0)
        r = None if earlier is None or i == n - 1 else (lam[i] - lam[earlier]) / h

        def advance(x: Tensor, out: Tensor, memory: Memory, noise: Noise) -> tuple[Tensor, Memory]:
            x0 = _clean(x, out, alpha[i] ** 2, schedule)
            following = ratio * x - gain * x0
            if r is not None:
                following = following - 0.5 * gain * ((1.0 / r) * (x0 - memory[0]))
            return following, (x0,)

        bend = 0.0 if r is None else float(0.5 * gain / r)
        table = StepTable(
            **cleaning,
            x=float(ratio),
            clean=-float(gain) - bend,
            memory=() if earlier is None else (bend,),
            keep=("clean",),
        )
        return Step(i, t, advance, table)

    return tuple(step(i, t) for i, t in enumerate(scheduler.timesteps))


def _dpm_timesteps(n_steps: int, scheduler: Any, spacing: Spacing) -> list[int]:
    """Timesteps of a DPM-Solver++ scheduler; before the first of them there is noise alone."""
    total = scheduler.config.num_train_timesteps
    count = int((scheduler.lambda_t >= _LAMBDA_MIN).sum())
    if spacing == "trailing" or isinstance(spacing, tuple):
        return _timesteps(spacing, n_steps, count, total)
    if spacing == "leading" and n_steps >= count:
        raise BadSetting(
            f"sampler 'dpmsolver++' with leading spacing was asked for {n_steps} steps; choose "
            f"1..{count - 1}, or linspace"
        )
    return _timesteps(spacing, n_steps + 1, count, total)[:-1]


_BUILDERS = {"ddpm": _ddpm, "ddim": _ddim, "dpmsolver++": _dpm_solver}


def make_flow_sampler(
    name: str,
    n_steps: int,
    spacing: Spacing = OWN,
    noise_at: Literal[0, 1] = 0,
    times: Sequence[tuple[float, float]] | None = None,
) -> Sampler:
    """Build a flow-matching sampler from noise to actions, the denoiser predicting the velocity dx/dt.

    Args:
        name: "euler", or "rk4", which calls the denoiser four times a step.
        n_steps: of one width each, unless `spacing` says otherwise.
        spacing: `OWN`, or widths of steps.
        noise_at: t at which x is noise alone. 0: x = t a + (1 - t) n, as lerobot's multi_task_dit; 1:
            x = t n + (1 - t) a, as its pi0 and smolvla (openpi), where t falls to 0.
        times: start and width of every step, where they are rounded otherwise than in those.

    Raises:
        BadSetting: unknown name, no steps, or a spacing by another name than `OWN`.
    """
    if name not in ("euler", "rk4"):
        raise BadSetting(f"unknown flow sampler {name!r}; known samplers: euler, rk4")
    check_flow_steps(name, n_steps, spacing)
    if isinstance(spacing, tuple):
        times = _uneven(falling_times(spacing, n_steps), noise_at)
    steps: list[Step] = []
    for t, dt in times or (_falling(n_steps) if noise_at else _rising(n_steps)):
        flow = partial(_flow, noise_at=noise_at)
        stages = _euler_stages(t, dt, flow) if name == "euler" else _rk4_stages(t, dt, flow)
        steps += [
            Step(len(steps) + k, torch.tensor(table.t), update, table)
            for k, (update, table) in enumerate(stages)
        ]
    return Sampler(name, tuple(steps))


def check_flow_steps(name: str, n_steps: int, spacing: Spacing) -> None:
    """Raise `BadSetting` unless there are steps, of one width or of widths that are given."""
    if n_steps < 1:
        raise BadSetting(f"sampler {name!r} was asked for {n_steps} steps; choose at least 1")
    if isinstance(spacing, tuple):
        check_parts(spacing)
    elif spacing != OWN:
        raise BadSetting(
            f"sampler {name!r} has steps of one width, not spacing {spacing!r}; choose {OWN!r}, or widths"
        )


def _uneven(falling: Sequence[float], noise_at: int) -> list[tuple[float, float]]:
    """Start and width of steps that begin at times falling from 1, where noise is at 1 or at 0."""
    grid = [*falling, 0.0] if noise_at else [1 - t for t in (*falling, 0.0)]
    return [(here, following - here) for here, following in pairwise(grid)]


def _rising(n_steps: int) -> list[tuple[float, float]]:
    """Start and width of steps from 0 to 1, with the rounding of lerobot's multi_task_dit."""
    grid = torch.linspace(0, 1, n_steps + 1)
    return [(grid[i].item(), (grid[i + 1] - grid[i]).item()) for i in range(n_steps)]


def _falling(n_steps: int) -> list[tuple[float, float]]:
    """Start and width of steps from 1 to 0, with the rounding of lerobot's `euler_integrate`."""
    dt = -1.0 / n_steps
    return [(1.0 + i * dt, dt) for i in range(n_steps)]


_ARRIVED = 1e-6
"""Time left of a flow that is rounding."""
Flow = Callable[[float], dict[str, Any]]
"""Time -> coefficients of a step's table."""


def _euler_stages(t: float, dt: float, flow: Flow) -> list[tuple[Update, StepTable]]:
    return [(lambda x, v, memory, noise: (x + dt * v, memory), StepTable(**flow(t), x=1.0, out=dt))]


def _flow(t: float, noise_at: int) -> dict[str, Any]:
    """Coefficients at a time, where a velocity is predicted and x is (1 - left) clean + left noise."""
    left = t if noise_at else 1 - t
    if left < _ARRIVED:  # the last stage of RK4, where x is clean but for rounding
        left = 0.0
    if noise_at:
        return {"t": t, "alpha": 1 - left, "sigma": left, "clean_x": 1.0, "clean_out": -left or 0.0}
    return {"t": t, "alpha": t, "sigma": left, "clean_x": 1.0, "clean_out": left}


def _rk4_stages(t: float, dt: float, flow: Flow) -> list[tuple[Update, StepTable]]:
    """Memory is (x at the start of the step, k1, …)."""

    def last(x: Tensor, v: Tensor, memory: Memory, noise: Noise) -> tuple[Tensor, Memory]:
        start, k1, k2, k3 = memory
        return start + dt / 6 * (k1 + 2 * k2 + 2 * k3 + v), ()

    half, sixth = dt / 2, dt / 6
    return [
        (
            lambda x, v, memory, noise: (x + dt * v / 2, (x, v)),
            StepTable(**flow(t), x=1.0, out=half, keep=("x", "out")),
        ),
        (
            lambda x, v, memory, noise: (memory[0] + dt * v / 2, (*memory, v)),
            StepTable(**flow(t + half), out=half, memory=(1.0, 0.0), keep=("m0", "m1", "out")),
        ),
        (
            lambda x, v, memory, noise: (memory[0] + dt * v, (*memory, v)),
            StepTable(**flow(t + half), out=dt, memory=(1.0, 0.0, 0.0), keep=("m0", "m1", "m2", "out")),
        ),
        (last, StepTable(**flow(t + dt), out=sixth, memory=(1.0, sixth, 2 * sixth, 2 * sixth))),
    ]
