"""Classes that are drawn equally often are not corrected for a second time.

Features say nothing here: the logits of all images are one free vector f, which ends at a preference for classes. A
loss that corrects for uneven labels leaves none, however labels are drawn.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from launched import DIGITS
from torch import Tensor

from debias_ssl import train
from debias_ssl.contract import Problem, View, Views
from debias_ssl.methods import ABC, CPG, CSST, EvenMatch, FixMatch, Method, SimPro
from debias_ssl.methods.labeled_loss import (
    AdaptiveMargin,
    Balanced,
    CrossEntropy,
    Equalized,
    LabelAwareSmoothing,
    LabeledLoss,
    LogitAdjusted,
)

COUNTS = (32, 8, 4, 4)
LOG_PRIOR = (torch.tensor(COUNTS) / sum(COUNTS)).log()


def problem(balanced: bool, counts: tuple[int, ...] = COUNTS) -> Problem:
    return Problem(
        num_classes=len(counts), num_features=2, labeled_counts=counts, num_unlabeled=96, class_balanced=balanced
    )


def drawn(balanced: bool) -> Tensor:
    """The labels of many steps."""
    each = (12,) * 4 if balanced else COUNTS
    return torch.arange(4).repeat_interleave(torch.tensor(each))


def converged(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """f at the end of training, with mean 0."""
    torch.manual_seed(0)
    f = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.SGD([f], lr=1.0)
    for _ in range(400):
        optimizer.zero_grad()
        loss(f).backward()
        optimizer.step()
    return (f - f.mean()).detach()


# The last part of an AdaptiveMargin run: its weights, without margins.
REWEIGHTED = {"max_margin": 0.0, "reweight_from": 0.0, "beta": 0.999999}


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize(
    "make",
    [LogitAdjusted, Balanced, lambda given: AdaptiveMargin(given, **REWEIGHTED)],
    ids=["adjusted", "alpha", "drw"],
)
def test_a_loss_for_even_classes_ends_without_a_preference(make: Callable[[Problem], LabeledLoss], balanced: bool):
    loss, labels = make(problem(balanced)), drawn(balanced)
    found = converged(lambda f: loss(f.expand(len(labels), -1), labels, 0.9))
    torch.testing.assert_close(found, torch.zeros(4), atol=1e-3, rtol=0)


def test_cross_entropy_ends_at_what_is_drawn():
    for balanced, expected in ((True, torch.zeros(4)), (False, LOG_PRIOR - LOG_PRIOR.mean())):
        loss, labels = CrossEntropy(problem(balanced)), drawn(balanced)
        found = converged(lambda f, loss=loss, labels=labels: loss(f.expand(len(labels), -1), labels, 0.0))
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_drawn_evenly_no_class_is_rare():
    given, logits = problem(True, (70, 10)), torch.tensor([[0.0, 5.0]])
    loss, label = Equalized(given, drop=1.0), torch.tensor([0])
    assert loss(logits, label, 0.0).equal(CrossEntropy(given)(logits, label, 0.0))


def test_what_measures_how_much_there_is_stays():
    even, uneven = problem(True), problem(False)
    logits, labels = torch.randn(48, 4, generator=torch.Generator().manual_seed(0)), drawn(False)
    for kind in (AdaptiveMargin, LabelAwareSmoothing):
        assert kind(even)(logits, labels, 0.0).equal(kind(uneven)(logits, labels, 0.0)), kind
    # The effective number of images saturates: a class has the same part in the loss, reweighted or drawn evenly.
    for beta in (0.5, 0.9, 0.999):
        parts = []
        for given, each in ((even, drawn(True)), (uneven, drawn(False))):
            loss = AdaptiveMargin(given, max_margin=0.0, reweight_from=0.0, beta=beta)
            of_class = [loss(logits[:1].expand(int((each == k).sum()), -1), each[each == k], 0.9) for k in range(4)]
            share = each.bincount() / len(each)
            parts.append(torch.stack(of_class) * share)
        torch.testing.assert_close(*parts)


def views_of(f: Tensor, labels: Tensor, progress: float = 0.0) -> Views:
    """Views whose logits are f, and which have no features."""

    def view(num: int, logits: Tensor = f) -> View:
        return View(logits=logits.expand(num, -1), features=torch.zeros(num, 2))

    return Views(
        labeled=view(len(labels)),
        labels=labels,
        weak=view(8, f.detach()),
        strong=view(8),
        index=torch.arange(8),
        progress=progress,
    )


METHODS: dict[str, Callable[[Problem], Method]] = {
    "evenmatch": lambda given: EvenMatch(given, unlabeled_weight=0.0),
    "simpro": lambda given: SimPro(given, strength=1.0, unlabeled_weight=0.0),
    "cpg": lambda given: CPG(given, auxiliary_weight=0.0),
    "csst": lambda given: CSST(given, unlabeled_weight=0.0),
    "csst, mean recall": lambda given: CSST(given, objective="mean_recall", unlabeled_weight=0.0),
    "fixmatch, adjusted": lambda given: FixMatch(
        replace(given, labeled_loss=LogitAdjusted(given)), unlabeled_weight=0.0
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_corrects_for_the_labels_ends_without_a_preference(name: str):
    method, labels = METHODS[name](problem(True)), drawn(True)
    found = converged(lambda f: method(views_of(f, labels)).losses["labeled"])
    torch.testing.assert_close(found, torch.zeros(4), atol=1e-3, rtol=0)
    if name != "simpro":  # Its prior is also that of the unlabeled images, which it takes for even at first.
        method, labels = METHODS[name](problem(False)), drawn(False)
        found = converged(lambda f: method(views_of(f, labels)).losses["labeled"])
        torch.testing.assert_close(found, torch.zeros(4), atol=1e-3, rtol=0)


def test_simpro_counts_labeled_images_as_they_are_drawn():
    even, uneven = SimPro(problem(True)), SimPro(problem(False))
    torch.testing.assert_close(even.prior, torch.full((4,), 0.25))
    # A third of all images are labeled.
    torch.testing.assert_close(uneven.prior, (2 / 4 + LOG_PRIOR.exp()) / 3)


def test_abcs_head_sees_every_class_equally_often_either_way():
    for balanced in (True, False):
        method, labels = ABC(problem(balanced)), drawn(balanced).repeat(4000)
        with torch.no_grad():
            method.head.weight.zero_()
            method.head.bias.zero_()
        torch.manual_seed(0)
        method(views_of(torch.zeros(4), labels)).losses["auxiliary"].backward()
        assert method.head.bias.grad is not None and method.head.bias.grad.abs().max() < 0.005
        # Unlabeled images come as they are.
        assert method.keep.tolist() == [4 / 32, 4 / 8, 1, 1]


def test_csst_takes_the_unlabeled_images_as_they_are():
    views = views_of(torch.tensor([3.0, 0.0, 0.0, 0.0]), drawn(True))
    even, uneven = (CSST(problem(balanced), threshold=100.0)(views).losses for balanced in (True, False))
    assert even["unlabeled"].equal(uneven["unlabeled"]) and not even["labeled"].isclose(uneven["labeled"])


def test_classes_without_labels_are_not_drawn():
    given = problem(True, (30, 6, 0))
    assert given.sampled_counts == (18, 18, 0) and given.labeled_prior == (0.5, 0.5, 0)
    assert problem(False, (30, 6, 0)).sampled_counts == (30, 6, 0)


def losses_of(out: Path, *flags: str) -> list[float]:
    data = ["--data.labels_per_class", "20", "--data.labeled_imbalance", "10", "--batch_size", "20"]
    steps = ["--steps", "3", "--log_every", "1", "--eval_every", "3", "--checkpoint_every", "3"]
    train.main(["--config", str(DIGITS), *steps, *data, *flags, "--out", str(out)])
    records = [yaml.safe_load(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"]["labeled"] for record in records if "loss" in record]


def test_a_run_of_evenly_drawn_classes_is_not_adjusted(tmp_path: Path):
    flags = ["--method", "FixMatch", "--class_balanced", "true", "--labeled_loss"]
    plain, adjusted = (losses_of(tmp_path / name, *flags, name) for name in ("CrossEntropy", "LogitAdjusted"))
    assert adjusted == pytest.approx(plain, rel=1e-4)
