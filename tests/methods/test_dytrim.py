import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from debias_ssl.contract import Needs
from debias_ssl.methods import CCL, CDMAD, DebiasPL, DyTrim, FixMatch, Problem, SimPro, View, Views
from debias_ssl.methods.dytrim import TrimmedLoss, kept_labeled
from debias_ssl.methods.labeled_loss import LabelSmoothing, LogitAdjusted
from debias_ssl.system.errors import InputError
from debias_ssl.training.choices import BASES, TRIMMED

COUNTS = (6, 2)


def problem(counts: tuple[int, ...] = COUNTS, **settings) -> Problem:
    return Problem(num_classes=len(counts), num_features=2, labeled_counts=counts, num_unlabeled=30, **settings)


def in_run(views: Views, progress: float, draws: Tensor | None = None, blank: Tensor | None = None) -> Views:
    """Views at some progress, with numbers that are drawn and a blank image."""
    num = len(views.index)
    draws = torch.rand(num, generator=torch.Generator().manual_seed(0)) if draws is None else draws
    blank = torch.zeros(1, views.weak.logits.shape[1]) if blank is None else blank
    others = View(logits=views.labeled.logits, features=views.labeled.features)
    seen = View(logits=blank, features=torch.zeros(1, 2))
    return replace(views, progress=progress, draws=draws, blank=seen, strong_labeled=others)


def gradients(method: torch.nn.Module, views: Views) -> tuple[dict[str, Tensor], list[Tensor]]:
    losses = method(views).losses
    inputs = [views.labeled.logits, views.strong.logits]
    return losses, [*torch.autograd.grad(torch.stack([*losses.values()]).sum(), inputs, allow_unused=True)]


@pytest.mark.parametrize("base", [*BASES.values(), *TRIMMED.values()])
def test_in_the_last_eighth_it_is_its_base_bit_for_bit(base, make_problem, random_views):
    given = replace(make_problem(4), num_unlabeled=30)
    torch.manual_seed(0)
    ours = DyTrim(given, base=base)
    torch.manual_seed(0)
    theirs = base(given)
    for seed, progress in enumerate((0.875, 0.9, 0.99)):
        views = in_run(random_views(4, seed=seed), progress)
        torch.testing.assert_close(gradients(ours, views), gradients(theirs, views), rtol=0, atol=0)
    torch.testing.assert_close(ours.base.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    before = gradients(ours, in_run(random_views(4, num_labeled=40), 0.8))
    assert not before[1][0].equal(gradients(theirs, in_run(random_views(4, num_labeled=40), 0.8))[1][0])


def test_a_class_loses_its_share_of_what_is_learned_best():
    logits = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 5.0], [9.0, 0.0]])
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    # Two of the four with a share of .6, the surest of them; none of two with a share of .4.
    assert kept_labeled(logits, labels, torch.tensor([0.6, 0.4])).tolist() == [False, True, False, True, True, True]
    assert kept_labeled(logits, labels, torch.tensor([0.0, 0.5])).tolist() == [True, True, True, True, False, True]
    assert kept_labeled(logits, labels, torch.tensor([0.2, 0.0])).all()


def test_the_gradient_of_labeled_images_is_that_of_the_mean_over_those_kept(random_views):
    views = random_views(2, num_labeled=20)
    for loss in (None, LogitAdjusted(problem()), LabelSmoothing(problem())):
        given = problem(labeled_loss=loss)
        trimmed = TrimmedLoss(given)
        plain = trimmed(views.labeled.logits, views.labels, 0.0)
        trimmed.shares = torch.tensor([0.5, 0.2])
        found = trimmed(views.labeled.logits, views.labels, 0.0)
        torch.testing.assert_close(found, plain)
        (gradient,) = torch.autograd.grad(found, views.labeled.logits)
        kept = kept_labeled(views.labeled.logits.detach(), views.labels, trimmed.shares)
        assert 10 < kept.sum() < 20
        rest = views.labeled.logits.detach()[kept].requires_grad_()
        expected = trimmed.loss(rest, views.labels[kept], 0.0)
        torch.testing.assert_close(gradient[kept], torch.autograd.grad(expected, rest)[0])
        assert not gradient[~kept].any()


