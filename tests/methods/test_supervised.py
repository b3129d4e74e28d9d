import math
from dataclasses import replace

import pytest
import torch

from debias_ssl.methods import Supervised
from debias_ssl.methods.labeled_loss import LogitAdjusted
from debias_ssl.system.errors import InputError


def test_loss_is_the_cross_entropy_of_labeled_images(make_problem, make_views):
    labeled = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    empty = torch.zeros(0, 2)
    step = Supervised(make_problem(2))(make_views(labeled, torch.tensor([0, 1]), torch.ones(3, 2), empty))
    assert step.losses.keys() == {"labeled"}
    assert step.losses["labeled"].item() == pytest.approx((-math.log(0.75) + math.log(2)) / 2)


# Softmax .75, .25 of the first image and .5, .5 of the second.
LOGITS = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])


def test_a_mixed_image_has_the_losses_of_both_labels_in_its_shares(make_problem, make_views):
    views = make_views(LOGITS, torch.tensor([0, 1]), torch.ones(3, 2), torch.zeros(0, 2))
    views = replace(views, partner_labels=torch.tensor([1, 0]), mixup_lambda=0.7)
    loss = Supervised(make_problem(2), mixup_alpha=0.2)(views).losses["labeled"]
    own, partners = (-math.log(0.75) + math.log(2)) / 2, (-math.log(0.25) + math.log(2)) / 2
    assert loss.item() == pytest.approx(0.7 * own + 0.3 * partners)


def test_a_mixed_image_has_whatever_labeled_loss_is_asked_for(make_problem, make_views):
    views = make_views(LOGITS, torch.tensor([0, 1]), torch.ones(3, 2), torch.zeros(0, 2))
    views = replace(views, partner_labels=torch.tensor([0, 0]), mixup_lambda=0.25)
    uneven = replace(make_problem(2), labeled_counts=(3, 1))
    problem = replace(uneven, labeled_loss=LogitAdjusted(uneven))
    loss = Supervised(problem, mixup_alpha=0.2)(views).losses["labeled"]
    # With the prior .75, .25 the odds of class 0 are 9 and 3.
    own, partners = (-math.log(0.9) - math.log(0.25)) / 2, (-math.log(0.9) - math.log(0.75)) / 2
    assert loss.item() == pytest.approx(0.25 * own + 0.75 * partners)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_with_images_of_their_own_class_labels_stay(share, make_problem, make_views):
    labels = torch.tensor([0, 1])
    views = make_views(LOGITS, labels, torch.ones(3, 2), torch.zeros(0, 2))
    method = Supervised(make_problem(2), mixup_alpha=1.0)
    mixed = method(replace(views, partner_labels=labels, mixup_lambda=share)).losses["labeled"]
    torch.testing.assert_close(mixed, method(views).losses["labeled"])


def test_nothing_is_mixed_unless_asked(make_problem, make_views):
    method = Supervised(make_problem(2))
    assert method.needs.mixup_alpha == 0
    views = make_views(LOGITS, torch.tensor([0, 1]), torch.ones(3, 2), torch.zeros(0, 2))
    assert method(views).losses["labeled"].equal(torch.nn.functional.cross_entropy(LOGITS, views.labels))


@pytest.mark.parametrize("alpha", [-0.1, math.inf, math.nan])
def test_an_alpha_out_of_range_is_told(alpha, make_problem):
    with pytest.raises(InputError, match=r"method\.mixup_alpha is "):
        Supervised(make_problem(2), mixup_alpha=alpha)


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
