import math
from dataclasses import replace

import pytest
import torch

from debias_ssl.methods import FixMatch, FreeMatch, PseudoLabels
from debias_ssl.methods.freematch import normalized_ratio


def test_thresholds_worked(make_problem, make_views):
    weak = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.45, 0.55], [0.6, 0.4]]).log()
    method = FreeMatch(make_problem(2), momentum=0.5)
    step = method(make_views(torch.zeros(1, 2), torch.tensor([0]), weak, torch.zeros(4, 2)))
    # The means over the batch, .7125, (.6875, .3125) and (.75, .25), meet 1/2 halfway.
    assert method.confidence.value.item() == pytest.approx(0.60625)
    assert method.marginal.value.tolist() == pytest.approx([0.59375, 0.40625])
    assert method.histogram.value.tolist() == pytest.approx([0.625, 0.375])
    # Thresholds .60625 and .60625 * .40625 / .59375 = .4148.
    assert step.pseudo.weight.tolist() == [1, 1, 1, 0]
    assert step.losses["unlabeled"].item() == pytest.approx(0.75 * math.log(2))


def test_fairness_worked(make_problem):
    method = FreeMatch(make_problem(2), fairness_weight=2.0)
    method.marginal.value.copy_(torch.tensor([0.75, 0.25]))
    method.histogram.value.copy_(torch.tensor([0.6, 0.4]))
    logits = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.001, 0.999]]).log()
    pseudo = PseudoLabels(target=torch.tensor([0, 0, 1, 1]), weight=torch.tensor([1.0, 1.0, 1.0, 0.0]))
    # Running: (1.25, .625), normalized (2/3, 1/3). Strong views that count: means (1.7, 1.3) / 3 over (2, 1) / 3.
    first = 0.85 / (0.85 + 1.3)
    expected = 2 * (2 / 3 * math.log(first) + 1 / 3 * math.log(1 - first))
    assert method.further_losses(logits, pseudo)["fairness"].item() == pytest.approx(expected, rel=1e-5)


def test_fairness_of_no_view_is_zero_and_of_a_class_never_predicted_finite(make_problem):
    method = FreeMatch(make_problem(3))
    logits = torch.tensor([[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]], requires_grad=True)
    for weight in ([0.0, 0.0], [1.0, 0.0], [1.0, 1.0]):
        pseudo = PseudoLabels(target=torch.tensor([0, 1]), weight=torch.tensor(weight))
        loss = method.further_losses(logits, pseudo)["fairness"]
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite() and gradient.isfinite().all()
        assert (loss != 0) == any(weight)
    assert normalized_ratio(torch.tensor([0.5, 0.5]), torch.tensor([1.0, 0.0])).tolist() == [1, 0]


def test_momentum_one_without_fairness_is_fixmatch(make_problem, random_views):
    views = replace(random_views(4), progress=0.5)
    ours = FreeMatch(make_problem(4), momentum=1.0, fairness_weight=0.0)(views)
    theirs = FixMatch(make_problem(4), threshold=0.25)(views)
    assert ours.losses.pop("fairness").item() == 0
    assert all(loss.equal(theirs.losses[name]) for name, loss in ours.losses.items())
    assert ours.pseudo.weight.equal(theirs.pseudo.weight)


def test_equal_classes_at_a_confidence_are_fixmatch_at_that_threshold(make_problem, random_views):
    method = FreeMatch(make_problem(4), momentum=1.0)
    method.confidence.value.fill_(0.7)
    views = random_views(4)
    ours, theirs = method(views).pseudo, FixMatch(make_problem(4), threshold=0.7)(views).pseudo
    assert ours.weight.equal(theirs.weight)
    assert 0 < ours.weight.sum() < 30
