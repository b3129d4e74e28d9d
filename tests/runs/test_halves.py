"""Halves of the labels, and what they say of variants."""

import numpy as np
import pytest

from debias_ssl.data.splits import Split
from debias_ssl.runs.halves import Verdict, halved, judged_images

CLASSES = np.repeat([0, 1, 2, 3], [4, 5, 1, 3])


def split(labels: np.ndarray | None = None) -> Split:
    labeled = np.arange(13) * 2
    return Split(labeled=labeled, unlabeled=np.arange(40), validation=np.arange(40, 44), labels=labels)


@pytest.mark.parametrize("number", range(6))
def test_each_class_is_divided_evenly(number: int):
    one, other = halved(split(), CLASSES, 3, number)
    assert np.array_equal(np.sort(np.concatenate([one.labeled, other.labeled])), split().labeled)
    counts = [np.bincount(CLASSES[half.labeled // 2], minlength=4) for half in (one, other)]
    assert np.abs(counts[0] - counts[1]).tolist() == [0, 1, 1, 1]
    # What is left over of odd numbers does not all go to one half.
    assert abs(len(one.labeled) - len(other.labeled)) == 1
    for half in (one, other):
        assert np.array_equal(half.unlabeled, split().unlabeled) and np.array_equal(half.validation, split().validation)


def test_divisions_differ_and_are_drawn_again_by_the_same_seed():
    drawn = [tuple(halved(split(), CLASSES, 3, number)[0].labeled) for number in range(8)]
    assert len(set(drawn)) > 5
    assert drawn == [tuple(halved(split(), CLASSES, 3, number)[0].labeled) for number in range(8)]
    assert drawn != [tuple(halved(split(), CLASSES, 4, number)[0].labeled) for number in range(8)]


def test_labels_that_are_given_go_with_their_images():
    given = np.arange(100, 113)
    for half in halved(split(given), CLASSES, 0, 0):
        assert half.labels is not None
        assert np.array_equal(half.labels, 100 + half.labeled // 2)


def test_agreement_is_measured_on_images_without_labels():
    images = judged_images(split(), 0, 1000)
    assert np.array_equal(images, np.setdiff1d(np.arange(40), split().labeled))
    few = judged_images(split(), 0, 5)
    assert len(few) == 5 and np.isin(few, images).all() and not np.array_equal(few, images[:5])


def verdict(margin: float, **agreements: list[float]) -> Verdict:
    found = {"LabelsOnly": np.array([0.5, 0.4])} | {name: np.array(each) for name, each in agreements.items()}
    return Verdict(agreements=found, floors=dict.fromkeys(agreements, "LabelsOnly"), margin=margin)


def test_the_largest_gain_is_chosen_if_it_reaches_the_margin():
    # Gains of 0.075 and 0.1.
    said = verdict(0.09, FixMatch=[0.6, 0.45], DebiasPL=[0.5, 0.6])
    assert said.helps and said.chosen == "DebiasPL"
    assert "agree about the unlabeled images 10.0 points more" in said.why and said.why.endswith("choice is DebiasPL")
    assert said.lines()[3] == ["DebiasPL *", "55.0", "+10.0", "+0.0", "+20.0"]
    assert said.record()["gains"] == pytest.approx({"FixMatch": 0.075, "DebiasPL": 0.1})


def test_labels_alone_are_chosen_where_no_gain_reaches_the_margin():
    said = verdict(0.05, FixMatch=[0.5, 0.45], DebiasPL=[0.3, 0.4])
    assert not said.helps and said.chosen == "LabelsOnly"
    assert said.lines()[1] == ["LabelsOnly *", "45.0", "-", "-", "-"]
    assert "2.5 points more than with the labels alone; the choice requires at least 5 more" in said.why
    assert "10.0 points less" in verdict(0.05, DebiasPL=[0.3, 0.4]).why
