"""Decoders of action tokens: the exact ones equal greedy token for token, sampling keeps its distribution."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.configs.types import FeatureType, PolicyFeature
from scipy import stats

from vivace.accel.apply import accelerate, calibrate
from vivace.accel.technique import CalibrationData
from vivace.accel.techniques.draft_tree import Tree, best_first, follow
from vivace.accel.techniques.greedy import GreedyExecuted
from vivace.accel.techniques.jacobi import Jacobi
from vivace.accel.techniques.sjd import Sjd, draw
from vivace.accel.techniques.stand import Stand, contexts
from vivace.accel.techniques.token_recycling import TokenRecycling
from vivace.policies.errors import BadSetting, PlanMismatch, UnsupportedPolicy
from vivace.policies.execution import as_trained, decode
from vivace.policies.fingerprint import fingerprint
from vivace.policies.language.decoding import Prefix, greedy
from vivace.policies.language.past import Past
from vivace.policies.load import stage
from vivace.policies.sampling.noise import EpisodeNoise, GlobalNoise
from vivace.policies.tiny.policies import tiny_dp_transformer, tiny_token_vla

KEYS = ((1, 0), (2, 0), (3, 0))


def observations(rows=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, 16, dtype=torch.bool)
    mask[0, 12:] = False
    return {
        "observation.images.front": torch.rand(rows, 1, 3, 32, 32, generator=generator),
        "observation.language.tokens": torch.arange(16).expand(rows, 16),
        "observation.language.attention_mask": mask,
    }


def noise():
    return EpisodeNoise(KEYS)


@pytest.fixture(scope="module")
def execution():
    return as_trained(stage(tiny_token_vla()))


@pytest.fixture(scope="module")
def data():
    return CalibrationData(observations(), KEYS)


@pytest.fixture(scope="module")
def expected(execution, data):
    return decode(execution, data.batch, noise())


EXACT = [
    (Jacobi, {}),
    (Jacobi, {"freeze": False}),
    (Jacobi, {"init": "marginal"}),
    (Jacobi, {"init": "previous"}),
    (TokenRecycling, {}),
    (TokenRecycling, {"k": 2, "nodes": 5}),
    (Stand, {}),
    (Stand, {"stochastic": True, "nodes": 7, "order": 2}),
]


@pytest.mark.parametrize(("technique", "options"), EXACT)
@pytest.mark.parametrize("rows", [1, 3])
def test_exact_decoders_equal_greedy(technique, options, rows, execution, data, expected):
    """On the observations they were calibrated on and on others, alone and in a batch."""
    calibrated = technique.calibrate(execution, data, options)
    calibrated.check(execution)
    faster = calibrated.apply(execution)
    for batch in (data.batch, observations(seed=5)):
        batch = {key: value[:rows] for key, value in batch.items()}
        some = EpisodeNoise(KEYS[:rows])
        found, plain = decode(faster, batch, some), decode(execution, batch, EpisodeNoise(KEYS[:rows]))
        assert torch.equal(found.tokens, plain.tokens)
        assert (found.passes <= plain.passes).all()
        assert (found.settled <= found.passes[:, None]).all()


@pytest.mark.parametrize(("technique", "options"), [*EXACT, (GreedyExecuted, {}), (Sjd, {})])
def test_a_chunk_of_one_token(technique, options, data):
    one = {"action": PolicyFeature(FeatureType.ACTION, (1,))}
    policy = tiny_token_vla(horizon=1, n_action_steps=1, language_layers=2, output_features=one)
    staged = stage(policy)
    execution = as_trained(staged)
    plan = calibrate(staged, fingerprint(policy, ()), data, [(technique.kind, options)])
    found = decode(accelerate(staged, plan), data.batch, noise())
    assert found.tokens.shape == (3, 1)
    assert found.passes.tolist() == [0, 0, 0]
    if technique is not Sjd:
        assert torch.equal(found.tokens, decode(execution, data.batch, noise()).tokens)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000), scale=st.floats(0.05, 0.6), freeze=st.booleans(), horizon=st.integers(1, 5)
)
def test_jacobi_equals_greedy_on_random_models(seed, scale, freeze, horizon):
    policy = tiny_token_vla(horizon=horizon, n_action_steps=1, language_layers=2)
    generator = torch.Generator().manual_seed(seed)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=scale, generator=generator)
    execution, batch = as_trained(stage(policy)), observations(seed=seed)
    found = decode(replace(execution, decoder=Jacobi(freeze=freeze)), batch, noise())
    assert torch.equal(found.tokens, decode(execution, batch, noise()).tokens)
    assert (found.passes <= max(1, policy.config.n_tokens - 1)).all()


def test_a_good_guess_takes_one_pass(execution, data, expected):
    jacobi = replace(execution, decoder=Jacobi(init="previous"))
    found = decode(jacobi, data.batch, noise(), expected.tokens)
    assert found.passes.tolist() == [1, 1, 1]
    assert torch.equal(found.settled, torch.zeros_like(found.settled))
    partly = expected.tokens.clone()
    partly[:, 6:] = -1
    cold = decode(replace(execution, decoder=Jacobi()), data.batch, noise())
    warm = decode(jacobi, data.batch, noise(), partly)
    assert torch.equal(warm.tokens, expected.tokens)
    assert (warm.passes <= 6).all()
    assert warm.passes.sum() < cold.passes.sum()


def test_early_exit_stops_where_it_is_told(execution, data, expected):
    for sigma in (1, 2, 4):
        found = decode(replace(execution, decoder=Jacobi(max_iterations=sigma)), data.batch, noise())
        assert found.passes.max() == sigma
        assert torch.equal(found.tokens[:, : sigma + 1], expected.tokens[:, : sigma + 1])
    assert not torch.equal(found.tokens, expected.tokens)


def test_tolerance_in_action_space(execution, data, expected):
    loose = decode(replace(execution, decoder=Jacobi(tolerance=2.0)), data.batch, noise())
    assert loose.passes.tolist() == [1, 1, 1]
    exact = decode(replace(execution, decoder=Jacobi()), data.batch, noise())
    passes = [
        decode(replace(execution, decoder=Jacobi(tolerance=limit)), data.batch, noise()).passes
        for limit in (1.0, 0.3, 1e-6)
    ]
    assert (passes[0] <= passes[1]).all()
    assert (passes[1] <= passes[2]).all()
    assert (passes[2] <= exact.passes).all()
    assert passes[2].sum() > 3


def test_only_the_executed_actions_need_to_settle(execution, data, expected):
    found = decode(replace(execution, decoder=Jacobi(until="executed")), data.batch, noise())
    needed = 4 * 3  # the miniature executes all of its 4 actions of 3 tokens
    assert torch.equal(found.tokens[:, :needed], expected.tokens[:, :needed])
    short = as_trained(stage(tiny_token_vla(n_action_steps=2)))
    few = decode(replace(short, decoder=Jacobi(until="executed")), data.batch, noise())
    assert torch.equal(few.tokens[:, :6], expected.tokens[:, :6])
    assert (few.passes <= 5).all()


class Chains:
    """A fake token policy whose next token depends on the place and the token before; no network."""

    n_tokens, period, end_token = 3, 1, None
    action_ids = range(4)

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn(4, generator=generator) * 1.5
        self.table = torch.randn(self.n_tokens, 4, 4, generator=generator) * 1.5

    def prompt(self, rows):
        zeros = torch.zeros(rows, dtype=torch.long)
        return Prefix(
            Past((), (), (), zeros, zeros), self.first.expand(rows, 4), zeros[:, None], zeros[:, None] == 0
        )

    def extend(self, tokens, past, tree, depth, run):
        places = past.n_kept[:, None] + depth
        return self.table[places.clamp(max=self.n_tokens - 1), tokens], past

    def chances(self):
        """Of every chunk, sampled one token after the other."""
        first, table = self.first.softmax(-1), self.table.softmax(-1)
        return [
            float(first[a] * table[0, a, b] * table[1, b, c])
            for a, b, c in itertools.product(range(4), repeat=3)
        ]


def test_sjd_keeps_the_distribution():
    policy, rows = Chains(), 40_000
    found = Sjd().__call__(policy, policy.prompt(rows), GlobalNoise(torch.Generator().manual_seed(1)))
    cells = (found.tokens * torch.tensor([16, 4, 1])).sum(1).bincount(minlength=64).numpy()
    chances = policy.chances()
    result = stats.chisquare(cells, [chance * rows / sum(chances) for chance in chances])
    assert result.pvalue > 1e-3
    assert found.passes.float().mean() < 2  # one token a pass would take two
    worse = stats.chisquare(cells, [rows / 64] * 64)
    assert worse.pvalue < 1e-12  # the test would notice another distribution


def test_sjd_of_a_cold_model_is_greedy(execution, data, expected):
    found = decode(replace(execution, decoder=Sjd(temperature=1e-4)), data.batch, noise())
    assert torch.equal(found.tokens, expected.tokens)


def test_draw_follows_its_weights():
    weights = torch.tensor([0.0, 3.0, 1.0, 0.0]).expand(1, 10_000, 4)
    uniform = torch.rand(1, 10_000, generator=torch.Generator().manual_seed(0))
    counts = draw(weights, uniform)[0].bincount(minlength=4)
    assert counts[0] == counts[3] == 0
    assert counts[1] / 10_000 == pytest.approx(0.75, abs=0.02)


def test_a_path_is_followed_as_far_as_it_is_right():
    tree = Tree(torch.tensor([[9, 1, 2, 3, 4]]), torch.tensor([[0, 0, 0, 2, 3]]))
    sees, depth = tree.sight()
    assert depth.tolist() == [[0, 1, 1, 2, 3]]
    assert sees[0, 4].tolist() == [True, False, True, True, True]
    path, length, following = follow(tree, sees, depth, torch.tensor([[2, 0, 3, 7, 8]]))
    assert path[0, :3].tolist() == [0, 2, 3]
    assert (length.item(), following.item()) == (3, 7)


def test_the_best_tree_holds_the_likeliest_paths():
    parents, ranks = best_first([0.6, 0.3], 5)
    assert parents == (0, 0, 1, 0, 2)
    assert ranks == (0, 0, 0, 1, 0)


def test_contexts_go_from_the_most_telling_to_the_least():
    assert list(contexts([5, 6, 7], 3, 2)) == [(3, 1, 5, 6, 7), (2, 1, 6, 7), (-1, 1, 6), (1, 1, 7), (0, 3)]


@pytest.mark.parametrize("technique", [Jacobi, Sjd, TokenRecycling, Stand])
def test_a_policy_that_writes_no_tokens_refuses_by_name(technique):
    execution = as_trained(stage(tiny_dp_transformer()))
    with pytest.raises(UnsupportedPolicy, match=r"policy 'dp_transformer' writes none"):
        technique.calibrate(execution, CalibrationData({}, ()), {})


@pytest.mark.parametrize(
    ("technique", "options", "message"),
    [
        (Jacobi, {"init": "zeros"}, "init 'zeros'"),
        (Jacobi, {"tolerance": -1.0}, "tolerance=-1.0"),
        (Jacobi, {"sigma": 2}, "jacobi has no option 'sigma'"),
        (Sjd, {"temperature": 0.0}, "must be above 0"),
        (TokenRecycling, {"nodes": 1}, "2 <= nodes"),
        (Stand, {"order": 0}, "order >= 1"),
    ],
)
def test_impossible_settings_are_refused(technique, options, message, execution, data):
    with pytest.raises(BadSetting, match=message):
        technique.calibrate(execution, data, options)


@pytest.mark.parametrize(
    ("technique", "options"), [(Jacobi, {"init": "marginal"}), (TokenRecycling, {}), (Stand, {})]
)
def test_tables_of_another_policy_are_refused(technique, options, execution, data):
    calibrated = technique.calibrate(execution, data, options)
    features = {"output_features": {"action": tiny_token_vla().config.output_features["action"]}}
    other = as_trained(stage(tiny_token_vla(horizon=2, n_action_steps=2, n_action_bins=64, **features)))
    with pytest.raises(PlanMismatch, match="recalibrate"):
        calibrated.check(other)


def test_greedy_ignores_a_guess(execution, data, expected):
    policy = execution.policy
    with torch.inference_mode():
        found = greedy(policy, policy.encode(data.batch), noise(), expected.tokens * 0)
    assert torch.equal(found.tokens, expected.tokens)


@pytest.mark.parametrize(
    ("technique", "options"),
    [(Sjd, {}), (Sjd, {"temperature": 3.0}), (Jacobi, {"max_iterations": 2}), (Stand, {"stochastic": True})],
)
@pytest.mark.parametrize(("rows", "seed"), [(2, 0), (5, 1), (16, 2)])
def test_a_chunk_does_not_depend_on_its_neighbours(technique, options, rows, seed, execution, data):
    """Each row draws from its own stream, as many numbers as if it were alone."""
    decoder = technique.calibrate(execution, data, options).apply(execution)
    batch, keys = observations(rows, seed), [(seed, i) for i in range(rows)]
    together = decode(decoder, batch, EpisodeNoise(keys))
    for i in range(rows):
        one = {key: value[i : i + 1] for key, value in batch.items()}
        alone = decode(decoder, one, EpisodeNoise(keys[i : i + 1]))
        assert torch.equal(together.tokens[i], alone.tokens[0])
        assert together.passes[i] == alone.passes[0]
        assert torch.equal(together.settled[i], alone.settled[0])


def test_greedy_counts_the_passes_of_a_row_up_to_its_own_end():
    class Ending(Chains):
        n_tokens, end_token = 6, 3

    policy = Ending()
    policy.first = torch.zeros(4)
    policy.table = torch.zeros(6, 4, 4)
    policy.table[:, 0, 1] = policy.table[:, 1, 2] = policy.table[:, 2, 3] = 1.0  # 0 1 2 end
    prompt = policy.prompt(3)
    logits = torch.eye(4)[[0, 2, 3]]
    found = greedy(policy, replace(prompt, logits=logits), noise())
    assert found.tokens.tolist() == [[0, 1, 2, 3, 0, 0], [2, 3, 0, 0, 0, 0], [3, 0, 0, 0, 0, 0]]
    assert found.passes.tolist() == [3, 1, 0]
