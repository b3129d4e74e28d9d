import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from debias_ssl.methods import CPG, Problem, Supervised, Views
from debias_ssl.methods.labeled_loss import LogitAdjusted

COUNTS = (6, 2)


def problem(num_unlabeled: int = 4, **settings) -> Problem:
    return Problem(num_classes=2, num_features=2, labeled_counts=COUNTS, num_unlabeled=num_unlabeled, **settings)


# Four windows, no warm-up, and no second head.
make = partial(CPG, threshold=0.855, warm_up=0.0, window=0.25, auxiliary_weight=0.0)


def views_at(make_views, progress: float, weak: Tensor, strong: Tensor | None = None, index=(0, 1, 2, 3)) -> Views:
    strong = weak if strong is None else strong
    views = make_views(torch.zeros(1, 2), torch.tensor([1]), weak, strong.clone().requires_grad_())
    return replace(views, progress=progress, index=torch.tensor(index))


SURE = torch.tensor([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0], [0.0, 0.0]])


def test_before_the_first_admission_it_is_logit_adjustment_on_labels(random_views):
    views = random_views(2, num_unlabeled=4)
    given = problem()
    theirs = Supervised(replace(given, labeled_loss=LogitAdjusted(given)))
    for progress in (0.0, 0.1, 0.24):
        views = replace(views, progress=progress)
        step = make(given)(views)
        torch.testing.assert_close(step.losses["labeled"], theirs(views).losses["labeled"])
        assert all(loss == 0 for name, loss in step.losses.items() if name != "labeled")
        assert step.pseudo.weight.tolist() == [0, 0, 0, 0]


def test_votes_ask_both_views_and_agreement(make_views):
    method = make(problem())
    # The second image's views disagree; the third's strong view is unsure (.731); the fourth's are.
    strong = torch.tensor([[3.0, 0.0], [3.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    method(views_at(make_views, 0.0, SURE, strong))
    assert method.memory.votes.tolist() == [[1, 0], [0, 0], [0, 0], [0, 0]]
    assert method.memory.seen.tolist() == [1, 1, 1, 1]


def test_a_window_admits_what_enough_votes_agree_on(make_views):
    method = make(problem(5), least=0.5, agreement=0.7)
    votes = torch.tensor([[8, 0], [7, 3], [3, 9], [2, 2], [0, 0]])
    method.memory.votes.copy_(votes)
    method.memory.seen.copy_(torch.tensor([16, 10, 12, 4, 9]))
    method.windows.number.fill_(1)
    method(views_at(make_views, 0.3, torch.zeros(4, 2)))
    # Half of the looks is enough, seven tenths of the votes are not.
    assert method.labels.tolist() == [[8, 0], [0, 0], [3, 9], [0, 0], [0, 0]]
    assert method.admitted.tolist() == [1, 1]
    # What is there now is of the step itself.
    assert method.memory.votes.sum() == 0 and method.memory.seen.tolist() == [1, 1, 1, 1, 0]


def test_an_image_leaves_when_it_is_not_admitted_again_and_stays_where_no_look_fell_on_it(make_views):
    method = make(problem())
    for progress in (0.0, 0.1):
        method(views_at(make_views, progress, SURE))
    method(views_at(make_views, 0.3, torch.zeros(2, 2), index=(0, 0)))
    assert method.labels.tolist() == [[2, 0], [0, 2], [2, 0], [0, 0]] and method.admitted.tolist() == [2, 1]
    method(views_at(make_views, 0.6, torch.zeros(2, 2), index=(3, 3)))
    assert method.labels.tolist() == [[0, 0], [0, 2], [2, 0], [0, 0]] and method.admitted.tolist() == [1, 1]
    # Two windows later: that of the last step was the one that ended.
    method(views_at(make_views, 0.99, torch.zeros(2, 2), index=(3, 3)))
    assert method.admitted.tolist() == [1, 1]


def test_no_vote_is_given_in_the_warm_up(make_views):
    method = CPG(problem(), warm_up=0.5, window=0.1)
    method(views_at(make_views, 0.4, SURE))
    assert method.memory.seen.sum() == 0
    method(views_at(make_views, 0.5, SURE))
    assert method.memory.seen.sum() == 4 and method.labels.sum() == 0


def admitting(method: CPG, labels: list[list[int]]) -> CPG:
    method.labels.copy_(torch.tensor(labels))
    given = method.labels[method.labels.sum(1) > 0].argmax(1)
    method.admitted.copy_(torch.bincount(given, minlength=2))
    return method


def test_losses_worked(make_views):
    method = admitting(make(problem()), [[9, 1], [0, 0], [0, 5], [0, 0]])
    step = method(views_at(make_views, 0.1, torch.zeros(4, 2)))
    # Labels (6, 2) and admitted (1, 1): 7 and 3 of ten.
    assert method.prior.tolist() == pytest.approx([0.7, 0.3])
    assert step.losses["labeled"].item() == pytest.approx(8 / 10 * -math.log(0.3))
    soft = -0.9 * math.log(0.7) - 0.1 * math.log(0.3)
    assert step.losses["unlabeled"].item() == pytest.approx(4 / 10 * (soft - math.log(0.3)) / 4)
    assert step.pseudo.weight.tolist() == [1, 0, 1, 0]
    assert step.pseudo.target.tolist()[0] == pytest.approx([0.9, 0.1]) and step.pseudo.target.tolist()[2] == [0, 1]


def test_the_loss_is_the_mean_over_labeled_and_admitted_images(random_views):
    """As if they were one set, of which a step has all."""
    method = admitting(make(problem()), [[4, 0], [0, 0], [1, 9], [0, 0]])
    views = random_views(2, num_labeled=8, num_unlabeled=4)
    step = method(views)
    logits = torch.cat([views.labeled.logits, views.strong.logits[[0, 2]]]) + method.prior.log()
    targets = torch.cat([F.one_hot(views.labels, 2).float(), torch.tensor([[1.0, 0.0], [0.1, 0.9]])])
    expected = F.cross_entropy(logits, targets)
    torch.testing.assert_close(step.losses["labeled"] + step.losses["unlabeled"], expected)


def test_votes_are_given_by_the_shares_of_the_admitted(make_views):
    method = make(problem(8))
    assert method.admitted_prior.tolist() == [0.5, 0.5]
    # One more than the rarest label (2) has: a class below that has as many as the smallest above.
    method.admitted.copy_(torch.tensor([9.0, 3.0]))
    assert method.admitted_prior.tolist() == [0.75, 0.25]
    for few in (0.0, 1.0, 2.0):
        method.admitted.copy_(torch.tensor([9.0, few]))
        assert method.admitted_prior.tolist() == [0.5, 0.5]
    method = admitting(make(problem(12)), [[1, 0]] * 9 + [[0, 1]] * 3)
    # Odds of 3 for the first class: its confidence grows from .731 to .891, that of the other falls from .881 to .711.
    weak = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0], [0.0, 1.0]])
    method(views_at(make_views, 0.1, weak))
    assert method.memory.votes[:4].tolist() == [[1, 0], [0, 0], [1, 0], [0, 0]]


