import pytest
import torch
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score

from debias_ssl.formulas.logits import confusion_matrix
from debias_ssl.formulas.metrics import (
    accuracy,
    accuracy_interval,
    g_mean,
    group_recalls,
    h_mean,
    mean_recall,
    min_recall,
    recall_intervals,
    recalls,
    summarize,
    wilson_interval,
)

# Recalls 3/4, 1/2 and 1/5 of 4, 2 and 10 images.
WORKED = torch.tensor([[3, 1, 0], [0, 1, 1], [4, 4, 2]])


def test_figures_of_a_worked_matrix():
    assert recalls(WORKED).tolist() == [0.75, 0.5, 0.2]
    assert summarize(WORKED) == pytest.approx(
        {
            "accuracy": 6 / 16,
            "mean_recall": 1.45 / 3,
            "min_recall": 0.2,
            "h_mean": 3 / (4 / 3 + 2 + 5),
            "g_mean": 0.075 ** (1 / 3),
        }
    )


def test_figures_depend_on_shares_not_on_counts():
    assert summarize(WORKED / WORKED.sum()) == pytest.approx(summarize(WORKED))


def test_a_class_without_images_is_left_out():
    matrix = torch.tensor([[1, 1, 0], [0, 0, 0], [0, 1, 3]])
    assert recalls(matrix).tolist() == [0.5, 0.75]
    assert min_recall(matrix) == 0.5
    assert mean_recall(matrix) == 0.625


def test_a_class_that_is_never_found_makes_harmonic_and_geometric_mean_zero():
    matrix = torch.tensor([[5, 0], [5, 0]])
    assert h_mean(matrix) == 0
    assert g_mean(matrix) == 0
    assert mean_recall(matrix) == 0.5


def test_equal_recalls_make_all_means_equal():
    matrix = torch.tensor([[3, 1], [2, 6]])
    assert {round(value, 12) for value in summarize(matrix).values()} == {0.75}


def test_figures_are_those_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(7, (500,), generator=generator)
    predicted = torch.where(torch.rand(500, generator=generator) < 0.6, truth, torch.randint(7, (500,)))
    matrix = confusion_matrix(truth, predicted, 7)
    expected = [recall_score(truth == k, predicted == k) for k in range(7)]
    assert recalls(matrix).tolist() == pytest.approx(expected)
    assert mean_recall(matrix).item() == pytest.approx(balanced_accuracy_score(truth, predicted))
    assert accuracy(matrix).item() == pytest.approx(accuracy_score(truth, predicted))


def test_large_counts_lose_no_precision():
    matrix = torch.tensor([[2**25 + 1, 0], [1, 2**25]])
    assert 1 - accuracy(matrix).item() == pytest.approx(1 / (2**26 + 2), rel=1e-3)


def test_group_recalls_order_classes_by_their_labels():
    matrix = torch.tensor([[1, 3, 0, 0], [2, 2, 0, 0], [1, 0, 3, 0], [0, 0, 0, 4]])
    groups = group_recalls(matrix, torch.tensor([5, 100, 20, 1]))
    assert groups == {"head_recall": 0.5, "medium_recall": (0.75 + 0.25) / 2, "tail_recall": 1.0}


def test_group_recalls_take_three_of_ten_classes_at_both_ends():
    hits = torch.tensor([9, 9, 9, 5, 5, 5, 5, 1, 1, 1])
    matrix = torch.diag(hits) + torch.diag(10 - hits).roll(1, dims=1)
    groups = group_recalls(matrix, torch.arange(10, 0, -1))
    assert groups == pytest.approx({"head_recall": 0.9, "medium_recall": 0.5, "tail_recall": 0.1})


def test_group_recalls_leave_out_what_there_is_nothing_of():
    assert group_recalls(WORKED, torch.tensor([4, 4, 4])) == {}
    assert group_recalls(torch.tensor([[3, 1], [1, 1]]), torch.tensor([2, 1])) == {
        "head_recall": 0.75,
        "tail_recall": 0.5,
    }
    assert "tail_recall" not in group_recalls(torch.tensor([[3, 1, 0], [1, 1, 0], [0, 0, 0]]), torch.tensor([9, 3, 1]))


def test_group_recalls_are_of_the_classes_that_have_images():
    matrix = torch.diag(torch.tensor([3, 0, 2, 2, 4, 0]))
    matrix[0, 5] = 1
    groups = group_recalls(matrix, torch.tensor([9, 8, 5, 4, 2, 1]))
    assert groups == {"head_recall": 0.75, "medium_recall": 1, "tail_recall": 1}


@pytest.mark.parametrize("num", [1, 2, 3, 10, 897, 10_000, 10**9])
@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.5, 0.99, 1])
def test_wilson_intervals_are_scipys(num: int, share: float):
    hits = round(share * num)
    expected = binomtest(hits, num).proportion_ci(method="wilson")
    assert wilson_interval(hits, num) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)


def test_three_rows_that_are_right_say_little():
    low, high = wilson_interval(3, 3)
    assert 0.43 < low < 0.44 and high == 1


def test_intervals_of_a_confusion_are_of_its_counts():
    confusion = torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    assert accuracy_interval(confusion) == wilson_interval(5, 6)
    assert recall_intervals(confusion) == [wilson_interval(3, 4), wilson_interval(2, 2), None]
