import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from debias_ssl.methods import CCL, FixMatch, Problem, Views

COUNTS = (8, 2)


def problem(counts: tuple[int, ...] = COUNTS, **settings) -> Problem:
    return Problem(num_classes=len(counts), num_features=2, labeled_counts=counts, num_unlabeled=10, **settings)


def with_identity(method: CCL) -> CCL:
    """A second head whose logits are the features."""
    with torch.no_grad():
        method.head.weight.copy_(torch.eye(2))
        method.head.bias.zero_()
    return method


def with_features(views: Views, progress: float = 0.0, **features: Tensor) -> Views:
    seen = {name: replace(getattr(views, name), features=each) for name, each in features.items()}
    return replace(views, progress=progress, **seen)


def odds(*values: float) -> Tensor:
    """Logits of two classes, for each image by how much the first is the likelier."""
    return torch.tensor([[math.log(value), 0.0] for value in values])


def test_with_uniform_priors_and_one_head_it_is_fixmatch_twice(random_views):
    views = random_views(2)
    same = {name: getattr(views, name).logits for name in ("labeled", "weak", "strong")}
    method = with_identity(CCL(problem((5, 5)), threshold=0.7, strength=2.0, unlabeled_weight=1.5))
    ours = method(with_features(views, **same))
    theirs = FixMatch(problem((5, 5)), threshold=0.7, unlabeled_weight=1.5)(views)
    for name, loss in theirs.losses.items():
        torch.testing.assert_close(ours.losses[name], loss)
        torch.testing.assert_close(ours.losses[f"balanced_{name}"], loss)
    assert ours.pseudo.target.equal(theirs.pseudo.target) and ours.pseudo.weight.equal(theirs.pseudo.weight)
    assert 0 < ours.pseudo.weight.mean() < 1


def test_a_step_worked(make_views):
    method = with_identity(CCL(problem(), threshold=0.7, strength=1.0, unlabeled_weight=3.0))
    method.priors.copy_(torch.tensor([[0.6, 0.4], [0.5, 0.5]]))
    views = make_views(odds(1), torch.tensor([1]), odds(9, 9, 9), odds(1, 1, 1))
    views = with_features(views, labeled=odds(1), weak=odds(1, 4, 16), strong=odds(2, 2, 2))
    step = method(views)
    # r = 3 / 4: the labels' (.8, .2) and (.5, .5) mix to (.575, .425). Odds of f: 9 * (.425 / .575) * 1.5^(3/2).
    own = 9 * 0.425 / 0.575 * 1.5**1.5
    expected = [math.sqrt(own * of_head) for of_head in (1, 4, 16)]
    joint = method.joint_logits(views.weak.logits, views)
    assert (joint[:, 0] - joint[:, 1]).tolist() == pytest.approx([math.log(value) for value in expected])
    # 3.5, 7 and 14 against one; all of the first class.
    assert step.pseudo.target.tolist() == [0, 0, 0] and step.pseudo.weight.tolist() == [1, 1, 1]
    # b + log pi_l: 4 to 1 for the first class, of a label of the second.
    assert {name: loss.item() for name, loss in step.losses.items()} == pytest.approx(
        {
            "labeled": math.log(2),
            "unlabeled": 3 * math.log(2),
            "balanced_labeled": math.log(5),
            "balanced_unlabeled": 3 * math.log(1.5),
        }
    )


def test_energy_selects_what_the_unlabeled_prior_is_estimated_on(make_views):
    method = with_identity(
        CCL(problem((5, 5)), threshold=0.9, negative_energy=5.0, momentum=0.5, warm_up=0.0, window=0.5)
    )
    # Of two images with the same probabilities, (1, 3) / 4, one has the higher logits; the third is confident alone.
    weak = torch.tensor([[6.0, 6 + math.log(3)], [0.0, math.log(3)], [3.0, 0.0]])
    views = make_views(torch.zeros(1, 2), torch.tensor([0]), weak, torch.zeros(3, 2))
    views = with_features(views, labeled=torch.zeros(1, 2), weak=weak + 2 * math.log(2), strong=torch.zeros(3, 2))
    views = replace(views, progress=0.1)
    # Uniform priors: f and what is added, -log 1/2 + 2 log 1/2, and b with as much more, which leaves f.
    torch.testing.assert_close(method.joint_logits(weak, views), weak + math.log(2) / 2)
    method(views)
    sure = 1 / (1 + math.exp(-3))
    assert method.counts.tolist() == [pytest.approx([1.25, 1.75]), pytest.approx([1 + sure, 2 - sure])]
    assert method.priors.tolist() == [[0.5, 0.5], [0.5, 0.5]]
    method(replace(views, progress=0.6))
    # Half of (.5, .5) and half of the window's; the next window's begins with this step.
    rare = (0.5 + 1.25 / 3) / 2
    assert method.priors[0].tolist() == pytest.approx([rare, 1 - rare])
    assert method.priors[1].tolist() == pytest.approx([(0.5 + (1 + sure) / 3) / 2, 1 - (0.5 + (1 + sure) / 3) / 2])
    assert method.counts.sum().item() == pytest.approx(2 + 2 + 2, abs=1)


def test_nothing_is_estimated_during_the_warm_up(make_problem, random_views):
    method = CCL(make_problem(4), threshold=0.1, negative_energy=0.0, warm_up=0.5, window=0.1)
    for progress in (0.0, 0.3, 0.45):
        method(replace(random_views(4), progress=progress))
    assert method.counts.equal(torch.ones(2, 4)) and method.priors.std() < 1e-6
    for progress in (0.5, 0.55, 0.6):
        method(replace(random_views(4), progress=progress))
    assert method.counts.sum() > 30 and method.priors.std() > 0.01


def test_the_shares_are_those_in_which_labels_are_drawn():
    assert CCL(problem()).labeled_prior.tolist() == pytest.approx([0.8, 0.2])
    even = CCL(problem(class_balanced=True))
    assert even.labeled_prior.tolist() == even.priors[1].tolist() == [0.5, 0.5]


def test_the_second_head_predicts(random_views):
    method, views = CCL(problem()), random_views(2)
    view = replace(views.weak, features=torch.randn(30, 2))
    assert method.predict(view).equal(F.linear(view.features, method.head.weight, method.head.bias))


def test_both_labeled_losses_are_the_runs(random_views):
    seen = []

    def loss(logits: Tensor, labels: Tensor, progress: float) -> Tensor:
        seen.append(logits)
        return logits.sum() * 0 + 3

    views = random_views(2)
    step = CCL(problem(labeled_loss=loss))(views)
    assert step.losses["labeled"] == step.losses["balanced_labeled"] == 3
    assert seen[0].equal(views.labeled.logits) and not seen[1].equal(views.labeled.logits)


def test_pseudo_labels_teach_no_weak_view(random_views):
    method = CCL(problem(), threshold=0.1)
    weak = torch.randn(30, 2, requires_grad=True)
    labeled, strong = (torch.randn(num, 2, requires_grad=True) for num in (6, 30))
    views = with_features(random_views(2), weak=weak, labeled=labeled, strong=strong)
    torch.stack([*method(views).losses.values()]).sum().backward()
    assert weak.grad is None and all(each.grad is not None and each.grad.any() for each in (labeled, strong))
    method.zero_grad()
    joint = method.joint_logits(views.weak.logits, views)
    assert not joint.requires_grad
