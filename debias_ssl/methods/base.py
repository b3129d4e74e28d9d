"""The base classes of all methods."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from debias_ssl.contract import Needs, Problem, PseudoLabels, Step, View, Views
from debias_ssl.formulas.logits import weighted_cross_entropy
from debias_ssl.methods.labeled_loss import CrossEntropy
from debias_ssl.system.errors import InputError
from debias_ssl.system.ranges import NotNegative, check_ranges


class Method(nn.Module):
    """The method of one paper: `forward` is its formula, and the constructor's arguments are its hyperparameters.

    Keep state in buffers and trackers: it then moves with the device, and is saved and restored without further code.
    Parameters are optimized, averaged and exported together with those of the model.
    """

    needs: Needs = Needs()

    def __init__(self, problem: Problem):
        super().__init__()
        self.problem = problem
        self.criterion = problem.labeled_loss or CrossEntropy(problem)

    def forward(self, views: Views) -> Step:
        raise NotImplementedError

    def labeled_loss(self, views: Views, logits: Float[Tensor, "L C"] | None = None) -> Float[Tensor, ""]:
        """The run's loss of the labeled images, from `logits`. None takes the logits of their weak views."""
        logits = views.labeled.logits if logits is None else logits
        loss = self.criterion(logits, views.labels, views.progress)
        if views.partner_labels is None:
            return loss
        of_partners = self.criterion(logits, views.partner_labels, views.progress)
        return views.mixup_lambda * loss + (1 - views.mixup_lambda) * of_partners

    def predict(self, view: View, blank: View | None = None) -> Float[Tensor, "N C"]:
        """Logits at test time. `blank` is the view of an image without content, if the method needs one."""
        return view.logits

    def on_evaluation(self, confusion: Int[Tensor, "C C"]) -> None:
        """Called on every process with the confusion matrix of the validation images, if there are any."""


def class_shares(prior: Sequence[float], num_classes: int) -> Float[Tensor, " C"]:
    """The setting `prior` as shares that sum to 1.

    Raises:
        InputError: it is not one share for each class.
    """
    if len(prior) != num_classes or min(prior) < 0 or not 0 < sum(prior) < math.inf:
        raise InputError(f"method.prior must be {num_classes} shares, one for each class: {prior}")
    return torch.tensor(prior) / sum(prior)


class PseudoLabeling(Method):
    """A method that trains strong views toward targets from weak views.

    L = labeled loss + lambda_u * mean_u weight * CE(f(strong(u)), target)

    The mean is over all unlabeled images, whatever their weight. A subclass implements its paper's formula in
    `pseudo_labels`, and updates its state before that in `update`. Both receive the logits as an argument, so that
    DebiasPL can pass debiased ones.

    A method that needs another order overrides `forward` and ends it with `self.step(views, pseudo)`. DebiasPL does not
    accept such a method as its base.

    Args:
        problem: what is fixed before training.
        unlabeled_weight: lambda_u.
    """

    def __init__(self, problem: Problem, *, unlabeled_weight: NotNegative = 1.0):
        super().__init__(problem)
        self.unlabeled_weight = unlabeled_weight
        check_ranges(self, "method.", PseudoLabeling)

    def update(self, logits: Float[Tensor, "U C"], views: Views) -> None:
        """Updates the state with the weak logits of a step, once a step and before its pseudo-labels are made."""

    def pseudo_labels(self, logits: Float[Tensor, "U C"], views: Views) -> PseudoLabels:
        """Targets, and weights in [0, 1], from the logits of weak views. Does not change the state."""
        raise NotImplementedError

    def unlabeled_logits(self, logits: Float[Tensor, "U C"]) -> Float[Tensor, "U C"]:
        """The strong logits in the loss: f itself, or f with the margins of the method."""
        return logits

    def further_losses(self, logits: Float[Tensor, "U C"], pseudo: PseudoLabels) -> dict[str, Float[Tensor, ""]]:
        """More losses of the strong logits."""
        return {}

    def forward(self, views: Views) -> Step:
        self.update(views.weak.logits, views)
        return self.step(views, self.pseudo_labels(views.weak.logits, views))

    def step(self, views: Views, pseudo: PseudoLabels) -> Step:
        """Both losses, with these pseudo-labels."""
        views = views.counted(pseudo.weight)
        logits = self.unlabeled_logits(views.strong.logits)
        losses = {
            "labeled": self.labeled_loss(views),
            "unlabeled": self.unlabeled_weight * weighted_cross_entropy(logits, pseudo.target, pseudo.weight),
        }
        return Step(losses=losses | self.further_losses(logits, pseudo), pseudo=pseudo)


def has_common_step(kind: type[PseudoLabeling]) -> bool:
    """Whether the method keeps `forward` and `step` of PseudoLabeling, so that it can be the base of DebiasPL."""
    return kind.forward is PseudoLabeling.forward and kind.step is PseudoLabeling.step
