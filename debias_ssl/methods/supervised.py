"""Labeled images only: the floor that every semi-supervised method has to beat with the same budget."""

import torch

from debias_ssl.methods.base import Method, PseudoLabels, Step, Views


class Supervised(Method):
    """L = CE(f(weak(x)), y).

    The unlabeled images are looked at, without gradient, so that the bias of the model's own predictions is logged.
    """

    num_strong = 0

    def forward(self, views: Views) -> Step:
        target = views.weak.logits.argmax(-1)
        return Step(
            losses={"labeled": self.labeled_loss(views)},
            pseudo=PseudoLabels(target=target, weight=torch.zeros(len(target), device=target.device)),
        )
