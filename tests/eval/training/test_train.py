"""Training windows as the original project cuts them, the learning rate, and resuming to the same weights."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vivace.eval.training.trainer import TrainSettings, Windows, learning_rate, train


def test_windows_repeat_the_ends_of_an_episode():
    values = np.arange(7, dtype=np.float32)[:, None]
    windows = Windows({"observation.state": values}, values, np.array([0, 0, 0, 0, 1, 1, 1]), 2, 4)
    assert len(windows) == 7
    seen, actions = windows.batch(torch.tensor([0, 2, 4]))
    assert seen["observation.state"].squeeze(-1).tolist() == [[0, 0], [1, 2], [4, 4]]
    assert actions.squeeze(-1).tolist() == [[0, 0, 1, 2], [1, 2, 3, 3], [4, 4, 5, 6]]


def test_learning_rate_warms_up_and_decays_to_zero():
    settings = TrainSettings(steps=100, warmup=10, lr=1.0)
    rates = [learning_rate(step, settings) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0, abs=1e-12)


def fit(path, settings, stop_after=None):
    torch.manual_seed(7)
    model = nn.Linear(1, 4)
    values = np.random.default_rng(0).normal(size=(30, 1)).astype(np.float32)
    windows = Windows({"observation.state": values}, values, np.zeros(30, int), 1, 4)

    def loss(model, averaged, seen, actions):
        predicted = model(seen["observation.state"][:, 0])
        return ((predicted - actions.squeeze(-1)) ** 2).mean() + 0 * torch.randn(1).sum()

    groups = [{"params": list(model.parameters())}]
    for done, value, averaged in train(model, loss, groups, windows, settings, path):  # noqa: B007  used after the loop
        if done == stop_after:
            break
    return averaged, value


def test_an_interrupted_training_ends_in_the_same_weights(tmp_path):
    settings = TrainSettings(steps=12, batch_size=4, save_every=5, warmup=2)
    whole, _ = fit(tmp_path / "whole.pt", settings)
    fit(tmp_path / "cut.pt", settings, stop_after=7)  # saved at 5: two steps are done again
    continued, _ = fit(tmp_path / "cut.pt", settings)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, continued.state_dict()[name]), name


def test_a_finished_training_gives_its_result_again(tmp_path):
    settings = TrainSettings(steps=3, batch_size=4, save_every=1)
    first, _ = fit(tmp_path / "state.pt", settings)
    again, loss = fit(tmp_path / "state.pt", settings)
    assert np.isnan(loss)
    assert torch.equal(first.weight, again.weight)


def test_bf16_learns_as_float32_does(tmp_path):
    settings = TrainSettings(steps=60, batch_size=16, lr=3e-2, warmup=5)
    _, full = fit(tmp_path / "full.pt", settings)
    _, half = fit(tmp_path / "half.pt", replace(settings, bf16=True))
    assert half == pytest.approx(full, rel=0.05)
