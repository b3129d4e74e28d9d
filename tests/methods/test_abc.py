import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from debias_ssl.methods import ABC, FixMatch, Problem, View, Views
from debias_ssl.training.optim import OptimConfig, make_optimizer

COUNTS = (8, 2)


def problem(counts: tuple[int, ...] = COUNTS) -> Problem:
    return Problem(num_classes=len(counts), num_features=2, labeled_counts=counts, num_unlabeled=10)


def identity(method: ABC) -> ABC:
    """An auxiliary head whose logits are the features."""
    with torch.no_grad():
        method.head.weight.copy_(torch.eye(2))
        method.head.bias.zero_()
    return method


def with_features(views: Views, labeled: Tensor, weak: Tensor, strong: Tensor, progress: float = 0.0) -> Views:
    def seen(view: View, features: Tensor) -> View:
        return replace(view, features=features)

    return replace(
        views,
        labeled=seen(views.labeled, labeled),
        weak=seen(views.weak, weak),
        strong=seen(views.strong, strong),
        progress=progress,
    )


def test_the_shared_part_is_fixmatch_bit_for_bit(random_views):
    views = random_views(2)
    ours, theirs = ABC(problem(), threshold=0.7)(views), FixMatch(problem(), threshold=0.7)(views)
    assert all(ours.losses[name].equal(loss) for name, loss in theirs.losses.items())
    assert ours.pseudo.target.equal(theirs.pseudo.target) and ours.pseudo.weight.equal(theirs.pseudo.weight)


def test_without_auxiliary_losses_the_network_is_trained_like_fixmatchs(make_learner, make_batch):
    states = []
    for kind, settings in ((FixMatch, {}), (ABC, {"auxiliary_weight": 0.0})):
        learner = make_learner(lambda problem, k=kind, s=settings: k(problem, threshold=0.4, **s))
        optimizer = make_optimizer(learner, OptimConfig(lr=0.1))
        for k in range(5):
            torch.stack([*learner(make_batch(seed=k), k / 5).losses.values()]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        states.append([*learner.raw.model.parameters()])
    assert all(a.equal(b) for a, b in zip(*states, strict=True))


def test_frequent_labels_are_masked(make_views):
    # Equal logits: each image that is kept costs log 2; a quarter of the frequent class is kept, all of the rare one.
    method = identity(ABC(problem()))
    one = make_views(torch.zeros(4000, 2), torch.zeros(4000, dtype=torch.long), torch.zeros(1, 2), torch.zeros(1, 2))
    torch.manual_seed(0)
    assert method(one).losses["auxiliary"].item() == pytest.approx(math.log(2) / 4, rel=0.1)
    rare = replace(one, labels=torch.ones(4000, dtype=torch.long))
    assert method(rare).losses["auxiliary"].item() == pytest.approx(math.log(2))


@pytest.mark.parametrize(("progress", "kept"), [(0.0, 1.0), (0.5, 1 - 0.5 * 0.75), (1.0, 0.25)])
def test_frequent_pseudo_labels_are_masked_more_and_more(progress, kept, make_views):
    views = make_views(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(4000, 2), torch.zeros(4000, 2))
    confident = torch.tensor([[20.0, 0.0]]).expand(4000, 2)
    views = with_features(views, torch.zeros(1, 2), confident, torch.zeros(4000, 2), progress)
    torch.manual_seed(0)
    assert identity(ABC(problem()))(views).losses["consistency"].item() == pytest.approx(kept * math.log(2), rel=0.1)


def test_targets_are_the_auxiliary_heads_soft_predictions(make_views):
    # (.75, .25) passes .7 and has the cross-entropy .75 log 2 + .25 log 2 with equal logits; (.6, .4) does not pass.
    views = make_views(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(2, 2), torch.zeros(2, 2))
    weak = torch.tensor([[math.log(3), 0.0], [math.log(1.5), 0.0]])
    strong = torch.tensor([[0.0, math.log(3)], [0.0, 9.0]])
    step = identity(ABC(problem(), threshold=0.7))(with_features(views, torch.zeros(1, 2), weak, strong))
    expected = (0.75 * math.log(4) + 0.25 * math.log(4 / 3)) / 2
    assert step.losses["consistency"].item() == pytest.approx(expected)


def test_the_gradient_of_the_auxiliary_head_reaches_the_features_but_not_those_of_the_targets(make_views):
    features = [torch.randn(3, 2).requires_grad_() for _ in range(3)]
    views = make_views(torch.zeros(3, 2), torch.tensor([1, 1, 1]), torch.zeros(3, 2), torch.zeros(3, 2))
    labeled, weak, strong = features
    losses = ABC(problem(), threshold=0.0)(with_features(views, labeled, weak, strong)).losses
    (losses["auxiliary"] + losses["consistency"]).backward()
    assert weak.grad is None
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in (labeled, strong))


def test_the_auxiliary_head_predicts():
    view = View(logits=torch.tensor([[5.0, 0.0]]), features=torch.tensor([[1.0, 3.0]]))
    assert identity(ABC(problem())).predict(view).tolist() == [[1, 3]]


def test_a_class_without_labels_is_never_masked_and_nothing_else_is_state():
    method = ABC(problem((10, 5, 0)))
    assert method.keep.tolist() == pytest.approx([0.1, 0.2, 1])
    assert method.state_dict().keys() == {"head.weight", "head.bias"}
