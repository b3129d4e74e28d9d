"""`Learner`: model, averaged model (EMA) and method as one module, from images to losses and pseudo-labels."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import islice
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from debias_ssl.contract import Batch, BlankKind, Step, View, Views
from debias_ssl.distributed.collectives import all_mean_
from debias_ssl.distributed.running import uniform_marginal
from debias_ssl.formulas.schedules import ema_decay
from debias_ssl.methods.base import Method
from debias_ssl.models import batch_norms
from debias_ssl.training.cuda_graphs import Recorded
from debias_ssl.training.strong_views import UNPASSED, in_their_rows, rows_to_pass

TargetModel = Literal["raw", "ema"]
# Momentum of the marginal that is logged for every method: about 100 steps, so that it changes in short runs too.
LOGGED_MOMENTUM = 0.99


class Predictor(nn.Module):
    """The part of a learner that is used at test time: images to logits."""

    pixel: Tensor

    def __init__(self, model: nn.Module, method: Method, blank: tuple[float, ...] = ()):
        super().__init__()
        self.model = model
        self.method = method
        self.register_buffer("pixel", torch.tensor(blank), persistent=False)
        # In a list, so that it is not registered: a compiled module would give every parameter a second name.
        self._network: list[Callable] = [model]

    def compile_network(self) -> None:
        """Compiles the forward pass of images, but not that of a blank image."""
        self._network = [torch.compile(self.model)]

    def record_network(self) -> None:
        """Has passes in training recorded as CUDA graphs."""
        self._network = [Recorded(self.model, self._network[0])]

    def forward(self, images: Float[Tensor, "N K H W"]) -> Float[Tensor, "N C"]:
        return self.predict(images)[0]

    def predict(self, images: Float[Tensor, "N K H W"]) -> tuple[Float[Tensor, "N C"], View]:
        """The method's logits at test time, and the network's own output for the images."""
        view = self.view(images)
        blank = self.blank(images) if self.method.needs.blank else None
        # As in training, only the network's pass uses the precision of the run; the method uses fp32.
        with torch.autocast(images.device.type, enabled=False):
            return self.method.predict(view, blank), view

    @property
    def is_plain(self) -> bool:
        """Whether the method's predictions are the network's own."""
        device = next(self.model.parameters()).device
        logits = torch.zeros(1, self.method.problem.num_classes, device=device)
        view = View(logits=logits, features=torch.zeros(1, self.method.problem.num_features, device=device))
        return self.method.predict(view, view) is logits

    @torch.no_grad()
    def blank(self, images: Float[Tensor, "N K H W"]) -> View:
        """The network's output for a blank image of the same size, with averaged statistics."""
        was_training = self.model.training
        self.model.eval()
        image = self.pixel[:, None, None].expand(images.shape[1:])
        view = _view(self.model, image[None])
        self.model.train(was_training)
        return view

    def view(self, images: Float[Tensor, "N K H W"]) -> View:
        """The network's own output for images."""
        return _view(self._network[0], images)


def blank_pixel(kind: BlankKind | None, mean: Sequence[float], std: Sequence[float]) -> tuple[float, ...]:
    """A normalized pixel of the blank image that a method needs; empty if it needs none.

    Args:
        kind: `Needs.blank`.
        mean: mean of each channel, with which images are normalized.
        std: standard deviation of each channel, with which images are normalized.
    """
    if kind is None:
        return ()
    return tuple(1.0 if kind == "ones" else (1 - m) / s for m, s in zip(mean, std, strict=True))


