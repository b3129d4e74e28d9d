"""FineSSL: larger margins for classes that are learned less, and confidences from a second classifier."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from debias_ssl.contract import Needs, Problem, PseudoLabels, Step, View, Views
from debias_ssl.distributed.running import LabelMemory
from debias_ssl.formulas.logits import confident_labels, weighted_cross_entropy
from debias_ssl.methods.base import PseudoLabeling
from debias_ssl.system.ranges import Fraction, NotNegative, check_ranges


class FineSSL(PseudoLabeling):
    """Balanced margin softmax and decoupled label smoothing, for pretrained networks (arXiv 2405.11756).

    Let p = softmax(f(weak(u))), k = argmax p, and g be a second head. No gradient flows from g into the features.
    Before a step, count for each class c the unlabeled images whose last prediction with confidence >= threshold was c.
    This number divided by the largest one is sigma_c.

    alpha_c = alpha (1 - sigma_c) / (1 + sigma_c) (max sigma - min sigma)

    m_y = alpha_y for all classes except y, and 0 for y

    L = CE(f(weak(x)) + m_y, y) + lambda_u * mean_u max softmax(g(weak(u))) CE(f(strong(u)) + m_k, k)
        + CE(g(weak(x)), y) + mean_u 1[max p >= threshold] CE(g(strong(u)), smoothed k)

    A class that is learned less must win by a larger margin. The weight of a pseudo-label is the confidence of g. The
    smoothed k is 1 - smoothing for k and smoothing / (C - 1) for the others, so that g is less confident than f. With
    margin = 0, and if g has confidence 1 on all images, this is FixMatch with threshold 0.

    Differences from the authors' code: Their logits are about 14 times cosines, and a margin of up to 8 is a part of
    this range. Here logits are the network's own and have no bound. Their g starts at f; here it starts at random. They
    average the losses of two strong views, and forget all predictions after each epoch of 500 steps. Their last loss is
    the mean over confident images; here it is the mean over all images, like every other loss of pseudo-labels.

    Args:
        problem: what is fixed before training.
        threshold: confidence from which a prediction counts for sigma, and trains g.
        margin: alpha, the largest margin, in units of logits.
        smoothing: label smoothing of g; 0.5 in the paper's runs.
        unlabeled_weight: lambda_u; 3 in the paper's runs.
    """

    needs = Needs(all_strong="gives every pseudo-label a weight above 0")

    def __init__(
        self,
        problem: Problem,
        *,
        threshold: Fraction = 0.7,
        margin: NotNegative = 8.0,
        smoothing: Fraction = 0.5,
        unlabeled_weight: NotNegative = 3.0,
    ):
        super().__init__(problem, unlabeled_weight=unlabeled_weight)
        self.threshold = threshold
        self.margin = margin
        self.smoothing = smoothing
        check_ranges(self, "method.")
        self.head = nn.Linear(problem.num_features, problem.num_classes)
        self.memory = LabelMemory(problem.num_unlabeled, problem.num_classes)

    @property
    def margins(self) -> Float[Tensor, " C"]:
        """alpha_c."""
        counts = self.memory.counts()
        learned = counts / counts.max().clamp(min=1)
        return self.margin * (1 - learned) / (1 + learned) * (learned.max() - learned.min())

    def forward(self, views: Views) -> Step:
        target, is_confident = confident_labels(views.weak.logits, self.threshold)
        with torch.no_grad():
            confidence = self.head(views.weak.features).softmax(-1).amax(-1)
        margins = self.margins
        with_margins = replace(
            views,
            labeled=_with_margin(views.labeled, views.labels, margins),
            strong=_with_margin(views.strong, target, margins),
        )
        step = self.step(with_margins, PseudoLabels(target=target, weight=confidence))
        self.memory.update(views.index, torch.where(is_confident > 0, target, -1))
        further = {
            "confidence_labeled": F.cross_entropy(self.head(views.labeled.features.detach()), views.labels),
            "confidence_unlabeled": weighted_cross_entropy(
                self.head(views.strong.features.detach()), self._smoothed(target), is_confident
            ),
        }
        return replace(step, losses=step.losses | further)

    def _smoothed(self, labels: Int[Tensor, " U"]) -> Float[Tensor, "U C"]:
        num_classes = self.problem.num_classes
        is_label = F.one_hot(labels, num_classes).float()
        return is_label * (1 - self.smoothing) + (1 - is_label) * self.smoothing / max(1, num_classes - 1)


def _with_margin(view: View, labels: Int[Tensor, " N"], margins: Float[Tensor, " C"]) -> View:
    """The view with the margin of each image's label added to the logits of all other classes."""
    others = 1 - F.one_hot(labels, len(margins)).to(margins.dtype)
    return replace(view, logits=view.logits + margins[labels].unsqueeze(1) * others)
