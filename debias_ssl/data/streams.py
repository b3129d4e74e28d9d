"""Endless batches of labeled and unlabeled views; what step k holds is a function of (seed, k) alone."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from debias_ssl.contract import Batch, Needs, Place
from debias_ssl.data.augment import views
from debias_ssl.data.augment.views import Pixels
from debias_ssl.data.reading.decode import NUM_CROP_NUMBERS
from debias_ssl.data.reading.reader import Reader
from debias_ssl.data.reading.workers import read_ahead
from debias_ssl.data.sampling.keyed import Purpose, beta, permutation, uniform_ahead
from debias_ssl.data.sampling.orders import BalancedOrder, PassOrder, ShardOrder
from debias_ssl.system.errors import InputError

MOST_LANES = 64


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


class _Pixels(TypedDict):
    """What workers send: the images of one step, before augmentation."""

    labeled: list[Pixels]
    weak: list[Pixels]
    strong: list[Pixels]


@dataclass(frozen=True, kw_only=True)
class TrainingStream(Dataset):
    """The batches of a run.

    A process takes an equal part of each global batch; random numbers are keyed by the position in the global batch, so
    that any number of processes sees the same images with the same augmentations.
    """

    reader: Reader
    labels: Int[Tensor, " N"]
    """Class of each training image, negative where unknown."""
    labeled: Int[Tensor, " labeled"]
    unlabeled: Int[Tensor, " unlabeled"]
    """Positions among the training images."""
    truth: Int[Tensor, " unlabeled"]
    """Class of each unlabeled image, for the log; negative where unknown."""
    mean: Float[Tensor, " K"]
    std: Float[Tensor, " K"]
    """Of the channels, on the device."""
    seed: int
    batch_size: int
    unlabeled_batch_size: int
    """Global batch sizes."""
    balanced: bool
    needs: Needs
    """Of the method."""
    teacher_probs: Float[Tensor, "N C"] | None
    """Class probabilities of the training images from outside."""
    shard_borders: Int64[np.ndarray, " borders"] | None = None
    """Where the shards of the unlabeled images begin among them, and the end; None where they are in none."""
    place: Place

    def __post_init__(self):
        for name, size in (("batch_size", self.batch_size), ("unlabeled batch", self.unlabeled_batch_size)):
            if size % self.place.num_processes:
                raise InputError(f"{name} {size} cannot be divided among {self.place.num_processes} processes")
        if self.shard_borders is None:
            return
        lanes, size = self._lanes, self.unlabeled_batch_size
        if size % lanes or lanes % self.place.num_processes:
            raise InputError(
                f"{lanes} lanes do not fit an unlabeled batch of {size} and {self.place.num_processes} processes: "
                "set data.lanes to a divisor of the first and a multiple of the second"
            )
        if len(self.unlabeled) < lanes:
            raise InputError(f"{lanes} lanes need as many unlabeled images, there are {len(self.unlabeled)}")

    @property
    def _lanes(self) -> int:
        """A number that does not depend on the processes, so that another number of them sees the same images."""
        most = min(MOST_LANES, len(self.unlabeled))
        fitting = [lanes for lanes in range(1, most + 1) if self.unlabeled_batch_size % lanes == 0]
        return self.reader.config.lanes or fitting[-1]

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """The batches of steps start..stop-1."""
        for step, pixels in read_ahead(self, range(start, stop), self.reader, self.place.device):
            yield self._views(step, pixels)

    def __getitem__(self, step: int) -> _Pixels:
        def crops(index: Tensor, positions: Tensor, purposes: Sequence[int]) -> list[Tensor]:
            if self.reader.config.crop == "shift":
                return [self.reader.center(index)] * len(purposes)
            numbers = [self._numbers(step, Purpose.CROP + purpose, positions, NUM_CROP_NUMBERS) for purpose in purposes]
            return self.reader.crops(index, numbers)

        weak = [Purpose.WEAK_VIEW + i for i in range(self.needs.num_weak)]
        strong = [Purpose.STRONG_VIEW + i for i in range(self.needs.num_strong)]
        labeled = [Purpose.LABELED_VIEW] + [Purpose.STRONG_LABELED_VIEW] * self.needs.strong_labeled
        positions = self._positions(self.unlabeled_batch_size)
        unlabeled = crops(self.unlabeled[self._unlabeled_at(step)], positions, weak + strong)
        return {
            "labeled": crops(self._labeled_at(step), self._labeled_positions(step), labeled),
            "weak": unlabeled[: len(weak)],
            "strong": unlabeled[len(weak) :],
        }

    def _views(self, step: int, pixels: _Pixels) -> Batch:
        config = self.reader.config.augment
        if self.reader.config.crop == "resized":
            config = replace(config, shift=0.0)

        def weak(images: Tensor, purpose: int, positions: Tensor) -> Tensor:
            numbers = self._numbers(step, purpose, positions, views.WEAK_NUMBERS)
            return views.weak_input(self._on_device(images), numbers, config, self.mean, self.std)

        def strong(images: Tensor, purpose: int, positions: Tensor) -> Tensor:
            numbers = self._numbers(step, purpose, positions, views.num_numbers(config, images))
            return views.strong_input(self._on_device(images), numbers, config, self.mean, self.std)

        def teacher_probs(index: Tensor, is_needed: bool) -> Tensor | None:
            return (
                self._on_device(self.teacher_probs[index].float())
                if is_needed and self.teacher_probs is not None
                else None
            )

        index, positions = self._unlabeled_at(step), self._positions(self.unlabeled_batch_size)
        labeled, *strong_labeled = pixels["labeled"]
        labeled_index, labeled_positions = self._labeled_at(step), self._labeled_positions(step)
        batch = Batch(
            labeled=weak(labeled, Purpose.LABELED_VIEW, labeled_positions),
            labels=self._on_device(self.labels[labeled_index]),
            weak=tuple(weak(images, Purpose.WEAK_VIEW + i, positions) for i, images in enumerate(pixels["weak"])),
            strong=tuple(
                strong(images, Purpose.STRONG_VIEW + i, positions) for i, images in enumerate(pixels["strong"])
            ),
            index=self._on_device(index),
            truth=self._on_device(self.truth[index]),
            strong_labeled=(
                strong(strong_labeled[0], Purpose.STRONG_LABELED_VIEW, labeled_positions) if strong_labeled else None
            ),
            teacher_probs=teacher_probs(self.unlabeled[index], self.needs.teacher_probs),
            labeled_teacher_probs=teacher_probs(labeled_index, self.needs.labeled_teacher_probs),
        )
        if not self.needs.mixup_alpha:
            return batch
        return mixed(batch, beta(self.seed, Purpose.MIXUP_LAMBDA, step, self.needs.mixup_alpha))

    def _labeled_positions(self, step: int) -> Int[Tensor, " P"]:
        """Positions, in the global batch, of this process's labeled images and then, with mixup, of their partners.

        Partners are of the global batch, so that a process also reads some that are in the parts of others: in a view
        of its own position, a partner is the same image everywhere.
        """
        own = self._positions(self.batch_size)
        if not self.needs.mixup_alpha:
            return own
        return torch.cat([own, permutation(self.seed, Purpose.MIXUP_PARTNER, step, self.batch_size)[own]])

    @cached_property
    def _labeled_order(self) -> PassOrder | BalancedOrder:
        size, seed = self.batch_size, self.seed
        if self.balanced:
            return BalancedOrder(labels=self.labels[self.labeled], batch_size=size, seed=seed)
        return PassOrder(length=len(self.labeled), batch_size=size, seed=seed, purpose=Purpose.LABELED_ORDER)

    @cached_property
    def _unlabeled_order(self) -> PassOrder | ShardOrder:
        size, seed = self.unlabeled_batch_size, self.seed
        if self.shard_borders is not None:
            return ShardOrder(borders=self.shard_borders, batch_size=size, lanes=self._lanes, seed=seed)
        return PassOrder(length=len(self.unlabeled), batch_size=size, seed=seed, purpose=Purpose.UNLABELED_ORDER)

    def _labeled_at(self, step: int) -> Int[Tensor, " P"]:
        """Positions, among the training images, of this process's labeled images of a step, and of their partners."""
        return self.labeled[self._labeled_order(step, self._labeled_positions(step))]

    def _unlabeled_at(self, step: int) -> Int[Tensor, " U"]:
        """Positions, in the unlabeled set, of this process's unlabeled images of a step."""
        return self._unlabeled_order(step, self._positions(self.unlabeled_batch_size))

    def _positions(self, size: int) -> Int[Tensor, " P"]:
        """This process's part of the positions in a global batch."""
        part = size // self.place.num_processes
        return torch.arange(self.place.rank * part, (self.place.rank + 1) * part)

    def _numbers(self, step: int, purpose: int, positions: Int[Tensor, " N"], num: int) -> Float[Tensor, "N num"]:
        start, stop = int(positions.min()), int(positions.max()) + 1
        return uniform_ahead(self.seed, purpose, step, start, stop, num)[positions - start]

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.place.device, non_blocking=True)