class Learner(nn.Module):
    """Trains a model by a method, and keeps the running average of its weights.

    Args:
        model: computes (logits, features) of images.
        method: computes losses and pseudo-labels of views.
        blank: a pixel of the blank image, normalized like the images, for methods that need one.
        target_model: the model that makes the pseudo-labels from weak views: the trained one, with statistics of the
            batch, or the averaged one, with averaged statistics (EMAN, arXiv 2101.08482).
        decay: decay of the average; in the first steps it is min(decay, (1 + k) / (10 + k)). The running statistics of
            batch norms are averaged too; Google's and kekmodel's code of FixMatch uses those of the trained model.
        joint_pass: whether weak views pass through the network together with the others, as in FixMatch's code, instead
            of separately and without gradient. All then have the same batch statistics, and a step costs about 1.45
            times as much.
        accumulation: number of parts in which the images pass through the network, to save memory. The method receives
            all at once. The pass with gradient is then computed twice.
        counted: whether only strong views whose pseudo-labels count pass through the network, after the method has made
            these labels (`Views.counted`); not possible with a joint pass.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        *,
        blank: tuple[float, ...] = (),
        target_model: TargetModel = "raw",
        decay: float = 0.999,
        joint_pass: bool = False,
        accumulation: int = 1,
        counted: bool = False,
    ):
        super().__init__()
        self.raw = Predictor(model, method, blank)
        self.frozen: dict[str, Tensor] = {
            name: weight for name, weight in model.named_parameters() if not weight.requires_grad
        }
        """Weights of the model that are not trained; both models share them."""
        shared: dict[int, Any] = {id(weight): weight for weight in self.frozen.values()}
        self.ema = copy.deepcopy(self.raw, shared).requires_grad_(False).eval()
        self.marginal = uniform_marginal(method.problem.num_classes, LOGGED_MOMENTUM)
        self.target_model = target_model
        self.decay = decay
        self.joint_pass = joint_pass
        self.accumulation = accumulation
        self.counted = counted
        self._is_watched, self._strong_share = True, 1.0
        self._batch_norms = batch_norms(model)

    def compile_networks(self) -> None:
        """Compiles the passes of both models, for training and evaluation."""
        self.raw.compile_network()
        self.ema.compile_network()

    def record_networks(self) -> None:
        """Has the passes of a step recorded as CUDA graphs; those of the averaged model are not."""
        self.raw.record_network()

    def train(self, mode: bool = True) -> "Learner":
        super().train(mode)
        self.ema.eval()
        return self

    def forward(self, batch: Batch, progress: float) -> Step:
        needs = self.raw.method.needs
        weak = () if self._is_joint else tuple(self._without_gradient(images) for images in batch.weak)
        groups = {
            "labeled": (batch.labeled,),
            "strong_labeled": () if batch.strong_labeled is None else (batch.strong_labeled,),
            "strong": batch.strong,
            "weak": batch.weak if self._is_joint or needs.weak_gradient else (),
        }
        passed = _none_yet(groups) if self.counted else self._with_gradient(groups)
        weak = weak or tuple(_detached(view) for view in passed["weak"])
        strong = passed["strong"] or (passed["weak"] if needs.weak_gradient else (_none_of(weak[0]),))
        self.marginal.update(weak[0].logits.softmax(-1))
        views = Views(
            labeled=passed["labeled"][0],
            labels=batch.labels,
            partner_labels=batch.partner_labels,
            mixup_lambda=batch.mixup_lambda,
            weak=weak[0],
            strong=strong[0],
            index=batch.index,
            progress=progress,
            further_weak=weak[1:],
            further_strong=strong[1:],
            strong_labeled=next(iter(passed["strong_labeled"]), None),
            blank=self._target_predictor.blank(batch.labeled) if needs.blank else None,
            teacher_probs=batch.teacher_probs,
            labeled_teacher_probs=batch.labeled_teacher_probs,
            draws=batch.draws,
            passing=self._passing(groups) if self.counted else None,
        )
        with torch.autocast(batch.labeled.device.type, enabled=False):
            step = self.raw.method(views)
        return replace(step, strong_share=self._strong_share) if self.counted else step

    def _passing(self, groups: dict[str, tuple[Tensor, ...]]) -> Callable[[Views, Tensor], Views]:
        """A function that passes labeled images and the strong views that count, in the current precision."""
        kind = groups["labeled"][0].device.type
        precision = {"dtype": torch.get_autocast_dtype(kind), "enabled": torch.is_autocast_enabled(kind)}

        def passing(views: Views, weight: Float[Tensor, " U"]) -> Views:
            rows = rows_to_pass(weight)
            chosen = groups["strong"] if rows is None else tuple(images[rows] for images in groups["strong"])
            self._strong_share = 1.0 if rows is None else len(rows) / len(weight)
            with torch.autocast(kind, **precision):
                passed = self._with_gradient(groups | {"strong": chosen})
            strong = passed["strong"]
            if rows is not None:
                strong = [in_their_rows(view, rows, len(weight), is_watched=self._is_watched) for view in strong]
                # Watched once: if the method's losses need other views, the first step fails.
                self._is_watched = False
            return replace(
                views,
                labeled=passed["labeled"][0],
                strong=strong[0],
                further_strong=tuple(strong[1:]),
                strong_labeled=next(iter(passed["strong_labeled"]), None),
                passing=None,
            )

        return passing

    @property
    def _target_predictor(self) -> Predictor:
        return self.ema if self.target_model == "ema" else self.raw

    @property
    def _is_joint(self) -> bool:
        """Whether weak views pass only once, together with the views that need a gradient."""
        return self.target_model == "raw" and (self.joint_pass or self.raw.method.needs.weak_gradient)

    @torch.no_grad()
    def _without_gradient(self, images: Float[Tensor, "U K H W"]) -> View:
        """Weak views. The trained model uses the statistics of the batch, and does not change its running averages."""
        with frozen_averages(self._batch_norms):
            return _joined([self._target_predictor.view(part) for part in images.chunk(self.accumulation)])

    def _with_gradient(self, groups: dict[str, tuple[Float[Tensor, "_ K H W"], ...]]) -> dict[str, tuple[View, ...]]:
        """Views of groups of batches of images, in one pass."""
        images = [each for group in groups.values() for each in group]
        views = iter(_split(self._in_one_pass(torch.cat(images)), [len(each) for each in images]))
        return {name: tuple(islice(views, len(group))) for name, group in groups.items()}

    def _in_one_pass(self, joined: Float[Tensor, "N K H W"]) -> View:
        if self.accumulation == 1:
            return self.raw.view(joined)
        # Every part gets its share of labeled and strong images, so that the batch statistics of parts are similar.
        parts = torch.arange(len(joined), device=joined.device)
        parts = [parts[first :: self.accumulation] for first in range(self.accumulation)]
        views = [self._recomputed(joined[part]) for part in parts]
        place = torch.argsort(torch.cat(parts))
        view = _joined(views)
        return View(logits=view.logits[place], features=view.features[place])

    def _recomputed(self, images: Float[Tensor, "N K H W"]) -> View:
        """A pass without stored activations: they are computed again when the gradient needs them."""

        def passed(images: Tensor) -> tuple[Tensor, Tensor]:
            view = self.raw.view(images)
            return view.logits, view.features

        def contexts():
            return nullcontext(), discarded_averages(self._batch_norms)

        logits, features = checkpoint(passed, images, use_reentrant=False, context_fn=contexts)
        return View(logits=logits, features=features)

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Updates the averaged model after optimizer step `step` (from 0), and averages statistics over processes."""
        moved = [norm for norm in self._batch_norms if norm.training]  # those of a frozen network do not change
        all_mean_([buffer for norm in moved for buffer in norm.buffers() if buffer.is_floating_point()])
        weight = 1 - ema_decay(step, self.decay)
        parameters = zip(self.ema.parameters(), self.raw.parameters(), strict=True)
        averaged: list[tuple[Tensor, Tensor]] = [(own, value) for own, value in parameters if own is not value]
        copied: list[tuple[Tensor, Tensor]] = [*zip(self.ema.method.buffers(), self.raw.method.buffers(), strict=True)]
        for average, value in zip(self.ema.model.buffers(), self.raw.model.buffers(), strict=True):
            (averaged if value.is_floating_point() else copied).append((average, value))
        averages, values = zip(*averaged, strict=True)
        torch._foreach_lerp_(averages, values, weight)  # pyright: ignore[reportPrivateImportUsage]
        if copied:
            averages, values = zip(*copied, strict=True)
            torch._foreach_copy_(averages, values)  # pyright: ignore[reportPrivateImportUsage]