def test_the_second_head_learns_from_all_images(make_views):
    method = CPG(problem(), auxiliary_weight=2.0)
    with torch.no_grad():
        method.head.weight.copy_(torch.eye(2))
        method.head.bias.zero_()
    views = views_at(make_views, 0.0, torch.zeros(4, 2))
    log3 = math.log(3)
    weak = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    views = replace(
        views,
        weak=replace(views.weak, features=weak),
        strong=replace(views.strong, features=torch.tensor([[log3, 0.0]] * 4)),
    )
    losses = method(views).losses
    assert losses["auxiliary"].item() == pytest.approx(2 * math.log(4))
    assert losses["consistency"].item() == pytest.approx(2 * (3 * math.log(4 / 3) + math.log(4)) / 4)


def test_the_state_with_admissions_in_flight_goes_on_as_before(make_views):
    def steps(method: CPG, start: int, stop: int) -> list[dict[str, Tensor]]:
        found = []
        for k in range(start, stop):
            generator = torch.Generator().manual_seed(k)
            weak = SURE + torch.randn(4, 2, generator=generator)
            found.append(method(views_at(make_views, k / 40, weak)).losses)
        return found

    for stop in (7, 10, 13, 29):
        torch.manual_seed(0)
        whole, first = make(problem()), make(problem())
        first.head.load_state_dict(whole.head.state_dict())
        before = steps(whole, 0, stop)
        assert len(steps(first, 0, stop)) == len(before)
        other = make(problem())
        other.load_state_dict(first.state_dict())
        after, resumed = steps(whole, stop, 40), steps(other, stop, 40)
        torch.testing.assert_close(after, resumed, rtol=0, atol=0)
        torch.testing.assert_close(whole.state_dict(), other.state_dict(), rtol=0, atol=0)
        assert whole.admitted.sum() > 0 and any(losses["unlabeled"] > 0 for losses in after)