@dataclass(frozen=True, kw_only=True)
class EvaluationStream(Dataset):
    """Images in order, each once, without augmentation; a process takes one stretch, and so few tar files."""

    reader: Reader
    index: Int[Tensor, " N"]
    """Positions among the reader's images."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of the channels."""
    batch_size: int
    place: Place
    progress: bool = False
    """Whether to show a progress bar."""

    def __getitem__(self, number: int) -> Pixels:
        return self.reader.center(self.index[self._at(number)])

    def __iter__(self) -> Iterator[tuple[Int[Tensor, " N"], Float[Tensor, "N K H W"]]]:
        """Places in `index`, and the images there as the network takes them."""
        mean, std = (torch.tensor(numbers, device=self.place.device) for numbers in (self.mean, self.std))
        numbers = range(-(-len(self._mine()) // self.batch_size))
        loaded = read_ahead(self, numbers, self.reader, self.place.device)
        for number, images in tqdm(loaded, total=len(numbers), unit="batch", disable=not self.progress):
            images = images.to(self.place.device, non_blocking=True)
            yield self._at(number), views.normalize(images, mean, std)

    def _mine(self) -> Int[Tensor, " M"]:
        return torch.arange(len(self.index)).tensor_split(self.place.num_processes)[self.place.rank]

    def _at(self, number: int) -> Int[Tensor, " M"]:
        return self._mine()[number * self.batch_size : (number + 1) * self.batch_size]
