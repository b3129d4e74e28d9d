import math
from dataclasses import replace

import pytest
import torch

from debias_ssl.methods import DASO, FixMatch, View, Views


def with_features(views: Views, seed: int = 0, progress: float = 1.0) -> Views:
    generator = torch.Generator().manual_seed(seed)

    def seen(view: View) -> View:
        return replace(view, features=torch.randn(len(view.logits), 2, generator=generator))

    return replace(
        views, labeled=seen(views.labeled), weak=seen(views.weak), strong=seen(views.strong), progress=progress
    )


def test_in_the_warm_up_it_is_fixmatch(make_problem, random_views):
    method, other = DASO(make_problem(4), threshold=0.7, warm_up=0.5), FixMatch(make_problem(4), threshold=0.7)
    for seed in range(2):
        views = with_features(random_views(4, seed=seed), seed, progress=0.49)
        ours, theirs = method(views), other(views)
        assert ours.losses.pop("align").item() == 0
        assert all(ours.losses[name].equal(loss) for name, loss in theirs.losses.items())
        assert ours.pseudo.target.equal(theirs.pseudo.target) and ours.pseudo.weight.equal(theirs.pseudo.weight)
    assert method(with_features(random_views(4), progress=0.5)).losses["align"] > 0


def test_a_step_worked(make_problem, make_views):
    method = DASO(make_problem(2), threshold=0.6, temperature=0.5, prototype_temperature=1.0, momentum=0.5)
    method.distribution.value.copy_(torch.tensor([0.8, 0.2]))
    method.prototypes.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.2]]))
    # v = (1, 1/16). Image 0, of class 0 to the classifier, has the prototypes' prediction; it is (e^0, e^1) normalized.
    # Image 1, of class 1, is (.25, .75) to the classifier and (.5, .5) to the prototypes.
    weak = torch.tensor([[5.0, 0.0], [0.0, math.log(3)]])
    views = make_views(torch.zeros(1, 2), torch.tensor([0]), weak, torch.zeros(2, 2))
    features = {
        "labeled": torch.tensor([[0.0, 4.0]]),
        "weak": torch.tensor([[0.0, 7.0], [1.0, 1.0]]),
        "strong": torch.tensor([[-2.0, 0.0], [0.5, 0.0]]),
    }
    seen = {name: replace(getattr(views, name), features=value) for name, value in features.items()}
    step = method(replace(views, **seen, progress=1.0))
    semantic = torch.tensor([[0.0, 1.0], [math.sqrt(0.5), math.sqrt(0.5)]]).softmax(-1)
    blended = torch.stack([semantic[0], torch.tensor([0.25, 0.75]).lerp(semantic[1], 1 / 16)])
    assert step.pseudo.target.tolist() == [1, 1] and step.pseudo.weight.tolist() == [1, 1]
    torch.testing.assert_close(method.distribution.value, (torch.tensor([0.8, 0.2]) + blended.mean(0)) / 2)
    log_strong = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).log_softmax(-1)
    torch.testing.assert_close(step.losses["align"], -(semantic * log_strong).sum(1).mean())
    assert step.losses["unlabeled"].item() == pytest.approx(math.log(2))
    # The prototype of the class that is in the batch moves half way, the other stays.
    torch.testing.assert_close(method.prototypes, torch.tensor([[1.5, 2.0], [0.0, 0.2]]))


@pytest.mark.parametrize("temperature", [0.3, 1.5])
def test_frequent_pseudo_labels_are_the_prototypes(temperature, make_problem):
    method = DASO(make_problem(3), temperature=temperature)
    method.distribution.value.copy_(torch.tensor([0.6, 0.3, 0.1]))
    expected = [1, 0.5 ** (1 / temperature), (1 / 6) ** (1 / temperature)]
    assert method.semantic_share.tolist() == pytest.approx(expected)


def test_prototypes_are_directions_whatever_the_length_of_features(make_problem):
    method = DASO(make_problem(2))
    features, labels = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 0, 1])
    method.update_prototypes(features, labels)
    once = method.similarities(features)
    torch.testing.assert_close(once * 0.05, torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(method.similarities(7 * features), once)


def test_classes_without_a_prototype_and_features_of_zero_are_finite(make_problem, random_views):
    method = DASO(make_problem(4), warm_up=0.0)
    views = random_views(4)
    step = method(replace(views, progress=0.0))
    torch.stack([*step.losses.values()]).sum().backward()
    assert all(loss.isfinite() for loss in step.losses.values())
    assert views.strong.logits.grad.isfinite().all()
    assert method.similarities(torch.ones(1, 2)).tolist() == [[0, 0, 0, 0]]


def test_the_alignment_trains_strong_features_only(make_problem, random_views):
    views = with_features(random_views(3))
    method = DASO(make_problem(3))
    method.prototypes.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    for name in ("labeled", "weak", "strong"):
        getattr(views, name).features.requires_grad_()
    views = replace(views, weak=View(logits=views.weak.logits, features=views.weak.features.detach()))
    method(views).losses["align"].backward()
    assert views.strong.features.grad is not None and views.strong.features.grad.abs().sum() > 0
    assert views.labeled.features.grad is None


def test_prototypes_and_distribution_are_saved_and_restored(make_problem, random_views):
    method, other = DASO(make_problem(3)), DASO(make_problem(3))
    method(with_features(random_views(3)))
    assert method.state_dict().keys() == {"prototypes", "distribution.value"}
    other.load_state_dict(method.state_dict())
    views = with_features(random_views(3, seed=1), 1)
    ours, theirs = method(views).losses, other(views).losses
    assert all(ours[name].equal(theirs[name]) for name in ours)
