"""The batches of a run. The batch of step k depends only on the seed and k."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any, Literal, TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.utils.data import Dataset

from debias_ssl.contract import Batch, Needs, Place
from debias_ssl.data.augment.augmenter import Augmenter, Numbers
from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.augment.randaugment import check_own_operations
from debias_ssl.data.augment.views import Normalization, Pixels
from debias_ssl.data.reading.decode import NUM_CROP_NUMBERS
from debias_ssl.data.reading.reader import Reader
from debias_ssl.data.reading.workers import read_ahead
from debias_ssl.data.sampling.keyed import Purpose, beta, permutation, uniform_ahead
from debias_ssl.data.sampling.orders import BalancedOrder, BatchOrder, PassOrder, ShardOrder
from debias_ssl.system.errors import InputError
from debias_ssl.system.ranges import AtLeastOne, check_ranges

MOST_LANES = 64
# On a GPU, the views of several steps are made together: as many as have this many pixel values, and at most MOST.
VALUES_AT_ONCE, MOST_AT_ONCE = 2**25, 8
_Kind = Literal["labeled", "weak", "strong"]


@dataclass(frozen=True, kw_only=True)
class StreamConfig:
    """How the batches of a run are made from images.

    Args:
        lanes: for unlabeled images in shards: the number of places from which a batch is read. Processes share the
            lanes, and each reads its own shards; null is the largest divisor of the batch up to 64.
        augment: weak and strong views.
    """

    lanes: AtLeastOne | None = None
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self):
        check_ranges(self, "data.", StreamConfig)


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """The training images and their split, on the CPU."""

    labels: Int[Tensor, " N"]
    """Class of each training image, negative if unknown."""
    labeled: Int[Tensor, " labeled"]
    """Positions of the labeled images among the training images."""
    unlabeled: Int[Tensor, " unlabeled"]
    """Positions of the unlabeled images among the training images."""
    truth: Int[Tensor, " unlabeled"]
    """Class of each unlabeled image, for the log; negative if unknown."""
    teacher_probs: Float[Tensor, "N C"] | None = None
    """Class probabilities of the training images from another model or a file."""
    shard_borders: Int64[np.ndarray, " borders"] | None = None
    """Positions among the unlabeled images where shards begin, and the end; None without shards."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the images of each step are drawn."""

    seed: int
    """Seed of the order of the images and of the random numbers of their views."""
    batch_size: int
    """Labeled images of a step, over all processes."""
    unlabeled_batch_size: int
    """Unlabeled images of a step, over all processes."""
    balanced: bool = False
    """Whether labeled images of each class are drawn equally often."""


def mixed(batch: Batch, mixup_lambda: float) -> Batch:
    """Mixes the first half of a batch's labeled images with the second half, pixel by pixel (mixup, arXiv 1710.09412).

    lambda x + (1 - lambda) x', with one lambda for the whole batch.
    """
    (images, partners), (labels, partner_labels) = batch.labeled.chunk(2), batch.labels.chunk(2)

    def first_half(rows: Tensor | None) -> Tensor | None:
        return None if rows is None else rows.chunk(2)[0]

    return replace(
        batch,
        labeled=mixup_lambda * images + (1 - mixup_lambda) * partners,
        labels=labels,
        strong_labeled=first_half(batch.strong_labeled),
        labeled_teacher_probs=first_half(batch.labeled_teacher_probs),
        partner_labels=partner_labels,
        mixup_lambda=mixup_lambda,
    )


class _Drawn(TypedDict):
    """The images of one step before augmentation, once for each view, and their positions; workers send this."""

    labeled_positions: Int[Tensor, " P"]
    """Positions in the global batch."""
    labeled_at: Int[Tensor, " P"]
    """Positions among the training images."""
    unlabeled_at: Int[Tensor, " U"]
    """Positions in the unlabeled set."""
    labeled: list[Pixels]
    weak: list[Pixels]
    strong: list[Pixels]


