"""Supervised: training on the labeled images alone, the baseline of every semi-supervised method."""

import torch

from debias_ssl.contract import Needs, Problem, PseudoLabels, Step, Views
from debias_ssl.methods.base import Method
from debias_ssl.system.ranges import NotNegative, check_ranges


class Supervised(Method):
    """L = CE(f(weak(x)), y), or with mixup (arXiv 1710.09412), stage one of MiSLAS (arXiv 2104.00466):

    L = l CE(f(z), y) + (1 - l) CE(f(z), y'),  z = l weak(x) + (1 - l) weak(x'),  l ~ Beta(alpha, alpha)

    The partners x' are the labeled images of the step in another order, over all processes. A step has one l, as in the
    code of both papers. Then the mixture of two means is the mean of the mixed losses, for every `--labeled_loss`.

    Unlabeled images pass through the network without gradient, so that the bias of the predictions is logged.

    Args:
        problem: what is fixed before training.
        mixup_alpha: alpha; 1 for CIFAR in both papers, 0.2 for ImageNet in the first; 0 turns mixup off.
    """

    def __init__(self, problem: Problem, *, mixup_alpha: NotNegative = 0.0):
        super().__init__(problem)
        self.mixup_alpha = mixup_alpha
        check_ranges(self, "method.")
        self.needs = Needs(num_strong=0, mixup_alpha=mixup_alpha)

    def forward(self, views: Views) -> Step:
        target = views.weak.logits.argmax(-1)
        return Step(
            losses={"labeled": self.labeled_loss(views)},
            pseudo=PseudoLabels(target=target, weight=torch.zeros(len(target), device=target.device)),
        )
