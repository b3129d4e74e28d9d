import math

import pytest
import torch

from debias_ssl.functional import adjust, confident_labels, confusion_matrix, debias, weighted_cross_entropy

LOGITS = 3 * torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
MARGINAL = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04])


def test_adjust_adds_the_scaled_log_of_the_prior():
    adjusted = adjust(torch.tensor([[1.0, 2.0]]), torch.tensor([0.25, 0.75]), 2.0)
    assert adjusted.tolist() == [pytest.approx([1 - 2 * math.log(4), 2 + 2 * math.log(0.75)])]


def test_debias_divides_probabilities_by_a_power_of_the_marginal():
    # p = (.5, .5), q = (.64, .36): p / sqrt(q) is (.625, .8333), and .8333 of 1.4583 is .5714.
    probs = debias(torch.zeros(1, 2), torch.tensor([0.64, 0.36]), 0.5).softmax(-1)
    assert probs.tolist() == [pytest.approx([3 / 7, 4 / 7])]


def test_debias_wholly_is_distribution_alignment_to_uniform():
    aligned = LOGITS.softmax(-1) / MARGINAL
    torch.testing.assert_close(debias(LOGITS, MARGINAL, 1.0).softmax(-1), aligned / aligned.sum(-1, keepdim=True))


def test_debias_with_strength_zero_changes_no_bit():
    assert debias(LOGITS, MARGINAL, 0.0).equal(LOGITS)


def test_debias_by_a_uniform_marginal_changes_no_probability():
    probs = debias(LOGITS, torch.full((5,), 0.2), 1.0).softmax(-1)
    torch.testing.assert_close(probs, LOGITS.softmax(-1))


def test_debias_undoes_adjust():
    torch.testing.assert_close(debias(adjust(LOGITS, MARGINAL, 0.7), MARGINAL, 0.7), LOGITS)


def test_a_class_of_marginal_zero_keeps_logits_finite():
    never = torch.tensor([1.0, 0.0])
    assert debias(torch.zeros(1, 2), never, 1.0).tolist() == [pytest.approx([0, 8 * math.log(10)])]
    assert adjust(torch.zeros(1, 2), never, 1.0).isfinite().all()


def test_confident_labels_pass_at_the_threshold_itself():
    logits = torch.tensor([[0.0, 0.0], [0.0, 4.0], [4.0, 0.0]])
    target, weight = confident_labels(logits, 0.5)
    assert target[1:].tolist() == [1, 0]
    assert weight.tolist() == [1, 1, 1]
    assert confident_labels(logits, 0.5001)[1].tolist() == [0, 1, 1]


def test_confident_labels_keep_leading_axes():
    target, weight = confident_labels(LOGITS.view(2, 25, 5), 0.9)
    assert target.equal(LOGITS.argmax(-1).view(2, 25))
    assert weight.shape == (2, 25)


def test_weighted_cross_entropy_divides_by_all_images():
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 0.0], [5.0, 5.0]])
    target, weight = torch.tensor([0, 1, 1]), torch.tensor([1.0, 0.5, 0.0])
    expected = (-math.log(0.75) + 0.5 * math.log(2)) / 3
    assert weighted_cross_entropy(logits, target, weight).item() == pytest.approx(expected)


def test_weighted_cross_entropy_of_one_hot_targets_is_that_of_labels():
    target, weight = LOGITS.flip(0).argmax(-1), torch.linspace(0, 1, 50)
    one_hot = torch.nn.functional.one_hot(target, 5).float()
    expected = weighted_cross_entropy(LOGITS, target, weight)
    torch.testing.assert_close(weighted_cross_entropy(LOGITS, one_hot, weight), expected)


def test_confusion_matrix_has_truth_in_rows_and_leaves_out_the_unknown():
    truth, predicted = torch.tensor([0, 0, 1, 2, -1, -7]), torch.tensor([0, 2, 1, 1, 1, 2])
    assert confusion_matrix(truth, predicted, 3).tolist() == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]


def test_confusion_matrix_of_nothing_known_is_zero():
    assert confusion_matrix(torch.tensor([-1, -1]), torch.tensor([0, 1]), 2).tolist() == [[0, 0], [0, 0]]
