"""A chunk that begins with the one before: by mental arithmetic, in every sampler, over whole episodes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.explain import explain, grid
from vivace.accel.flops import count_flops
from vivace.accel.technique import CalibrationData
from vivace.accel.techniques.warm_start import begin_warm, first_step, shifted
from vivace.eval.measure.latencies import chunk_latencies
from vivace.eval.measure.timing import Rounds
from vivace.policies.carry import FOLLOWED, LATENT, NOTHING, PAST, SLOTS, Slot
from vivace.policies.errors import BadSetting, NonFiniteActions, PlanMismatch, UnsupportedPolicy
from vivace.policies.execution import Denoising, as_trained, sample, sample_after
from vivace.policies.families.dp_transformer.policy import make_dp_transformer_pre_post_processors
from vivace.policies.fingerprint import fingerprint
from vivace.policies.load import LoadedPolicy, stage
from vivace.policies.sampling.clean_flow import make_clean_flow_sampler
from vivace.policies.sampling.noise import EpisodeNoise
from vivace.policies.sampling.sampler import presumed
from vivace.policies.sampling.samplers import make_flow_sampler
from vivace.policies.session import Session
from vivace.policies.tiny.policies import tiny_dp_transformer

STATE = "observation.state"


def test_a_chunk_is_shifted_by_what_is_past_and_repeats_its_last_action():
    chunks = torch.tensor([[1.0, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4]])[..., None]
    found = shifted(chunks, torch.tensor([2, 0, 9]))
    assert found[..., 0].tolist() == [[3, 4, 4, 4], [1, 2, 3, 4], [4, 4, 4, 4]]


@pytest.fixture(scope="module")
def loaded() -> LoadedPolicy:
    """A policy whose actions lie between 10 and 30."""
    policy = tiny_dp_transformer()
    width = policy.config.input_features[STATE].shape[0]
    stats = {
        STATE: {"min": torch.full((width,), -2.0), "max": torch.full((width,), 2.0)},
        "action": {"min": torch.full((3,), 10.0), "max": torch.full((3,), 30.0)},
    }
    pre, post = make_dp_transformer_pre_post_processors(policy.config, stats)
    staged = stage(policy)
    return LoadedPolicy(Path(), policy, staged, pre, post, fingerprint(policy, staged.spec.block_ids))


def observations(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {STATE: np.random.default_rng(seed).uniform(-2, 2, (rows, 2, 5)).astype(np.float32)}


def planned(loaded: LoadedPolicy, *wanted) -> Denoising:
    batch = Session(loaded).prepare(observations(2))
    data = CalibrationData(batch, ((1, 0), (2, 0)))
    return accelerate(loaded.staged, calibrate(loaded.staged, loaded.fingerprint, data, wanted))


def carried(execution: Denoising, value: float = 0.5) -> dict:
    return {LATENT: torch.full((1, *execution.policy.spec.latent_shape), value), PAST: torch.tensor([1])}


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_it_begins_as_noisy_as_its_first_step_expects(loaded, share):
    execution = planned(loaded, ("warm_start", {"share": share}))
    n = len(execution.sampler)
    assert execution.first == n - round(share * n)
    noise = torch.full((1, *execution.policy.spec.latent_shape), 2.0)
    table = execution.sampler.steps[execution.first].table
    wanted = table.alpha * 0.5 + table.sigma * 2.0
    torch.testing.assert_close(
        begin_warm(execution, noise, carried(execution)), torch.full_like(noise, wanted)
    )


def test_without_a_step_it_is_the_chunk_before_and_with_all_of_a_flow_it_is_noise():
    flow = make_flow_sampler("euler", 4)
    staged = stage(tiny_dp_transformer())
    execution = replace(as_trained(staged), sampler=flow, begin=begin_warm, first=4)
    noise = torch.randn(1, *staged.spec.latent_shape)
    carry = carried(execution)
    assert torch.equal(begin_warm(execution, noise, carry), carry[LATENT])
    assert torch.equal(begin_warm(replace(execution, first=0), noise, carry), noise)


@pytest.mark.parametrize(
    ("sampler", "n_steps"), [("ddpm", 8), ("ddim", 8), ("dpmsolver++", 8)], ids=lambda value: str(value)
)
def test_all_steps_are_plain_sampling_but_for_the_last_noise(loaded, sampler, n_steps):
    steps = ("step_schedule", {"sampler": sampler, "n_steps": n_steps, "spacing": "trailing"})
    plain, warm = planned(loaded, steps), planned(loaded, steps, ("warm_start", {"share": 1.0}))
    batch, noise = Session(loaded).prepare(observations(1)), EpisodeNoise([(1, 0)])
    wanted, _ = sample_after(plain, batch, noise, NOTHING)
    found, _ = sample_after(warm, batch, EpisodeNoise([(1, 0)]), carried(warm, value=0.0))
    # x begins as sigma eps, and sigma is 1 but for what the last timestep holds of the signal
    torch.testing.assert_close(found, wanted, atol=2e-2, rtol=0)


def test_what_is_followed_draws_the_chunk_and_its_steps_are_the_last(loaded):
    steps = ("step_schedule", {"sampler": "ddim", "n_steps": 8})
    execution = planned(loaded, steps, ("warm_start", {"share": 0.25}))
    ran: list[int] = []
    call = execution.call

    def told(execution, step, *args):
        ran.append(step.index)
        return call(execution, step, *args)

    watched = replace(execution, call=told)
    batch = Session(loaded).prepare(observations(1))
    _, left = sample_after(watched, batch, EpisodeNoise([(1, 0)]), NOTHING)
    assert ran == list(range(8)), "the first chunk is sampled in full"
    ran.clear()
    near, _ = sample_after(watched, batch, EpisodeNoise([(1, 8)]), {**left, PAST: torch.tensor([0])})
    assert ran == [6, 7]
    far = sample(execution, batch, EpisodeNoise([(1, 8)]))
    first = left[LATENT]
    assert (near - first).abs().mean() < 0.5 * (far - first).abs().mean()


@pytest.mark.parametrize("n_steps", [6, 9])
def test_a_multistep_sampler_begins_with_a_step_of_first_order(loaded, n_steps):
    """DPM-Solver++ of first order is DDIM, so a solver that has one step left makes DDIM's."""
    execution = planned(
        loaded,
        ("step_schedule", {"sampler": "dpmsolver++", "n_steps": n_steps}),
        ("warm_start", {"share": 3 / n_steps}),
    )
    first = execution.first
    assert first == n_steps - 3
    assert execution.sampler.steps[first].table.memory, "it has a memory here"
    short = replace(execution, sampler=replace(execution.sampler, steps=execution.sampler.steps[: first + 1]))
    batch = Session(loaded).prepare(observations(1))
    carry = {**carried(execution), PAST: torch.tensor([0])}
    found, _ = sample_after(short, batch, EpisodeNoise([(1, 0)]), carry)
    noise = EpisodeNoise([(1, 0)])((1, *execution.policy.spec.latent_shape), torch.zeros(1))
    step = execution.sampler.steps[first]
    following = execution.sampler.steps[first + 1].table
    x = begin_warm(execution, noise, carry)
    policy = execution.policy
    out = policy.denoise(x, policy.condition(step, policy.encode(batch)))
    table = step.table
    clean = (table.clean_x * x + table.clean_out * out).clamp(-table.clip, table.clip)
    eps = (x - table.alpha * clean) / table.sigma
    torch.testing.assert_close(found, following.alpha * clean + following.sigma * eps, atol=1e-5, rtol=0)


