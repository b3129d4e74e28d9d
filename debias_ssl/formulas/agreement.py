"""The agreement of two classifiers on unlabeled images."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def class_agreement(one: Int[Tensor, " N"], other: Int[Tensor, " N"], num_classes: int) -> Float[Tensor, " C"]:
    """Of each class, Dice's coefficient of the images that either classifier gives it: 2 |A & B| / (|A| + |B|).

    It is the F1 score of one classifier's labels where the other's are taken for the truth, and 0 for a class that
    neither names. Classifiers trained on independent labels disagree about as often as they are wrong (arXiv
    2106.13799). The mean over classes, unlike the share of images that they agree about, does not rise when both give
    up rare classes.

    Args:
        one: predicted classes.
        other: those of the other classifier, of the same images.
        num_classes: C.
    """
    both = torch.bincount(one[one == other], minlength=num_classes)
    either = torch.bincount(one, minlength=num_classes) + torch.bincount(other, minlength=num_classes)
    return 2 * both / either.clamp(min=1)
