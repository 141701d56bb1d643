"""Fewer steps: at which timesteps is chosen by what the policy does with them, and remembered."""

import json
from dataclasses import replace

import pytest
import torch

from vivace.accel.plan import AccelerationPlan
from vivace.accel.technique import CalibrationData
from vivace.accel.techniques.step_schedule import StepSchedule
from vivace.policies.errors import BadSetting, CalibrationError, NonFiniteActions, UnsupportedPolicy
from vivace.policies.execution import as_trained
from vivace.policies.load import stage
from vivace.policies.placement import Placement
from vivace.policies.sampling.noise_schedule import NoiseSchedule
from vivace.policies.sampling.samplers import OWN, make_flow_sampler, make_sampler
from vivace.policies.spec import Fingerprint
from vivace.policies.tiny.policies import tiny_cogact, tiny_dp_transformer, tiny_token_vla

H, A, MODE, SPREAD = 4, 2, 0.6, 0.3
KEYS = tuple((0, i) for i in range(6))
DATA = CalibrationData({"observation.state": torch.zeros(6, 1, 2)}, KEYS)


class TwoModes:
    """The best denoiser of actions that are N(+-MODE, SPREAD); `fault` is added to the noise it predicts."""

    class spec:  # noqa: N801
        type, horizon, action_dim, latent_shape = "two modes", H, A, (H, A)

    blocks = ("the denoiser",)

    placement = Placement()

    def __init__(self, clip_sample, fault=0.0):
        self.schedule = NoiseSchedule(clip_sample=clip_sample)
        self.sampler, self.fault, self.calls = self.resample("ddim", 100), fault, 0

    def encode(self, batch, run, select):
        return None

    def condition(self, step, context):
        return step.table

    def denoise(self, x, condition, run):
        self.calls += 1
        alpha, sigma = condition.alpha, condition.sigma
        variance = (alpha * SPREAD) ** 2 + sigma**2
        mean = MODE * torch.tanh(alpha * MODE * x / variance)  # of the mode x comes from
        return sigma * (x - alpha * mean) / variance + self.fault

    def finish(self, x, context):
        return x

    def resample(self, name, n_steps, spacing=OWN):
        return make_sampler(name, n_steps, self.schedule, spacing)


class Flow(TwoModes):
    def resample(self, name, n_steps, spacing=OWN):
        return make_flow_sampler("euler" if name == "ddim" else name, n_steps, spacing)


def calibrated(policy, **options):
    return StepSchedule.calibrate(as_trained(policy), DATA, {"n_steps": 2} | options)


def timesteps(technique, policy):
    return [int(step.t) for step in technique.apply(as_trained(policy)).sampler.steps]


def test_a_policy_that_clips_starts_at_the_last_timestep():
    """Leading spacing takes noise alone for a sample at timestep 50."""
    policy = TwoModes(clip_sample=True)
    found = calibrated(policy)
    assert found.spacing == "trailing"
    assert set(found.errors) == {"leading", "trailing", "linspace"}
    assert found.errors["trailing"] < 1.5 * min(found.errors.values())
    assert timesteps(found, policy) == [99, 49]


def test_a_policy_that_does_not_clip_may_not():
    """At timestep 99 of a cosine schedule an error of its noise counts 20 000 times in the clean actions."""
    policy = TwoModes(clip_sample=False, fault=0.05)
    found = calibrated(policy)
    assert found.spacing == "leading"
    assert found.errors["trailing"] > 3 * found.errors["leading"]
    assert timesteps(found, policy) == [50, 0]


def test_a_spacing_that_is_asked_for_is_taken_unseen():
    policy = TwoModes(clip_sample=True)
    found = calibrated(policy, spacing="linspace")
    assert found == StepSchedule(n_steps=2, spacing="linspace")
    assert policy.calls == 0
    assert timesteps(found, policy) == [99, 0]


def test_what_was_chosen_and_seen_outlives_the_file():
    mark = Fingerprint("two modes", "", "", "", ())
    plan = AccelerationPlan(mark, (calibrated(TwoModes(clip_sample=True)),))
    data = plan.to_json()
    assert data["techniques"][0]["spacing"] == "trailing"
    assert AccelerationPlan.from_json(data) == plan


