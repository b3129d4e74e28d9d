"""Stationary vectors: those of NumPy's eigenvectors, and what is known of chains that hardly move."""

import numpy as np
import pytest
import torch
from torch import Tensor

from debias_ssl.formulas import chains, priors
from debias_ssl.formulas.chains import stationary_vector


def by_eigenvectors(step: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eig(step.T)
    q = np.real(vectors[:, np.abs(values - 1).argmin()])
    return q / q.sum()


def random_chain(num: int, concentration: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(num, concentration), num) + 1e-12


@pytest.mark.parametrize("num", [2, 3, 7, 8, 9, 50])
@pytest.mark.parametrize("concentration", [1.0, 0.1])
def test_random_chains(num: int, concentration: float, monkeypatch):
    # Whole blocks, and one that is not whole.
    monkeypatch.setattr(chains, "BLOCK", 7)
    step = random_chain(num, concentration)
    found = stationary_vector(torch.from_numpy(step.copy()))
    np.testing.assert_allclose(found.numpy(), by_eigenvectors(step / step.sum(1, keepdims=True)), rtol=1e-9)
    of_fp32 = stationary_vector(torch.from_numpy(step.copy()).float())
    np.testing.assert_allclose(of_fp32.numpy(), found.numpy(), rtol=1e-4)


def test_the_diagonal_does_not_count():
    step = random_chain(20, 1.0)
    other = step.copy()
    np.fill_diagonal(other, np.nan)
    torch.testing.assert_close(stationary_vector(torch.from_numpy(other)), stationary_vector(torch.from_numpy(step)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("rare", [1e-3, 1e-8, 1e-12])
def test_groups_of_states_that_are_hardly_left_have_the_mass_of_their_balance(
    rare: float, dtype: torch.dtype, monkeypatch
):
    """The first of two groups is left three times as often as the second one; within them the chain mixes at once."""
    monkeypatch.setattr(chains, "BLOCK", 16)
    # Of group 0 the states 0, 2, ...: a block has states of both.
    group = np.arange(60) % 2
    share = np.random.default_rng(0).random(60)
    share /= np.array([share[group == k].sum() for k in (0, 1)])[group]
    leaving = np.array([3 * rare, rare])[group][:, None]
    step = np.where(group[:, None] == group, 1 - leaving, leaving) * share
    found = stationary_vector(torch.from_numpy(step).to(dtype)).numpy()
    expected = share * np.array([1 / 4, 3 / 4])[group]
    np.testing.assert_allclose(found, expected, rtol=1e-9 if dtype is torch.float64 else 2e-5)


def made_logits(num_rows: int, num_classes: int, sure: float = 3.0, seed: int = 0) -> Tensor:
    """Of a classifier that prefers some classes."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_rows, num_classes, generator=generator, dtype=torch.float64)
    truth = torch.randint(num_classes, (num_rows,), generator=generator)
    return noise + torch.randn(num_classes, generator=generator) + sure * torch.eye(num_classes)[truth]


def chain_of(logits: Tensor) -> np.ndarray:
    """Row k: the mean softmax of the rows predicted as k, or of all rows if there is none."""
    probs, label = logits.double().softmax(-1).numpy(), logits.argmax(-1).numpy()
    rows = [label == k if (label == k).any() else slice(None) for k in range(logits.shape[1])]
    return np.stack([probs[row].mean(0) for row in rows])


@pytest.fixture(params=["few classes", "many classes"])
def of_each_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Both ways to hold the chain, and how exact they are."""
    if request.param == "many classes":
        monkeypatch.setattr(priors, "FEW_CLASSES", 1)
        monkeypatch.setattr(chains, "BLOCK", 5)
        return 1e-5
    return 1e-9


@pytest.mark.parametrize("num_rows", [1, 3, 25, 400])
def test_the_prior_is_the_eigenvector_with_many_rows_and_with_fewer_than_classes(num_rows: int, of_each_kind: float):
    logits = made_logits(num_rows, 30)
    q = priors.stationary([logits[:7], logits[7:]] if num_rows > 7 else [logits])
    np.testing.assert_allclose(q.numpy(), by_eigenvectors(chain_of(logits)), rtol=of_each_kind)
    assert len(logits.argmax(-1).unique()) < 30 or num_rows == 400


def test_confident_rows_have_the_prior_of_their_rare_doubts(of_each_kind: float):
    """Each class is left about once in a million steps, so that P is nearly the identity."""
    logits = made_logits(500, 12, sure=0.0)
    logits = logits + 16 * torch.eye(12)[logits.argmax(-1)]
    step = chain_of(logits)
    assert (np.diag(step) > 1 - 1e-4).all()
    away = step - np.diag(np.diag(step))
    # q = q P says that what leaves a class comes to it: solved with all but one of these equations, and the sum of 1.
    balance = np.diag(away.sum(1)) - away.T
    balance[0] = 1
    expected = np.linalg.solve(balance, np.eye(12)[0])
    np.testing.assert_allclose(priors.stationary([logits]).numpy(), expected, rtol=1e-6 + of_each_kind)


def test_classes_that_are_never_left_are_alike(of_each_kind: float):
    """Softmax has nothing but 0 and 1: whoever begins anywhere stays there."""
    logits = 1000 * torch.eye(6, dtype=torch.float64)[torch.tensor([0, 0, 0, 1, 2, 3, 4, 5])]
    np.testing.assert_allclose(priors.stationary([logits]).numpy(), 1 / 6, rtol=1e-6)


def test_a_class_that_no_row_says_anything_of_has_next_to_no_mass(of_each_kind: float):
    logits = made_logits(50, 8)
    logits[:, 3] = -1000
    q = priors.stationary([logits])
    assert 0 < q[3] < 1e-12 and q.sum().item() == pytest.approx(1)


def test_memory_is_of_rows_where_they_are_fewer_than_classes(monkeypatch):
    """All that is held: as many rows of numbers as classes are predicted, and one."""
    shapes = []
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, **kind: shapes.append(size) or zeros(*size, **kind))
    priors.stationary([made_logits(3, 5000).float()])
    assert max(int(np.prod(shape)) for shape in shapes if all(isinstance(n, int) for n in shape)) <= 4 * 5001
