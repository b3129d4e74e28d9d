import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from debias_ssl.distributed.running import uniform_marginal
from debias_ssl.formulas.logits import debias
from debias_ssl.methods import DebiasPL, FixMatch, Needs
from debias_ssl.training.optim import OptimConfig, make_optimizer


def with_marginal(method: DebiasPL, marginal: list[float]) -> DebiasPL:
    method.marginal.value.copy_(torch.tensor(marginal))
    return method


# -- identities with other methods


def test_strength_zero_is_fixmatch_bit_for_bit(make_problem, random_views):
    results = []
    for method in (
        DebiasPL(make_problem(4), threshold=0.7, strength=0.0, momentum=0.5, unlabeled_weight=2.0),
        FixMatch(make_problem(4), threshold=0.7, unlabeled_weight=2.0),
    ):
        for seed in range(3):  # the marginal has left the uniform distribution in the second step
            views = random_views(4, seed=seed)
            step = method(views)
            torch.stack([*step.losses.values()]).sum().backward()
            grads = views.labeled.logits.grad, views.strong.logits.grad
            results.append([*step.losses.values(), step.pseudo.target, step.pseudo.weight, *grads])
    for ours, theirs in zip(results[:3], results[3:], strict=True):
        assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))


def test_strength_zero_trains_the_weights_of_fixmatch_bit_for_bit(make_learner, make_batch):
    states = []
    for method in (lambda problem: DebiasPL(problem, threshold=0.4, strength=0.0, momentum=0.5), thresholded_fixmatch):
        learner = make_learner(method)
        optimizer = make_optimizer(learner, OptimConfig(lr=0.1))
        passed = 0.0
        for k in range(20):
            step = learner(make_batch(seed=k), k / 20)
            torch.stack([*step.losses.values()]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            learner.after_step(k)
            passed += step.pseudo.weight.mean().item() / 20
        assert 0.05 < passed < 1  # else the comparison says little
        states.append([*learner.raw.parameters(), *learner.ema.parameters(), *learner.raw.model.buffers()])
    assert all(a.equal(b) for a, b in zip(*states, strict=True))


def thresholded_fixmatch(problem):
    return FixMatch(problem, threshold=0.4)


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
def test_strength_one_has_the_targets_of_distribution_alignment_to_uniform(make_problem, random_views, threshold):
    marginal = [0.55, 0.3, 0.1, 0.05]
    method = with_marginal(DebiasPL(make_problem(4), threshold=threshold, strength=1.0), marginal)
    views = random_views(4, num_unlabeled=200)
    aligned = views.weak.logits.softmax(-1) / torch.tensor(marginal)
    confidence, target = (aligned / aligned.sum(-1, keepdim=True)).max(-1)
    pseudo = method(views).pseudo
    assert pseudo.target.equal(target)
    assert pseudo.weight.equal((confidence >= threshold).float())
    assert not target.equal(views.weak.logits.argmax(-1))


# -- the order of the authors


def test_targets_take_the_old_marginal_and_margins_the_new_one(make_problem, make_views):
    method = DebiasPL(make_problem(2), threshold=0.6, strength=1.0, momentum=0.5, unlabeled_weight=10.0)
    with_marginal(method, [0.8, 0.2])
    # p of the images: (.75, .25) and (.5, .5). p / q: (.9375, 1.25), of confidence .57, and (.625, 2.5), of .8.
    # With the new marginal the first target would be 0: .75 / .7125 > .25 / .2875.
    weak = torch.tensor([[math.log(3), 0.0], [0.0, 0.0]])
    step = method(make_views(torch.zeros(1, 2), torch.tensor([0]), weak, torch.zeros(2, 2)))
    assert step.pseudo.target.tolist() == [1, 1]
    assert step.pseudo.weight.tolist() == [0, 1]
    # q: half of (.8, .2), half of the mean (.625, .375).
    assert method.marginal.value.tolist() == pytest.approx([0.7125, 0.2875])
    # f + log q of equal logits has the probabilities q; the mean is over both images.
    assert step.losses["unlabeled"].item() == pytest.approx(10 * -math.log(0.2875) / 2)


def test_strength_scales_the_debiasing_and_the_margin(make_problem, make_views):
    # q = (.64, .36), whose roots are .8 and .6; momentum 1 holds it. p / sqrt(q): (.625, .8333), of confidence 4/7.
    method = with_marginal(DebiasPL(make_problem(2), threshold=0.57, strength=0.5, momentum=1.0), [0.64, 0.36])
    step = method(make_views(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 2), torch.zeros(1, 2)))
    assert (step.pseudo.target.item(), step.pseudo.weight.item()) == (1, 1)
    assert step.losses["unlabeled"].item() == pytest.approx(-math.log(0.6 / 1.4))
    method.threshold = 0.572
    step = method(make_views(torch.zeros(1, 2), torch.tensor([0]), torch.zeros(1, 2), torch.zeros(1, 2)))
    assert step.losses["unlabeled"].item() == 0


