import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from debias_ssl.methods import FixMatch, PseudoLabel

# Probabilities (.75, .25) and (.1, .9).
WEAK = torch.tensor([[math.log(3), 0.0], [0.0, math.log(9)]])


@pytest.mark.parametrize(("progress", "alpha"), [(0.0, 0.0), (0.1, 0.25), (0.4, 1.0), (0.9, 1.0)])
def test_the_weight_ramps_up(make_problem, make_views, progress, alpha):
    views = replace(make_views(torch.zeros(1, 2), torch.tensor([0]), WEAK, WEAK), progress=progress)
    step = PseudoLabel(make_problem(2), threshold=0.8)(views)
    assert step.pseudo.target.tolist() == [0, 1]
    assert step.pseudo.weight.tolist() == pytest.approx([0, alpha])
    assert step.losses["unlabeled"].item() == pytest.approx(alpha * -math.log(0.9) / 2)


def test_without_a_ramp_it_is_fixmatch_on_the_weak_view(make_problem, random_views):
    views = random_views(4)
    views = replace(views, strong=replace(views.weak))
    steps = [method(views) for method in (PseudoLabel(make_problem(4), ramp=0.0), FixMatch(make_problem(4)))]
    assert steps[0].losses["unlabeled"].equal(steps[1].losses["unlabeled"])


@pytest.mark.parametrize("settings", [{}, {"joint_pass": True}, {"accumulation": 2}])
def test_the_loss_is_that_of_the_weak_view_itself(make_learner, make_batch, settings):
    learner = make_learner(lambda problem: PseudoLabel(problem, threshold=0.0, ramp=0.0), **settings)
    batch, seen = make_batch(num_strong=0), []
    learner.raw.method.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    step = learner(batch, 0.5)
    (views,) = seen
    assert views.strong.logits.requires_grad and not views.weak.logits.requires_grad
    assert views.strong.logits.equal(views.weak.logits)
    expected = F.cross_entropy(views.weak.logits, views.weak.logits.argmax(-1))
    torch.testing.assert_close(step.losses["unlabeled"], expected)
    step.losses["unlabeled"].backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.raw.parameters())


def test_an_averaged_teacher_gives_the_targets_of_the_trained_models_weak_views(make_learner, make_batch):
    learner = make_learner(PseudoLabel, target_model="ema")
    seen = []
    learner.raw.method.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    learner(make_batch(num_strong=0, num_weak=2), 0.5)
    (views,) = seen
    assert not views.strong.logits.equal(views.weak.logits)
    assert views.strong.logits.shape == views.weak.logits.shape and len(views.further_strong) == 1
