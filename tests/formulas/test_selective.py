"""Scores, risk against coverage and thresholds: worked numbers, naive versions, and what is kept on other rows."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve

from debias_ssl.formulas.metrics import wilson_interval
from debias_ssl.formulas.selective import (
    area_under_risk,
    risk_coverage,
    score_of,
    threshold_of_coverage,
    threshold_of_precision,
)

# From the surest: right, right, wrong, right.
SCORE, CORRECT = np.array([0.4, 0.9, 0.6, 0.7]), np.array([True, True, False, True])


def test_scores_of_worked_probabilities():
    probs = torch.tensor([[0.5, 0.25, 0.25], [1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0]])
    logits = torch.tensor([[0.0, 0.0, math.log(2)], [1, 1, 1], [2, 2, 2]])
    assert score_of("max_prob", logits, probs).tolist() == pytest.approx([0.5, 1 / 3, 1])
    assert score_of("margin", logits, probs).tolist() == pytest.approx([0.25, 0, 1])
    # 1.5 bits of log2(3).
    assert score_of("entropy", logits, probs).tolist() == pytest.approx([1 - 1.5 / math.log2(3), 0, 1], abs=1e-6)
    assert score_of("energy", logits, probs).tolist() == pytest.approx([math.log(4), 1 + math.log(3), 2 + math.log(3)])


def test_of_negatives_the_mass_counts_against_the_classes():
    logits, negatives = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[0.3, 1.1]])
    together = torch.cat([logits, negatives], 1).softmax(1)
    found = score_of("max_prob", logits, logits.softmax(1), negatives).item()
    # The probability of the best class among all names.
    assert found == pytest.approx(together[0, 1].item())
    gap = score_of("margin", logits, logits.softmax(1), negatives).item()
    assert gap == pytest.approx((together[0, 1] - together[0, 0]).item())
    share = together[0, :3].sum().item()
    assert score_of("energy", logits, logits.softmax(1), negatives).item() == pytest.approx(
        math.log(share / (1 - share)), rel=1e-5
    )
    for name in ("max_prob", "margin", "entropy"):
        without = score_of(name, logits, logits.softmax(1)).item()
        assert score_of(name, logits, logits.softmax(1), negatives).item() == pytest.approx(share * without)
        assert score_of(name, logits, logits.softmax(1), negatives - 100).item() == pytest.approx(without)


def test_risk_and_area_of_worked_rows():
    coverage, risk, thresholds = risk_coverage(SCORE, CORRECT)
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(risk, [0, 0, 1 / 3, 1 / 4])
    np.testing.assert_allclose(thresholds, [0.9, 0.7, 0.6, 0.4])
    assert area_under_risk(SCORE, CORRECT) == pytest.approx((0 + 0 + 1 / 3 + 1 / 4) / 4)
    # A score that says nothing: the mean over orders is the share of mistakes.
    assert area_under_risk(np.ones(4), CORRECT) == pytest.approx(0.25)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_risk_is_one_less_precision_and_the_area_a_mean_over_orders(num: int, num_scores: int, seed: int):
    rng = np.random.default_rng(seed)
    score, correct = rng.integers(num_scores, size=num).astype(np.float32), rng.random(num) < 0.6
    coverage, risk, thresholds = risk_coverage(score, correct)
    for c, r, t in zip(coverage, risk, thresholds, strict=True):
        above = score >= t
        assert (c, r) == pytest.approx((above.mean(), 1 - correct[above].mean()))
    if correct.any():
        precision, _, limits = precision_recall_curve(correct, score)
        np.testing.assert_allclose(risk[::-1][-len(limits) :], 1 - precision[:-1], atol=1e-12)
    orders = []
    for _ in range(400):
        order = np.lexsort((rng.random(num), -score))
        orders.append((np.cumsum(~correct[order]) / np.arange(1, num + 1)).mean())
    error = float(np.std(orders)) / 20
    assert area_under_risk(score, correct) == pytest.approx(np.mean(orders), abs=6 * error + 1e-9)


def test_threshold_of_a_coverage_keeps_that_many_rows():
    score = np.random.default_rng(0).permutation(1000).astype(np.float32)
    for coverage, number in ((1, 1000), (0.9, 900), (0.5004, 500), (0.001, 1), (1e-9, 1)):
        assert (score >= threshold_of_coverage(score, coverage)).sum() == number
    assert threshold_of_coverage(np.ones(1), 0.2) == 1


def test_rows_of_the_same_score_are_labeled_together():
    score = np.array([0.2, 0.5, 0.5, 0.5, 0.9])
    assert threshold_of_coverage(score, 0.4) == 0.5 and (score >= 0.5).sum() == 4
    assert threshold_of_coverage(score, 0.2) == 0.9
    correct = np.array([True, False, True, True, True])
    coverage, risk, _ = risk_coverage(score, correct)
    np.testing.assert_allclose(coverage, [0.2, 0.8, 1])
    np.testing.assert_allclose(risk, [0, 1 / 4, 1 / 5])


def test_threshold_of_a_precision_counts_one_more_mistake():
    score, correct = np.arange(20, 0, -1.0), np.ones(20, dtype=bool)
    # 19 rows that are all right are the fewest that can tell 95 %: 1 / 20.
    assert threshold_of_precision(score[:19], correct[:19], 0.95) == score[18]
    assert threshold_of_precision(score[:18], correct[:18], 0.95) is None
    correct[9] = False
    # (1 + 1) / (20 + 1), but not (1 + 1) / (19 + 1) = 0.1 at 91 %.
    assert threshold_of_precision(score, correct, 0.9) == score[19]
    assert threshold_of_precision(score, correct, 0.91) is None
    assert threshold_of_precision(score, correct, 0.9 + 1e-15) == score[19]
    # The lowest threshold, though a higher one fails.
    assert threshold_of_precision(score, correct, 0.85) == score[19]
    assert threshold_of_precision(score, ~np.ones(20, dtype=bool), 0.05) is None


@pytest.mark.parametrize(("num", "precision"), [(100, 0.8), (300, 0.9), (1000, 0.95)])
def test_elsewhere_coverage_and_precision_are_those_of_the_chosen_rows(num: int, precision: float):
    """200 draws of rows that are right with the probability of their score."""
    inside, found, coverages = [], [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        score = rng.beta(3, 1, size=num + 20_000)
        correct = rng.random(len(score)) < score
        few, rest = slice(num), slice(num, None)
        threshold = threshold_of_coverage(score[rest], 0.6)
        coverages.append((score[rest] >= threshold).mean())
        threshold = threshold_of_precision(score[few], correct[few], precision)
        if threshold is None:
            continue
        above = score[few] >= threshold
        low, high = wilson_interval(int(correct[few][above].sum()), int(above.sum()))
        true = correct[rest][score[rest] >= threshold].mean()
        inside.append(low <= true <= high)
        found.append(true)
    assert len(found) > 190 and np.mean(inside) > 0.9
    assert np.mean(found) > precision - 0.002
    np.testing.assert_allclose(coverages, 0.6, atol=0.01)
