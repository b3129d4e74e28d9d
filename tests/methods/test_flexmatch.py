from dataclasses import replace

import pytest
import torch
from torch import Tensor

from debias_ssl.methods import FixMatch, FlexMatch


def of_confidence(*rows: list[float]) -> Tensor:
    return torch.tensor(rows).log()


def views_of(make_views, probs: Tensor, index: list[int]):
    views = make_views(torch.zeros(1, 2), torch.tensor([0]), probs, torch.zeros(len(probs), 2))
    return replace(views, index=torch.tensor(index))


def test_thresholds_worked(make_problem, make_views):
    method = FlexMatch(make_problem(2), threshold=0.8)  # of ten images
    # Nothing is remembered yet: all thresholds are 0. Of four images three are remembered.
    first = of_confidence([0.9, 0.1], [0.85, 0.15], [0.1, 0.9], [0.6, 0.4])
    assert method(views_of(make_views, first, [0, 1, 2, 3])).pseudo.weight.tolist() == [1, 1, 1, 1]
    assert method.memory.counts().tolist() == [2, 1]
    # Seven are unused: beta = 2/7 and 1/7, thresholds .8 beta / (2 - beta) = .8 / 6 and .8 / 13, below any confidence.
    step = method(views_of(make_views, of_confidence([0.51, 0.49]), [3]))
    assert method.beta.tolist() == pytest.approx([2 / 7, 1 / 7])
    assert step.pseudo.weight.tolist() == [1]


@pytest.mark.parametrize(("warm_up", "weight"), [(False, [0, 1, 1, 1, 0]), (True, [1, 1, 1, 1, 1])])
def test_classes_that_were_learned_less_pass_at_less(make_problem, make_views, warm_up, weight):
    method = FlexMatch(make_problem(2), threshold=0.9, warm_up=warm_up)
    method.memory.value[:3] = torch.tensor([0, 0, 1])
    # Without the unused: beta = 1 and 1/2, thresholds .9 and .3; with them, 7 of 10, below 1/2.
    probs = of_confidence([0.85, 0.15], [0.95, 0.05], [0.45, 0.55], [0.2, 0.8], [0.6, 0.4])
    assert method(views_of(make_views, probs, [0, 1, 2, 3, 4])).pseudo.weight.tolist() == weight


def test_only_predictions_above_the_fixed_threshold_are_remembered(make_problem, make_views):
    method = FlexMatch(make_problem(2), threshold=0.8)
    method(views_of(make_views, of_confidence([0.9, 0.1], [0.1, 0.9]), [4, 5]))
    method(views_of(make_views, of_confidence([0.3, 0.7], [0.95, 0.05]), [4, 5]))
    assert method.memory.value[4:6].tolist() == [0, 0]
    assert (method.memory.value >= 0).sum() == 2


def test_classes_learned_equally_are_fixmatch(make_problem, random_views):
    problem = replace(make_problem(4), num_unlabeled=32)
    method = FlexMatch(problem, threshold=0.7)
    method.memory.value.copy_(torch.arange(32) % 4)
    method.memory.value[28:] = -1  # 7 of each class, 4 unused
    views = random_views(4)
    ours, theirs = method(views), FixMatch(problem, threshold=0.7)(views)
    assert ours.losses["unlabeled"].equal(theirs.losses["unlabeled"])
    assert ours.pseudo.weight.equal(theirs.pseudo.weight)
    assert 0 < theirs.pseudo.weight.sum() < 30
