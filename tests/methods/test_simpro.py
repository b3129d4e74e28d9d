import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from debias_ssl.methods import Problem, SimPro


def problem() -> Problem:
    return Problem(num_classes=2, num_features=2, labeled_counts=(30, 10), num_unlabeled=40)


def with_prior(method: SimPro, prior: list[float]) -> SimPro:
    method.confident.value.copy_(torch.tensor(prior))
    return method


def test_strength_zero_is_fixmatch_with_soft_targets(make_problem, random_views):
    views = random_views(4)
    step = with_prior(SimPro(make_problem(4), threshold=0.7, strength=0.0), [0.7, 0.1, 0.1, 0.1])(views)
    probs = views.weak.logits.softmax(-1)
    counts = (probs.amax(-1) >= 0.7).float()
    terms = F.cross_entropy(views.strong.logits, probs, reduction="none")
    torch.testing.assert_close(step.losses["unlabeled"], (counts * terms).mean())
    assert step.losses["labeled"].equal(F.cross_entropy(views.labeled.logits, views.labels))
    assert step.pseudo.weight.equal(counts)


def test_a_step_worked(make_views):
    # Of equal logits the old prior (.8, .2) makes (16, 1) / 17 with strength 2, which passes.
    method = with_prior(SimPro(problem(), threshold=0.9, strength=2.0, momentum=0.5), [0.8, 0.2])
    step = method(make_views(torch.zeros(1, 2), torch.tensor([1]), torch.zeros(1, 2), torch.zeros(1, 2)))
    assert step.pseudo.target.tolist() == [pytest.approx([16 / 17, 1 / 17])]
    assert step.pseudo.weight.tolist() == [1]
    rare = (0.2 + 1 / 17) / 2
    assert method.unlabeled_prior.tolist() == pytest.approx([1 - rare, rare])
    # 40 labeled images, 10 of them rare, and 40 unlabeled ones.
    overall = (10 + 40 * rare) / 80
    assert method.prior.tolist() == pytest.approx([1 - overall, overall])
    odds = ((1 - overall) / overall) ** 2
    assert step.losses["labeled"].item() == pytest.approx(math.log(1 + odds))
    expected = 16 / 17 * math.log(1 + 1 / odds) + 1 / 17 * math.log(1 + odds)
    assert step.losses["unlabeled"].item() == pytest.approx(expected)


def test_the_prior_follows_confident_pseudo_labels_alone(make_views):
    method = SimPro(problem(), threshold=0.9, strength=0.0, momentum=0.5)
    weak = torch.tensor([[0.0, 20.0], [0.5, 0.0], [0.5, 0.0], [0.5, 0.0]])
    views = make_views(torch.zeros(1, 2), torch.tensor([0]), weak, torch.zeros(4, 2))
    method(views)
    # Half of (.5, .5), half of (0, 1) / 4: a batch with few confident images moves it little.
    assert method.unlabeled_prior.tolist() == pytest.approx([0.25 / 0.625, 0.375 / 0.625], rel=1e-4)
    for _ in range(60):
        method(views)
    assert method.unlabeled_prior[1].item() == pytest.approx(1)


def test_without_confident_pseudo_labels_the_prior_stays_and_stays_finite(make_views):
    method = with_prior(SimPro(problem(), threshold=1.0, momentum=0.0), [0.6, 0.2])
    views = make_views(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(2, 2), torch.zeros(2, 2))
    assert method.unlabeled_prior.tolist() == pytest.approx([0.75, 0.25])
    for _ in range(2):
        assert all(loss.isfinite() for loss in method(views).losses.values())
    slow = with_prior(SimPro(problem(), threshold=1.0, momentum=0.5), [0.6, 0.2])
    slow(views)
    assert slow.unlabeled_prior.tolist() == pytest.approx([0.75, 0.25])


def test_the_labeled_loss_is_the_runs_of_adjusted_logits(make_views):
    def halved(logits, labels, progress):
        return F.cross_entropy(logits, labels) * progress

    views = make_views(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 2), torch.zeros(1, 2))
    problems = problem(), replace(problem(), labeled_loss=halved)
    plain, half = (SimPro(each)(replace(views, progress=0.5)) for each in problems)
    assert half.losses["labeled"].item() == pytest.approx(plain.losses["labeled"].item() / 2)


def test_the_prior_is_saved_and_restored(make_problem, random_views):
    method, other = (SimPro(make_problem(3), threshold=0.5, momentum=0.5) for _ in range(2))
    method(random_views(3))
    assert method.state_dict().keys() == {"confident.value"}
    other.load_state_dict(method.state_dict())
    assert other.unlabeled_prior.equal(method.unlabeled_prior)
    assert other.unlabeled_prior.std() > 0.01


def test_targets_get_no_gradient(make_problem, make_views, random_views):
    views = random_views(3)
    weak = views.weak.logits.clone().requires_grad_()
    step = SimPro(make_problem(3), threshold=0.1)(
        make_views(views.labeled.logits, views.labels, weak.detach(), views.strong.logits)
    )
    torch.stack([*step.losses.values()]).sum().backward()
    assert weak.grad is None and views.strong.logits.grad.abs().sum() > 0
