import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from debias_ssl.finetune import BalancedMixup, LogitAdjustment, Mixup, SelMix, selmix
from debias_ssl.finetune.selmix import (
    class_means,
    mixup_gain,
    pair_draws,
    pair_probabilities,
    slope_at_images,
    slope_at_prototypes,
)
from debias_ssl.finetune.stage import Head, Stage
from debias_ssl.formulas.objectives import OBJECTIVES, Goal, shares_of
from debias_ssl.system.errors import InputError


def random_problem(num: int, dim: int, scale: float = 1.0) -> tuple[Head, Tensor, Tensor]:
    """A head, prototypes, and logits of a confusion matrix."""
    generator = torch.Generator().manual_seed(num)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Head(weight=scale * normal(num, dim), bias=normal(num)), normal(num, dim), normal(num, num)


def gain_by_autograd(head: Head, prototypes: Tensor, logits: Tensor, objective, share: float, i: int, j: int) -> Tensor:
    """d psi(softmax(A + change of the prototypes' logits) / C) along -d CE(f(z_ij), i) / d(W, b)."""
    weight, bias = head.weight.clone().requires_grad_(), head.bias.clone().requires_grad_()
    now = Head(weight=weight, bias=bias)
    mixed = share * prototypes[i] + (1 - share) * prototypes[j]
    step = torch.autograd.grad(F.cross_entropy(now(mixed[None]), torch.tensor([i])), (weight, bias))
    shares = (logits + now(prototypes) - head(prototypes)).softmax(1) / len(logits)
    slope = torch.autograd.grad(objective(shares), (weight, bias))
    return -sum(((a * b).sum() for a, b in zip(step, slope, strict=True)), torch.tensor(0.0))


@pytest.mark.parametrize(("num", "dim"), [(2, 3), (5, 4), (12, 7)])
@pytest.mark.parametrize("name", ["mean_recall", "min_recall", "h_mean"])
@pytest.mark.parametrize("share", [0.8, 0.55])
def test_gain_of_every_pair_is_the_directional_derivative(num, dim, name, share):
    head, prototypes, logits = random_problem(num, dim)
    objective = OBJECTIVES[name]
    gradient = Goal(objective=objective).logit_gradient(logits.softmax(1) / num)
    expected = torch.stack(
        [
            torch.stack([gain_by_autograd(head, prototypes, logits, objective, share, i, j) for j in range(num)])
            for i in range(num)
        ]
    )
    slope = slope_at_prototypes(prototypes, gradient)
    torch.testing.assert_close(mixup_gain(head, prototypes, slope, share), expected)


@pytest.mark.parametrize("name", ["mean_recall", "min_recall", "h_mean"])
@pytest.mark.parametrize("coverage", [None, 0.95])
def test_slope_at_images_is_the_gradient_of_the_expected_confusion_matrix(name, coverage):
    stage = biased_stage(name, coverage)
    head, softness, added = stage.head.double(), 0.4, 1.0
    weight, bias = head.weight.clone().requires_grad_(), head.bias.clone().requires_grad_()
    probs = (Head(weight=weight, bias=bias)(stage.held_out.double()) / softness).softmax(-1)
    expected = torch.stack([probs[stage.truth == k].sum(0) for k in range(5)]) + added / 5
    shares = expected / (30 + added) / 5
    # The Lagrangian with the multipliers as they are there, divided by what it is divided by.
    multipliers = stage.goal.multipliers(shares.detach())
    value = (stage.goal.objective(shares) + (multipliers * shares.sum(0)).sum()) / (1 + multipliers.max())
    by_weight, by_bias = torch.autograd.grad(value, (weight, bias))
    slope = slope_at_images(stage, stage.head, softness, added)
    torch.testing.assert_close(slope.weight, by_weight)
    torch.testing.assert_close(slope.bias, by_bias)
    if coverage is not None:
        assert multipliers.max() > 1


