import math

import pytest
import torch

from debias_ssl.formulas.logits import align
from debias_ssl.methods import AdaMatch, FixMatch
from debias_ssl.system.errors import InputError

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


def test_alignment_worked(make_problem, make_views):
    weak = torch.tensor([[0.75, 0.25], [0.05, 0.95]]).log()
    views = make_views(torch.zeros(1, 2), torch.tensor([0]), weak, torch.zeros(2, 2))
    method = FixMatch(make_problem(2), threshold=0.8, prior=[1.0, 3.0], prior_momentum=0.0)
    step = method(views)
    # q = (.4, .6) and pi = (.25, .75): (.46875, .3125), of confidence .6, and (.03125, 1.1875), of .974.
    assert method.marginal is not None and method.marginal.value.tolist() == pytest.approx([0.4, 0.6])
    assert step.pseudo.target.tolist() == [0, 1] and step.pseudo.weight.tolist() == [0, 1]
    aligned = align(weak.softmax(-1), torch.tensor([0.4, 0.6]), torch.tensor([0.25, 0.75]))
    assert aligned.amax(-1).tolist() == pytest.approx([0.6, 0.9744], abs=1e-4)


def test_a_prior_changes_targets_and_what_the_model_says_already_does_not(make_problem, random_views):
    views, problem = random_views(4), make_problem(4)
    plain = FixMatch(problem, threshold=0.0)(views).pseudo.target
    own = views.weak.logits.softmax(-1).mean(0).tolist()
    assert FixMatch(problem, threshold=0.0, prior=own, prior_momentum=0.0)(views).pseudo.target.equal(plain)
    other = FixMatch(problem, threshold=0.0, prior=[0.97, 0.01, 0.01, 0.01], prior_momentum=0.0)(views).pseudo.target
    assert (other == 0).sum() > (plain == 0).sum()


def test_the_marginal_is_state_and_the_prior_is_a_setting(make_problem, random_views):
    method = FixMatch(make_problem(4), prior=[4.0, 3.0, 2.0, 1.0])
    method(random_views(4))
    assert [*method.state_dict()] == ["marginal.value"]
    assert method.prior is not None and method.prior.tolist() == pytest.approx([0.4, 0.3, 0.2, 0.1])


@pytest.mark.parametrize("method", [FixMatch, AdaMatch])
@pytest.mark.parametrize("prior", [[0.5, 0.5], [1.0, -1.0, 1.0, 1.0], [0.0] * 4])
def test_a_prior_that_is_none_is_refused(make_problem, method, prior):
    with pytest.raises(InputError, match=r"method\.prior must be 4 shares"):
        method(make_problem(4), prior=prior)
