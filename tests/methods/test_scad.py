import math
from dataclasses import replace

import pytest
import torch

from debias_ssl.methods import SCAD, FixMatch, Problem, View
from debias_ssl.system.errors import InputError
from debias_ssl.training.optim import OptimConfig, make_optimizer

COUNTS = (8, 2, 6, 3)
GROUPS = ["animal", "animal", "vehicle", "vehicle"]


def problem(counts: tuple[int, ...] = COUNTS, **settings) -> Problem:
    return Problem(num_classes=len(counts), num_features=2, labeled_counts=counts, num_unlabeled=30, **settings)


def with_identity(method: SCAD) -> SCAD:
    """A head of two superclasses whose logits are the features."""
    with torch.no_grad():
        method.head.weight.copy_(torch.eye(2))
        method.head.bias.zero_()
    return method


def test_a_penalty_compares_a_class_with_the_most_frequent_of_its_superclass():
    method = SCAD(problem(), superclasses=GROUPS)
    torch.testing.assert_close(method.penalty, torch.tensor([[1, 0.25, 1, 1], [1, 1, 1, 0.5]]))
    # Names are sorted, classes keep their order.
    mixed = SCAD(problem(), superclasses=["b", "a", "a", "b"])
    assert mixed.superclass_of.tolist() == [1, 0, 0, 1]
    torch.testing.assert_close(mixed.penalty, torch.tensor([[1, 2 / 6, 1, 1], [1, 1, 1, 3 / 8]]))
    # A superclass without labels says nothing.
    assert SCAD(problem((5, 5, 0, 0)), superclasses=GROUPS).penalty.equal(torch.ones(2, 4))


def test_predictions_worked():
    method = with_identity(SCAD(problem(), superclasses=GROUPS, strength=1.0))
    features = torch.tensor([[math.log(3), 0.0]])  # three to one an animal
    logits = method.predict(View(logits=torch.zeros(1, 4), features=features))
    penalty = torch.tensor([1, 0.75 * 0.25 + 0.25, 1, 0.75 + 0.25 * 0.5])
    torch.testing.assert_close(logits[0], -(torch.tensor(COUNTS) / 19).log() - penalty)


@pytest.mark.parametrize(
    ("counts", "groups"),
    [(COUNTS, None), (COUNTS, ["d", "c", "b", "a"]), ((4, 4, 4, 4), GROUPS), ((4,) * 4, ["a"] * 4)],
)
def test_without_imbalance_inside_superclasses_it_is_logit_adjustment_after_training(counts, groups, random_views):
    method = SCAD(problem(counts), superclasses=groups)
    view = replace(random_views(4).weak, features=torch.randn(30, 2))
    expected = view.logits - (torch.tensor(counts) / sum(counts)).log()
    torch.testing.assert_close(method.predict(view), expected - 1)
    assert SCAD(problem(counts), superclasses=groups, strength=0.0).predict(view).equal(view.logits)


def test_classes_that_are_drawn_equally_often_are_not_adjusted(random_views):
    method = SCAD(problem(class_balanced=True), superclasses=GROUPS)
    view = random_views(4).weak
    torch.testing.assert_close(method.predict(view), view.logits + math.log(4) - 1)


def test_superclasses_are_learned_as_in_fixmatch(random_views):
    views = random_views(4)
    features = {name: 2 * torch.randn(n, 2) for name, n in (("labeled", 6), ("weak", 30), ("strong", 30))}
    views = replace(views, **{name: replace(getattr(views, name), features=each) for name, each in features.items()})
    method = with_identity(SCAD(problem(), superclasses=GROUPS, threshold=0.7, superclass_weight=2.0))
    ours, theirs = method(views), FixMatch(problem(), threshold=0.7)(views)
    assert all(ours.losses[name].equal(loss) for name, loss in theirs.losses.items())
    assert ours.pseudo.target.equal(theirs.pseudo.target) and ours.pseudo.weight.equal(theirs.pseudo.weight)
    group = problem((10, 9))
    seen = {name: replace(getattr(views, name), logits=each) for name, each in features.items()}
    of_groups = FixMatch(group, threshold=0.7)(replace(views, labels=views.labels // 2, **seen))
    for name, loss in of_groups.losses.items():
        torch.testing.assert_close(ours.losses[f"superclass_{name}"], 2 * loss)
    assert 0 < of_groups.pseudo.weight.mean() < 1


def test_without_the_second_loss_the_network_is_trained_like_fixmatchs(make_learner, make_batch):
    states = []
    for kind, settings in ((FixMatch, {}), (SCAD, {"superclass_weight": 0.0, "superclasses": GROUPS})):
        learner = make_learner(lambda problem, k=kind, s=settings: k(problem, threshold=0.4, **s))
        optimizer = make_optimizer(learner, OptimConfig(lr=0.1))
        for k in range(3):
            torch.stack([*learner(make_batch(seed=k), k / 3).losses.values()]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        states.append([*learner.raw.model.parameters()])
    assert all(a.equal(b) for a, b in zip(*states, strict=True))


def test_superclasses_of_too_few_classes_are_refused():
    with pytest.raises(InputError, match=r"method.superclasses has 3 names, must have one for each of 4 classes"):
        SCAD(problem(), superclasses=["a", "b", "a"])


def test_targets_get_no_gradient(random_views):
    views = random_views(4)
    weak = torch.randn(30, 2, requires_grad=True)
    strong = torch.randn(30, 2, requires_grad=True)
    views = replace(views, weak=replace(views.weak, features=weak), strong=replace(views.strong, features=strong))
    torch.stack([*SCAD(problem(), superclasses=GROUPS, threshold=0.1)(views).losses.values()]).sum().backward()
    assert weak.grad is None and strong.grad is not None and strong.grad.any()