def test_a_plan_from_before_there_were_spacings_runs_as_it_did():
    entry = {"kind": "step_schedule", "sampler": "ddim", "n_steps": 2}
    mark = {"policy_type": "two modes", "config": "", "weights": "", "processors": "", "blocks": []}
    plan = AccelerationPlan.from_json({"version": 1, "fingerprint": mark, "techniques": [entry]})
    assert timesteps(plan.techniques[0], TwoModes(clip_sample=True)) == [50, 0]
    solver = replace(plan.techniques[0], sampler="dpmsolver++", n_steps=3)
    assert timesteps(solver, TwoModes(clip_sample=True)) == [98, 65, 33]


@pytest.mark.parametrize("n_steps", [1, 4, 16, 60])
def test_cogact_runs_any_number_of_steps(n_steps):
    """Its own spacing, whole strides, has none for 16 or 60."""
    staged = stage(tiny_cogact())
    data = CalibrationData(
        {
            "observation.images.front": torch.rand(1, 1, 3, 32, 32),
            "observation.language.tokens": torch.arange(16)[None],
            "observation.language.attention_mask": torch.ones(1, 16, dtype=torch.bool),
        },
        KEYS[:1],
    )
    found = StepSchedule.calibrate(as_trained(staged), data, {"n_steps": n_steps})
    assert len(found.apply(as_trained(staged)).sampler) == n_steps
    assert (OWN in found.errors) == (n_steps == 1)  # at 4 it is that of leading


def test_flow_matching_has_one_spacing():
    found = calibrated(Flow(clip_sample=True), sampler="euler")
    assert (found.spacing, dict(found.errors)) == (OWN, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "heun"}, "unknown sampler 'heun'"),
        ({"n_steps": 101}, "asked for 101 steps"),
        (
            {"spacing": "even"},
            "step_schedule spacing='even'; choose auto, leading, trailing, linspace, quadratic, uneven or",
        ),
        (
            {"stride": 2},
            "step_schedule has no option 'stride'; its options: n_steps, sampler, spacing, widths",
        ),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(BadSetting, match=message):
        calibrated(TwoModes(clip_sample=True), **options)


def test_widths_say_every_set_of_times_and_outlive_the_file():
    """Two steps, the first at the last timestep of training: where the second is, widths say."""
    policy = TwoModes(clip_sample=True)
    sets = {}
    for widths in ((1.0, 9.0), (1.0, 1.0), (9.0, 1.0)):
        made = calibrated(policy, spacing="uneven", widths=widths)
        sets[widths] = timesteps(made, policy)
    assert list(sets.values()) == [[99, 89], [99, 49], [99, 9]]
    plan = AccelerationPlan(Fingerprint("two modes", "", "", "", ()), (made,))
    assert AccelerationPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"spacing": "uneven"},
            "spacing=uneven and widths=.*; widths go with spacing uneven, which",
        ),
        ({"spacing": "trailing", "widths": [1.0]}, "spacing=trailing and widths=.1.0.; widths go with"),
        ({"spacing": "uneven", "widths": [1.0, 0.0]}, "widths of steps .1.0, 0.0.; at least one is needed"),
    ],
)
def test_widths_that_say_nothing_are_refused(options, message):
    with pytest.raises(BadSetting, match=message):
        StepSchedule.read_options(options)


def test_a_plan_never_says_auto():
    with pytest.raises(
        BadSetting,
        match="step_schedule spacing='auto'; choose leading, trailing, linspace, quadratic, uneven",
    ):
        StepSchedule(spacing="auto")


def test_a_policy_that_writes_tokens_refuses_by_name():
    with pytest.raises(UnsupportedPolicy, match="step_schedule works on denoising steps"):
        StepSchedule.calibrate(as_trained(stage(tiny_token_vla())), DATA, {})


def test_a_policy_that_gives_nan_is_refused():
    with pytest.raises(NonFiniteActions, match="'two modes' gave NaN or infinity"):
        calibrated(TwoModes(clip_sample=False, fault=float("nan")))


def test_spacings_that_all_give_nan_are_refused():
    class BreaksAfterAWhile(TwoModes):
        def denoise(self, x, condition, run):
            out = super().denoise(x, condition, run)
            return out if self.calls <= len(self.sampler) else out * torch.nan

    with pytest.raises(
        CalibrationError, match="2 steps of ddim .* not finite at any spacing; choose another"
    ):
        calibrated(BreaksAfterAWhile(clip_sample=False))


def test_a_checkpoints_own_sampler_stays_as_it_is():
    assert [int(step.t) for step in stage(tiny_dp_transformer()).sampler.steps] == list(range(90, -1, -10))