def test_the_margin_is_that_of_the_paper(make_problem, random_views):
    # -log e^(z_y - D_y) / sum_k e^(z_k - D_k), D = tau log 1/q.
    method = with_marginal(DebiasPL(make_problem(3), threshold=0.0, strength=0.7, momentum=1.0), [0.6, 0.3, 0.1])
    views = random_views(3)
    step = method(views)
    exponents = (views.strong.logits - 0.7 * (1 / torch.tensor([0.6, 0.3, 0.1])).log()).exp()
    of_target = exponents.gather(1, step.pseudo.target.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(step.losses["unlabeled"], -(of_target / exponents.sum(1)).log().mean())


def test_the_labeled_loss_has_no_margin(make_problem, make_views):
    method = with_marginal(DebiasPL(make_problem(2), strength=1.0), [0.9, 0.1])
    step = method(make_views(torch.zeros(2, 2), torch.tensor([1, 1]), torch.zeros(1, 2), torch.zeros(1, 2)))
    assert step.losses["labeled"].item() == pytest.approx(math.log(2))


# -- the marginal


def skewed_logits() -> Tensor:
    """Predictions with a standing preference for the first classes."""
    return torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([2.0, 1.0, 0.0, -1.0])


def test_the_marginal_of_a_skewed_predictor_becomes_its_mean_prediction(make_problem, make_views):
    method = DebiasPL(make_problem(4), strength=0.5, momentum=0.9)
    weak = skewed_logits()
    views = make_views(torch.zeros(1, 4), torch.tensor([0]), weak, weak)
    for _ in range(250):
        method(views)
    marginal = method.marginal.value
    assert marginal.shape == (4,)
    assert marginal.sum().item() == pytest.approx(1, abs=1e-6)
    torch.testing.assert_close(marginal, weak.softmax(-1).mean(0), rtol=0, atol=1e-6)
    assert marginal.max() > 0.5


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_tracking_debiased_predictions_would_stop_short(make_problem, make_views, strength):
    # One image, so that its prediction p is the mean: the wrong tracker ends at p^(1 / (1 + tau)), normalized.
    weak = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    wrong = uniform_marginal(4, momentum=0.9)
    method = DebiasPL(make_problem(4), strength=strength, momentum=0.9)
    for _ in range(250):
        wrong.update(debias(weak, wrong.value, strength).softmax(-1))
        method(make_views(torch.zeros(1, 4), torch.tensor([0]), weak, weak))
    expected = (weak / (1 + strength)).softmax(-1)[0]
    torch.testing.assert_close(wrong.value, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(method.marginal.value, weak.softmax(-1)[0], rtol=0, atol=1e-5)
    assert (wrong.value - method.marginal.value).abs().max() > 0.1


def test_images_without_a_confident_label_move_the_marginal(make_problem, make_views):
    method = DebiasPL(make_problem(2), threshold=0.99, momentum=0.0)
    weak = torch.tensor([[math.log(3), 0.0], [20.0, 0.0]])
    step = method(make_views(torch.zeros(1, 2), torch.tensor([0]), weak, torch.zeros(2, 2)))
    assert step.pseudo.weight.tolist() == [0, 1]
    assert method.marginal.value.tolist() == pytest.approx([0.875, 0.125])


def test_the_marginal_is_fp32_whatever_the_logits_are(make_problem, make_views):
    method = DebiasPL(make_problem(4), momentum=0.0)
    weak = skewed_logits().bfloat16()
    method(make_views(torch.zeros(1, 4).bfloat16(), torch.tensor([0]), weak, weak))
    assert method.marginal.value.dtype == torch.float32
    torch.testing.assert_close(method.marginal.value, weak.softmax(-1).float().mean(0))


def test_the_marginal_is_saved_and_restored(make_problem, random_views):
    method, other = DebiasPL(make_problem(3), momentum=0.5), DebiasPL(make_problem(3), momentum=0.5)
    method(random_views(3))
    assert method.state_dict().keys() == {"marginal.value"}
    other.load_state_dict(method.state_dict())
    views = random_views(3, seed=1)
    assert method(views).losses["unlabeled"].equal(other(views).losses["unlabeled"])
    assert other.marginal.value.equal(method.marginal.value)


# -- several views


@pytest.mark.parametrize("threshold", [0.7, 0.55])
def test_two_views_average_six_terms(make_problem, make_views, threshold):
    # Weak views (.9, .1) and (.2, .8); their mean logits (log 3, log 2) give (.6, .4). With a uniform marginal the
    # targets are 0, 1 and 0, of confidence .9, .8 and .6.
    weak = [torch.tensor([[math.log(9), 0.0]]), torch.tensor([[0.0, math.log(4)]])]
    strong = [torch.zeros(1, 2), torch.tensor([[math.log(2), 0.0]])]
    method = DebiasPL(make_problem(2), threshold=threshold, strength=1.0, momentum=0.5, num_views=2)
    step = method(make_views(torch.zeros(1, 2), torch.tensor([0]), weak, strong))
    # Half uniform, half (.6, .4): the mean of the views' probabilities would give (.525, .475).
    assert method.marginal.value.tolist() == pytest.approx([0.55, 0.45])
    # Strong views with the margin: (.55, .45) and (1.1, .45), normalized.
    towards = [-math.log(0.55) - math.log(1.1 / 1.55), -math.log(0.45) - math.log(0.45 / 1.55)]
    mean_counts = threshold < 0.6
    terms = mean_counts * towards[0] + towards[0] + towards[1]
    assert step.losses["unlabeled"].item() == pytest.approx(terms / 6)
    assert (step.pseudo.target.tolist(), step.pseudo.weight.tolist()) == ([0], [mean_counts])


def test_every_weak_view_is_debiased(make_problem, make_views):
    method = DebiasPL(make_problem(2), threshold=0.6, strength=1.0, momentum=1.0, num_views=2)
    with_marginal(method, [0.8, 0.2])
    equal = torch.zeros(1, 2)
    step = method(make_views(equal, torch.tensor([0]), [equal, equal], [equal, equal]))
    assert step.losses["unlabeled"].item() == pytest.approx(-math.log(0.2))


def test_one_view_is_the_plain_formula(make_problem, random_views):
    views = random_views(4)
    method = with_marginal(DebiasPL(make_problem(4), threshold=0.6, momentum=0.7, num_views=1), [0.4, 0.3, 0.2, 0.1])
    step = method(views)
    old = torch.tensor([0.4, 0.3, 0.2, 0.1])
    new = 0.7 * old + 0.3 * views.weak.logits.softmax(-1).mean(0)
    confidence, target = (views.weak.logits - 0.5 * old.log()).softmax(-1).max(-1)
    terms = F.cross_entropy(views.strong.logits + 0.5 * new.log(), target, reduction="none")
    torch.testing.assert_close(step.losses["unlabeled"], (terms * (confidence >= 0.6)).sum() / len(terms))
    torch.testing.assert_close(step.losses["labeled"], F.cross_entropy(views.labeled.logits, views.labels))


def test_equal_views_are_one_view(make_problem, make_views, random_views):
    one = random_views(4)
    two = make_views(one.labeled.logits, one.labels, [one.weak.logits] * 2, [one.strong.logits] * 2)
    methods = [DebiasPL(make_problem(4), threshold=0.6, num_views=num) for num in (1, 2)]
    steps = [method(views) for method, views in zip(methods, (one, two), strict=True)]
    torch.testing.assert_close(steps[0].losses, steps[1].losses)
    assert steps[0].pseudo.weight.equal(steps[1].pseudo.weight)
    assert methods[1].needs == Needs(num_weak=2, num_strong=2, all_strong=None)


# -- edges


def test_a_problem_of_one_class_is_finite(make_problem, make_views):
    method = DebiasPL(make_problem(1))
    step = method(make_views(torch.zeros(2, 1), torch.tensor([0, 0]), torch.ones(3, 1), torch.ones(3, 1)))
    assert [loss.item() for loss in step.losses.values()] == [0, 0]
    assert method.marginal.value.tolist() == [1]


def test_a_predictor_collapsed_to_one_class_is_finite(make_problem, make_views):
    method = DebiasPL(make_problem(3), strength=1.0, momentum=0.0)
    collapsed = torch.tensor([[1000.0, 0.0, 0.0]])
    strong = collapsed.clone().requires_grad_()
    views = make_views(torch.zeros(1, 3), torch.tensor([0]), collapsed, strong)
    method(views)
    assert method.marginal.value.tolist() == [1, 0, 0]
    step = method(views)
    assert step.losses["unlabeled"].isfinite()
    step.losses["unlabeled"].backward()
    assert strong.grad is not None
    assert strong.grad.isfinite().all()


def test_no_confident_label_gives_a_loss_and_a_gradient_of_zero(make_problem, random_views):
    views = random_views(3)
    method = DebiasPL(make_problem(3), threshold=1.0)
    losses = method(views).losses
    assert losses["unlabeled"].item() == 0
    losses["unlabeled"].backward()
    assert views.strong.logits.grad.abs().sum() == 0
    assert method.marginal.value.isfinite().all()


def test_weak_views_get_no_gradient_and_the_marginal_none_either(make_problem, make_views, random_views):
    views = random_views(3)
    weak = copy.deepcopy(views.weak.logits).requires_grad_()
    method = DebiasPL(make_problem(3), threshold=0.1)
    step = method(make_views(views.labeled.logits, views.labels, weak, views.strong.logits))
    torch.stack([*step.losses.values()]).sum().backward()
    assert weak.grad is None


# -- assisted by labels from outside


def assisted(make_problem, views, given: list[list[float]], **settings) -> tuple:
    method = DebiasPL(make_problem(4), threshold=0.7, momentum=0.5, assist_threshold=0.4, **settings)
    alone = DebiasPL(make_problem(4), threshold=0.7, momentum=0.5, **settings)
    return method(replace(views, teacher_probs=torch.tensor(given))), alone(views), method.marginal.value


@pytest.mark.parametrize("num_views", [1, 2])
def test_given_labels_help_where_no_pseudo_label_counts(make_problem, random_views, num_views):
    views = random_views(4, num_unlabeled=3, num_views=num_views)
    for view in (views.weak, *views.further_weak):
        # Of the first image every view is sure, of the others none.
        view.logits.copy_(torch.tensor([[9.0, 0, 0, 0], [0.1, 0, 0, 0], [0.1, 0, 0, 0]]))
    given = [[0.0, 0.9, 0.1, 0.0], [0.0, 0.1, 0.4, 0.1], [0.0, 0.39, 0.3, 0.3]]
    step, alone, marginal = assisted(make_problem, views, given, num_views=num_views, unlabeled_weight=3.0)
    # The second image alone: the first has a pseudo-label, and of the third nobody is sure enough.
    margin = 0.5 * marginal.log()
    strong = [view.logits[1] + margin for view in (views.strong, *views.further_strong)]
    helped = torch.stack([-f.log_softmax(-1)[2] / 3 for f in strong]).mean()
    expected = (alone.losses["unlabeled"] / 3 + helped) / 2 * 3
    torch.testing.assert_close(step.losses["unlabeled"], expected)
    assert step.pseudo.target[:2].tolist() == [0, 2]
    assert step.pseudo.weight.tolist() == [1, 1, 0]


def test_one_sure_view_of_several_is_enough_to_do_without_help(make_problem, random_views):
    views = random_views(4, num_unlabeled=1, num_views=2)
    views.weak.logits.copy_(torch.tensor([[9.0, 0, 0, 0]]))
    views.further_weak[0].logits.copy_(torch.tensor([[0.0, 9, 0, 0]]))
    step, alone, _ = assisted(make_problem, views, [[0.0, 0.0, 1.0, 0.0]], num_views=2)
    # Their mean is not sure, but each of them is.
    assert alone.pseudo.weight.tolist() == [0]
    torch.testing.assert_close(step.losses["unlabeled"], alone.losses["unlabeled"] / 2)


def test_rows_of_zeros_help_nobody(make_problem, random_views):
    views = random_views(4)
    num = len(views.index)
    step, alone, _ = assisted(make_problem, views, [[0.0] * 4] * num)
    torch.testing.assert_close(step.losses["unlabeled"], alone.losses["unlabeled"] / 2)
    assert step.pseudo.weight.equal(alone.pseudo.weight)
