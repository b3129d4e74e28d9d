import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from debias_ssl.methods import FineSSL, FixMatch, Problem, Supervised, Views
from debias_ssl.training.optim import OptimConfig, make_optimizer

LOG3 = math.log(3)


def problem(num_classes: int = 2, num_unlabeled: int = 30) -> Problem:
    return Problem(
        num_classes=num_classes, num_features=2, labeled_counts=(1,) * num_classes, num_unlabeled=num_unlabeled
    )


def with_features(views: Views, labeled: Tensor, weak: Tensor, strong: Tensor) -> Views:
    seen = {"labeled": labeled, "weak": weak, "strong": strong}
    return replace(views, **{name: replace(getattr(views, name), features=features) for name, features in seen.items()})


def identity(method: FineSSL) -> FineSSL:
    """A second head whose logits are the features."""
    with torch.no_grad():
        method.head.weight.copy_(torch.eye(2))
        method.head.bias.zero_()
    return method


def sure(method: FineSSL) -> FineSSL:
    """A second head whose confidence is 1, whatever the features."""
    with torch.no_grad():
        method.head.bias.copy_(torch.tensor([100.0] + [0.0] * (method.problem.num_classes - 1)))
    return method


def remembering(method: FineSSL, *counts: int) -> FineSSL:
    """So many images of each class are in the memory."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    method.memory.value[: len(labels)] = labels.int()
    return method


def test_margins_worked():
    # sigma = (1, 1/2, 0): 8 (0, 1/3, 1) * 1.
    assert remembering(FineSSL(problem(3)), 4, 2, 0).margins.tolist() == pytest.approx([0, 8 / 3, 8])
    # sigma = (1, 1/2, 1/2): the spread is a half.
    assert remembering(FineSSL(problem(3), margin=6.0), 4, 2, 2).margins.tolist() == pytest.approx([0, 1, 1])
    # Nothing is known, or all classes are equally far: no margins.
    assert FineSSL(problem(3)).margins.tolist() == [0, 0, 0]
    assert remembering(FineSSL(problem(3)), 5, 5, 5).margins.tolist() == [0, 0, 0]


def test_losses_worked(make_views):
    # sigma = (1, 0): a margin of log 3 for the second class, which others get.
    method = identity(remembering(FineSSL(problem(), margin=LOG3, unlabeled_weight=2.0), 3, 0))
    weak = torch.tensor([[0.0, LOG3], [math.log(1.5), 0.0]])
    views = make_views(torch.zeros(1, 2), torch.tensor([1]), weak, torch.zeros(2, 2))
    # The second head is 3/4 and 1/2 sure of them, and says (1/4, 3/4) of the labeled and of the strong ones.
    says = torch.tensor([[0.0, LOG3]])
    step = method(with_features(views, says, torch.tensor([[LOG3, 0.0], [0.0, 0.0]]), says.repeat(2, 1)))
    # (.5, .5) with a margin of log 3 is (.75, .25).
    assert step.losses["labeled"].item() == pytest.approx(math.log(4))
    assert step.pseudo.target.tolist() == [1, 0] and step.pseudo.weight.tolist() == pytest.approx([0.75, 0.5])
    # The first one's label has a margin, the second one's has none.
    assert step.losses["unlabeled"].item() == pytest.approx(2 * (0.75 * math.log(4) + 0.5 * math.log(2)) / 2)
    assert step.losses["confidence_labeled"].item() == pytest.approx(math.log(4 / 3))
    # The first one alone is confident (3/4): half of its label is the other class.
    smoothed = 0.5 * math.log(4 / 3) + 0.5 * math.log(4)
    assert step.losses["confidence_unlabeled"].item() == pytest.approx(smoothed / 2)


def test_smoothing_spares_the_label_and_sums_to_one():
    method = FineSSL(problem(4), smoothing=0.3)
    found = method._smoothed(torch.tensor([2, 0]))
    assert found.tolist() == [pytest.approx([0.1, 0.1, 0.7, 0.1]), pytest.approx([0.7, 0.1, 0.1, 0.1])]


def test_margins_are_of_the_steps_before_and_confident_labels_are_remembered(make_views):
    method = FineSSL(problem(num_unlabeled=3))
    weak = torch.tensor([[5.0, 0.0], [5.0, 0.0], [0.1, 0.0]])
    views = make_views(torch.zeros(1, 2), torch.tensor([1]), weak, torch.zeros(3, 2))
    assert method(views).losses["labeled"].item() == pytest.approx(math.log(2))
    assert method.memory.value.tolist() == [0, 0, -1] and method.margins.tolist() == [0, 8]
    # The labeled image is of the class that no image is confident of.
    assert method(views).losses["labeled"].item() == pytest.approx(math.log(1 + math.e**8))


def test_without_margins_and_with_a_sure_head_it_is_fixmatch_with_threshold_zero(random_views):
    views = random_views(3)
    ours = sure(remembering(FineSSL(problem(3), margin=0.0), 5, 1, 0))(views)
    theirs = FixMatch(problem(3), threshold=0.0, unlabeled_weight=3.0)(views)
    assert all(ours.losses[name].equal(loss) for name, loss in theirs.losses.items())
    assert ours.pseudo.target.equal(theirs.pseudo.target) and ours.pseudo.weight.equal(theirs.pseudo.weight)
    # A margin, or a head that is not sure, makes another loss.
    for other in (sure(remembering(FineSSL(problem(3)), 5, 1, 0)), FineSSL(problem(3), margin=0.0)):
        assert not other(views).losses["unlabeled"].isclose(theirs.losses["unlabeled"])


def test_without_weight_and_margins_it_is_supervised(random_views):
    views = random_views(3)
    ours = remembering(FineSSL(problem(3), margin=0.0, unlabeled_weight=0.0), 5, 1, 0)(views)
    assert ours.losses["labeled"].equal(Supervised(problem(3))(views).losses["labeled"])
    assert ours.losses["unlabeled"].item() == 0


def test_the_network_is_trained_like_fixmatchs(make_learner, make_batch):
    states = []
    for kind in (
        lambda problem: FixMatch(problem, threshold=0.0, unlabeled_weight=3.0),
        lambda problem: sure(FineSSL(problem, margin=0.0)),
    ):
        learner = make_learner(kind)
        optimizer = make_optimizer(learner, OptimConfig(lr=0.01))
        for k in range(4):
            torch.stack([*learner(make_batch(seed=k), k / 4).losses.values()]).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        states.append([*learner.raw.model.parameters()])
    assert all(a.equal(b) for a, b in zip(*states, strict=True))


def test_the_second_head_learns_and_touches_no_feature(make_views):
    features = [torch.randn(3, 2).requires_grad_() for _ in range(3)]
    views = make_views(torch.zeros(3, 2), torch.tensor([1, 1, 1]), torch.eye(2)[[0, 1, 0]] * 9, torch.zeros(3, 2))
    method = FineSSL(problem(num_unlabeled=3))
    losses = method(with_features(views, *features)).losses
    (losses["confidence_labeled"] + losses["confidence_unlabeled"]).backward()
    assert all(each.grad is None for each in features)
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in method.head.parameters())


def test_the_network_predicts_and_pseudo_labels_get_no_gradient(random_views):
    views = random_views(3)
    weak = views.weak.logits.clone().requires_grad_()
    method = FineSSL(problem(3))
    step = method(replace(views, weak=replace(views.weak, logits=weak)))
    torch.stack([*step.losses.values()]).sum().backward()
    assert weak.grad is None and views.strong.logits.grad.abs().sum() > 0
    assert not step.pseudo.weight.requires_grad
    assert method.predict(views.weak) is views.weak.logits


def test_head_and_memory_are_saved_and_restored(random_views):
    first, second = random_views(3, seed=0), random_views(3, seed=1)
    method, other = FineSSL(problem(3)), FineSSL(problem(3))
    method(first)
    assert method.state_dict().keys() == {"head.weight", "head.bias", "memory.value"}
    other.load_state_dict(method.state_dict())
    ours, theirs = method(second), other(second)
    assert all(loss.equal(theirs.losses[name]) for name, loss in ours.losses.items())
    fresh = FineSSL(problem(3))(second)
    assert not ours.losses["labeled"].isclose(fresh.losses["labeled"])


def test_margins_make_a_rare_class_win_by_more(random_views):
    """A gradient of the labeled loss that is larger the fewer confident images a class has."""
    logits = torch.zeros(2, 2, requires_grad=True)
    views = replace(random_views(2, num_labeled=2), labels=torch.tensor([0, 1]))
    views = replace(views, labeled=replace(views.labeled, logits=logits))
    remembering(FineSSL(problem(), margin=2.0), 4, 0)(views).losses["labeled"].backward()
    assert logits.grad is not None
    frequent, rare = logits.grad.diagonal()
    assert rare < frequent < 0
    expected = F.softmax(torch.tensor([2.0, 0.0]), -1)[0] / 2
    assert rare.item() == pytest.approx(-expected.item())
