"""Methods that retrain the classifier, on features of labeled images that are drawn equally often from each class."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from debias_ssl.finetune.stage import Head, Stage, Training, draw_members, members
from debias_ssl.formulas.logits import label_aware_smoothing, smoothed_cross_entropy
from debias_ssl.system.ranges import BelowOne, NotNegative


@dataclass(frozen=True, kw_only=True)
class Retraining(Training):
    """cRT (arXiv 1910.09217): a new classifier, by cross-entropy on labeled images drawn evenly from the classes."""

    def start(self, stage: Stage) -> Head:
        return Head(weight=torch.zeros_like(stage.head.weight), bias=torch.zeros_like(stage.head.bias))

    def prepare(self, stage: Stage, head: Head) -> Any:
        of_classes = members(stage.labels, stage.num_classes)
        return of_classes, of_classes[1].nonzero().flatten()

    def loss(self, stage: Stage, head: Head, prepared: Any, random: torch.Generator) -> Float[Tensor, ""]:
        of_classes, present = prepared
        numbers = torch.randint(len(present), (self.batch_size,), generator=random)
        labels = present[numbers.to(present.device)]
        features = stage.labeled[draw_members(labels, of_classes, random)]
        return self.cost(stage, head(features), labels)

    def cost(self, stage: Stage, logits: Float[Tensor, "B C"], labels: Tensor) -> Float[Tensor, ""]:
        return F.cross_entropy(logits, labels)


@dataclass(frozen=True, kw_only=True)
class MiSLAS(Retraining):
    """Stage two of MiSLAS (arXiv 2104.00466): logits s_y f_y, with a learned s, and label-aware smoothing.

    The classifier is trained too, at a smaller rate. In the paper stage one trains with mixup.

    Args:
        head_smoothing: eps of the most frequent class; 0.3 for CIFAR-10, 0.4 for CIFAR-100 in the paper.
        tail_smoothing: eps of the rarest class; 0 and 0.1 in the paper.
        classifier_rate: learning rate of the classifier, as a factor of the rate of s.
    """

    head_smoothing: BelowOne = 0.3
    tail_smoothing: BelowOne = 0.0
    classifier_rate: NotNegative = 0.2

    def start(self, stage: Stage) -> Head:
        return stage.head

    def rates(self) -> tuple[float, float]:
        return self.classifier_rate, 1.0

    def cost(self, stage: Stage, logits: Float[Tensor, "B C"], labels: Tensor) -> Float[Tensor, ""]:
        counts = stage.labeled_counts.float()
        return smoothed_cross_entropy(
            logits, labels, label_aware_smoothing(counts, self.head_smoothing, self.tail_smoothing)
        )
