"""The token VLA: bins, a prompt read once, blocks of tokens read at once; greedy equals the plain forward."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vivace.policies.errors import BadSetting
from vivace.policies.execution import as_trained, decode, sample
from vivace.policies.families.token_vla.policy import TokenVLAPolicy, make_token_vla_pre_post_processors
from vivace.policies.families.token_vla.staged import StagedTokenVLA
from vivace.policies.fingerprint import fingerprint
from vivace.policies.language.action_bins import ActionBins
from vivace.policies.language.decoding import chain, greedy
from vivace.policies.language.tokenize import train_tokenizer
from vivace.policies.load import LoadedPolicy
from vivace.policies.sampling.noise import GlobalNoise
from vivace.policies.session import Session
from vivace.policies.spec import PREVIOUS
from vivace.policies.tiny.policies import tiny_token_vla

TASKS = ["Open the drawer", "Close the window now please"]


def batch(policy, rows=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pre, _ = make_token_vla_pre_post_processors(policy.config, tokenizer=train_tokenizer(TASKS))
    images = {
        key: torch.rand(rows, 1, *feature.shape, generator=generator)
        for key, feature in policy.config.image_features.items()
    }
    ready = pre(images | {"task": (TASKS * rows)[:rows]})
    return {k: v for k, v in ready.items() if isinstance(v, torch.Tensor) and k.startswith("observation.")}


@pytest.mark.parametrize("end", [640, 32000])
def test_bins_are_openvlas(end):
    """As in OpenVLA's action_tokenizer.py: digitize, and centres of the bins."""
    bins, actions = ActionBins(256, end), np.linspace(-1.2, 1.2, 997)
    edges = np.linspace(-1, 1, 256)
    digitized = np.digitize(np.clip(actions, -1, 1), edges)
    ids = bins.encode(torch.from_numpy(actions))
    np.testing.assert_array_equal(ids, end - digitized)
    centres = (edges[:-1] + edges[1:]) / 2
    expected = centres[np.clip(end - ids.numpy() - 1, 0, len(centres) - 1)]
    np.testing.assert_allclose(bins.decode(ids), expected, atol=1e-7)
    inside = np.abs(actions) <= 1
    assert np.abs(bins.decode(ids).numpy() - actions)[inside].max() <= 1 / 255 + 1e-7


def test_an_id_that_is_no_action_is_the_nearest_one():
    bins = ActionBins(256, 640)
    torch.testing.assert_close(bins.decode(torch.tensor([3, 384])), bins.decode(torch.tensor([385, 385])))


@pytest.mark.parametrize("cameras", [1, 2])
def test_greedy_decoding_equals_the_plain_forward(cameras):
    policy = tiny_token_vla(cameras)
    seen = batch(policy)
    expected = policy.sample_actions(seen)
    found = sample(as_trained(StagedTokenVLA(policy)), seen, GlobalNoise())
    assert torch.equal(found, expected)
    assert found.shape == (2, 4, 3)
    assert found.std() > 0.1


def test_logits_of_a_block_are_the_plain_ones():
    policy = tiny_token_vla()
    staged, seen = StagedTokenVLA(policy), batch(policy)
    tokens = torch.randint(384, 640, (2, 12), generator=torch.Generator().manual_seed(1))
    expected = policy.logits(seen, tokens)
    prompt = staged.encode(seen)
    torch.testing.assert_close(prompt.logits, expected[:, 0], atol=1e-4, rtol=0)
    whole, _ = staged.extend(tokens[:, :-1], prompt.past.with_room(12), *chain(11, tokens.device))
    torch.testing.assert_close(whole, expected[:, 1:], atol=1e-4, rtol=0)