def test_shares_are_the_labels_at_first_and_then_the_preference_for_a_blank_image(random_views):
    method = DyTrim(problem(), warm_up=0.2)
    blank = torch.tensor([[math.log(3), 0.0]])
    for progress, expected in ((0.0, [0.75, 0.25]), (0.19, [0.75, 0.25]), (0.2, [0.75, 0.25]), (0.8, [0.75, 0.25])):
        assert method.labeled_shares(in_run(random_views(2), progress, blank=blank)).tolist() == pytest.approx(expected)
    late = in_run(random_views(2), 0.5, blank=torch.tensor([[0.0, math.log(3)]]))
    assert method.labeled_shares(late).tolist() == pytest.approx([0.25, 0.75])
    without = DyTrim(problem(), base=FixMatch, blank=None)
    assert without.labeled_shares(replace(late, blank=None)).tolist() == [0.75, 0.25]
    even = DyTrim(problem(class_balanced=True), base=FixMatch, blank=None)
    assert even.labeled_shares(late).tolist()[0] != 0.75 and even.trimmed.prior.tolist() == [0.5, 0.5]


def test_unlabeled_images_below_the_mean_loss_are_kept_at_times_and_count_more(make_views):
    method = DyTrim(problem(), base=partial(FixMatch, threshold=0.6), keep=0.25)
    # The first four are pseudo-labels of the first class; the losses are .05, .05, 1.3, 0 (not confident) and 3.
    weak = torch.tensor([[9.0, 0.0]] * 3 + [[0.0, 0.0]] + [[9.0, 0.0]])
    strong = torch.tensor([[3.0, 0.0], [3.0, 0.0], [-1.0, 0.0], [0.0, 0.0], [-3.0, 0.0]]).requires_grad_()
    views = make_views(torch.zeros(1, 2), torch.tensor([0]), weak, strong)
    views = in_run(views, 0.5, draws=torch.tensor([0.2, 0.3, 0.9, 0.1, 0.9]))
    pseudo = method.base.pseudo_labels(weak, views)
    assert method.factors(views, pseudo).tolist() == [4, 0, 1, 4, 1]
    step = method(views)
    terms = F.cross_entropy(strong, torch.zeros(5, dtype=torch.long), reduction="none")
    expected = (4 * terms[0] + terms[2] + terms[4]) / 5
    torch.testing.assert_close(step.losses["unlabeled"], expected)
    # The log has the base's weights.
    assert step.pseudo.weight.tolist() == [1, 1, 1, 0, 1]


def test_the_expected_unlabeled_loss_is_the_bases(random_views):
    views = random_views(4)
    method = DyTrim(replace(problem((1,) * 4)), base=partial(FixMatch, threshold=0.0), keep=0.3)
    plain = FixMatch(problem((1,) * 4), threshold=0.0)(views).losses["unlabeled"]
    draws = torch.linspace(0, 1, 100)[:-1]
    losses = [method(in_run(views, 0.5, draws=each.expand(30))).losses["unlabeled"] for each in draws]
    torch.testing.assert_close(torch.stack(losses).mean(), plain, rtol=0.03, atol=0)
    assert max(losses) > 1.1 * plain > 1.1 * min(losses)


def test_with_everything_kept_it_is_its_base(random_views):
    # A share of .2 of two images of a class is none.
    views = in_run(random_views(2, num_labeled=2), 0.1)
    method = DyTrim(problem((5, 5)), base=partial(FixMatch, threshold=0.5), keep=1.0)
    method.trimmed.prior.fill_(0.2)
    expected = gradients(FixMatch(problem((5, 5)), threshold=0.5), views)
    torch.testing.assert_close(gradients(method, views), expected)


def test_it_asks_for_what_its_base_asks_for_and_for_numbers():
    needs = Needs(draws=True, all_strong="drops images by the mean loss of all strong views")
    assert DyTrim(problem()).needs == replace(needs, blank="ones")
    assert DyTrim(problem(), base=partial(CDMAD, blank="white")).needs == replace(needs, blank="white")
    assert DyTrim(problem(), base=FixMatch, blank=None).needs == needs


def test_the_base_predicts(random_views):
    view, blank = random_views(2).weak, random_views(2, seed=1).weak
    assert DyTrim(problem()).predict(view, blank).equal(view.logits - blank.logits)
    method = DyTrim(problem(), base=CCL)
    assert method.predict(view).equal(method.base.predict(view))


@pytest.mark.parametrize("base", [SimPro, DebiasPL, DyTrim])
def test_a_base_with_an_order_of_its_own_is_refused(base):
    with pytest.raises(InputError, match=f"method.base is {base.__name__}, which has its own order of a step"):
        DyTrim(problem(), base=base)