def test_a_step_of_four_calls_is_begun_with_its_first():
    sampler = make_flow_sampler("rk4", 4)
    assert sampler.beginnings == (0, 4, 8, 12)
    assert [first_step(sampler, share) for share in (0.25, 0.3, 1.0)] == [12, 8, 0]


def test_a_sampler_that_goes_back_to_its_noise_takes_that_of_the_chunk_it_begins_with():
    """Begun late, a step of "renoise" with that noise is the straight step of "euler"."""
    renoise, straight = (make_clean_flow_sampler(name, 5) for name in ("renoise", "euler"))
    assert renoise.beginnings == (0, 1, 2, 3, 4)
    x, out = torch.tensor([[[0.4, -1.0]]]), torch.tensor([[[0.1, 0.3]]])
    for step, other in zip(renoise.steps[1:], straight.steps[1:], strict=True):
        memory = presumed(renoise, step, x, out)
        found, _ = step.advance(x, out, memory, None)
        wanted, _ = other.advance(x, out, (), None)
        torch.testing.assert_close(found, wanted)


def test_nothing_that_earlier_steps_computed_is_missed_in_silence(loaded):
    half = ("block_cache", {"method": "uniform", "updates": 2})
    n = len(loaded.staged.sampler)
    assert planned(loaded, half, ("warm_start", {"share": 0.5})).first == n // 2, "computed there"
    with pytest.raises(PlanMismatch, match="behind which another technique of the plan uses what earlier"):
        planned(loaded, half, ("warm_start", {"share": 0.4}))
    forecast = ("forecast", {"method": "uniform", "updates": n // 2, "order": 1})
    with pytest.raises(PlanMismatch, match=r"choose another --accel\.warm_start\.share"):
        planned(loaded, forecast, ("warm_start", {"share": 0.5}))
    with pytest.raises(BadSetting, match="warm_start share=0.0; needed: above 0, up to 1"):
        planned(loaded, ("warm_start", {"share": 0}))


def test_only_the_steps_that_are_taken_are_counted_and_shown(loaded):
    plain, warm = as_trained(loaded.staged), planned(loaded, ("warm_start", {"share": 0.2}))
    batch = Session(loaded).prepare(observations(1))
    before, after = count_flops(plain, batch), count_flops(warm, batch)
    assert after.encode == before.encode
    assert after.denoise == before.denoise // 5
    assert len(plain.sampler) == 10
    assert set(grid(warm).values()) == {" " * 8 + "#" * 2}
    assert "counted of chunks that follow another" in explain(warm.plan, warm, before, after)


def asked(tick: int, past: int, rows: int, slots: list[Slot], seed: int) -> dict:
    return observations(rows, seed) | {FOLLOWED: np.array([[tick, past]] * rows), SLOTS: slots}


def test_rows_are_episodes_of_their_own_whatever_their_neighbours_do(loaded):
    """Three episodes side by side, the second of which is reset meanwhile, as each alone."""
    execution = planned(loaded, ("step_schedule", {"n_steps": 4}), ("warm_start", {}))
    session = Session(loaded, execution)
    slots = [Slot() for _ in range(3)]
    alone = [Session(loaded, execution) for _ in range(3)]
    for tick, before in ((0, [-1, -1, -1]), (8, [0, -1, 0]), (16, [8, 8, 3])):
        follows = np.array([[one, 8] for one in before])
        seen, keys = observations(3, seed=tick), [(episode, tick) for episode in range(3)]
        together = session.predict(seen | {FOLLOWED: follows, SLOTS: slots}, keys)
        for row, single in enumerate(alone):
            one = {STATE: seen[STATE][row : row + 1], FOLLOWED: follows[row : row + 1]}
            found = single.predict(one, [keys[row]])
            np.testing.assert_allclose(found[0], together[row], atol=1e-4)
        fresh = session.predict(seen, keys)
        same = [bool(np.allclose(together[row], fresh[row], atol=1e-4)) for row in range(3)]
        assert same == [one not in (0, 8) for one in before], "a chunk that follows none is sampled in full"


def test_a_failed_chunk_is_followed_by_none(loaded, monkeypatch):
    session = Session(loaded, planned(loaded, ("warm_start", {})))
    execution, slot = session.execution, Slot()
    session.predict(asked(-1, 0, 1, [slot], 0), [(1, 0)])
    assert slot.get(execution, (1, 0))
    monkeypatch.setattr(execution.policy, "denoise", lambda x, condition, run: x * torch.nan)
    with pytest.raises(NonFiniteActions):
        session.predict(asked(0, 8, 1, [slot], 1), [(1, 8)])
    assert slot.get(execution, (1, 0)) == slot.get(execution, (1, 8)) == NOTHING


def test_a_chunk_that_follows_is_what_is_timed(loaded):
    plain, warm = as_trained(loaded.staged), planned(loaded, ("warm_start", {"share": 0.1}))
    ran: list[int] = []
    call = warm.call

    def told(execution, step, *args):
        ran.append(step.index)
        return call(execution, step, *args)

    seen = observations(2)
    data = CalibrationData(Session(loaded).prepare(seen), ((1, 0), (2, 0)), raw=seen)
    runs = {"plain": Session(loaded, plain), "warm": Session(loaded, replace(warm, call=told))}
    n = len(plain.sampler)
    found = chunk_latencies(runs, data, Rounds(repeats=3))
    assert len(found.times_s["warm"]) == 3
    assert ran[-4 * (n - warm.first) :] == [*range(warm.first, n)] * 4, "a warm-up and three rounds"
    assert set(found.stages_s["warm"]) == {"prepare", "encode", "denoise", "finish"}


def test_a_policy_that_samples_by_itself_is_refused(loaded):
    execution = as_trained(loaded.staged)
    steps = tuple(replace(step, table=None) for step in execution.sampler.steps)
    with pytest.raises(UnsupportedPolicy, match="warm_start needs a sampler whose steps are known"):
        first_step(replace(execution.sampler, steps=steps), 0.5)
