"""DebiasPL: removes the model's average class bias from pseudo-labels, and uses it as a margin in the loss."""

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from debias_ssl.contract import Needs, Problem, PseudoLabels, Step, View, Views
from debias_ssl.distributed.running import uniform_marginal
from debias_ssl.formulas.logits import adjust, confident_labels, debias, weighted_cross_entropy
from debias_ssl.methods.base import PseudoLabeling, has_common_step
from debias_ssl.system.errors import InputError
from debias_ssl.system.ranges import AtLeastOne, Fraction, NotNegative, check_ranges

# Defaults of DebiasPL's own settings. With a base, they must not be changed.
THRESHOLD, WEIGHT = 0.95, 1.0


class DebiasPL(PseudoLabeling):
    """Debiased pseudo-labels and adaptive margin (arXiv 2201.01490), in the order of the authors' code.

    With q the marginal (uniform at first) and tau the strength:

    1. p = softmax(f(weak(u)) - tau log q), with the old q; target argmax p, weight 1[max p >= threshold];
    2. q <- m q + (1 - m) mean softmax(f(weak(u))): without debiasing, over all images of the global batch;
    3. L = CE(f(weak(x)), y) + lambda_u * mean_u weight * CE(f(strong(u)) + tau log q, target), with the new q.

    With several views, targets come from the mean of the weak logits and from each weak view. Each target applies to
    every strong view, and q follows the mean logits (the authors use two views for ImageNet). strength = 0 is FixMatch.
    The authors' CLD loss is left out.

    Over another base, that method computes targets and weights from the debiased logits, and its state follows the mean
    of these logits. Its further losses use strong logits debiased with the same q, f(strong(u)) - tau log q, because
    they compare strong views with that state (FreeMatch's fairness). With the margin of step 3 they would instead pull
    f + tau log q toward f - tau log q, a shift of 2 tau log q between views of the same image. The base's labeled loss
    does not change. strength = 0 is then the base.

    With a teacher's labels (CLIP's in the paper): if no pseudo-label of an image counts and the teacher's confidence is
    at least assist_threshold, the teacher's label is the target of a second loss of the same form. The mean of both
    losses replaces the unlabeled loss.

    Args:
        problem: what is fixed before training.
        threshold: confidence from which a debiased pseudo-label counts; with a base, leave it unchanged and set
            `--method.base.init_args.threshold`.
        strength: tau, how much of the class bias is removed from the targets and added as a margin.
        momentum: m of the marginal; 0.999 in the paper, 0.99 in the authors' ImageNet scripts.
        unlabeled_weight: lambda_u; with a base, leave it unchanged and set `--method.base.init_args.unlabeled_weight`.
        num_views: weak and strong views of each unlabeled image.
        assist_threshold: confidence from which labels of `data.probs` or of a teacher replace pseudo-labels that do not
            count; 0.4 in the authors' scripts; null does not use them.
        base: the method whose pseudo-labels are debiased, such as FlexMatch; null uses the fixed threshold.
    """

    needs = Needs(all_strong=None)

    def __init__(
        self,
        problem: Problem,
        *,
        threshold: Fraction = THRESHOLD,
        strength: NotNegative = 0.5,
        momentum: Fraction = 0.999,
        unlabeled_weight: NotNegative = WEIGHT,
        num_views: AtLeastOne = 1,
        assist_threshold: Fraction | None = None,
        base: Callable[[Problem], PseudoLabeling] | None = None,
    ):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.threshold = threshold
        self.strength = strength
        self.num_views = num_views
        self.assist_threshold = assist_threshold
        check_ranges(self, "method.")
        self.marginal = uniform_marginal(problem.num_classes, momentum)
        self.base = None if base is None else base(problem)
        if self.base is not None and not has_common_step(type(self.base)):
            raise InputError(
                f"method.base is {type(self.base).__name__}, which has its own order of a step and cannot be a base: "
                "choose a method such as FlexMatch"
            )
        for name, default in (("threshold", THRESHOLD), ("unlabeled_weight", WEIGHT)):
            value = getattr(self, name)
            if self.base is not None and value != default:
                kind = type(self.base).__name__
                is_there = hasattr(self.base, name)
                fix = f"set --method.base.init_args.{name}" if is_there else f"leave it out, {kind} has no {name}"
                raise InputError(f"method.{name} is {value}, but {kind} makes the pseudo-labels: {fix}")
        needs = self._policy.needs
        self.needs = replace(
            needs,
            num_weak=num_views * needs.num_weak,
            num_strong=num_views * needs.num_strong,
            teacher_probs=needs.teacher_probs or assist_threshold is not None,
        )

    @property
    def _policy(self) -> PseudoLabeling:
        """The method that computes targets and weights from debiased logits."""
        return self if self.base is None else self.base

    def pseudo_labels(self, logits: Float[Tensor, "U C"], views: Views) -> PseudoLabels:
        target, weight = confident_labels(logits, self.threshold)
        return PseudoLabels(target=target, weight=weight)

    def forward(self, views: Views) -> Step:
        policy = self._policy
        weak = torch.stack([view.logits for view in (views.weak, *views.further_weak)])
        mean = weak.mean(0)
        sources = [mean, *weak] if len(weak) > 1 else [mean]
        debiased = [debias(f, self.marginal.value, self.strength) for f in sources]
        policy.update(debiased[0], views)
        pseudo = [policy.pseudo_labels(f, views) for f in debiased]
        outside = self._assistance(views, pseudo)
        everything = [*pseudo] if outside is None else [*pseudo, outside]
        views = views.counted(torch.stack([labels.weight for labels in everything]).amax(0))
        strong = [view.logits for view in (views.strong, *views.further_strong)]
        comparable = [debias(f, self.marginal.value, self.strength) for f in strong]
        self.marginal.update(mean.softmax(-1))
        margins = [adjust(f, self.marginal.value, self.strength) for f in strong]
        unlabeled, said = mean_cross_entropy(margins, pseudo), pseudo[0]
        if outside is not None:
            unlabeled = (unlabeled + mean_cross_entropy(margins, [outside])) / 2
            said = joined(said, outside)
        further = [policy.further_losses(f, labels) for f in comparable for labels in pseudo]
        means = {name: torch.stack([losses[name] for losses in further]).mean() for name in further[0]}
        losses = {"labeled": policy.labeled_loss(views), "unlabeled": policy.unlabeled_weight * unlabeled}
        return Step(losses=losses | means, pseudo=said)

    def _assistance(self, views: Views, pseudo: list[PseudoLabels]) -> PseudoLabels | None:
        if self.assist_threshold is None:
            return None
        assert views.teacher_probs is not None
        return assistance(views.teacher_probs, self.assist_threshold, pseudo)

    def predict(self, view: View, blank: View | None = None) -> Float[Tensor, "N C"]:
        return view.logits if self.base is None else self.base.predict(view, blank)

    def on_evaluation(self, confusion: Int[Tensor, "C C"]) -> None:
        if self.base is not None:
            self.base.on_evaluation(confusion)


def assistance(probs: Float[Tensor, "U C"], threshold: Fraction, pseudo: list[PseudoLabels]) -> PseudoLabels:
    """Labels argmax p of a teacher's probabilities p, with weight 1[max p >= threshold] * (1 - largest own weight)."""
    confidence, target = probs.max(-1)
    counts = torch.stack([labels.weight for labels in pseudo]).amax(0)
    return PseudoLabels(target=target, weight=(confidence >= threshold) * (1 - counts))


def joined(own: PseudoLabels, outside: PseudoLabels) -> PseudoLabels:
    """Pseudo-labels for the log: of the two labels of an image, the one with the larger weight."""
    target = own.target if own.target.ndim == 1 else own.target.argmax(-1)
    return PseudoLabels(
        target=torch.where(outside.weight > own.weight, outside.target, target), weight=own.weight + outside.weight
    )


def mean_cross_entropy(logits: list[Tensor], pseudo: list[PseudoLabels]) -> Float[Tensor, ""]:
    """Mean over all pairs of logits (U C) and pseudo-labels."""
    return torch.stack(
        [weighted_cross_entropy(f, labels.target, labels.weight) for f in logits for labels in pseudo]
    ).mean()
