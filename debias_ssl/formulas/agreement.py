"""The agreement of two classifiers on unlabeled images."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def class_agreement(one: Int[Tensor, " N"], other: Int[Tensor, " N"], num_classes: int) -> Float[Tensor, " C"]:
    """Dice's coefficient of each class, 2 |A & B| / (|A| + |B|), with A and B the images that one and other give it.

    It is the F1 score of one classifier's labels if the other's are read as the truth. It is 0 for a class that neither
    predicts. Classifiers trained on independent labels disagree about as often as they are wrong (arXiv 2106.13799).
    The share of images on which they agree rises if both stop predicting rare classes; the mean of this coefficient
    over classes does not.

    Args:
        one: classes predicted by one classifier.
        other: classes predicted by the other classifier for the same images.
        num_classes: C.
    """
    both = torch.bincount(one[one == other], minlength=num_classes)
    either = torch.bincount(one, minlength=num_classes) + torch.bincount(other, minlength=num_classes)
    return 2 * both / either.clamp(min=1)
