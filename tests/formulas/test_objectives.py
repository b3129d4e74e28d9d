import math

import pytest
import torch

from debias_ssl.formulas import metrics
from debias_ssl.formulas.objectives import (
    OBJECTIVES,
    Goal,
    coverage,
    f1_macro,
    find_objective,
    head_tail_min,
    shares_of,
    soft_min_recall,
    soft_minimum,
)
from debias_ssl.system.errors import InputError

# Recalls 1, .5 and .25; the classes are predicted for 5/12, 4/12 and 3/12 of the images.
WORKED = torch.tensor([[4, 0, 0], [0, 2, 2], [1, 2, 1]])
SHARES = shares_of(WORKED)


def random_shares(num: int = 5, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, num, generator=generator, dtype=torch.float64).softmax(1) / num


def geometric_of_diagonal(shares: torch.Tensor) -> torch.Tensor:
    return shares.diagonal().log().mean().exp()


def not_a_scalar(shares: torch.Tensor) -> torch.Tensor:
    return shares.diagonal()


def not_finite(shares: torch.Tensor) -> torch.Tensor:
    return (shares - shares).sqrt().sum()


def test_values_worked_by_hand():
    assert OBJECTIVES["mean_recall"](SHARES).item() == pytest.approx(1.75 / 3)
    assert OBJECTIVES["h_mean"](SHARES).item() == pytest.approx(3 / (1 + 2 + 4))
    assert OBJECTIVES["g_mean"](SHARES).item() == pytest.approx(0.125 ** (1 / 3))
    # F1 of a class is 2 K_ii / (1/3 + what it is predicted for).
    predicted = torch.tensor([5, 4, 3]) / 12
    assert f1_macro(SHARES).item() == pytest.approx(
        ((2 * torch.tensor([1, 0.5, 0.25]) / 3) / (1 / 3 + predicted)).mean().item()
    )
    assert coverage(SHARES).tolist() == pytest.approx(predicted.tolist())
    assert soft_min_recall(SHARES, eta=2.0).item() == pytest.approx(
        -math.log(math.exp(-2) + math.exp(-1) + math.exp(-0.5)) / 2
    )


def test_soft_minimum_is_below_the_minimum_by_at_most_log_k_over_eta():
    values = torch.tensor([0.3, 0.31, 0.9, 0.3])
    for eta in (1.0, 10.0, 1000.0):
        assert 0.3 - math.log(4) / eta - 1e-6 <= soft_minimum(values, eta).item() <= 0.3
    values.requires_grad_()
    (weights,) = torch.autograd.grad(soft_minimum(values, 5.0), values)
    torch.testing.assert_close(weights, (-5 * values).softmax(0))


def test_head_and_tail_follow_the_labeled_counts():
    recalls = torch.linspace(0.1, 1, 10, dtype=torch.float64)
    shares = (recalls.diag() + torch.diag(1 - recalls[:-1], 1).index_fill(0, torch.tensor([9]), 0)) / 10
    # In the order of the classes the last tenth is class 9; by labels it is class 0, of recall .1.
    assert head_tail_min(shares, eta=1e6).item() == pytest.approx(0.5, abs=1e-4)
    by_labels = find_objective("head_tail_min", torch.arange(10))
    assert by_labels(shares).item() == pytest.approx(0.1, abs=1e-3)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_finite_differences(name):
    objective, shares = OBJECTIVES[name], random_shares()
    assert torch.autograd.gradcheck(objective, (shares.requires_grad_(),), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("constraint", [None, 0.95])
def test_logit_gradient_is_autograds_through_the_softmax(name, constraint):
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    shares = logits.softmax(1) / 5
    goal = Goal(objective=OBJECTIVES[name], coverage=constraint, temperature=0.1)
    multipliers = goal.multipliers(shares.detach())
    assert (multipliers > 0).any() == (constraint is not None)
    lagrangian = goal.objective(shares) + (multipliers * goal.slack(shares)).sum()
    (expected,) = torch.autograd.grad(lagrangian / (1 + multipliers.max()), logits)
    torch.testing.assert_close(goal.logit_gradient(shares.detach()), expected)


def test_gradient_of_mean_recall_is_the_papers():
    # dM / dA_ij = K_ii (1[i = j] - C K_ij), arXiv 2403.18301.
    shares = random_shares(4)
    expected = shares.diagonal().unsqueeze(1) * (torch.eye(4) - 4 * shares)
    torch.testing.assert_close(Goal(objective=metrics.mean_recall).logit_gradient(shares), expected)


def test_multipliers_worked_by_hand():
    goal = Goal(objective=metrics.mean_recall, coverage=0.9, largest=10.0, temperature=0.1)
    slack = torch.tensor([5 / 12, 4 / 12, 3 / 12]) - 0.3
    assert goal.slack(SHARES).tolist() == pytest.approx(slack.tolist())
    assert goal.multipliers(SHARES).tolist() == pytest.approx([0, 0, 10 * (1 - math.exp(-0.5))])


def test_a_class_without_a_hit_has_a_gradient_with_added_images_alone():
    counts = torch.tensor([[0, 5], [0, 5]])
    goal = Goal(objective=OBJECTIVES["min_recall"])
    assert goal.logit_gradient(shares_of(counts))[0, 0] == 0
    assert goal.logit_gradient(shares_of(counts, added=1.0))[0, 0] > 0.01
    assert shares_of(counts, added=1.0)[0].tolist() == pytest.approx([1 / 24, 11 / 24])


def test_what_is_missing_of_the_coverage_goes_before_the_objective():
    better, covered = torch.tensor([[10, 0], [3, 7]]), torch.tensor([[6, 4], [4, 6]])
    free, bound = (Goal(objective=metrics.mean_recall, coverage=share) for share in (None, 0.95))
    assert free.rank(better) > free.rank(covered)
    assert bound.rank(better) < bound.rank(covered)
    assert bound.rank(covered)[0] == 0


def test_a_function_of_ones_own():
    own = find_objective("test_objectives.geometric_of_diagonal", torch.ones(3, dtype=torch.int64))
    assert own(SHARES).item() == pytest.approx(0.125 ** (1 / 3) / 3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("recall", "mean_recall, min_recall"),
        ("nowhere.function", "nowhere"),
        ("test_objectives.nothing", "nothing"),
        ("test_objectives.not_a_scalar", "scalar"),
        ("test_objectives.not_finite", "not finite"),
    ],
)
def test_wrong_names_are_told(name, words):
    with pytest.raises(InputError, match=words):
        find_objective(name, torch.ones(3, dtype=torch.int64))
