import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from debias_ssl.formulas.logits import confident_labels, debias
from debias_ssl.methods import AdaMatch, FixMatch, View


@pytest.fixture
def late_views(random_views):
    """Views of a time when the weight of unlabeled images has reached 1."""

    def make(seed: int = 0):
        views = random_views(4, seed=seed)
        return replace(views, progress=0.5, strong_labeled=random_views(4, seed=seed + 50).labeled)

    return make


def views_of(make_views, labeled: Tensor, weak: Tensor, progress: float = 1.0):
    labels = torch.zeros(len(labeled), dtype=torch.long)
    views = make_views(labeled, labels, weak, torch.zeros_like(weak))
    strong = View(logits=torch.zeros_like(labeled), features=torch.zeros(len(labeled), 2))
    return replace(views, progress=progress, strong_labeled=strong)


def test_alignment_and_threshold_worked(make_problem, make_views):
    labeled = torch.tensor([[0.8, 0.2], [0.4, 0.6]]).log()
    weak = torch.tensor([[0.7, 0.3], [0.9, 0.1]]).log()
    method = AdaMatch(make_problem(2), momentum=0.0)
    step = method(views_of(make_views, labeled, weak))
    assert method.prior.value.tolist() == pytest.approx([0.6, 0.4])
    assert method.marginal.value.tolist() == pytest.approx([0.8, 0.2])
    # p * (.75, 2): (.525, .6), of confidence .533, and (.675, .2), of .771; the threshold is .9 * .7 = .63.
    assert step.pseudo.target.tolist() == [1, 0]
    assert step.pseudo.weight.tolist() == [0, 1]
    assert step.losses["unlabeled"].item() == pytest.approx(math.log(2) / 2)
    # The labeled loss is that of both views.
    assert step.losses["labeled"].item() == pytest.approx(-(math.log(0.8) + math.log(0.4)) / 2 + math.log(2))


@pytest.mark.parametrize(("progress", "mu"), [(0.0, 0.0), (0.25, 0.5), (0.5, 1.0), (0.8, 1.0)])
def test_the_weight_grows_over_the_first_half(make_problem, make_views, progress, mu):
    method = AdaMatch(make_problem(2), threshold=0.0)
    step = method(views_of(make_views, torch.zeros(1, 2), torch.zeros(1, 2), progress))
    assert step.pseudo.weight.tolist() == pytest.approx([mu])


def test_a_uniform_prior_has_the_targets_of_debiasing_wholly(make_problem, late_views):
    method = AdaMatch(make_problem(4), prior="uniform", momentum=1.0)
    method.marginal.value.copy_(torch.tensor([0.55, 0.3, 0.1, 0.05]))
    views = late_views()
    pseudo = method(views).pseudo
    threshold = 0.9 * views.labeled.logits.softmax(-1).amax(-1).mean().item()
    target, weight = confident_labels(debias(views.weak.logits, method.marginal.value, 1.0), threshold)
    assert pseudo.target.equal(target) and pseudo.weight.equal(weight)
    assert not target.equal(views.weak.logits.argmax(-1))
    assert method.prior.value.tolist() == [0.25] * 4


def test_a_given_prior_is_normalized_and_stays(make_problem, late_views):
    method = AdaMatch(make_problem(4), prior=[4.0, 3.0, 2.0, 1.0], momentum=0.0)
    method(late_views())
    assert method.prior.value.tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_without_prior_and_threshold_it_is_fixmatch_with_another_labeled_loss(make_problem, late_views):
    views = late_views()
    ours = AdaMatch(make_problem(4), prior=None, threshold=0.0)(views)
    theirs = FixMatch(make_problem(4), threshold=0.0)(views)
    assert ours.losses["unlabeled"].equal(theirs.losses["unlabeled"])
    assert ours.pseudo.target.equal(theirs.pseudo.target) and ours.pseudo.weight.equal(theirs.pseudo.weight)
    second = F.cross_entropy(views.strong_labeled.logits, views.labels)
    torch.testing.assert_close(ours.losses["labeled"], theirs.losses["labeled"] + second)
