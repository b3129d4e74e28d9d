"""SelMix: trains the classifier on mixtures of the features of two classes, which it chooses by their gain."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from debias_ssl.finetune.post_hoc import BiasSearch, LogitAdjustment
from debias_ssl.finetune.stage import Head, Stage, Training, draw_members, members
from debias_ssl.formulas.objectives import shares_of
from debias_ssl.system.ranges import AtLeastOne, Fraction, Positive

# exp(-300)^2 is still a normal number in fp64.
SMALLEST_EXPONENT = -300.0
# Of torch.multinomial.
MOST_CATEGORIES = 2**24


def slope_at_prototypes(prototypes: Float[Tensor, "C D"], logit_gradient: Float[Tensor, "C C"]) -> Head:
    """d psi / d(W, b) of an objective psi that depends on the logits of the prototypes, as in arXiv 2403.18301.

    Args:
        prototypes: z_q, the mean features of each class.
        logit_gradient: D, the gradient of psi by the logits of the prototypes (row: prototype).

    Returns:
        The derivative in fp64. It has the form of a head: applied to a feature z, it gives the effect of a
        change of each logit of z on psi, sum_q D_ql (z . z_q + 1).
    """
    gradient = logit_gradient.double()
    return Head(weight=gradient.T @ prototypes.double(), bias=gradient.sum(0))


def slope_at_images(stage: Stage, head: Head, softness: float, added: float) -> Head:
    """d psi / d(W, b) of psi of the expected confusion matrix of softmax(f / softness) on held-out images.

    With a smaller softness, psi is nearer to that of the predictions, and its slope depends more on the images near the
    border of two classes.
    """
    features = stage.held_out.double()
    probs = (head.double()(features) / softness).softmax(-1)
    num = stage.num_classes
    counts = probs.new_zeros(num, num).index_add_(0, stage.truth, probs)
    by_share = stage.goal.gradient(shares_of(counts, added)) / (num * (counts.sum(1, keepdim=True) + added))
    by_probs = by_share[stage.truth]
    by_logits = probs * (by_probs - (probs * by_probs).sum(1, keepdim=True)) / softness
    return Head(weight=by_logits.T @ features, bias=by_logits.sum(0))


def mixup_gain(head: Head, prototypes: Float[Tensor, "C D"], slope: Head, share: float) -> Float[Tensor, "C C"]:
    """How much one step on each mixture of two classes raises an objective, per unit of learning rate.

    G_ij is the derivative of psi along -d CE(f(z), i) / d(W, b), z = share z_i + (1 - share) z_j (arXiv 2403.18301):

    G_ij = sum_l s_l(z) (1[l = i] - p_l(z)),  s(z) = M z + m,  p = softmax(f(z)),

    with M and m the derivative of psi by W and b. With R = s(Z), E = exp(share f(Z)) and F = exp((1 - share) f(Z)),
    which are the factors of p,

    G_ij = share R_ii + (1 - share) R_ji - [share (E * R) F^T + (1 - share) E (F * R)^T]_ij / [E F^T]_ij:

    matrix products in O(C^2 (C + D)) time and O(C^2 + C D) memory.

    Args:
        head: f, W and b.
        prototypes: z_i, the mean features of each class.
        slope: M and m.
        share: of class i in the mixture; 0.8 on average in the paper.

    Returns:
        G in fp64; rows are i, the class that keeps its label.
    """
    z = prototypes.double()
    logits = head.double()(z)
    rise = slope.double()(z)
    below = logits - logits.max(1, keepdim=True).values
    first = (share * below).clamp(min=SMALLEST_EXPONENT).exp()
    second = ((1 - share) * below).clamp(min=SMALLEST_EXPONENT).exp()
    own = share * rise.diagonal().unsqueeze(1) + (1 - share) * rise.T
    expected = share * (first * rise) @ second.T + (1 - share) * first @ (second * rise).T
    return own - expected / (first @ second.T)


def pair_probabilities(gain: Float[Tensor, "C C"], temperature: float) -> Float[Tensor, "C C"] | None:
    """softmax(G / T) over the pairs of positive gain; None where there is no such pair."""
    if not (gain > 0).any():
        return None
    return gain.masked_fill(gain <= 0, -torch.inf).div(temperature).flatten().softmax(0).view_as(gain)


def pair_draws(pairs: Float[Tensor, "C C"]) -> Callable[[int, torch.Generator], Int[Tensor, " _"]]:
    """Draws pairs, as places in the flattened matrix of their probabilities: so many of them, with a generator.

    torch.multinomial takes 2^24 categories, the pairs of 4,096 classes. Of more, the inverse of their distribution
    function gives the pair of a random number.
    """
    flat = pairs.flatten().cpu()
    if len(flat) <= MOST_CATEGORIES:
        return lambda number, random: torch.multinomial(flat, number, replacement=True, generator=random)
    reached = flat.double().cumsum(0)

    def draw(number: int, random: torch.Generator) -> Int[Tensor, " _"]:
        # Below the last sum, so that a pair of probability 0 at the end is never drawn.
        numbers = torch.rand(number, dtype=torch.float64, generator=random) * reached[-1]
        largest = reached[-1].nextafter(torch.zeros((), dtype=torch.float64))
        return torch.searchsorted(reached, numbers.clamp(max=largest), right=True)

    return draw


def class_means(features: Float[Tensor, "N D"], classes: Tensor, num_classes: int) -> Float[Tensor, "C D"]:
    """Mean features of each class; each must have at least one row."""
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, classes, features)
    return sums / classes.bincount(minlength=num_classes).unsqueeze(1)


@dataclass(frozen=True, kw_only=True)
class Mixup(Training):
    """CE(f(a z_x + (1 - a) z_u), i): x a labeled image of class i, u an unlabeled one of pseudo-label j, a >= a_min.

    All images are drawn equally often, so that frequent classes are mixed with frequent classes.

    SelMix's paper starts from runs with a logit-adjusted labeled loss. Here a run may have any loss, and training
    starts from the head that `LogitAdjustment` finds on the held-out images. Without it, after training on a long tail,
    the gain of the rarest class may be so much the largest that hardly any other class is drawn at first.

    Args:
        adjusted: whether training starts from the adjusted head; else from the run's.
        smallest_share: a_min, the smallest share of the labeled image in a mixture.
        partner: the second image is an unlabeled one of pseudo-label j, or a labeled one of class j.
    """

    steps: AtLeastOne = 500
    lr: Positive = 0.001
    adjusted: bool = True
    smallest_share: Fraction = 0.6
    partner: Literal["unlabeled", "labeled"] = "unlabeled"

    def start(self, stage: Stage) -> Head:
        return LogitAdjustment()(stage) if self.adjusted else stage.head

    def pairs(
        self, stage: Stage, head: Head, labeled: Float[Tensor, " C"], partners: Float[Tensor, " C"]
    ) -> Float[Tensor, "C C"] | None:
        """Probability of each pair, given the numbers of images of each class on both sides; None ends the training."""
        return labeled.outer(partners) / (labeled.sum() * partners.sum())

    def prepare(self, stage: Stage, head: Head) -> Any:
        own = members(stage.labels, stage.num_classes)
        if self.partner == "unlabeled":
            features, other = stage.unlabeled, members(head(stage.unlabeled).argmax(-1), stage.num_classes)
        else:
            features, other = stage.labeled, own
        pairs = self.pairs(stage, head, own[1].double(), other[1].double())
        return None if pairs is None else (pair_draws(pairs), own, features, other)

    def loss(self, stage: Stage, head: Head, prepared: Any, random: torch.Generator) -> Float[Tensor, ""]:
        draw_pairs, own, features, other = prepared
        drawn = draw_pairs(self.batch_size, random).to(stage.labels.device)
        i, j = drawn // stage.num_classes, drawn % stage.num_classes
        numbers = torch.rand(self.batch_size, 1, generator=random).to(stage.labeled)
        share = self.smallest_share + (1 - self.smallest_share) * numbers
        first = stage.labeled[draw_members(i, own, random)]
        second = features[draw_members(j, other, random)]
        return F.cross_entropy(head(share * first + (1 - share) * second), i)


@dataclass(frozen=True, kw_only=True)
class BalancedMixup(Mixup):
    """Mixup of class pairs that are drawn equally often."""

    def pairs(
        self, stage: Stage, head: Head, labeled: Float[Tensor, " C"], partners: Float[Tensor, " C"]
    ) -> Float[Tensor, "C C"] | None:
        there = (labeled > 0).double().outer((partners > 0).double())
        return there / there.sum()


@dataclass(frozen=True, kw_only=True)
class SelMix(Mixup):
    """Mixup of class pairs drawn from softmax(gain / T) over the pairs of positive gain (arXiv 2403.18301).

    Each refresh computes the gain of each pair in closed form: how much a step on a mixture of the two classes' mean
    features raises the objective on held-out images (`mixup_gain`). In the paper the objective depends on the logits of
    these means, through the shares of the confusion matrix; here it depends on the softmax of each image. `slope`
    chooses. With the paper's, tuned for mean recall, the lowest recall on long-tailed CIFAR-10 fell from 29 to 11 %.

    The second image is drawn by its pseudo-label; the authors' code draws it by its true class. The paper makes 10,000
    steps at a rate of 3e-4 with a refresh every 50, and trains the network too, at a tenth of this rate; here the
    features are fixed, and steps are fewer and larger.

    With few held-out images, training comes near a coverage but may miss it. `BiasSearch` then moves the biases of the
    kept head to meet it, unless `settle` is false.

    Args:
        temperature: T; 0.1 for ten and 0.05 for a hundred classes in the paper.
        slope: where to take the derivative of the objective: at each held-out image, or at the prototypes as in the
            paper.
        softness: for `images`: the confusion matrix is the expected one of softmax(f / softness).
        added: number of images to add to each row of the confusion matrix, spread evenly, so that a class without
            correct predictions has a gradient. The paper has thousands of held-out images, and adds none.
        settle: whether to move biases if a coverage is missed.
    """

    temperature: Positive = 0.1
    slope: Literal["images", "prototypes"] = "images"
    softness: Positive = 0.3
    added: Positive = 1.0
    settle: bool = True

    def __call__(self, stage: Stage) -> Head:
        head = super().__call__(stage)
        missing = -stage.rank(head)[0]
        return BiasSearch()(replace(stage, head=head)) if self.settle and missing > 0 else head

    def pairs(
        self, stage: Stage, head: Head, labeled: Float[Tensor, " C"], partners: Float[Tensor, " C"]
    ) -> Float[Tensor, "C C"] | None:
        gain = self.gain(stage, head)
        there = (labeled > 0).unsqueeze(1) & (partners > 0)
        return pair_probabilities(gain.masked_fill(~there, -torch.inf), self.temperature)

    def gain(self, stage: Stage, head: Head) -> Float[Tensor, "C C"]:
        prototypes = class_means(stage.held_out, stage.truth, stage.num_classes)
        if self.slope == "prototypes":
            gradient = stage.goal.logit_gradient(shares_of(stage.confusion(head), self.added))
            slope = slope_at_prototypes(prototypes, gradient)
        else:
            slope = slope_at_images(stage, head, self.softness, self.added)
        return mixup_gain(head, prototypes, slope, share=(1 + self.smallest_share) / 2)