def test_chunks_behind_one_prompt_do_not_see_each_other():
    policy = tiny_token_vla()
    seen, generator = batch(policy), torch.Generator().manual_seed(1)
    chunks = [torch.randint(384, 640, (2, 12), generator=generator) for _ in range(3)]
    together = policy.hidden(seen, *chunks)
    for chunk, hidden in zip(chunks, together, strict=True):
        torch.testing.assert_close(hidden, policy.hidden(seen, chunk)[0], atol=1e-4, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_what_is_written_and_not_kept_leaves_no_trace():
    policy = tiny_token_vla()
    staged, seen = StagedTokenVLA(policy), batch(policy)
    tokens = torch.randint(384, 640, (2, 12), generator=torch.Generator().manual_seed(1))
    expected = policy.logits(seen, tokens)
    past = staged.encode(seen).past.with_room(16)
    wrong = torch.full((2, 7), 399)
    _, past = staged.extend(torch.cat([tokens[:, :3], wrong], dim=1), past, *chain(10, tokens.device))
    past = past.keep(torch.tensor([3, 1]))  # rows may differ in how much of them is kept
    following = torch.stack([tokens[0, 3:8], tokens[1, 1:6]])
    logits, _ = staged.extend(following, past, *chain(5, tokens.device))
    torch.testing.assert_close(logits[0], expected[0, 4:9], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[1], expected[1, 2:7], atol=1e-4, rtol=0)


def test_a_path_of_a_tree_is_kept():
    policy = tiny_token_vla()
    staged, seen = StagedTokenVLA(policy), batch(policy)
    tokens = torch.randint(384, 640, (2, 12), generator=torch.Generator().manual_seed(1))
    expected = policy.logits(seen, tokens)
    past = staged.encode(seen).past.with_room(16)
    # nodes: 0 right, 1 and 2 its children (2 right), 3 child of 1, 4 child of 2 (right)
    nodes = torch.stack(
        [tokens[:, 0], tokens[:, 0] * 0 + 400, tokens[:, 1], tokens[:, 0] * 0 + 401, tokens[:, 2]], 1
    )
    tree = torch.tensor(
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 1, 0, 1]]
    ).bool()
    logits, past = staged.extend(nodes, past, tree, torch.tensor([0, 1, 1, 2, 2]))
    torch.testing.assert_close(logits[:, [0, 2, 4]], expected[:, 1:4], atol=1e-4, rtol=0)
    past = past.keep_path(torch.tensor([[0, 2, 4], [0, 2, 4]]), torch.tensor([3, 2]))
    following = torch.stack([tokens[0, 3:7], tokens[1, 2:6]])
    logits, _ = staged.extend(following, past, *chain(4, tokens.device))
    torch.testing.assert_close(logits[0], expected[0, 4:8], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[1], expected[1, 3:7], atol=1e-4, rtol=0)


def test_padding_of_the_prompt_is_not_seen():
    policy = tiny_token_vla()
    staged, seen = StagedTokenVLA(policy), batch(policy)
    mask, ids = seen["observation.language.attention_mask"], seen["observation.language.tokens"]
    assert not mask.all()
    changed = seen | {"observation.language.tokens": torch.where(mask, ids, 17)}
    for other in (changed, seen):
        found = decode(as_trained(staged), other, GlobalNoise())
        assert torch.equal(found.tokens, decode(as_trained(staged), seen, GlobalNoise()).tokens)
    alone = {key: value[:1] for key, value in seen.items()}
    assert torch.equal(decode(as_trained(staged), alone, GlobalNoise()).tokens[0], found.tokens[0])


def test_greedy_says_what_it_cost():
    staged = StagedTokenVLA(tiny_token_vla())
    found = greedy(staged, staged.encode(batch(staged.policy)), GlobalNoise())
    assert found.passes.tolist() == [11, 11]
    assert found.settled[0].tolist() == list(range(12))


def test_dropped_patches_and_layers_reach_decoding():
    policy = tiny_token_vla()
    staged, seen = StagedTokenVLA(policy), batch(policy)
    plain = staged.encode(seen)
    kept = torch.tensor([[0, 3, 5], [1, 2, 9]])
    few = staged.encode(seen, select=lambda view: kept if view.index == 1 else None)
    assert [keys.shape[2] for keys in few.past.keys] == [40, 40, 27, 27]
    assert torch.equal(few.past.n_positions, plain.past.n_positions)
    everything = torch.arange(16).expand(2, -1)
    same = staged.encode(seen, select=lambda view: everything if view.index == 1 else None)
    assert torch.equal(
        greedy(staged, same, GlobalNoise()).tokens, greedy(staged, plain, GlobalNoise()).tokens
    )
    assert not torch.equal(few.logits, plain.logits)
    twin = staged.with_layers((0, 3))
    assert len(twin.encode(seen).past.keys) == 2
    assert greedy(twin, twin.encode(seen), GlobalNoise()).tokens.shape == (2, 12)


