"""Shares of classes with intervals: draws against `priors` on the rows that they are of, and intervals that hold."""

import numpy as np
import pytest
import torch
from torch import Tensor

from debias_ssl.formulas import priors, shares

SHARES = np.array([0.4, 0.25, 0.15, 0.1, 0.06, 0.04, 0.0, 0.0])
PREFERENCE = np.linspace(0, 2.5, 8)


def made(number: int, share: np.ndarray, random: np.random.Generator) -> Tensor:
    """Logits of eight Gaussian classes, exact but for a preference."""
    truth = random.choice(8, number, p=share)
    means = 2.2 * np.eye(8)
    values = means[truth] + random.normal(size=(number, 8))
    return torch.from_numpy((values @ means + PREFERENCE).astype(np.float32))


@pytest.fixture
def logits() -> Tensor:
    return made(300, SHARES, np.random.default_rng(0))


def repeated(logits: Tensor, counts: Tensor) -> Tensor:
    return logits.repeat_interleave(counts.long(), 0)


def test_a_draw_is_the_estimate_of_its_rows(logits: Tensor):
    counts = torch.poisson(torch.ones(300, 3), torch.Generator().manual_seed(0))
    weights = counts / counts.sum(0)
    uniform = torch.full((8,), 1 / 8, dtype=torch.float64)
    reference = made(500, uniform.numpy(), np.random.default_rng(1))
    log_q = priors.balancing([reference], uniform, tolerance=1e-7).prior.log()
    start = priors.expectation_maximization([logits], log_q.exp()).prior
    found = shares.share_draws(logits.softmax(-1), weights, log_q.expand(3, -1), start)
    for b in range(3):
        rows = repeated(logits, counts[:, b])
        expected = priors.expectation_maximization([rows], log_q.exp(), tolerance=1e-6, iterations=1000).prior
        torch.testing.assert_close(found[b], expected, atol=2e-3, rtol=0)


def test_a_draw_of_a_preference_balances_its_rows():
    uniform = torch.full((8,), 1 / 8, dtype=torch.float64)
    reference = made(500, uniform.numpy(), np.random.default_rng(1))
    counts = torch.poisson(torch.ones(500, 3), torch.Generator().manual_seed(0))
    start = priors.balancing([reference], uniform).prior.log()
    found = shares.balancing_draws(reference.softmax(-1), counts / counts.sum(0), start)
    for b in range(3):
        mean = (repeated(reference, counts[:, b]).double() - found[b]).softmax(-1).mean(0)
        torch.testing.assert_close(mean, uniform, atol=1e-3, rtol=0)


def test_draws_do_not_depend_on_how_many_are_held_at_a_time(logits: Tensor, monkeypatch: pytest.MonkeyPatch):
    weights, source = shares.bootstrap_weights(300, 7, 0), torch.zeros(7, 8, dtype=torch.float64)
    start = torch.full((8,), 1 / 8, dtype=torch.float64)
    at_once = shares.share_draws(logits.softmax(-1), weights, source, start)
    monkeypatch.setattr(shares, "HELD_NUMBERS", 600)
    torch.testing.assert_close(shares.share_draws(logits.softmax(-1), weights, source, start), at_once)


def test_weights_are_of_poisson_draws():
    weights = shares.bootstrap_weights(2000, 50, 0)
    torch.testing.assert_close(weights.sum(0), torch.ones(50))
    counts = (weights / weights[weights > 0].min()).round()
    assert (counts == 0).double().mean().item() == pytest.approx(np.exp(-1), abs=0.01)
    # No row is drawn in some of the draws of one row.
    torch.testing.assert_close(shares.bootstrap_weights(1, 50, 0), torch.ones(1, 50))


def covered(num_draws: int) -> np.ndarray:
    """Whether the shares are inside their intervals, of each draw and class, with a preference that is measured."""
    uniform, found = torch.full((8,), 1 / 8, dtype=torch.float64), []
    for seed in range(num_draws):
        random = np.random.default_rng(seed)
        rows, reference = made(300, SHARES, random), made(1000, uniform.numpy(), random)
        q = priors.balancing([reference], uniform).prior
        point = priors.expectation_maximization([rows], q).prior
        draws = shares.balancing_draws(reference.softmax(-1), shares.bootstrap_weights(1000, 200, 1), q.log())
        weights = shares.bootstrap_weights(300, 200, 2)
        low, high = shares.interval(shares.share_draws(rows.softmax(-1), weights, draws, point), point).numpy()
        found.append(((low < 0.5 / 300) | (low <= SHARES)) & (high >= SHARES))
    return np.array(found)


def test_shares_are_inside_their_intervals():
    assert 0.9 <= covered(20).mean() <= 1


@pytest.mark.slow
def test_shares_are_inside_their_intervals_in_200_draws():
    inside = covered(200)
    assert 0.9 <= inside.mean() <= 0.99 and (inside.mean(0) > 0.9).all()


def test_intervals_of_some_rows_become_narrower_for_all():
    draws, point = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)), torch.full((4,), 0.5)
    whole, half = shares.interval(draws, point), shares.interval(draws, point, 0.5)
    torch.testing.assert_close(half - 0.5, (whole - 0.5) / 2)


def test_smoothed_and_present_shares_of_a_worked_example():
    share = torch.tensor([0.7, 0.25, 0.05, 0.0], dtype=torch.float64)
    torch.testing.assert_close(shares.smoothed(share, 8), torch.tensor([6.1, 2.5, 0.9, 0.5], dtype=torch.float64) / 10)
    expected = torch.tensor([1, 1, 1, 1e-3], dtype=torch.float64) / 3.001
    # A fifth of an equal share is 0.05.
    torch.testing.assert_close(shares.present(share), expected)