@contextmanager
def frozen_averages(norms: list[Any]) -> Iterator[None]:
    """Inside the block, batch norms use the statistics of the batch, and do not change their running averages."""
    training = [norm for norm in norms if norm.training]
    for norm in training:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in training:
            norm.track_running_stats = True


@contextmanager
def discarded_averages(norms: list[Any]) -> Iterator[None]:
    """Inside the block, batch norms update copies of their running averages, which are then discarded.

    A pass that is computed again must save the same tensors as the first one, so the updates cannot be left out.
    """
    kept = [norm._buffers for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        norm._buffers = {name: buffer.clone() for name, buffer in buffers.items()}
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers = buffers


def _view(network: Callable, images: Float[Tensor, "N K H W"]) -> View:
    logits, features = network(images)
    return View(logits=logits.float(), features=features.float())


def _none_yet(groups: dict[str, tuple[Tensor, ...]]) -> dict[str, tuple[View, ...]]:
    return {name: (UNPASSED,) * len(images) for name, images in groups.items()}


def _joined(views: list[View]) -> View:
    return View(
        logits=torch.cat([view.logits for view in views]), features=torch.cat([view.features for view in views])
    )


def _split(view: View, sizes: list[int]) -> list[View]:
    parts = zip(view.logits.split(sizes), view.features.split(sizes), strict=True)
    return [View(logits=logits, features=features) for logits, features in parts]


def _none_of(view: View) -> View:
    """An empty view of the same sizes."""
    return View(logits=view.logits[:0], features=view.features[:0])


def _detached(view: View) -> View:
    return View(logits=view.logits.detach(), features=view.features.detach())