def test_a_step_on_the_pair_of_the_largest_gain_raises_the_objective_most():
    stage = biased_stage("h_mean")
    head, prototypes = stage.head.double(), class_means(stage.held_out.double(), stage.truth, 5)
    gain, rate = SelMix(softness=0.5).gain(stage, stage.head), 1e-6

    def psi(head: Head) -> float:
        probs = (head(stage.held_out.double()) / 0.5).softmax(-1)
        counts = torch.stack([probs[stage.truth == k].sum(0) for k in range(5)])
        return stage.goal.objective(shares_of(counts, 1.0)).item()

    def rise(i: int, j: int) -> float:
        mixed = (0.8 * prototypes[i] + 0.2 * prototypes[j])[None]
        error = F.one_hot(torch.tensor(i), 5) - head(mixed)[0].softmax(0)
        return psi(Head(weight=head.weight + rate * error.outer(mixed[0]), bias=head.bias + rate * error)) - psi(head)

    rises = torch.tensor([[rise(i, j) / rate for j in range(5)] for i in range(5)], dtype=torch.float64)
    torch.testing.assert_close(gain, rises, rtol=1e-3, atol=1e-5)


def test_gain_is_what_a_small_step_brings():
    head, prototypes, logits = random_problem(4, 6)
    goal = Goal(objective=OBJECTIVES["mean_recall"])
    slope = slope_at_prototypes(prototypes, goal.logit_gradient(logits.softmax(1) / 4))
    gain = mixup_gain(head, prototypes, slope, 0.8)
    i, j = 1, 3
    mixed = (0.8 * prototypes[i] + 0.2 * prototypes[j])[None]
    error = F.one_hot(torch.tensor(i), 4) - head(mixed)[0].softmax(0)
    rate = 1e-6
    moved = Head(weight=head.weight + rate * error.outer(mixed[0]), bias=head.bias + rate * error)
    after = (logits + moved(prototypes) - head(prototypes)).softmax(1) / 4
    rise = goal.objective(after) - goal.objective(logits.softmax(1) / 4)
    assert rise.item() / rate == pytest.approx(gain[i, j].item(), rel=1e-3)


def test_gain_stays_finite_for_logits_of_any_size():
    head, prototypes, logits = random_problem(5, 4, scale=1e4)
    gradient = Goal(objective=OBJECTIVES["mean_recall"]).logit_gradient(logits.softmax(1) / 5)
    assert mixup_gain(head, prototypes, slope_at_prototypes(prototypes, gradient), 0.8).isfinite().all()


def test_pairs_of_positive_gain_alone_are_drawn():
    gain = torch.tensor([[0.3, -1.0], [0.1, 0.0]])
    found = pair_probabilities(gain, temperature=0.1)
    assert found is not None
    assert found.tolist() == [pytest.approx([1 / (1 + torch.e**-2), 0]), pytest.approx([1 / (1 + torch.e**2), 0])]
    assert pair_probabilities(torch.tensor([[-1.0, 0.0], [-2.0, -3.0]]), 0.1) is None


def test_pairs_of_more_than_4096_classes_are_drawn(monkeypatch: pytest.MonkeyPatch):
    pairs = torch.zeros(4097, 4097)
    pairs[0, 1], pairs[2, 4096], pairs[4096, 3] = 0.5, 0.2, 0.3
    drawn = pair_draws(pairs)(20_000, torch.Generator().manual_seed(0))
    places, counts = drawn.unique(return_counts=True)
    assert places.tolist() == [1, 2 * 4097 + 4096, 4096 * 4097 + 3]
    assert (counts / 20_000).tolist() == pytest.approx([0.5, 0.2, 0.3], abs=0.02)
    # Of few classes, the draws are those of torch.multinomial, and the other way has the same distribution.
    few = torch.tensor([[0.0, 0.1], [0.6, 0.3]])
    first = pair_draws(few)(50, torch.Generator().manual_seed(1))
    assert first.equal(torch.multinomial(few.flatten(), 50, True, generator=torch.Generator().manual_seed(1)))
    monkeypatch.setattr(selmix, "MOST_CATEGORIES", 3)
    drawn = pair_draws(few)(20_000, torch.Generator().manual_seed(1))
    assert (drawn.bincount(minlength=4) / 20_000).tolist() == pytest.approx([0, 0.1, 0.6, 0.3], abs=0.02)


