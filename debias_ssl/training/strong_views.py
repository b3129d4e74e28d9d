"""Decides which strong views pass through the network: all, or those whose pseudo-labels count."""

import math
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor

from debias_ssl.contract import View
from debias_ssl.methods.base import Method
from debias_ssl.models import Classifier
from debias_ssl.models.mixing import mixing_of
from debias_ssl.system.errors import InputError

StrongViews = Literal["all", "counted", "auto"]
# The number of views that pass is rounded up to one of this many sizes, so that kernels made for a size are reused.
NUM_SIZES = 16
REST = "set --strong_views all"


def passes_counted(setting: StrongViews, method: Method, model: Classifier, shape: tuple[int, int, int]) -> bool:
    """Whether only strong views whose pseudo-labels count pass through the network.

    Args:
        setting: `auto` is `counted` if this does not change the losses, and if a pass takes longer than the choice of
            the images.
        method: its `Needs.all_strong` says whether it needs all strong views.
        model: the network, on the CPU.
        shape: height, width and number of channels of its images.

    Raises:
        InputError: the setting is `counted`, and the method or the network does not allow it.
    """
    if setting == "all":
        return False
    obstacle = _obstacle(method)
    mixing = mixing_of(model, shape) if obstacle is None else None
    if mixing == "other":
        obstacle = "the network's output for an image depends on the other images of a step"
    if setting == "counted" and obstacle is not None:
        raise InputError(f"strong_views is counted, but {obstacle}: {REST}, or auto")
    return obstacle is None and (setting == "counted" or (mixing is None and not _is_classifier_alone(model)))


def _is_classifier_alone(model: Classifier) -> bool:
    """Whether the classifier is the whole network: a pass then takes less time than the choice of the images."""
    return len([*model.parameters()]) == len([p for layer in model.classifiers() for p in layer.parameters()])


def _obstacle(method: Method) -> str | None:
    why = "has no strong views" if method.needs.num_strong == 0 else method.needs.all_strong
    base = getattr(method, "base", None)
    is_own = base is None or (method.needs.num_strong > 0 and base.needs.all_strong != why)
    speaker = method if is_own else base
    return why and f"{type(speaker).__name__} {why}"


class Unpassed(View):
    """A placeholder for views that did not pass through the network."""

    def __init__(self):
        pass

    def __getattr__(self, name: str) -> Any:
        raise InputError(
            f"the method reads {name} of labeled or strong views before it marks the ones that count "
            f"(Views.counted): {REST}"
        )


UNPASSED = Unpassed()


def rows_to_pass(weight: Float[Tensor, " U"]) -> Int[Tensor, " n"] | None:
    """Numbers of the unlabeled images whose strong views pass, filled up to one of a few sizes; None if all pass.

    Images that count come first, then some others. The function waits for the device once, for the number of images
    that count.
    """
    counts = weight != 0
    size = rounded_up(int(counts.sum()), len(weight))
    return None if size == len(weight) else (~counts).byte().argsort(stable=True)[:size]


def rounded_up(number: int, largest: int) -> int:
    """The next of `NUM_SIZES` sizes up to the largest one, or 0."""
    part = math.ceil(largest / NUM_SIZES)
    return min(largest, math.ceil(number / part) * part)


def in_their_rows(passed: View, rows: Int[Tensor, " n"], number: int, *, is_watched: bool) -> View:
    """Views of all unlabeled images, with zeros for those that did not pass.

    Args:
        passed: the network's output for the images that passed.
        rows: the numbers of these images.
        number: the number of all unlabeled images.
        is_watched: whether the backward pass raises an InputError if a loss depends on the zeros. This check waits for
            the device.
    """
    logits, features = (
        values.new_zeros(number, values.shape[1]).index_copy(0, rows, values)
        for values in (passed.logits, passed.features)
    )
    if is_watched:
        for values in (logits, features):
            if values.requires_grad:
                values.register_hook(lambda gradient: _check_rest(gradient, rows))
    return View(logits=logits, features=features)


def _check_rest(gradient: Float[Tensor, "U K"], rows: Int[Tensor, " n"]) -> None:
    if gradient.index_fill(0, rows, 0.0).any():
        raise InputError(
            f"the method's losses depend on strong views that do not count and did not pass through the network: {REST}"
        )
