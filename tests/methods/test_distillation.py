import math
from dataclasses import replace

import pytest
import torch

from debias_ssl.methods import Distillation, Needs, Supervised
from debias_ssl.system.errors import InputError

LOG3 = math.log(3)


def test_loss_by_hand(make_problem, make_views):
    # At temperature 2 the teacher's (.9, .1) are (.75, .25), and the student's logits (2 log 3, 0) say (.75, .25).
    views = make_views(
        torch.tensor([[LOG3, 0.0]]), torch.tensor([1]), torch.zeros(1, 2), torch.tensor([[2 * LOG3, 0.0]])
    )
    views = replace(views, teacher_probs=torch.tensor([[0.9, 0.1]]))
    step = Distillation(make_problem(2), temperature=2.0, soft_weight=0.75)(views)
    assert step.losses["labeled"].item() == pytest.approx(0.25 * math.log(4))
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert step.losses["soft"].item() == pytest.approx(0.75 * 4 * entropy)
    assert step.pseudo.target.tolist() == [pytest.approx([0.75, 0.25])]
    assert step.pseudo.weight.tolist() == [1]


def test_of_labeled_images_alone_the_teacher_is_asked_about_them(make_problem, make_views):
    views = make_views(torch.tensor([[2 * LOG3, 0.0]]), torch.tensor([0]), torch.zeros(3, 2), torch.zeros(0, 2))
    views = replace(views, labeled_teacher_probs=torch.tensor([[0.1, 0.9]]))
    method = Distillation(make_problem(2), temperature=2.0, soft_weight=1.0, unlabeled=False)
    assert method.needs == Needs(num_strong=0, labeled_teacher_probs=True)
    step = method(views)
    assert step.losses["soft"].item() == pytest.approx(4 * (-0.25 * math.log(0.75) - 0.75 * math.log(0.25)))
    assert step.losses["labeled"].item() == 0 and step.pseudo.weight.tolist() == [0, 0, 0]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 20.0])
def test_a_student_that_says_what_its_teacher_says_stays(temperature, make_problem, random_views):
    views = random_views(5)
    views = replace(views, teacher_probs=views.strong.logits.detach().softmax(-1))
    soft = Distillation(make_problem(5), temperature=temperature, soft_weight=1.0)(views).losses["soft"]
    (gradient,) = torch.autograd.grad(soft, views.strong.logits)
    assert gradient.abs().max() < 1e-6
    other = replace(views, teacher_probs=views.strong.logits.detach().flip(1).softmax(-1))
    soft = Distillation(make_problem(5), temperature=temperature, soft_weight=1.0)(other).losses["soft"]
    assert torch.autograd.grad(soft, views.strong.logits)[0].abs().max() > 1e-3


def test_at_high_temperatures_the_gradient_matches_centered_logits(make_problem, random_views):
    """arXiv 1503.02531, equation 4: 1 / (N T^2) (z - v) for logits of mean zero; T^2 takes the temperature out."""
    views, teacher = random_views(4), 2 * torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    step = Distillation(make_problem(4), temperature=500.0, soft_weight=1.0)(
        replace(views, teacher_probs=teacher.softmax(-1))
    )
    (gradient,) = torch.autograd.grad(step.losses["soft"], views.strong.logits)
    difference = views.strong.logits.detach() - teacher
    expected = (difference - difference.mean(1, keepdim=True)) / (4 * 30)
    torch.testing.assert_close(gradient, expected, atol=1e-4, rtol=0.02)


def test_images_of_which_the_teacher_says_nothing_count_nothing(make_problem, make_views):
    student = torch.tensor([[1.0, 0.0], [5.0, 0.0]], requires_grad=True)
    views = make_views(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(2, 2), student)
    views = replace(views, teacher_probs=torch.tensor([[0.5, 0.5], [0.0, 0.0]]))
    step = Distillation(make_problem(2))(views)
    assert step.pseudo.weight.tolist() == [1, 0]
    (gradient,) = torch.autograd.grad(step.losses["soft"], student)
    assert gradient[0].abs().sum() > 0 and gradient[1].abs().sum() == 0


@pytest.mark.parametrize("unlabeled", [True, False])
def test_without_a_teachers_word_it_is_supervised(unlabeled, make_learner, make_batch):
    gradients, batch = [], make_batch(num_strong=0)
    for method in (Supervised, lambda problem: Distillation(problem, soft_weight=0.0, unlabeled=unlabeled)):
        learner = make_learner(method)
        step = learner(batch, 0.0)
        assert step.losses.keys() == {"labeled"} and not step.pseudo.weight.any()
        step.losses["labeled"].backward()
        gradients.append([parameter.grad for parameter in learner.raw.parameters()])
    assert all(one.equal(other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"soft_weight": 1.1}, {"soft_weight": -0.1}])
def test_settings_out_of_range_are_told(settings, make_problem):
    with pytest.raises(InputError, match=rf"method\.{next(iter(settings))} is .*, must be"):
        Distillation(make_problem(2), **settings)
