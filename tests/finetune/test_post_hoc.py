from itertools import product

import pytest
import torch
from torch import Tensor

from debias_ssl.finetune import BiasSearch, LogitAdjustment, MiSLAS, Retraining, TauNormalization
from debias_ssl.finetune.post_hoc import balancing_shift
from debias_ssl.finetune.stage import Head, Stage
from debias_ssl.formulas.logits import adjust
from debias_ssl.formulas.objectives import OBJECTIVES, Goal
from debias_ssl.system.errors import InputError

OBJECTIVE = OBJECTIVES["mean_recall"]


def stage(logits: Tensor, truth: Tensor, labels: Tensor, coverage: float | None = None) -> Stage:
    """Held-out images whose logits are given: their features, under a head of ones and zeros."""
    num = logits.shape[1]
    return Stage(
        head=Head(weight=torch.eye(num), bias=torch.zeros(num)),
        labeled=3 * torch.eye(num)[labels],
        labels=labels,
        unlabeled=logits,
        held_out=logits,
        truth=truth,
        goal=Goal(objective=OBJECTIVE, coverage=coverage),
    )


def biased(strength: float, noise: float = 1.0, seed: int = 0) -> Stage:
    """Three classes of 8, 4 and 1 labels, and logits that prefer them by strength times the log of the shares."""
    generator = torch.Generator().manual_seed(seed)
    truth, labels = torch.arange(300) % 3, torch.tensor([0] * 8 + [1] * 4 + [2])
    logits = 2 * torch.eye(3)[truth] + noise * torch.randn(300, 3, generator=generator)
    return stage(adjust(logits, labels.bincount() / 13, strength), truth, labels)


def recall(stage: Stage, head: Head) -> float:
    return OBJECTIVE(stage.confusion(head)).item()


def test_logit_adjustment_finds_the_strength_of_a_known_preference():
    problem = biased(1.4, noise=0.5)
    head = LogitAdjustment()(problem)
    log_prior = (problem.labeled_counts / 13).log()
    found = ((problem.head.bias - head.bias) / log_prior)[0].item()
    assert found == pytest.approx(1.4, abs=0.3)
    assert recall(problem, head) > recall(problem, problem.head)


def test_logit_adjustment_with_equal_counts_changes_no_prediction():
    problem = biased(0.0)
    equal = Stage(**{**vars(problem), "labels": torch.tensor([0, 1, 2]), "labeled": torch.eye(3)})
    assert torch.equal(equal.confusion(LogitAdjustment()(equal)), equal.confusion(equal.head))


def test_tau_normalization_divides_by_norms_to_a_power():
    problem, norms = biased(0.0), torch.tensor([4.0, 2, 1])
    problem = Stage(**{**vars(problem), "head": Head(weight=norms.diag(), bias=torch.ones(3))})
    head = TauNormalization()(problem)
    # Of tau the third class, of norm 1, says nothing, the first one 4^-tau.
    tau = -head.bias[0].log() / norms[0].log()
    assert tau > 0.3
    torch.testing.assert_close(head.bias, norms**-tau)
    torch.testing.assert_close(head.weight.diagonal(), norms ** (1 - tau))
    assert recall(problem, head) > recall(problem, problem.head)


def test_strengths_that_gain_nothing_leave_the_head():
    truth = torch.arange(3)
    perfect = stage(100 * torch.eye(3), truth, torch.tensor([0, 0, 1, 2]))
    for method in (LogitAdjustment(), TauNormalization(), BiasSearch()):
        head = method(perfect)
        torch.testing.assert_close(head.weight, perfect.head.weight)
        torch.testing.assert_close(head.bias, perfect.head.bias)


def test_bias_search_is_as_good_as_all_biases_of_a_grid():
    problem = biased(1.0)
    found = recall(problem, BiasSearch(candidates=1000)(problem))
    grid = torch.linspace(-3, 3, 25)
    best = max(recall(problem, problem.head.shifted(torch.tensor([0.0, a, b]))) for a, b in product(grid, grid))
    assert found >= best - 0.005
    assert found > recall(problem, problem.head) + 0.05


