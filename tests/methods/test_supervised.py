import math

import pytest
import torch

from debias_ssl.methods import Supervised


def test_loss_is_the_cross_entropy_of_labeled_images(make_problem, make_views):
    labeled = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    empty = torch.zeros(0, 2)
    step = Supervised(make_problem(2))(make_views(labeled, torch.tensor([0, 1]), torch.ones(3, 2), empty))
    assert step.losses.keys() == {"labeled"}
    assert step.losses["labeled"].item() == pytest.approx((-math.log(0.75) + math.log(2)) / 2)


def test_pseudo_labels_count_nothing(make_problem, make_views):
    weak = torch.tensor([[0.0, 9.0, 0.0], [9.0, 0.0, 0.0]])
    views = make_views(torch.zeros(1, 3), torch.tensor([2]), weak, torch.zeros(0, 3))
    pseudo = Supervised(make_problem(3))(views).pseudo
    assert pseudo.target.tolist() == [1, 0]
    assert pseudo.weight.tolist() == [0, 0]


def test_unlabeled_images_change_no_gradient(make_learner, make_batch):
    gradients = []
    for seed in (1, 2):
        learner = make_learner(Supervised)
        batch, other = make_batch(num_strong=0, seed=0), make_batch(num_strong=0, seed=seed)
        batch = type(batch)(**{**vars(batch), "weak": other.weak})
        step = learner(batch, 0.0)
        torch.stack([*step.losses.values()]).sum().backward()
        gradients.append([parameter.grad for parameter in learner.raw.parameters()])
        assert not learner.marginal.value.equal(torch.full((4,), 0.25))
    for first, second in zip(*gradients, strict=True):
        assert first.equal(second)
        assert first.abs().sum() > 0
