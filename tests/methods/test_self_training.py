import math
from dataclasses import replace

import pytest
import torch

from debias_ssl.methods import Needs, SelfTraining, Supervised

LOG3 = math.log(3)


@pytest.mark.parametrize(("weighted", "weights"), [(False, [1, 1, 0]), (True, [0.75, 0.5, 0])])
def test_loss_by_hand(weighted, weights, make_problem, make_views):
    # The strong views say (.75, .25), (.25, .75) and (.5, .5).
    strong = torch.tensor([[LOG3, 0.0], [0.0, LOG3], [0.0, 0.0]])
    views = make_views(torch.tensor([[LOG3, 0.0]]), torch.tensor([1]), torch.zeros(3, 2), strong)
    # Votes: three of four for class 0, a tie that class 0 has won, and an image that nobody knows.
    probs = torch.tensor([[0.75, 0.25], [0.5, 0.4999], [0.0, 0.0]])
    method = SelfTraining(make_problem(2), weighted=weighted, unlabeled_weight=2.0)
    assert method.needs == Needs(teacher_probs=True, all_strong=None)
    step = method(replace(views, teacher_probs=probs))
    assert step.losses["labeled"].item() == pytest.approx(math.log(4))
    expected = 2 * (weights[0] * -math.log(0.75) + weights[1] * -math.log(0.25)) / 3
    assert step.losses["unlabeled"].item() == pytest.approx(expected)
    assert step.pseudo.target.tolist()[:2] == [0, 0] and step.pseudo.weight.tolist() == pytest.approx(weights)


def test_what_the_network_says_itself_has_no_part_in_the_labels(make_problem, random_views):
    views = random_views(4)
    probs = torch.rand(30, 4, generator=torch.Generator().manual_seed(1)).softmax(-1)
    views = replace(views, teacher_probs=probs)
    other = replace(views, weak=replace(views.weak, logits=-views.weak.logits))
    one, two = (SelfTraining(make_problem(4))(each) for each in (views, other))
    assert one.losses["unlabeled"].equal(two.losses["unlabeled"])
    # Any temperature of the probabilities gives the same labels.
    sharp = replace(views, teacher_probs=(10 * probs.log()).softmax(-1))
    assert SelfTraining(make_problem(4))(sharp).losses["unlabeled"].equal(one.losses["unlabeled"])


def test_sure_labels_weigh_the_same_with_weights_and_without(make_problem, random_views):
    views = random_views(3)
    views = replace(views, teacher_probs=torch.eye(3)[torch.arange(30) % 3])
    one, two = (SelfTraining(make_problem(3), weighted=each)(views) for each in (False, True))
    assert one.losses["unlabeled"].equal(two.losses["unlabeled"])


def test_without_weight_it_is_supervised(make_problem, random_views):
    views = replace(random_views(3), teacher_probs=torch.full((30, 3), 1 / 3))
    step = SelfTraining(make_problem(3), unlabeled_weight=0.0)(views)
    assert step.losses["unlabeled"].item() == 0
    assert step.losses["labeled"].equal(Supervised(make_problem(3))(views).losses["labeled"])
