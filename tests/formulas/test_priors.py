"""Priors: worked numbers, and identities that hold for any logits."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from typechecker import check

from debias_ssl.formulas import priors
from debias_ssl.formulas.logits import confusion_matrix, debias
from debias_ssl.formulas.priors import Chunks

UNIFORM = torch.full((5,), 0.2, dtype=torch.float64)
ESTIMATORS: dict[str, Callable[[Chunks], Tensor]] = {
    "mean_probs": priors.mean_probs,
    "balancing": lambda chunks: priors.balancing(chunks, UNIFORM, tolerance=1e-9).prior,
    "transport": lambda chunks: priors.transport(chunks, UNIFORM).prior,
    "running_mean": lambda chunks: priors.running_mean(chunks, 0.9),
    "confidence_weighted": priors.confidence_weighted,
    "stationary": priors.stationary,
    "centering": priors.centering,
    "expectation_maximization": lambda chunks: priors.expectation_maximization(chunks, UNIFORM).prior,
}
every_estimator = pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS.keys())


@pytest.fixture(scope="module")
def logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(5, (600,), generator=generator)
    noise = torch.randn(600, 5, generator=generator, dtype=torch.float64)
    return noise + 2 * torch.eye(5, dtype=torch.float64)[truth] + torch.linspace(0, 2, 5, dtype=torch.float64)


def distance(one: Tensor, other: Tensor) -> float:
    """Half the L1 distance, the largest difference that the two make to any event."""
    return ((one - other).abs().sum() / 2).item()


@every_estimator
def test_the_result_is_a_distribution(estimate, logits: Tensor):
    q = estimate([logits])
    assert q.shape == (5,) and (q > 0).all() and q.sum().item() == pytest.approx(1, abs=1e-12)


@every_estimator
def test_it_does_not_matter_where_chunks_end(estimate, logits: Tensor):
    torch.testing.assert_close(estimate(logits.split(101)), estimate([logits]), rtol=1e-9, atol=1e-12)


@every_estimator
def test_classes_in_another_order_are_the_same_in_another_order(estimate, logits: Tensor):
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(estimate([logits[:, order]]), estimate([logits])[order], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in ESTIMATORS if name != "running_mean"])
def test_rows_in_another_order_are_the_same(name: str, logits: Tensor):
    torch.testing.assert_close(ESTIMATORS[name]([logits.flip(0)]), ESTIMATORS[name]([logits]), rtol=1e-9, atol=1e-12)


@every_estimator
def test_equal_preferences_are_uniform(estimate):
    # Each row is there for all rotations of the classes.
    row = torch.tensor([3.0, 1.0, 0.5, 0.0, -1.0], dtype=torch.float64)
    rows = torch.stack([row.roll(k) for k in range(5)]).repeat(64, 1)
    torch.testing.assert_close(estimate([rows]), UNIFORM, atol=1e-3, rtol=0)


def test_marginal_of_a_worked_example():
    logits = torch.tensor([[0.9, 0.1], [0.3, 0.7]]).log()
    assert priors.mean_probs([logits]).tolist() == pytest.approx([0.6, 0.4])


def test_sums_are_exact_over_many_rows_in_single_precision():
    logits = torch.tensor([[0.9, 0.1]]).log().expand(1000, 2)
    assert priors.mean_probs([logits] * 100)[1].item() == pytest.approx(0.1, abs=1e-7)


def test_balancing_gives_the_target(logits: Tensor):
    target = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    q = priors.balancing([logits], target, tolerance=1e-6).prior
    assert distance((logits - q.log()).softmax(-1).mean(0), target) < 1e-6


def test_balancing_is_where_subtracting_the_marginal_again_and_again_ends(logits: Tensor):
    left = logits
    for _ in range(100):
        left = left - priors.mean_probs([left]).log()
    torch.testing.assert_close(
        (logits - left)[0].softmax(-1), priors.balancing([logits], UNIFORM, tolerance=1e-9).prior
    )


@pytest.mark.parametrize("scale", [0.1, 10.0, 50.0])
def test_balancing_ends_in_time_for_unsure_and_for_very_sure_rows(scale: float, logits: Tensor):
    q = priors.balancing([scale * logits], UNIFORM).prior
    assert distance((scale * logits - q.log()).softmax(-1).mean(0), UNIFORM) < 1e-4


def test_what_follows_its_target_already_is_left_as_it_is(logits: Tensor):
    torch.testing.assert_close(
        priors.balancing([logits], priors.mean_probs([logits])).prior, UNIFORM, atol=1e-3, rtol=0
    )


def test_balancing_moves_by_what_is_added_to_classes(logits: Tensor):
    added = torch.tensor([0.0, -3.0, 5.0, 1.0, 0.5], dtype=torch.float64)
    before, after = (priors.balancing([f], UNIFORM, tolerance=1e-10).prior for f in (logits, logits + added))
    torch.testing.assert_close(
        after.log() - before.log() - added, (after / before)[:1].log().expand(5), atol=1e-6, rtol=0
    )


def test_a_class_far_below_the_others_is_balanced_too(logits: Tensor):
    far = logits.float() - torch.tensor([0.0, 0.0, 0.0, 0.0, 300.0])
    q = priors.balancing([far], UNIFORM).prior
    assert distance((far - q.log()).softmax(-1).mean(0), UNIFORM) < 1e-4


def test_a_row_far_from_all_others_does_not_keep_balancing_from_its_end(logits: Tensor):
    rows = torch.cat([logits, torch.tensor([[500.0, 0.0, 0.0, 0.0, 0.0]])])
    q = priors.balancing([rows], UNIFORM).prior
    assert distance((rows - q.log()).softmax(-1).mean(0), UNIFORM) < 1e-4


def test_transport_balances_counts_where_the_fixed_point_balances_probabilities(logits: Tensor):
    target = torch.tensor([0.3, 0.3, 0.2, 0.1, 0.1], dtype=torch.float64)

    def counts(q: Tensor) -> Tensor:
        return (logits - q.log()).argmax(-1).bincount(minlength=5).double()

    missed = (counts(priors.transport([logits], target).prior) - 600 * target).abs().sum() / 2
    assert missed <= 6
    assert (counts(priors.balancing([logits], target).prior) - 600 * target).abs().sum() / 2 > 2 * missed


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 50.0])
def test_balancing_and_transport_settle_in_few_passes(scale: float, logits: Tensor):
    passes = 0

    class Counted(list):
        def __iter__(self):
            nonlocal passes
            passes += 1
            return super().__iter__()

    for solve, epsilon, most in ((priors.balancing, 1.0, 160), (priors.transport, priors.SHARP, 80)):
        passes = 0
        found = solve(Counted([scale * logits]), UNIFORM)
        mean = ((scale * logits - found.prior.log()) / epsilon).softmax(-1).mean(0)
        assert distance(mean, UNIFORM) == pytest.approx(found.left, abs=1e-6)
        assert found.is_settled and passes <= most


def test_shares_that_still_move_are_not_settled(logits: Tensor):
    assert priors.expectation_maximization([logits], UNIFORM).is_settled
    unsure = priors.expectation_maximization([0.1 * logits], UNIFORM)
    assert not unsure.is_settled and 1e-4 <= unsure.left < 1e-2


def test_transport_is_the_best_assignment(logits: Tensor):
    from scipy.optimize import linear_sum_assignment

    rows = logits[:100]
    found = (rows - priors.transport([rows], UNIFORM).prior.log()).argmax(-1)
    _, place = linear_sum_assignment(rows.repeat_interleave(20, dim=1), maximize=True)
    assert (found == torch.from_numpy(place) // 20).double().mean() >= 0.97


def test_running_mean_is_the_loop_over_batches(logits: Tensor):
    q = UNIFORM.clone()
    for batch in logits.split(64):
        q = 0.9 * q + 0.1 * batch.softmax(-1).mean(0)
    for size in (1, 63, 64, 65, 128, 600):
        torch.testing.assert_close(priors.running_mean(logits.split(size), 0.9), q, rtol=1e-10, atol=0)


def test_running_mean_without_momentum_is_the_last_batch(logits: Tensor):
    torch.testing.assert_close(priors.running_mean([logits], 0.0), logits[576:].softmax(-1).mean(0))


def test_confidence_counts_sure_rows_and_no_others():
    sure, unsure = [50.0, 0.0, 0.0], [1.0, 1.0, 1.0]
    q = priors.confidence_weighted([torch.tensor([sure] + 9 * [unsure], dtype=torch.float64)])
    assert q.tolist() == pytest.approx([1, 0, 0], abs=1e-6)


def test_confidence_of_a_worked_example():
    probs = torch.tensor([[0.9, 0.1], [0.4, 0.6]], dtype=torch.float64)
    weight = [1 + sum(p * math.log2(p) for p in row) for row in probs.tolist()]
    q = priors.confidence_weighted([probs.log()])
    assert q[0].item() == pytest.approx((weight[0] * 0.9 + weight[1] * 0.4) / sum(weight))


def test_stationary_vector_of_a_worked_example():
    # Rows predicted 0 give .8 to themselves, those predicted 1 give .4 to the others: q = (2 / 3, 1 / 3).
    logits = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.4, 0.6]], dtype=torch.float64).log()
    assert priors.stationary([logits]).tolist() == pytest.approx([2 / 3, 1 / 3])


def test_a_class_that_is_never_predicted_keeps_the_mass_that_others_give_it():
    logits = torch.tensor([[0.8, 0.15, 0.05], [0.3, 0.65, 0.05]], dtype=torch.float64).log()
    assert priors.stationary([logits])[2].item() == pytest.approx(0.05)


def test_stationary_vector_of_sure_predictions_is_found():
    # The chain leaves a class about once in 1e8 steps, the first class ten times as often.
    rare = 1e-8
    logits = torch.tensor([[1 - 10 * rare, 10 * rare], [rare, 1 - rare]], dtype=torch.float64).log()
    assert priors.stationary([logits]).tolist() == pytest.approx([1 / 11, 10 / 11], rel=1e-4)


def test_centering_makes_mean_logits_equal(logits: Tensor):
    mean = (logits - priors.centering([logits]).log()).mean(0)
    torch.testing.assert_close(mean, mean[:1].expand(5))


def test_content_free_removes_what_a_blank_image_shows(logits: Tensor):
    blank = torch.stack([logits[0] - 1, logits[0] + 1])
    q = priors.content_free(blank)
    left = debias(logits[:1], q, 1.0)
    torch.testing.assert_close(left, left[:, :1].expand(1, 5))


def test_shares_of_a_classifier_with_its_own_marginal_as_prior_are_that_marginal(logits: Tensor):
    marginal = priors.mean_probs([logits])
    torch.testing.assert_close(priors.expectation_maximization([logits], marginal).prior, marginal)


def test_shares_of_an_unbalanced_set_are_found_by_a_calibrated_classifier():
    generator = torch.Generator().manual_seed(0)
    true = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    truth = torch.multinomial(true, 20_000, replacement=True, generator=generator)
    # Gaussians of variance 1: the posterior for equal shares is the softmax of 2 <x, e_k>.
    rows = 2 * torch.eye(3, dtype=torch.float64)[truth]
    logits = 2 * (rows + torch.randn(rows.shape, generator=generator, dtype=torch.float64))
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert distance(priors.mean_probs([logits]), true) > 0.05
    assert distance(priors.expectation_maximization([logits], third).prior, true) < 0.01


def test_removing_the_marginal_at_once_is_alignment_to_uniform(logits: Tensor):
    marginal = priors.mean_probs([logits])
    aligned = logits.softmax(-1) / marginal
    torch.testing.assert_close(debias(logits, marginal, 1.0).softmax(-1), aligned / aligned.sum(-1, keepdim=True))


def test_removing_the_preference_labels_better():
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(1000) % 5
    logits = 2 * torch.eye(5)[truth] + torch.randn(1000, 5, generator=generator) + torch.linspace(0, 3, 5)

    def hits(q: Tensor) -> int:
        predicted = debias(logits, q.float(), 1.0).argmax(-1)
        return int(confusion_matrix(truth, predicted, 5).diagonal().sum())

    for name, estimate in ESTIMATORS.items():
        if name != "expectation_maximization":
            assert hits(estimate([logits])) > hits(UNIFORM) + 100, name


def test_shapes_are_checked():
    with pytest.raises(Exception, match="type"):
        check(priors.content_free)(torch.zeros(3))
