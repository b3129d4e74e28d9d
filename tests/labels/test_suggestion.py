"""Which images are suggested: what is unsure and unlike the labeled ones, and some of each class."""

from pathlib import Path

import numpy as np
import pytest
import torch

from debias_ssl.labels.annotation import suggestion
from debias_ssl.labels.annotation.candidates import Candidates
from debias_ssl.labels.annotation.suggestion import by_uncertainty, candidates, class_shares, suggest_images, unsure
from debias_ssl.labels.tables.truth import RowNumbers
from debias_ssl.system.errors import InputError

# Three groups of ten images, and three images far from all.
CENTERS = np.array([[9.0, 0, 0], [0, 9, 0], [0, 0, 9]])
GROUPS = np.repeat(np.arange(3), 10)


def made(logits: np.ndarray | None, features: np.ndarray | None = None) -> Candidates:
    if features is None:
        features = CENTERS[GROUPS] + np.random.default_rng(0).normal(size=(30, 3))
    values = torch.from_numpy(features).float()
    return Candidates(
        names=RowNumbers(len(values)),
        root=Path(),
        classes=() if logits is None else tuple("abc"),
        logits=() if logits is None else torch.from_numpy(logits).float().split(7),
        features=lambda rows: values[torch.from_numpy(rows)],
        notes=(),
    )


def logits_of(groups: np.ndarray, gap: np.ndarray | float = 3.0) -> np.ndarray:
    return np.eye(3)[groups] * np.broadcast_to(gap, len(groups))[:, None]


def rows(images: Candidates, labeled: list[int], num: int, per_class: int = 0) -> list[int]:
    is_labeled = np.zeros(len(images.names), dtype=bool)
    is_labeled[labeled] = True
    found = suggest_images(images, is_labeled, num=num, per_class=per_class, seed=0)
    assert found.after == pytest.approx(found.before + sum(each.covers for each in found.chosen))
    return [each.row for each in found.chosen]


def test_the_first_images_are_of_different_groups_and_more_go_on_with_them():
    chosen = rows(made(None), [], 5)
    assert {*GROUPS[chosen[:3]]} == {0, 1, 2}
    assert len({*chosen}) == 5 and chosen[:3] == rows(made(None), [], 3)


def test_labeled_images_are_not_suggested_and_count_as_chosen():
    chosen = rows(made(None), [0, 10], 1)
    assert GROUPS[chosen[0]] == 2
    assert {*rows(made(None), [*range(27)], 9)} == {27, 28, 29}
    with pytest.raises(InputError, match="nothing to suggest"):
        rows(made(None), [*range(30)], 1)


def test_unsure_images_come_first_whatever_the_temperature():
    gap = np.where(GROUPS == 1, 0.1, 5.0) + np.linspace(0, 0.01, 30)
    for temperature in (0.1, 1.0, 10.0):
        assert GROUPS[rows(made(logits_of(GROUPS, gap / temperature)), [], 1)[0]] == 1


def test_weights_are_the_shares_of_those_that_are_as_sure():
    np.testing.assert_allclose(unsure(np.array([3.0, 1, 2, 2])), [1 / 4, 1, 3 / 4, 3 / 4])


def test_each_predicted_class_has_its_images():
    # One image alone is predicted as c, and stands for nothing else.
    groups = np.where(np.arange(30) == 4, 2, np.where(GROUPS == 1, 1, 0))
    gap = np.where(groups == 2, 9.0, 1.0)
    images = made(logits_of(groups, gap))
    assert 4 not in rows(images, [], 6)
    chosen = rows(images, [], 6, per_class=2)
    assert 4 in chosen and np.bincount(groups[chosen], minlength=3).min() == 1
    assert np.bincount(groups[chosen], minlength=3)[:2].min() >= 2
    # Where there are fewer than classes, those of the most uncertain shares have theirs.
    found = suggest_images(images, np.zeros(30, dtype=bool), num=2, per_class=1, seed=0)
    assert [each.of_class for each in found.chosen] == found.class_order[:2].tolist()


def test_classes_that_are_confused_have_uncertain_shares():
    random = np.random.default_rng(0)
    truth = np.arange(600) % 3
    means = np.array([[1.0, 0, 0], [-1, 0, 0], [0, 6, 0]])
    values = means[truth] + random.normal(size=(600, 3))
    logits = torch.from_numpy(values @ means.T - np.square(means).sum(1) / 2).float()
    share = logits.softmax(-1).double().mean(0).numpy()
    found = class_shares(logits, share, 600)
    assert ((found.low < share) & (share < found.high)).all()
    assert by_uncertainty(found)[-1] == 2
    narrow = class_shares(logits, share, 60_000)
    np.testing.assert_allclose(narrow.high - share, (found.high - share) / 10, rtol=1e-6)


def test_candidates_of_many_images_are_drawn_with_some_of_each_class(monkeypatch):
    monkeypatch.setattr(suggestion, "FEWEST", 40)
    label, is_labeled = np.zeros(1000, dtype=np.int64), np.arange(1000) % 2 == 0
    label[[1, 3, 5]] = 1
    label[-300:] = 2
    found = candidates(label, is_labeled, 1, seed=0)
    assert {1, 3, 5} <= {*found} and not is_labeled[found].any()
    assert (label[found] == 2).sum() >= suggestion.OF_EACH_CLASS
    assert 40 <= len(found) <= 40 + 3 * suggestion.OF_EACH_CLASS
    assert (found == candidates(label, is_labeled, 1, seed=0)).all()
    assert {*found} != {*candidates(label, is_labeled, 1, seed=1)}
    assert len(candidates(None, is_labeled, 1, seed=0)) == 40
    assert len(candidates(None, is_labeled, 3, seed=0)) == 16 * 3


def test_images_whose_features_are_no_numbers_are_left_out():
    features = CENTERS[GROUPS] + np.random.default_rng(0).normal(size=(30, 3))
    features[[0, 7]] = np.nan
    found = suggest_images(made(None, features), np.arange(30) == 0, num=30, per_class=0, seed=0)
    assert {each.row for each in found.chosen} == {*range(30)} - {0, 7}
    assert found.num_unreadable == 1 and found.before == 0
    with pytest.raises(InputError, match="none of the candidate images"):
        rows(made(None, features * np.nan), [], 1)
