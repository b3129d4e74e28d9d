import math

import pytest
import torch

from debias_ssl.methods import FixMatch, SoftMatch


def test_weights_worked(make_problem, make_views):
    weak = torch.tensor([[0.9, 0.1], [0.3, 0.7]]).log()
    method = SoftMatch(make_problem(2), momentum=0.5, uniform_alignment=False)
    step = method(make_views(torch.zeros(1, 2), torch.tensor([0]), weak, torch.zeros(2, 2)))
    # Mean .8 and variance .01 of the batch, halfway from 1/2 and 1.
    assert method.weights.mean.value.item() == pytest.approx(0.65)
    assert method.weights.variance.value.item() == pytest.approx(0.505)
    assert step.pseudo.target.tolist() == [0, 1]
    assert step.pseudo.weight.tolist() == [1, 1]
    method.weights.mean.value.fill_(0.8)
    method.weights.mean.momentum = method.weights.variance.momentum = 1.0
    method.weights.variance.value.fill_(0.04)
    step = method(make_views(torch.zeros(1, 2), torch.tensor([0]), weak, torch.zeros(2, 2)))
    weight = math.exp(-(0.1**2) * 4 / (2 * 0.04))
    assert step.pseudo.weight.tolist() == pytest.approx([1, weight])
    assert step.losses["unlabeled"].item() == pytest.approx((1 + weight) / 2 * math.log(2))


def test_alignment_is_for_the_weight_only(make_problem, make_views):
    weak = torch.tensor([[0.6, 0.4], [0.8, 0.2]]).log()
    views = make_views(torch.zeros(1, 2), torch.tensor([0]), weak, torch.zeros(2, 2))
    method = SoftMatch(make_problem(2), momentum=0.0)
    step = method(views)
    # p / (.7, .3): (.857, 1.333) and (1.143, .667), of confidence .609 and .632: the first is of the other class.
    confidence = torch.tensor([4 / 3 / (6 / 7 + 4 / 3), 8 / 7 / (8 / 7 + 2 / 3)])
    assert step.pseudo.target.tolist() == [0, 0]
    torch.testing.assert_close(method.weights.mean.value, confidence.mean().unsqueeze(0))
    torch.testing.assert_close(method.weights.variance.value, confidence.var(correction=0).unsqueeze(0))
    # Half the difference below the mean, of which the deviation is the same half: exp(-4 / 2).
    assert step.pseudo.weight.tolist() == pytest.approx([math.exp(-2), 1], rel=1e-3)


def test_no_sigma_is_fixmatch_without_a_threshold(make_problem, random_views):
    views = random_views(4)
    ours, theirs = SoftMatch(make_problem(4), num_sigma=0.0)(views), FixMatch(make_problem(4), threshold=0.0)(views)
    assert all(loss.equal(theirs.losses[name]) for name, loss in ours.losses.items())
    assert ours.pseudo.target.equal(theirs.pseudo.target) and ours.pseudo.weight.equal(theirs.pseudo.weight)


def test_equal_confidences_count_wholly(make_problem, make_views):
    weak = torch.tensor([[0.7, 0.3]]).log().expand(30, 2)
    method = SoftMatch(make_problem(2), momentum=0.0)
    step = method(make_views(torch.zeros(1, 2), torch.tensor([0]), weak, weak))
    assert method.weights.variance.value.item() < 1e-8
    assert step.pseudo.weight.tolist() == pytest.approx([1] * 30)
