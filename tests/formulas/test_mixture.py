"""Refining by neighbors and anchored prototypes: worked updates, exact neighbors, gains where known, no harm."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import vonmises_fisher
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from debias_ssl.formulas.mixture import (
    Graph,
    anchored_means,
    as_sure_as,
    graph_of,
    log_densities,
    nearest,
    refine,
    spread,
)
from debias_ssl.formulas.priors import stationary

CLASSES, DIM, KAPPA = 10, 64, 60


def unit(num: int, dim: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(num, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def made(shares: np.ndarray, num: int = 1500, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, float]:
    """Features of a von Mises-Fisher mixture, anchors turned by 0.5 away from its means, the debiased probabilities of
    cosines to these anchors, true classes, and the accuracy of the Bayes rule.
    """
    generator = np.random.default_rng(seed)
    basis = np.linalg.qr(generator.normal(size=(DIM, CLASSES + 1)))[0].T
    means = basis[0] + 0.6 * basis[1:]
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    aside = generator.normal(size=means.shape)
    aside -= (aside * means).sum(1, keepdims=True) * means
    anchors = math.cos(0.5) * means + math.sin(0.5) * aside / np.linalg.norm(aside, axis=1, keepdims=True)
    truth = generator.choice(CLASSES, size=num, p=shares)
    features = np.empty((num, DIM))
    for k in np.unique(truth):
        of_class = vonmises_fisher(means[k], KAPPA).rvs(int((truth == k).sum()), random_state=generator)
        features[truth == k] = of_class
    bayes = (KAPPA * features @ means.T + np.log(np.maximum(shares, 1e-12))).argmax(1)
    x, t = torch.from_numpy(features).float(), torch.from_numpy(anchors).float()
    logits = KAPPA * x @ t.T
    probs = (logits - stationary([logits]).log().float()).softmax(1)
    return x, t, probs, torch.from_numpy(truth), float((bayes == truth).mean())


def accuracy(posterior: Tensor, truth: Tensor) -> float:
    return (posterior.argmax(1) == truth).float().mean().item()


SHARES = {
    "all": np.full(CLASSES, 1 / CLASSES),
    "2 of 10": np.repeat([0.5, 0.0], [2, 8]),
    "imbalance 100": 100.0 ** (-np.arange(CLASSES) / 9) / (100.0 ** (-np.arange(CLASSES) / 9)).sum(),
}


# On these, three seeds gain 6 to 8 points.
@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_where_anchors_are_off_the_rows_say_where_classes_are(shares: np.ndarray):
    x, t, probs, truth, bayes = made(shares)
    start = accuracy(probs, truth)
    assert 0.5 < start < 0.75 and bayes > start + 0.15
    graph = graph_of(nearest(x))
    found = accuracy(refine(x, probs, t, graph), truth)
    assert start + 0.04 < found <= bayes
    # With anchors as they should be, what is right stays so.
    right = (KAPPA * x @ F.normalize(torch.from_numpy(_means(x, truth)), dim=1).T).softmax(1)
    kept = accuracy(refine(x, right, t, graph), truth)
    assert kept > accuracy(right, truth) - 0.01


def _means(x: Tensor, truth: Tensor) -> np.ndarray:
    sums = torch.zeros(CLASSES, DIM).index_add_(0, truth, x)
    # A class without rows lies where none are.
    return torch.where(sums.abs().sum(1, keepdim=True) > 0, sums, -x.sum(0)).numpy()


def test_more_of_the_mixture_comes_near_to_the_bayes_rule():
    x, t, probs, truth, bayes = made(SHARES["all"])
    graph = graph_of(nearest(x))
    by_spread = [accuracy(refine(x, probs, t, graph, mixture_spread=rho), truth) for rho in (0.0, 0.3, 1.0, 3.0)]
    assert by_spread == sorted(by_spread) and by_spread[-1] > bayes - 0.1


def test_first_worked_update():
    # Two classes in the plane. The third row has the entropy log 2 and counts as nothing, the others as one row each.
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.28, 0.96], [0.6, 0.8]])
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.5, 0.5]])
    t = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    # n = 1, 2. Sums (1, 0), (.28, 1.96), of lengths 1 and 1.98: rho = (1 + 1.98) / 3. alpha = 3, 6.
    rho = (1 + math.hypot(0.28, 1.96)) / 3
    expected = [[(1 + 3 * rho) / 4, 0.0], [(0.28 + 6 * rho * 0.8) / 8, (1.96 + 6 * rho * 0.6) / 8]]
    found = anchored_means(x, z, t, torch.tensor([3.0, 6.0]))
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_second_worked_update():
    # One round by hand from r = (.6, 0), (0, .8) in two dimensions: kappa = (|r| 2 - |r|^3) / (1 - |r|^2).
    r = torch.tensor([[0.6, 0.0], [0.0, 0.8]], dtype=torch.float64)
    kappa = [(1.2 - 0.216) / 0.64, (1.6 - 0.512) / 0.36]
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    expected = [[k * c + 0.5 * math.log(k) - k for k, c in zip(kappa, row, strict=True)] for row in x.tolist()]
    torch.testing.assert_close(log_densities(x, r), torch.tensor(expected))


def test_the_neighbors_part_by_hand():
    # Rows 0 and 1 are each other's neighbor with the cosine .8; the sum of W and W^T counts it twice.
    x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0]])
    graph = graph_of(nearest(x, number=1))
    z = torch.tensor([[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]])
    # The third row's nearest has a negative cosine, which counts as 0.
    expected = torch.tensor([[0.48, 1.12], [1.44, 0.16], [0.0, 0.0]])
    torch.testing.assert_close(graph.sums(z, slice(0, 3)), expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(graph.sums(z, slice(1, 2)), expected[1:2], atol=2e-3, rtol=0)


def test_one_round_is_the_formula():
    x, t, probs = unit(40, 6), unit(3, 6, seed=1), torch.randn(40, 3).softmax(1)
    graph = graph_of(nearest(x))
    alpha = 5 / (3 * probs.mean(0))
    density = log_densities(x, anchored_means(x, probs, t, alpha))
    omega = min(1.0, 0.4 * spread(probs.log()) / spread(density))
    neighbors = graph.sums(probs, slice(0, 40))
    expected = as_sure_as(probs, (probs.log() + omega * density + 0.2 * neighbors).softmax(1))
    found = refine(x, probs, t, graph, anchor_rows=5.0, mixture_spread=0.4, neighbor_weight=0.2, rounds=1)
    torch.testing.assert_close(found, expected)


def test_without_mixture_and_neighbors_the_posterior_is_the_start():
    x, probs = unit(50, 8), (3 * torch.randn(50, 4)).softmax(1)
    graph = graph_of(nearest(x))
    found = refine(x, probs, unit(4, 8, seed=1), graph, mixture_spread=0.0, neighbor_weight=0.0)
    torch.testing.assert_close(found, probs, atol=1e-5, rtol=1e-4)


def test_with_strong_anchors_probabilities_of_cosines_keep_their_labels():
    # All r are the anchors then, and the mixture is the start at another temperature.
    x, t = unit(200, 8), unit(4, 8, seed=1)
    probs = (7 * x @ t.T).softmax(1)
    found = refine(x, probs, t, graph_of(nearest(x)), anchor_rows=1e12, neighbor_weight=0.0)
    torch.testing.assert_close(found, probs, atol=1e-4, rtol=1e-3)


# Neighbors.


@pytest.mark.parametrize(("num", "dim"), [(300, 64), (41, 700), (60, 3)])
def test_neighbors_are_those_of_scikit_learn(num: int, dim: int):
    x = unit(num, dim)
    found = nearest(3 * x, number=4)
    distance, index = NearestNeighbors(n_neighbors=6, metric="cosine", algorithm="brute").fit(x).kneighbors(x)
    torch.testing.assert_close(found.cosine, torch.from_numpy(1 - distance[:, 1:5]).float(), atol=1e-3, rtol=0)
    # Where two are further apart than what rounding moves, it is the very rows.
    is_clear = np.diff(distance[:, 1:], axis=1).min(1) > 1e-3
    assert is_clear.any()
    np.testing.assert_array_equal(found.index.numpy()[is_clear], index[is_clear, 1:5])


def test_neighbors_do_not_depend_on_the_size_of_a_block():
    # Half of the rows are there twice: ties, which are where blocks could show.
    x = unit(300, 48).repeat(2, 1)
    whole = nearest(x)
    for rows in (1, 7, 64):
        part = nearest(x, block=rows * 600)
        assert torch.equal(part.index, whole.index) and torch.equal(part.cosine, whole.cosine)
    twin = (torch.arange(600) + 300) % 600
    assert torch.equal(whole.index[:, 0], twin)


def test_rows_that_are_all_the_same_have_three_neighbors_and_are_those_of_three():
    found = nearest(torch.ones(50, 8))
    assert found.index[0].tolist() == [1, 2, 3] and found.index[49].tolist() == [0, 1, 2]
    assert torch.bincount(found.index.flatten()).tolist() == [3] * 50


@pytest.mark.parametrize(("num", "expected"), [(1, 0), (2, 1), (4, 3), (5, 3)])
def test_few_rows_have_few_neighbors(num: int, expected: int):
    found = nearest(unit(num, 5))
    assert found.index.shape == (num, expected)
    assert not (found.index == torch.arange(num)[:, None]).any()


def test_a_row_of_zeros_is_near_to_none():
    x = unit(6, 5)
    x[2] = 0
    graph = graph_of(nearest(x))
    assert (graph.weight[(graph.row == 2) | (graph.column == 2)] == 0).all()


# Invariance.


@pytest.fixture(scope="module")
def problem() -> tuple[Tensor, Tensor, Tensor]:
    x, t, probs, _, _ = made(SHARES["imbalance 100"], num=400, seed=3)
    return x, t, probs


def whole(x: Tensor, t: Tensor, probs: Tensor) -> Tensor:
    return refine(x, probs, t, graph_of(nearest(x)))


def test_the_order_of_rows_does_not_matter(problem: tuple[Tensor, Tensor, Tensor]):
    x, t, probs = problem
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(whole(x[order], t, probs[order]), whole(x, t, probs)[order], atol=1e-4, rtol=1e-3)


def test_the_order_of_classes_does_not_matter(problem: tuple[Tensor, Tensor, Tensor]):
    x, t, probs = problem
    order = torch.arange(CLASSES - 1, -1, -1)
    torch.testing.assert_close(whole(x, t[order], probs[:, order]), whole(x, t, probs)[:, order], atol=1e-4, rtol=1e-3)


def test_a_rotation_of_the_space_does_not_matter(problem: tuple[Tensor, Tensor, Tensor]):
    x, t, probs = problem
    rotation = torch.linalg.qr(torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(1))).Q
    turned, as_it_was = whole(x @ rotation, t @ rotation, probs), whole(x, t, probs)
    # Two neighbors whose cosines differ by less than their rounding may change places.
    assert (turned.argmax(1) == as_it_was.argmax(1)).float().mean() > 0.99
    assert (turned - as_it_was).abs().mean() < 2e-3


# What could go wrong.


def test_a_posterior_is_as_sure_as_its_start_and_labels_stay():
    start, posterior = torch.randn(200, 5).softmax(1), (9 * torch.randn(200, 5)).softmax(1)
    found = as_sure_as(start, posterior)
    torch.testing.assert_close(found.amax(1).mean(), start.amax(1).mean(), atol=1e-5, rtol=0)
    assert torch.equal(found.argmax(1), posterior.argmax(1))


@pytest.mark.parametrize("num", [1, 2, 3, 12, 50])
@pytest.mark.parametrize("dim", [2, 5000])
def test_few_rows_of_many_dimensions_are_finite(num: int, dim: int):
    x, probs = unit(num, dim), (2 * torch.randn(num, 4)).softmax(1)
    found = whole(x, unit(4, dim, seed=1), probs)
    assert found.isfinite().all()
    torch.testing.assert_close(found.sum(1), torch.ones(num))


def test_one_row_keeps_the_label_that_its_anchor_gives_it():
    t = unit(4, 16, seed=1)
    x = F.normalize(t[2:3] + 0.1 * unit(1, 16), dim=1)
    assert whole(x, t, (10 * x @ t.T).softmax(1)).argmax() == 2


def test_rows_of_one_class_stay_with_it():
    t = unit(5, 32, seed=1)
    x = F.normalize(t[3] + 0.3 * unit(100, 32), dim=1)
    probs = (10 * x @ t.T).softmax(1)
    found = whole(x, t, probs)
    assert found.isfinite().all() and (found.argmax(1) == 3).all()
    # Sure to the last bit, with four classes that have no row at all.
    hard = F.one_hot(torch.full((100,), 3), 5).float()
    found = whole(x, t, hard)
    assert found.isfinite().all() and (found.argmax(1) == 3).all()


def test_rows_that_say_nothing_stay_what_features_make_of_them():
    x, t = unit(60, 8), unit(3, 8, seed=1)
    found = whole(x, t, torch.full((60, 3), 1 / 3))
    torch.testing.assert_close(found, torch.full((60, 3), 1 / 3), atol=1e-3, rtol=0)


def test_anchors_that_are_all_the_same_are_finite():
    found = whole(unit(60, 8), torch.ones(3, 8) / math.sqrt(8), torch.randn(60, 3).softmax(1))
    assert found.isfinite().all()


def test_an_empty_graph_sums_to_nothing():
    empty = Graph(
        first=torch.zeros(3, dtype=torch.int64),
        row=torch.zeros(0, dtype=torch.int64),
        column=torch.zeros(0, dtype=torch.int64),
        weight=torch.zeros(0),
    )
    assert empty.sums(torch.ones(2, 4), slice(0, 2)).tolist() == [[0.0] * 4] * 2
