import math

import pytest
import torch

from debias_ssl.formulas.logits import (
    adjust,
    align,
    class_weights,
    confident_labels,
    confusion_matrix,
    debias,
    divide_scores,
    effective_number_weights,
    finite_log,
    floored_log,
    label_margins,
    largest,
    pairwise_margin_loss,
    prior_margins,
    tempered,
    weighted_cross_entropy,
)

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


def test_alignment_worked_and_to_uniform():
    # (.5, .5) * (.3, .7) / (.75, .25) = (.2, 1.4).
    aligned = align(torch.tensor([[0.5, 0.5]]), torch.tensor([0.75, 0.25]), torch.tensor([0.3, 0.7]))
    assert aligned.tolist() == [pytest.approx([0.125, 0.875])]
    uniform = align(LOGITS.softmax(-1), MARGINAL, torch.full((5,), 0.2))
    torch.testing.assert_close(uniform, debias(LOGITS, MARGINAL, 1.0).softmax(-1))
    torch.testing.assert_close(align(LOGITS.softmax(-1), MARGINAL, MARGINAL), LOGITS.softmax(-1))


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


# -- margins and weights of classes

PRIOR = torch.tensor([0.6, 0.3, 0.1, 0.0, 0.0])


def test_pairwise_margins_are_the_formula_of_the_paper():
    generator = torch.Generator().manual_seed(1)
    alpha, delta = torch.rand(5, generator=generator), torch.randn(5, 5, generator=generator)
    labels = torch.arange(50) % 5
    terms = []
    for f, y in zip(LOGITS, labels.tolist(), strict=True):
        others = [(delta[y, k] + f[k] - f[y]).exp() for k in range(5) if k != y]
        terms.append(alpha[y] * (1 + torch.stack(others).sum()).log())
    torch.testing.assert_close(pairwise_margin_loss(LOGITS, labels, alpha, delta), torch.stack(terms).mean())


def test_margins_of_the_prior_are_logit_adjustment():
    labels, ones = torch.arange(50) % 5, torch.ones(5)
    loss = pairwise_margin_loss(LOGITS, labels, ones, prior_margins(MARGINAL, 0.7))
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(adjust(LOGITS, MARGINAL, 0.7), labels))
    assert prior_margins(MARGINAL, 1.0)[0, 2].item() == pytest.approx(math.log(0.1 / 0.5))
    assert prior_margins(PRIOR, 1.0).isfinite().all()


def test_pairwise_losses_of_extreme_logits_are_finite():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0]], requires_grad=True)
    loss = pairwise_margin_loss(logits, torch.tensor([1, 1]), torch.ones(3), torch.full((3, 3), 50.0))
    assert loss.item() == pytest.approx(1e4 + 25)
    loss.backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_class_weights_have_mean_one_and_leave_out_classes_that_are_never_drawn():
    weights = class_weights(1 / PRIOR, PRIOR)
    assert weights.tolist() == pytest.approx([1 / 1.8, 1 / 0.9, 1 / 0.3, 0, 0])
    assert (PRIOR * weights).sum().item() == pytest.approx(1)


def test_effective_numbers_lie_between_one_and_the_count():
    counts = torch.tensor([0.0, 1.0, 2.0, 1e6])
    assert effective_number_weights(counts, 0.9).tolist() == pytest.approx([1, 1, 1 / 1.9, 0.1])
    # 1 - .9999^n loses its digits in single precision.
    assert effective_number_weights(counts, 0.9999)[2].item() == pytest.approx(1 / 1.9999, abs=1e-7)


def test_label_margins_are_those_of_the_label():
    margins = label_margins(torch.tensor([16.0, 1.0, 0.0]), largest=0.5)
    assert margins.tolist() == [pytest.approx([m] * 3) for m in (0.25, 0.5, 0.5)]


def test_scores_divided_by_the_prior_change_their_order_where_negative():
    scores, prior = torch.tensor([[2.0, 1.5], [-2.0, -1.5]]), torch.tensor([0.75, 0.25])
    assert divide_scores(scores, prior, 0.0).equal(scores)
    assert divide_scores(scores, prior, 1.0).tolist() == [pytest.approx([8 / 3, 6]), pytest.approx([-8 / 3, -6])]
    # The rare class gains among positive scores, and loses among negative ones.
    assert divide_scores(scores, prior, 1.0).argmax(-1).tolist() == [1, 0]
    assert divide_scores(torch.ones(1, 2), torch.tensor([1.0, 0.0]), 1.0).isfinite().all()


def test_a_temperature_is_that_of_the_logits_and_keeps_what_is_unlikely():
    logits = torch.tensor([[3.0, 1.0, -2.0], [0.0, -30.0, -60.0]])
    for temperature in (0.5, 1.0, 4.0):
        torch.testing.assert_close(tempered(logits.softmax(-1), temperature), (logits / temperature).softmax(-1))
    # (.75, .25) at temperature 1/2 is (.9, .1).
    torch.testing.assert_close(tempered(torch.tensor([0.75, 0.25]), 0.5), torch.tensor([0.9, 0.1]))
    assert tempered(torch.tensor([1.0, 0.0]), 2.0).isfinite().all()


def test_logarithms_differ_for_rare_classes_only():
    probs = torch.tensor([0.5, 1e-7, 1e-12, 0.0], dtype=torch.float64)
    exact = probs[:3].log()
    torch.testing.assert_close(finite_log(probs)[:3], exact)
    assert finite_log(probs)[3].item() == pytest.approx(math.log(torch.finfo(torch.float64).tiny))
    torch.testing.assert_close(floored_log(probs)[:2], exact[:2])
    assert floored_log(probs)[2:].tolist() == pytest.approx([math.log(1e-8)] * 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_largest_is_what_torch_finds_also_where_numbers_are_equal(dtype: torch.dtype):
    values = torch.randint(4, (500, 30), generator=torch.Generator().manual_seed(0)).to(dtype)
    found, expected = largest(values), values.max(-1)
    assert torch.equal(found[0], expected.values) and torch.equal(found[1], expected.indices)
    assert all(row[: int(k)].max() < row[int(k)] for row, k in zip(values, found[1], strict=True) if k)