def test_class_means_worked():
    features = torch.tensor([[1.0, 0.0], [3.0, 2.0], [5.0, 5.0]])
    assert class_means(features, torch.tensor([1, 1, 0]), 2).tolist() == [[5.0, 5.0], [2.0, 1.0]]


def clusters(counts: list[int], seed: int, dim: int = 6, spread: float = 0.9) -> tuple[Tensor, Tensor]:
    """Features of classes around the same centers, whatever the seed."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    centers = torch.randn(len(counts), dim, generator=torch.Generator().manual_seed(7))
    noise = torch.randn(len(labels), dim, generator=torch.Generator().manual_seed(seed))
    return centers[labels] + spread * noise, labels


def biased_stage(objective: str = "min_recall", coverage: float | None = None) -> Stage:
    """Five classes, and a head that was fitted to a long tail: the last classes are hardly ever predicted."""
    labeled, labels = clusters([100, 40, 15, 6, 2], seed=0)
    unlabeled, _ = clusters([200, 80, 30, 12, 4], seed=1)
    held_out, truth = clusters([30] * 5, seed=2)
    centers, _ = clusters([1] * 5, seed=0, spread=0.0)
    counts = torch.tensor([100.0, 40, 15, 6, 2])
    head = Head(weight=centers, bias=1.5 * counts.log() - (centers**2).sum(1) / 2)
    return Stage(
        head=head,
        labeled=labeled,
        labels=labels,
        unlabeled=unlabeled,
        held_out=held_out,
        truth=truth,
        goal=Goal(objective=OBJECTIVES[objective], coverage=coverage),
    )


def test_training_begins_with_the_adjusted_head():
    stage = biased_stage("mean_recall")
    adjusted = LogitAdjustment()(stage)
    assert not torch.equal(adjusted.bias, stage.head.bias)
    for method in (SelMix, Mixup, BalancedMixup):
        assert torch.equal(next(method().heads(stage)).bias, adjusted.bias)
        assert torch.equal(next(method(adjusted=False).heads(stage)).bias, stage.head.bias)


@pytest.mark.parametrize("objective", ["mean_recall", "min_recall", "h_mean"])
@pytest.mark.parametrize("slope", ["images", "prototypes"])
def test_selmix_raises_its_objective(objective, slope):
    stage = biased_stage(objective)
    head = SelMix(steps=200, lr=0.02, adjusted=False, slope=slope)(stage)
    before, after = (stage.goal.objective(shares_of(stage.confusion(each), 1.0)) for each in (stage.head, head))
    assert after > before + 0.05


def test_coverage_is_reached_on_held_out_images():
    stage = biased_stage("mean_recall", coverage=0.95)
    before, after = (
        stage.goal.slack(shares_of(stage.confusion(h))).min() for h in (stage.head, SelMix(steps=400, lr=0.01)(stage))
    )
    assert before < -0.5 / 5
    assert after >= -0.01 / 5


def test_what_mixtures_miss_of_the_coverage_is_had_by_biases():
    stage = biased_stage("mean_recall", coverage=0.95)
    rough, settled = (
        SelMix(steps=100, lr=0.003, refresh_every=50, adjusted=False, settle=settle)(stage) for settle in (False, True)
    )
    least = [stage.goal.slack(shares_of(stage.confusion(head))).min() for head in (rough, settled)]
    assert least[0] < -0.01 / 5 <= least[1]
    assert torch.equal(rough.weight, settled.weight)


def test_the_same_seed_is_the_same_head_and_another_is_not():
    method, stage = SelMix(steps=60, lr=0.003, adjusted=False), biased_stage()
    same = method(stage), method(stage)
    assert torch.equal(same[0].weight, same[1].weight)
    other = SelMix(steps=60, lr=0.003, adjusted=False, keep="last")(Stage(**{**vars(stage), "seed": 1}))
    assert not torch.equal(other.weight, same[0].weight)


def test_of_states_that_are_equally_good_the_last_is_kept():
    method = Mixup(steps=60, lr=0.003, adjusted=False)
    # A sum of shares is 1 but for its rounding.
    stage = Stage(**{**vars(biased_stage()), "goal": Goal(objective=lambda shares: shares.sum())})
    heads = list(method.heads(stage))
    assert torch.equal(method(stage).weight, heads[-1].weight)
    assert not torch.equal(heads[0].weight, heads[-1].weight)


def test_pair_policies():
    stage = biased_stage()
    labeled, partners = torch.tensor([3.0, 1.0, 0.0]), torch.tensor([0.0, 2.0, 2.0])
    plain, balanced = (method.pairs(stage, stage.head, labeled, partners) for method in (Mixup(), BalancedMixup()))
    assert plain is not None and balanced is not None
    assert plain.tolist() == [[0, 3 / 8, 3 / 8], [0, 1 / 8, 1 / 8], [0, 0, 0]]
    assert balanced.tolist() == [[0, 1 / 4, 1 / 4], [0, 1 / 4, 1 / 4], [0, 0, 0]]


def test_selmix_leaves_out_classes_without_images():
    stage = biased_stage()
    labeled, partners = torch.tensor([3.0, 1, 0, 1, 1]), torch.tensor([0.0, 2, 2, 1, 1])
    pairs = SelMix().pairs(stage, stage.head, labeled, partners)
    assert pairs is not None
    assert pairs[2].sum() == 0 and pairs[:, 0].sum() == 0
    assert pairs.sum().item() == pytest.approx(1)


def test_partners_are_drawn_by_pseudo_label():
    stage = biased_stage()
    unlabeled_of = {k: stage.unlabeled[stage.head(stage.unlabeled).argmax(-1) == k] for k in range(5)}
    _, _, features, (order, counts) = Mixup().prepare(stage, stage.head)
    assert counts.tolist() == [len(each) for each in unlabeled_of.values()]
    torch.testing.assert_close(features[order[: counts[0]]], unlabeled_of[0])
    _, own, features, other = Mixup(partner="labeled").prepare(stage, stage.head)
    assert features is stage.labeled and other is own


def test_without_a_pair_of_positive_gain_the_head_stays():
    stage = biased_stage()
    flat = Goal(objective=lambda shares: (0 * shares).sum())
    head = SelMix(adjusted=False)(Stage(**{**vars(stage), "goal": flat}))
    assert torch.equal(head.weight, stage.head.weight)


def test_gap_of_a_smooth_concave_objective_falls_like_one_over_t():
    """psi, the mean log recall, is concave in the logits and so in the head; its least upper bound is 0.

    Each step goes along the mean of the mixtures' gradients, weighted as they would be drawn, at a constant rate.
    """
    num = 4
    prototypes = torch.randn(num, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mixed = 0.8 * prototypes.unsqueeze(1) + 0.2 * prototypes

    def psi(shares: Tensor) -> Tensor:
        return (num * shares.diagonal()).log().mean()

    goal, gap = Goal(objective=psi), []
    head = Head(weight=torch.zeros(num, 3, dtype=torch.float64), bias=torch.zeros(num, dtype=torch.float64))
    for _ in range(800):
        shares = head(prototypes).softmax(1) / num
        gap.append(-psi(shares).item())
        slope = slope_at_prototypes(prototypes, goal.logit_gradient(shares))
        pairs = pair_probabilities(mixup_gain(head, prototypes, slope, 0.8), temperature=0.1)
        assert pairs is not None
        error = pairs.unsqueeze(2) * (torch.eye(num).unsqueeze(1) - head(mixed).softmax(-1))
        head = Head(
            weight=head.weight + 0.3 * torch.einsum("ijc,ijd->cd", error, mixed),
            bias=head.bias + 0.3 * error.sum((0, 1)),
        )
    # t times the gap stays bounded, and each doubling of t halves the gap or does a little better.
    assert max((t + 1) * each for t, each in enumerate(gap)) < 20
    assert all(0.3 < gap[2 * t] / gap[t] < 0.6 for t in (50, 100, 200, 399))


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"lr": 0.0},
        {"smallest_share": 1.5},
        {"temperature": 0.0},
        {"softness": 0.0},
        {"added": 0.0},
        {"momentum": 1.0},
    ],
)
def test_wrong_settings_are_told(settings):
    with pytest.raises(InputError, match=next(iter(settings))):
        SelMix(**settings)
