"""Greedy choices by coverage, against scikit-learn's kernels and PCA and against all sets there are."""

from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import rbf_kernel
from torch import Tensor

from debias_ssl.formulas import coverage
from debias_ssl.formulas.coverage import BANDWIDTH, Coverage, Directions


@pytest.fixture
def points() -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(size=(60, 4))).float()


@pytest.fixture
def weight() -> Tensor:
    return torch.from_numpy(np.random.default_rng(1).random(60)).float()


def kernel(points: Tensor, others: Tensor) -> np.ndarray:
    """exp(-|x - x'|^2 / h^2), with h^2 a part of the mean squared distance of two images."""
    distance = np.square(points.numpy()[:, None] - points.numpy()[None]).sum(-1).mean()
    return rbf_kernel(others.double(), points.double(), gamma=1 / (BANDWIDTH * distance))


def test_choices_are_those_of_all_gains_computed_anew(points, weight, monkeypatch):
    monkeypatch.setattr(coverage, "AGAIN", 3)
    monkeypatch.setattr(coverage, "BLOCK", 7)
    others = points[:5] + 0.1
    found = Coverage(points, weight)
    found.add(others)
    allowed = torch.arange(60) >= 5
    share, similarity = weight.double().numpy() / weight.double().sum().item(), kernel(points, points)
    covered = kernel(points, others).max(0)
    assert found.value == pytest.approx(covered @ share, abs=1e-5)
    for _ in range(20):
        gains = np.maximum(similarity - covered, 0) @ share
        gains[~allowed.numpy()] = -1
        i, covers = found.choose(allowed)
        assert i == gains.argmax() and covers == pytest.approx(gains.max(), abs=1e-5)
        covered, allowed[i] = np.maximum(covered, similarity[i]), False
        assert found.value == pytest.approx(covered @ share, abs=1e-5)


def test_greedy_choices_are_near_the_best_set(points, weight):
    some, share = points[:14], weight[:14] / weight[:14].sum()
    similarity = kernel(some, some)
    best = max(similarity[[*chosen]].max(0) @ share.numpy() for chosen in combinations(range(14), 3))
    found, allowed = Coverage(some, weight[:14]), torch.ones(14, dtype=torch.bool)
    for _ in range(3):
        allowed[found.choose(allowed)[0]] = False
    assert (1 - 1 / np.e) * best < found.value <= best + 1e-6


def test_the_first_choice_lies_where_weight_is_and_a_copy_adds_nothing():
    points = torch.tensor([[0.0, 0], [0, 0], [0.1, 0], [5, 5], [5, 5.1]])
    allowed = torch.ones(5, dtype=torch.bool)
    found = Coverage(points, torch.tensor([1.0, 1, 1, 5, 5]))
    assert found.choose(allowed)[0] == 3
    assert found.choose(allowed)[0] in (0, 1)
    assert found.choose(torch.tensor([True, True, False, False, False]))[1] == pytest.approx(0, abs=1e-6)


def test_images_that_are_all_the_same_are_chosen_in_their_order():
    found, allowed = Coverage(torch.ones(3, 2), torch.ones(3)), torch.ones(3, dtype=torch.bool)
    chosen = []
    for _ in range(3):
        i, _ = found.choose(allowed)
        allowed[i] = False
        chosen.append(i)
    assert sorted(chosen) == [0, 1, 2]


def test_directions_are_those_of_principal_components(monkeypatch):
    monkeypatch.setattr(coverage, "MOST_DIMENSIONS", 3)
    random = np.random.default_rng(0)
    features = (random.normal(size=(50, 6)) * [5, 4, 3, 1, 1, 1] + 7).astype(np.float32)
    expected = PCA(3, svd_solver="full").fit_transform(features)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = Directions(torch.from_numpy(features))(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)
