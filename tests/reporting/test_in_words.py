"""The summary in words: each sentence is true of the figures that it is made from."""

import numpy as np
import pytest

from debias_ssl.reporting.sections.in_words import labels_in_words, pseudo_labels_in_words, weakest_in_words

NAMES = ("cat", "dog")


def log(step: int, counts: list[int], weight: float = 1.0) -> dict[str, object]:
    return {"step": step, "pseudo_counts": counts, "pseudo_weights": [weight] * len(counts)}


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((4, 4), "4 labels a class"),
        ((1, 1), "1 label a class"),
        ((0, 40), "40 labels (0 to 40 a class)"),
        ((1500,), "1,500 labels a class"),
    ],
)
def test_labels_are_told_by_class(counts: tuple[int, ...], words: str):
    assert labels_in_words(counts) == words


@pytest.mark.parametrize(
    ("recalls", "words"),
    [
        (
            [0.5, 1.0],
            "Class cat is the weakest: 50.0 % of its 8 test images are right; the mean recall over classes is",
        ),
        ([np.nan, 0.5], "Only class dog has test images."),
        ([0.75, 0.75], "All classes have the same recall, 75.0 %."),
        ([0.5], "Only class cat has test images."),
    ],
)
def test_the_weakest_class_has_the_lowest_recall(recalls: list[float], words: str):
    names = ["cat", "dog"][: len(recalls)]
    found = weakest_in_words(np.array(recalls), np.full(len(recalls), 8), names).replace("\u00a0", " ")
    assert found.startswith(words)


def test_several_classes_may_be_the_weakest():
    recalls, names = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 1.0]), ["a", "b", "c", "d", "e", "f"]
    found = weakest_in_words(recalls, np.full(6, 8), names)
    assert found.startswith("Classes a, b, c and 2 more are the weakest: 0.0\u00a0% of their test images are right")
    assert weakest_in_words(recalls[3:], np.full(3, 8), names[3:]).startswith("Classes d, e are the weakest")


@pytest.mark.parametrize(
    ("logs", "words"),
    [
        # 80 % against 50 %, then 52 %: 2 % away.
        (
            [log(10, [80, 20]), log(20, [60, 40]), log(30, [48, 52]), log(40, [52, 48])],
            "favored class cat most at step 10 (80.0 % of them, true share 50.0 %), and evened out by step 30: from",
        ),
        # Even once in between does not count as evened out.
        ([log(10, [50, 50]), log(20, [20, 80])], "Pseudo-labels favored class dog most at step 20 (80.0 % of them"),
        ([log(10, [20, 80]), log(20, [60, 40])], "at step 20 their class shares were 10.0 % away from the true ones."),
        (
            [log(10, [49, 51]), log(20, [53, 47])],
            "stayed close to the true class shares: 3.0 % away from them at most, at",
        ),
        # Pseudo-labels without weight: of `Supervised`, or below the threshold.
        ([log(10, [80, 20], 0.0)], "No pseudo-label counted in training."),
        # Three labels of one class are chance.
        ([log(10, [3, 0]), log(20, [0, 4])], "Only 7 pseudo-labels counted in training: too few"),
        ([log(10, [3, 0]), log(20, [50, 50])], "stayed close to the true class shares: 0.0 % away"),
    ],
)
def test_pseudo_labels_are_told_by_their_shares(logs: list[dict[str, object]], words: str):
    found = pseudo_labels_in_words(logs, np.array([0.5, 0.5]), NAMES).replace("\u00a0", " ")
    assert words in found


def test_without_the_truth_the_most_frequent_class_is_told():
    found = pseudo_labels_in_words([log(10, [80, 20]), log(20, [45, 55])], None, NAMES).replace("\u00a0", " ")
    assert found == (
        "The most frequent pseudo-label at step 10 was cat (80.0 %), at step 20 dog (55.0 %); the true class shares "
        "are unknown."
    )