@dataclass(frozen=True, kw_only=True)
class TrainingStream(Dataset):
    """The batches of a run.

    Each process takes an equal part of each global batch. Random numbers are keyed by the position in the global batch,
    so any number of processes gets the same images with the same augmentations.
    """

    reader: Reader
    """The reader of the training images."""
    images: TrainingImages
    sampling: Sampling
    config: StreamConfig = StreamConfig()
    normalization: Normalization
    """The normalization, on the device of `place`."""
    needs: Needs
    """The views and other values that the method needs."""
    place: Place
    """This process, and the device of the batches."""

    def __post_init__(self):
        if self.config.augment.own_ops and not self.reader.config.features:
            check_own_operations(self.config.augment, self.reader.shape, self.place.device)
        sampling = self.sampling
        for name, size in (("batch_size", sampling.batch_size), ("unlabeled batch", sampling.unlabeled_batch_size)):
            if size % self.place.num_processes:
                raise InputError(f"{name} {size} cannot be divided among {self.place.num_processes} processes")
        if self.images.shard_borders is None:
            return
        lanes, size = self.lanes, sampling.unlabeled_batch_size
        if size % lanes or lanes % self.place.num_processes:
            raise InputError(
                f"{lanes} lanes do not divide an unlabeled batch of {size} and {self.place.num_processes} processes: "
                "set data.lanes to a divisor of the first and a multiple of the second"
            )
        if len(self.images.unlabeled) < lanes:
            raise InputError(
                f"{lanes} lanes need at least as many unlabeled images, but there are only {len(self.images.unlabeled)}"
            )

    @property
    def lanes(self) -> int:
        """The number of lanes. It does not depend on the number of processes, nor do the images of a step."""
        most = min(MOST_LANES, len(self.images.unlabeled))
        fitting = [lanes for lanes in range(1, most + 1) if self.sampling.unlabeled_batch_size % lanes == 0]
        return self.config.lanes or fitting[-1]

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """The batches of steps start..stop-1."""
        ahead = read_ahead(self, range(start, stop), self.reader, self.place.device)
        while several := [*islice(ahead, self._steps_at_once)]:
            steps, drawn = zip(*several, strict=True)
            for step, batch in zip(steps, self._views(steps, drawn), strict=True):
                if self.needs.mixup_alpha:
                    batch = mixed(batch, beta(self.sampling.seed, Purpose.MIXUP_LAMBDA, step, self.needs.mixup_alpha))
                yield batch

    def __getitem__(self, step: int) -> _Drawn:
        def crops(index: Tensor, positions: Tensor, purposes: Sequence[int]) -> list[Tensor]:
            if self.reader.views:
                return [self._stored(step, index, positions, purpose) for purpose in purposes]
            if not self.reader.crops_at_random:
                return [self.reader.center(index)] * len(purposes)
            numbers = [self._numbers(step, Purpose.CROP + purpose, positions, NUM_CROP_NUMBERS) for purpose in purposes]
            return self.reader.crops(index, numbers)

        weak = [Purpose.WEAK_VIEW + i for i in range(self.needs.num_weak)]
        strong = [Purpose.STRONG_VIEW + i for i in range(self.needs.num_strong)]
        labeled = [Purpose.LABELED_VIEW] + [Purpose.STRONG_LABELED_VIEW] * self.needs.strong_labeled
        positions = self._positions(self.sampling.unlabeled_batch_size)
        labeled_positions, unlabeled_at = self._labeled_positions(step), self._unlabeled_at(step)
        labeled_at = self._labeled_at(step, labeled_positions)
        unlabeled = crops(self.images.unlabeled[unlabeled_at], positions, weak + strong)
        return {
            "labeled_positions": labeled_positions,
            "labeled_at": labeled_at,
            "unlabeled_at": unlabeled_at,
            "labeled": crops(labeled_at, labeled_positions, labeled),
            "weak": unlabeled[: len(weak)],
            "strong": unlabeled[len(weak) :],
        }

    def _stored(self, step: int, index: Tensor, positions: Tensor, purpose: int) -> Pixels:
        """Features of a view; the plain features if there are none for this kind of view."""
        kind = "strong" if purpose >= Purpose.STRONG_VIEW else "weak"
        if kind not in self.reader.views:
            return self.reader.center(index)
        return self.reader.view(kind, index, self._numbers(step, Purpose.CROP + purpose, positions, 1)[:, 0])

    def _views(self, steps: Sequence[int], drawn: Sequence[_Drawn]) -> list[Batch]:
        """The batches of one step or several, whose views are made together."""
        needs, augmenter, teacher_probs = self.needs, self._augmenter, self.images.teacher_probs
        of_labeled = [each["labeled_positions"] for each in drawn]
        of_unlabeled = [self._positions(self.sampling.unlabeled_batch_size)] * len(steps)
        index, labeled_at = (torch.cat([each[name] for each in drawn]) for name in ("unlabeled_at", "labeled_at"))
        prepared: dict[tuple[int, ...], Tensor] = {}

        def images(kind: _Kind, view: int) -> Tensor:
            # Weak and strong views may share their tensors.
            tensors = [each[kind][view] for each in drawn]
            key = tuple(id(tensor) for tensor in tensors)
            if key not in prepared:
                prepared[key] = augmenter.prepared(tensors)
            return prepared[key]

        def numbers(purpose: int, positions: Sequence[Tensor]) -> Numbers:
            each = [*zip(steps, positions, strict=True)]
            return lambda num: torch.cat([self._numbers(step, purpose, own, num) for step, own in each])

        def by_step(values: Tensor | None) -> Sequence[Any]:
            return [None] * len(steps) if values is None else self._on_device(values).tensor_split(len(steps))

        def all_by_step(views: list[Tensor]) -> Sequence[tuple[Tensor, ...]]:
            return [*zip(*map(by_step, views), strict=True)] if views else [()] * len(steps)

        weak = [
            augmenter.weak(images("weak", view), numbers(Purpose.WEAK_VIEW + view, of_unlabeled))
            for view in range(needs.num_weak)
        ]
        strong = [
            augmenter.strong(images("strong", view), numbers(Purpose.STRONG_VIEW + view, of_unlabeled))
            for view in range(needs.num_strong)
        ]
        strong_labeled = probs = labeled_probs = draws = None
        if needs.strong_labeled:
            strong_labeled = augmenter.strong(images("labeled", 1), numbers(Purpose.STRONG_LABELED_VIEW, of_labeled))
        if needs.teacher_probs and teacher_probs is not None:
            probs = teacher_probs[self.images.unlabeled[index]].float()
        if needs.labeled_teacher_probs and teacher_probs is not None:
            labeled_probs = teacher_probs[labeled_at].float()
        if needs.draws:
            draws = numbers(Purpose.METHOD, of_unlabeled)(1)[:, 0]
        fields = {
            "labeled": by_step(augmenter.weak(images("labeled", 0), numbers(Purpose.LABELED_VIEW, of_labeled))),
            "labels": by_step(self.images.labels[labeled_at]),
            "weak": all_by_step(weak),
            "strong": all_by_step(strong),
            "index": by_step(index),
            "truth": by_step(self.images.truth[index]),
            "strong_labeled": by_step(strong_labeled),
            "teacher_probs": by_step(probs),
            "labeled_teacher_probs": by_step(labeled_probs),
            "draws": by_step(draws),
        }
        return [Batch(**dict(zip(fields, values, strict=True))) for values in zip(*fields.values(), strict=True)]

    def _labeled_positions(self, step: int) -> Int[Tensor, " P"]:
        """Positions in the global batch of this process's labeled images and then, with mixup, of their partners.

        Partners come from the global batch, so a process also reads images from the parts of others. The view of an
        image depends only on its position in the global batch, so it is the same in all processes.
        """
        own = self._positions(self.sampling.batch_size)
        if not self.needs.mixup_alpha:
            return own
        partners = permutation(self.sampling.seed, Purpose.MIXUP_PARTNER, step, self.sampling.batch_size)
        return torch.cat([own, partners[own]])

    @cached_property
    def _augmenter(self) -> Augmenter:
        config = self.config.augment
        return Augmenter(
            # A crop at random replaces the random shift.
            config=replace(config, shift=0.0) if self.reader.crops_at_random else config,
            normalization=self.normalization,
            is_of_features=bool(self.reader.config.features),
            seed=self.sampling.seed,
        )

    @cached_property
    def _steps_at_once(self) -> int:
        """The number of steps whose views are made together; no bit of a view depends on it.

        To start the operations of one step can take the processor longer than a GPU needs for them.
        """
        if self.place.device.type == "cpu" or not self.reader.is_resident:
            return 1
        per_step = self.sampling.unlabeled_batch_size * (self.needs.num_weak + self.needs.num_strong)
        values = math.prod(self.reader.shape) * max(1, per_step // self.place.num_processes)
        return min(MOST_AT_ONCE, max(1, VALUES_AT_ONCE // values))

    @cached_property
    def _labeled_order(self) -> BatchOrder:
        images, size, seed = self.images, self.sampling.batch_size, self.sampling.seed
        if self.sampling.balanced:
            return BalancedOrder(labels=images.labels[images.labeled], batch_size=size, seed=seed)
        return PassOrder(length=len(images.labeled), batch_size=size, seed=seed, purpose=Purpose.LABELED_ORDER)

    @cached_property
    def _unlabeled_order(self) -> BatchOrder:
        images, size, seed = self.images, self.sampling.unlabeled_batch_size, self.sampling.seed
        if images.shard_borders is not None:
            return ShardOrder(borders=images.shard_borders, batch_size=size, lanes=self.lanes, seed=seed)
        return PassOrder(length=len(images.unlabeled), batch_size=size, seed=seed, purpose=Purpose.UNLABELED_ORDER)

    def _labeled_at(self, step: int, positions: Int[Tensor, " P"]) -> Int[Tensor, " P"]:
        """Positions, among the training images, of the labeled images at positions of a global batch."""
        return self.images.labeled[self._labeled_order(step, positions)]

    def _unlabeled_at(self, step: int) -> Int[Tensor, " U"]:
        """Positions, in the unlabeled set, of this process's unlabeled images of a step."""
        return self._unlabeled_order(step, self._positions(self.sampling.unlabeled_batch_size))

    def _positions(self, size: int) -> Int[Tensor, " P"]:
        """This process's part of the positions in a global batch."""
        part = size // self.place.num_processes
        return torch.arange(self.place.rank * part, (self.place.rank + 1) * part)

    def _numbers(self, step: int, purpose: int, positions: Int[Tensor, " N"], num: int) -> Float[Tensor, "N num"]:
        start, stop = int(positions.min()), int(positions.max()) + 1
        return uniform_ahead(self.sampling.seed, purpose, step, start, stop, num)[positions - start]

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.place.device, non_blocking=True)