def test_saves_and_loads_as_a_lerobot_policy(tmp_path):
    policy = tiny_token_vla()
    policy.save_pretrained(tmp_path)
    loaded = TokenVLAPolicy.from_pretrained(tmp_path)
    seen = batch(policy)
    assert torch.equal(loaded.sample_actions(seen), policy.sample_actions(seen))
    assert torch.equal(loaded.select_action(seen), policy.sample_actions(seen)[:, 0])


def test_learns_two_actions_by_heart():
    torch.manual_seed(0)
    policy = TokenVLAPolicy(tiny_token_vla(horizon=2, n_action_steps=2).config)
    seen, actions = batch(policy), torch.tensor([0.7, -0.7]).view(2, 1, 1).expand(2, 2, 3)
    optimiser = torch.optim.AdamW(policy.get_optim_params(), lr=3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        policy.train().loss(seen, actions)[0].backward()
        optimiser.step()
    torch.testing.assert_close(policy.eval().sample_actions(seen), actions, atol=1 / 250, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary_end": 700}, "vocabulary_end=700, but the language model knows 640 ids"),
        ({"vocabulary_end": 200}, "too small; needed: at least 3 bins"),
        ({"vocabulary_end": 257}, "id 1 of the prompt would be an action; enlarge it"),
    ],
)
def test_a_vocabulary_too_small_for_the_bins_is_refused(changes, message):
    with pytest.raises(BadSetting, match=message):
        tiny_token_vla(**changes)


def test_a_chunk_that_does_not_fit_is_refused():
    with pytest.raises(
        BadSetting, match=r"12 tokens; with 16 patches and 24 of text they are 52, .* at most 50"
    ):
        tiny_token_vla(max_positions=50)


def test_a_session_passes_the_chunk_before_on_as_tokens():
    policy = tiny_token_vla()
    stats = {"action": {"q01": np.full(3, -2.0, np.float32), "q99": np.full(3, 2.0, np.float32)}}
    tokenizer = train_tokenizer(TASKS)
    pre, post = make_token_vla_pre_post_processors(policy.config, stats, tokenizer)
    loaded = LoadedPolicy(Path(), policy, StagedTokenVLA(policy), pre, post, fingerprint(policy, ()))
    drafts = []

    def decoder(policy, prompt, noise, draft, run):
        drafts.append(draft)
        return greedy(policy, prompt, noise)

    session = Session(loaded, replace(as_trained(loaded.staged), decoder=decoder), TASKS[0])
    image = np.zeros((1, 1, 32, 32, 3), np.uint8)
    chunk = session.predict({"observation.images.front": image}, [(0, 0)])
    previous = np.full((1, 4, 3), np.nan, np.float32)
    previous[:, :2] = chunk[:, 2:]
    session.predict({"observation.images.front": image, PREVIOUS: previous}, [(0, 4)])
    assert drafts[0] is None
    expected = policy.tokenize(torch.from_numpy(chunk[:, 2:]) / 2)
    assert torch.equal(drafts[1][:, :6], expected)
    assert (drafts[1][:, 6:] == -1).all()


def test_action_tokens_are_misread_in_training_only():
    policy = tiny_token_vla(token_noise=1.0)
    bins = policy.config.bins
    tokens = torch.full((64, policy.config.n_tokens), bins.first)
    torch.manual_seed(0)
    read = policy._misread(tokens)
    wrong = (read != tokens).float().mean(1)
    assert 0.3 < wrong.mean() < 0.7
    assert wrong.std() > 0.15, "every row has a share of its own"
    assert ((read >= bins.first) & (read < bins.end)).all()
    seen = batch(policy)
    actions = torch.zeros(2, policy.config.horizon, policy.config.action_feature.shape[0])
    losses = [policy.train(mode).loss(seen, actions)[0].item() for mode in (True, True, False, False)]
    assert losses[0] != losses[1]
    assert losses[2] == losses[3]
    with pytest.raises(BadSetting, match="token_noise=1.5"):
        tiny_token_vla(token_noise=1.5)
