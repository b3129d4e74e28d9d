import math

import pytest
import torch

from debias_ssl.methods import FixMatch

# Probabilities (.75, .25) and (.1, .9).
WEAK = torch.tensor([[math.log(3), 0.0], [0.0, math.log(9)]])
# Their cross-entropies with the targets 0 and 1: log 2 and -log .75.
STRONG = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])


@pytest.mark.parametrize(
    ("threshold", "weight", "unlabeled"),
    [
        (0.8, [0, 1], -math.log(0.75) / 2),
        (0.7, [1, 1], (math.log(2) - math.log(0.75)) / 2),
        (0.95, [0, 0], 0),
    ],
)
def test_losses_worked(make_problem, make_views, threshold, weight, unlabeled):
    views = make_views(torch.tensor([[0.0, 0.0]]), torch.tensor([0]), WEAK, STRONG)
    step = FixMatch(make_problem(2), threshold=threshold, unlabeled_weight=3.0)(views)
    assert step.losses["labeled"].item() == pytest.approx(math.log(2))
    assert step.losses["unlabeled"].item() == pytest.approx(3 * unlabeled)
    assert step.pseudo.target.tolist() == [0, 1]
    assert step.pseudo.weight.tolist() == weight


def test_a_confidence_equal_to_the_threshold_counts(make_problem, make_views):
    views = make_views(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 2), torch.zeros(1, 2))
    assert FixMatch(make_problem(2), threshold=0.5)(views).losses["unlabeled"].item() == pytest.approx(math.log(2))


def test_the_gradient_reaches_labeled_and_confident_strong_views_only(make_problem, random_views):
    views = random_views(4)
    step = FixMatch(make_problem(4), threshold=0.7)(views)
    torch.stack([*step.losses.values()]).sum().backward()
    confident = step.pseudo.weight > 0
    assert 0 < confident.sum() < len(confident)
    assert (views.strong.logits.grad.abs().sum(1) > 0).equal(confident)
    assert (views.labeled.logits.grad.abs().sum(1) > 0).all()


def test_keeps_no_state(make_problem):
    assert not FixMatch(make_problem(3)).state_dict()
