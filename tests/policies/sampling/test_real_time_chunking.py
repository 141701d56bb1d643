"""Real-time chunking: weights and corrections as lerobot's, exact where it freezes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lerobot.configs import RTCAttentionSchedule
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.rtc.modeling_rtc import RTCProcessor

from vivace.policies.errors import BadSetting, UnsupportedPolicy
from vivace.policies.execution import Denoising, as_trained, sample
from vivace.policies.placement import Placement
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.noise_schedule import NoiseSchedule
from vivace.policies.sampling.real_time_chunking import Continuation, RealTimeChunking, continuation
from vivace.policies.sampling.samplers import make_flow_sampler, make_sampler
from vivace.policies.sampling.step_table import StepTable

H, A = 16, 3


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def theirs(schedule="exp", horizon=H, **options):
    kind = RTCAttentionSchedule(schedule.upper())
    return RTCProcessor(RTCConfig(prefix_attention_schedule=kind, execution_horizon=horizon, **options))


@pytest.mark.parametrize("schedule", ["exp", "linear", "ones", "zeros"])
@pytest.mark.parametrize(("known", "delay", "horizon"), [(12, 3, 10), (7, 0, 10), (10, 10, 10), (4, 9, 16)])
def test_weights_are_lerobots(schedule, known, delay, horizon):
    ours = RealTimeChunking(schedule=schedule, execution_horizon=horizon).weights(known, delay, H)
    wanted = theirs(schedule).get_prefix_weights(delay, min(horizon, known), H)
    np.testing.assert_allclose(ours, wanted, atol=1e-6)


@pytest.mark.parametrize("i", range(5))
def test_a_flow_step_is_corrected_as_lerobot_does(i):
    step = make_flow_sampler("euler", 5).steps[i]
    x, v, previous = random(1, H, A), random(1, H, A, seed=1), random(1, 12, A, seed=2)
    settings = RealTimeChunking(max_guidance_weight=10.0, execution_horizon=10)
    actions, weights = continuation(settings, previous.numpy(), np.array([3]), 0, H)
    follow = Continuation(settings, torch.from_numpy(actions), torch.from_numpy(weights))
    ours = follow.correct(step.table, v, follow.error(step.table, x, v))
    # lerobot's time runs from noise at 1 to actions at 0, and its velocity the other way
    wanted = -theirs(horizon=10, max_guidance_weight=10.0).denoise_step(
        x, previous, 3, 1 - float(step.t), lambda x: -v
    )
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=1e-5)


SAMPLERS = {
    "euler": make_flow_sampler("euler", 10),
    "rk4": make_flow_sampler("rk4", 3),
    "euler-falling": make_flow_sampler("euler", 10, noise_at=1),
    "rk4-falling": make_flow_sampler("rk4", 3, noise_at=1),
    **{
        f"{name}-{kind}": make_sampler(name, 10, NoiseSchedule(prediction_type=kind))
        for name in ("ddpm", "ddim", "dpmsolver++")
        for kind in ("epsilon", "sample", "v_prediction")
    },
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_corrected_word_means_the_corrected_clean_chunk(name):
    settings = RealTimeChunking()
    x, out, wish = random(2, H, A), random(2, H, A, seed=1), random(2, H, A, seed=2)
    weights = torch.from_numpy(settings.weights(12, 4, H))[None, :, None]
    follow = Continuation(settings, wish, weights)
    for step in SAMPLERS[name].steps:
        table: StepTable = step.table
        if not table.clean_out:
            continue
        before = table.clean_x * x + table.clean_out * out
        corrected = follow.correct(table, out, follow.error(table, x, out))
        after = table.clean_x * x + table.clean_out * corrected
        strength = settings.strength(table)
        assert 0 < strength <= settings.beta
        torch.testing.assert_close(after, before + strength * weights * (wish - before), atol=1e-4, rtol=1e-4)


class Linear:
    """A denoiser whose every prediction is a multiple of x; enough of a policy to be sampled."""

    class spec:  # noqa: N801
        type, horizon, action_dim, latent_shape, is_cut = "linear", H, A, (H, A), False

    placement = Placement()
    blocks = ("all",)

    def __init__(self, sampler, factor=0.3):
        self.sampler, self.factor = sampler, factor

    def encode(self, batch, run, select):
        return None

    def condition(self, step, context):
        return None

    def denoise(self, x, condition, run):
        return self.factor * x

    def finish(self, x, context):
        return x


def run(name, settings, delay=4, n_known=10):
    previous = np.full((1, H, A), np.nan, np.float32)
    previous[:, :n_known] = random(1, n_known, A, seed=5).numpy().clip(-0.9, 0.9)
    actions, weights = continuation(settings, previous, np.array([delay]), 0, H)
    follow = Continuation(settings, torch.from_numpy(actions), torch.from_numpy(weights))
    execution = as_trained(Linear(SAMPLERS[name]))
    batch = {"observation.state": torch.zeros(1, 1, 2)}
    free = sample(execution, batch, EpisodeNoise([(3,)]))
    return sample(execution, batch, EpisodeNoise([(3,)]), follow=follow), free, torch.from_numpy(actions)


@pytest.mark.parametrize("jacobian", ["identity", "exact"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_freezing_returns_the_given_actions_and_leaves_the_others_alone(name, jacobian):
    found, free, wish = run(name, RealTimeChunking(method="inpaint", jacobian=jacobian))
    assert torch.equal(found[:, :4], wish[:, :4])
    torch.testing.assert_close(found[:, 4:], free[:, 4:])  # the denoiser of this test mixes no actions


@pytest.mark.parametrize(("beta", "held", "drawn"), [(5.0, 0.75, 0.85), (None, 0.95, 0.97)])
@pytest.mark.parametrize("name", SAMPLERS)
def test_guidance_draws_the_chunk_towards_the_one_before(name, beta, held, drawn):
    found, free, wish = run(name, RealTimeChunking(max_guidance_weight=beta))
    nearer, further = (found - wish).abs().mean(-1)[0], (free - wish).abs().mean(-1)[0]
    assert (nearer[:4] < held * further[:4]).all()
    assert nearer[:10].mean() < drawn * further[:10].mean()
    torch.testing.assert_close(found[:, 10:], free[:, 10:])  # nothing is known of these


def test_the_largest_guidance_depends_on_the_jacobian_unless_it_is_given():
    assert RealTimeChunking().beta == 1
    assert RealTimeChunking(jacobian="exact").beta == 5
    assert RealTimeChunking(jacobian="exact", max_guidance_weight=2.0).beta == 2
    tables = [step.table for step in SAMPLERS["ddim-epsilon"].steps]
    assert all(RealTimeChunking().strength(table) <= 1 for table in tables), "never past what it is drawn to"


def test_an_exact_jacobian_scales_the_pull_by_what_x_does_to_the_clean_chunk():
    step = SAMPLERS["euler"].steps[4]
    identity, _, wish = run("euler", RealTimeChunking())
    exact, _, _ = run("euler", RealTimeChunking(jacobian="exact"))
    assert not torch.equal(identity, exact)
    # out = 0.3 x, so A = (1 + 0.3 (1 - t)) x: one step by hand
    x = random(1, H, A)
    settings = RealTimeChunking(jacobian="exact")
    weights = torch.from_numpy(settings.weights(10, 4, H))[None, :, None]
    follow = Continuation(settings, wish, weights)
    one = Denoising(Linear(SAMPLERS["euler"]), type(SAMPLERS["euler"])("one", (step,)))
    batch = {"observation.state": torch.zeros(1, 1, 2)}
    found = sample(one, batch, lambda shape, like: x, follow=follow)
    slope = 1 + 0.3 * (1 - float(step.t))
    out = 0.3 * x + settings.strength(step.table) / (1 - float(step.t)) * slope * weights * (wish - slope * x)
    torch.testing.assert_close(found, x + 0.1 * out, atol=1e-5, rtol=1e-5)


def test_rows_that_end_early_count_as_far_as_they_go():
    previous = np.ones((2, 5, A), np.float32)
    previous[1, 2:] = np.nan
    actions, weights = continuation(RealTimeChunking(schedule="ones"), previous, np.array([1, 1]), 1, H)
    assert weights[0, :, 0].tolist() == [0] + [1] * 5 + [0] * 10
    assert weights[1, :, 0].tolist() == [0] + [1] * 2 + [0] * 13
    assert np.isfinite(actions).all()
    nothing = np.full((1, 5, A), np.nan, np.float32)
    assert not continuation(RealTimeChunking(), nothing, np.array([2]), 0, H)[1].any()


def test_a_policy_that_samples_by_itself_is_refused():
    bare = tuple(replace(step, table=None) for step in SAMPLERS["euler"].steps)
    execution = as_trained(Linear(type(SAMPLERS["euler"])("own", bare)))
    follow = Continuation(RealTimeChunking(), torch.zeros(1, H, A), torch.ones(1, H, 1))
    with pytest.raises(UnsupportedPolicy, match="works on denoising steps, but policy 'linear'"):
        sample(execution, {"observation.state": torch.zeros(1, 1, 2)}, EpisodeNoise([(1,)]), follow=follow)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "rtc method='magic'; choose one of guidance, inpaint"),
        ({"jacobian": "none"}, "rtc jacobian='none'"),
        ({"schedule": "cosine"}, "rtc schedule='cosine'; choose one of exp, linear, ones, zeros"),
        ({"max_guidance_weight": 0.0}, "rtc max_guidance_weight=0.0"),
        ({"execution_horizon": 0}, "execution_horizon=0"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(BadSetting, match=message):
        RealTimeChunking(**options)
