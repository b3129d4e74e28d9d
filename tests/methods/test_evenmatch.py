import dataclasses
import math
from functools import partial

import pytest
import torch

from debias_ssl.methods import DebiasPL, EvenMatch, SoftMatch
from debias_ssl.methods.labeled_loss import Balanced, LogitAdjusted


def test_a_step_worked(make_problem, make_views):
    problem = dataclasses.replace(make_problem(2), labeled_counts=(3, 1))
    weak = torch.tensor([[0.9, 0.1], [0.5, 0.5]]).log()
    labeled, strong = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.2, 0.0], [0.0, 0.0]])
    method = EvenMatch(problem, strength=1.0, momentum=0.5, unlabeled_weight=3.0)
    method.marginal.value.copy_(torch.tensor([0.8, 0.2]))
    method.weights.mean.value.fill_(0.8)
    step = method(make_views(labeled, torch.tensor([1]), weak, strong))
    # w / (.8, .2), normalized: (.692, .308) and (.2, .8).
    debiased = torch.tensor([[9 / 13, 4 / 13], [0.2, 0.8]])
    torch.testing.assert_close(method.weights.marginal.value, (debiased.mean(0) + 0.5) / 2)
    aligned = debiased / method.weights.marginal.value
    confidence = (aligned / aligned.sum(1, keepdim=True)).amax(1)
    mean = (confidence.mean() + 0.8) / 2
    variance = (confidence.var(correction=0) + 1) / 2
    assert method.weights.mean.value.item() == pytest.approx(mean.item())
    assert method.weights.variance.value.item() == pytest.approx(variance.item())
    # One image is less confident than the mean and counts less, the other counts in full.
    weight = (-2 * (confidence - mean).clamp(max=0) ** 2 / variance).exp()
    assert weight[0] < 1 == weight[1]
    assert step.pseudo.target.tolist() == [0, 1]
    torch.testing.assert_close(step.pseudo.weight, weight)
    # Class 1 has a quarter of the labels, and counts 1 / (2 / 4) times.
    assert step.losses["labeled"].item() == pytest.approx(2 * math.log(1 + math.e))
    # The new q is (.75, .25), so that class 0 is three times as likely in the strong views.
    first, second = math.log(1 + math.exp(-0.2) / 3), math.log(1 + 3)
    expected = 3 * (weight[0] * first + weight[1] * second) / 2
    assert step.losses["unlabeled"].item() == pytest.approx(expected.item())
    torch.testing.assert_close(method.marginal.value, torch.tensor([0.75, 0.25]))


@pytest.mark.parametrize("loss", [None, partial(LogitAdjusted, strength=1.5)])
def test_it_is_debiaspl_over_softmatch_with_even_labels(loss, make_problem, random_views):
    counts = (8, 4, 2, 1)
    plain = dataclasses.replace(make_problem(4), labeled_counts=counts)
    # A loss that the run asks for stays.
    own = plain if loss is None else dataclasses.replace(plain, labeled_loss=loss(plain))
    weighted = dataclasses.replace(plain, labeled_loss=(loss or Balanced)(plain))
    # Short means, so that weights differ from 1.
    ours = EvenMatch(own, momentum=0.5)
    theirs = DebiasPL(weighted, momentum=0.5, base=partial(SoftMatch, momentum=0.5))
    weights = []
    for seed in range(5):
        views = random_views(4, seed=seed)
        one, other = ours(views), theirs(views)
        assert one.pseudo.target.equal(other.pseudo.target)
        torch.testing.assert_close(one.pseudo.weight, other.pseudo.weight)
        assert one.losses.keys() == other.losses.keys()
        for name, loss in one.losses.items():
            torch.testing.assert_close(loss, other.losses[name])
        weights.append(one.pseudo.weight)
    assert torch.cat(weights).min() < 0.9


def test_the_labeled_loss_is_told_how_far_the_run_is(make_problem, random_views):
    def progress_alone(logits, labels, progress):
        return logits.sum() * 0 + progress

    problem = dataclasses.replace(make_problem(4), labeled_loss=progress_alone)
    step = EvenMatch(problem)(dataclasses.replace(random_views(4), progress=0.25))
    assert step.losses["labeled"].item() == 0.25


def test_even_labels_are_not_weighted(make_problem, random_views):
    views = random_views(4)
    expected = torch.nn.functional.cross_entropy(views.labeled.logits, views.labels)
    torch.testing.assert_close(EvenMatch(make_problem(4))(views).losses["labeled"], expected)


def test_a_class_without_labels_has_a_finite_loss(make_problem, random_views):
    problem = dataclasses.replace(make_problem(4), labeled_counts=(5, 5, 5, 0))
    step = EvenMatch(problem)(random_views(4))
    assert all(loss.isfinite() for loss in step.losses.values())