def test_bias_search_reaches_the_coverage():
    problem = biased(1.0)
    bound = Stage(**{**vars(problem), "goal": Goal(objective=OBJECTIVE, coverage=0.95)})
    predicted = bound.confusion(BiasSearch()(bound)).sum(0)
    assert bound.confusion(bound.head).sum(0).min() < 60
    assert predicted.min() >= 95


def test_balancing_shift_makes_the_mean_probabilities_equal():
    problem = biased(1.0)
    logits = problem.held_out.double()
    shares = (logits + balancing_shift(logits)).softmax(-1).mean(0)
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=1e-6)


def test_mean_of_the_shifts_is_zero():
    problem = biased(1.0)
    assert BiasSearch()(problem).bias.sum().item() == pytest.approx(0, abs=1e-5)


def separable(counts: tuple[int, ...]) -> Stage:
    """Noisy one-hot features; the head says nothing."""
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(90) % 3

    def features(classes: Tensor) -> Tensor:
        return torch.eye(3)[classes] + 0.3 * torch.randn(len(classes), 3, generator=generator)

    return Stage(
        head=Head(weight=torch.zeros(3, 3), bias=torch.zeros(3)),
        labeled=features(labels),
        labels=labels,
        unlabeled=features(truth),
        held_out=features(truth),
        truth=truth,
        goal=Goal(objective=OBJECTIVE),
    )


@pytest.mark.parametrize("method", [Retraining, MiSLAS])
def test_retrained_classifiers_learn_all_classes(method):
    problem = separable((100, 20, 5))
    assert recall(problem, method(steps=300, lr=0.1)(problem)) > 0.9


def test_retraining_draws_classes_evenly_and_forgets_the_head():
    problem = separable((100, 20, 0))
    other = Stage(**{**vars(problem), "head": Head(weight=torch.randn(3, 3), bias=torch.randn(3))})
    method = Retraining(steps=30, keep="last")
    assert torch.equal(method(problem).weight, method(other).weight)
    drawn = []
    prepared = method.prepare(problem, problem.head)
    random = torch.Generator().manual_seed(0)

    class Recorded(Retraining):
        def cost(self, stage, logits, labels):
            drawn.append(labels)
            return super().cost(stage, logits, labels)

    for _ in range(20):
        Recorded(batch_size=100).loss(problem, problem.head, prepared, random)
    counts = torch.cat(drawn).bincount(minlength=3)
    # A class without labels is not drawn, the others equally often.
    assert counts[2] == 0 and 900 < counts[0] < 1100


def test_mislas_with_a_rate_of_zero_for_the_classifier_scales_logits_alone():
    problem = separable((50, 20, 5))
    problem = Stage(**{**vars(problem), "head": Head(weight=torch.eye(3) + 0.2, bias=torch.ones(3))})
    head = MiSLAS(steps=100, lr=0.1, classifier_rate=0.0, keep="last", weight_decay=0.0)(problem)
    scale = head.bias / problem.head.bias
    torch.testing.assert_close(head.weight, problem.head.weight * scale.unsqueeze(1))
    assert (scale - 1).abs().max() > 0.1


def test_best_head_is_that_of_the_highest_rank_and_the_last_of_equals():
    problem = separable((100, 20, 5))
    method = Retraining(steps=100, lr=0.1)
    heads = list(method.heads(problem))
    ranks = [problem.rank(head) for head in heads]
    kept = method(problem)
    best = [head for head, rank in zip(heads, ranks, strict=True) if rank == max(ranks)]
    assert len(best) > 1, "no equals"
    assert torch.equal(kept.weight, best[-1].weight)


@pytest.mark.parametrize("settings", [{"candidates": 0}, {"rounds": 0}])
def test_wrong_settings_are_told(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        BiasSearch(**settings)


def test_balancing_shift_is_where_subtracting_the_log_of_the_mean_again_and_again_ends():
    logits = biased(1.0).held_out.double()
    left = logits
    for _ in range(100):
        left = left - left.softmax(-1).mean(0).log()
    expected = (left - logits)[0]
    torch.testing.assert_close(balancing_shift(logits), expected - expected.mean(), rtol=0, atol=1e-11)
