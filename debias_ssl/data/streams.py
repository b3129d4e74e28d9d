"""Endless batches of labeled and unlabeled views; what step k holds is a function of (seed, k) alone."""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from debias_ssl.data import augment
from debias_ssl.data.augment import Pixels
from debias_ssl.data.keyed import Purpose, beta, permutation, uniform_ahead
from debias_ssl.data.reading import NUM_CROP_NUMBERS, Reader
from debias_ssl.errors import InputError, StoppedError, reason
from debias_ssl.methods.base import Needs
from debias_ssl.signals import ignore_signals

CPU = torch.device("cpu")
# Of all images, which may be a hundred million: the end of a pass and the beginning of the next, of two lists.
_cached_permutation = lru_cache(maxsize=4)(permutation)
# Of the images of a class or of a shard, of which a step needs many.
_cached_short_permutation = lru_cache(maxsize=512)(lambda *key: permutation(*key).numpy())
MOST_LANES = 64


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where this process stands among those that share the work, and its device."""

    rank: int = 0
    num_processes: int = 1
    device: torch.device = CPU


@dataclass(frozen=True, kw_only=True)
class Batch:
    """This process's part of the images of one step, as the network takes them."""

    labeled: Float[Tensor, "L K H W"]
    labels: Int[Tensor, " L"]
    weak: tuple[Float[Tensor, "U K H W"], ...]
    strong: tuple[Float[Tensor, "U K H W"], ...]
    index: Int[Tensor, " U"]
    """Positions in the unlabeled set, 0..num_unlabeled-1."""
    truth: Int[Tensor, " U"]
    """True classes of the unlabeled images, negative where unknown: for the log only, methods never see it."""
    strong_labeled: Float[Tensor, "L K H W"] | None = None
    given: Float[Tensor, "U C"] | None = None
    """Class probabilities that were given to the unlabeled images from outside."""
    given_labeled: Float[Tensor, "L C"] | None = None
    """Likewise to the labeled images."""
    partner_labels: Int[Tensor, " L"] | None = None
    """Where labeled images are mixed with others: the classes of these."""
    share: float = 1.0
    """How much of each mixture is the image that `labels` is of."""


def mixed(batch: Batch, share: float) -> Batch:
    """Mixes the first half of a batch's labeled images with the second half, pixel by pixel (mixup, arXiv 1710.09412).

    share * x + (1 - share) * x', for one share of the whole batch.
    """
    (images, partners), (labels, partner_labels) = batch.labeled.chunk(2), batch.labels.chunk(2)

    def first_half(rows: Tensor | None) -> Tensor | None:
        return None if rows is None else rows.chunk(2)[0]

    return replace(
        batch,
        labeled=share * images + (1 - share) * partners,
        labels=labels,
        strong_labeled=first_half(batch.strong_labeled),
        given_labeled=first_half(batch.given_labeled),
        partner_labels=partner_labels,
        share=share,
    )


@dataclass(frozen=True, kw_only=True)
class Order:
    """The global batch of each step, as positions in a list of items that is gone through in passes.

    Each item comes once per pass; pass n has the order of permutation number n.
    """

    length: int
    batch_size: int
    seed: int
    purpose: Purpose

    def __call__(self, step: int) -> Int[Tensor, " B"]:
        start, stop = step * self.batch_size, (step + 1) * self.batch_size
        parts = []
        while start < stop:
            number, offset = divmod(start, self.length)
            order = _cached_permutation(self.seed, self.purpose, number, self.length)
            parts.append(order[offset : offset + stop - start])
            start += len(parts[-1])
        return torch.cat(parts)


@dataclass(frozen=True, kw_only=True)
class ShardOrder:
    """Like `Order`, for a list of items in shards, so that a process reads few shards at a time, and always the same.

    The list is cut into `lanes` equal stretches, and so is each batch. A lane goes through its stretch in passes of its
    own: the shards in it in the order of one permutation, the items of a shard in the order of another. Shards may be
    of any size, and one that lies across a border of stretches is in two lanes.
    """

    borders: Int64[np.ndarray, " borders"]
    """Position of each shard's first item, and the end of the list; items before the first are like one more shard."""
    batch_size: int
    lanes: int
    seed: int

    @cached_property
    def _stretches(self) -> Int64[np.ndarray, " borders"]:
        return np.arange(self.lanes + 1) * self.borders[-1] // self.lanes

    @cached_property
    def _pieces(self) -> Int64[np.ndarray, " borders"]:
        """Where what is in one shard and one lane begins, and the end of the list."""
        return np.unique(np.concatenate([self._stretches, self.borders]))

    def __call__(self, step: int, positions: Int[Tensor, " P"]) -> Int[Tensor, " P"]:
        """The items at ascending positions of a global batch."""
        width = self.batch_size // self.lanes
        lanes = (positions // width).numpy()
        draws = step * width + (positions % width).numpy()
        parts = [self._drawn(lane, draws[lanes == lane]) for lane in np.unique(lanes).tolist()]
        return torch.from_numpy(np.concatenate(parts))

    def _drawn(self, lane: int, draws: Int64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
        """The items that a lane draws, by the ascending numbers of the draws."""
        stretch = self._stretches[lane : lane + 2]
        first, stop = np.searchsorted(self._pieces, stretch).tolist()
        num_pieces = len(self._pieces) - 1
        numbers, places = np.divmod(draws, stretch[1] - stretch[0])
        parts = []
        for number in np.unique(numbers).tolist():
            key = number * self.lanes + lane
            order = first + _cached_short_permutation(self.seed, Purpose.SHARD_ORDER, key, stop - first)
            ends = np.cumsum(self._pieces[order + 1] - self._pieces[order])
            inside = places[numbers == number]
            turns = np.searchsorted(ends, inside, side="right")
            for turn in np.unique(turns).tolist():
                piece = int(order[turn])
                start, length = int(self._pieces[piece]), int(self._pieces[piece + 1] - self._pieces[piece])
                key = number * num_pieces + piece
                items = _cached_short_permutation(self.seed, Purpose.UNLABELED_ORDER, key, length)
                parts.append(start + items[inside[turns == turn] - (int(ends[turn]) - length)])
        return np.concatenate(parts)


@dataclass(frozen=True, kw_only=True)
class BalancedOrder:
    """Like `Order`, with every class equally often: passes over the classes, and in each class over its items."""

    labels: Int[Tensor, " L"]
    batch_size: int
    seed: int

    def __call__(self, step: int) -> Int[Tensor, " B"]:
        classes = self.labels.unique()
        drawn = Order(length=len(classes), batch_size=self.batch_size, seed=self.seed, purpose=Purpose.CLASS_ORDER)(
            step
        )
        # A class comes once per pass over the classes, so its n-th draw is in pass n.
        draws = (step * self.batch_size + torch.arange(self.batch_size)) // len(classes)
        items = []
        for k, draw in zip(drawn.tolist(), draws.tolist(), strict=True):
            members = torch.nonzero(self.labels == classes[k]).flatten()
            number, offset = divmod(draw, len(members))
            order = _cached_short_permutation(self.seed, Purpose.LABELED_ORDER, number * len(classes) + k, len(members))
            items.append(members[order[offset]])
        return torch.stack(items)


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
    given: Float[Tensor, "N C"] | None
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
            numbers = self._numbers(step, purpose, positions, augment.WEAK_NUMBERS)
            return augment.weak_input(self._on_device(images), numbers, config, self.mean, self.std)

        def strong(images: Tensor, purpose: int, positions: Tensor) -> Tensor:
            numbers = self._numbers(step, purpose, positions, augment.num_numbers(config, images))
            return augment.strong_input(self._on_device(images), numbers, config, self.mean, self.std)

        def given(index: Tensor, is_needed: bool) -> Tensor | None:
            return self._on_device(self.given[index].float()) if is_needed and self.given is not None else None

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
            given=given(self.unlabeled[index], self.needs.given),
            given_labeled=given(labeled_index, self.needs.given_labeled),
        )
        if not self.needs.mixup_alpha:
            return batch
        return mixed(batch, beta(self.seed, Purpose.MIXUP_SHARE, step, self.needs.mixup_alpha))

    def _labeled_positions(self, step: int) -> Int[Tensor, " P"]:
        """Positions, in the global batch, of this process's labeled images and then, with mixup, of their partners.

        Partners are of the global batch, so that a process also reads some that are in the parts of others: in a view
        of its own position, a partner is the same image everywhere.
        """
        own = self._positions(self.batch_size)
        if not self.needs.mixup_alpha:
            return own
        return torch.cat([own, permutation(self.seed, Purpose.MIXUP_PARTNER, step, self.batch_size)[own]])

    def _labeled_at(self, step: int) -> Int[Tensor, " P"]:
        """Positions, among the training images, of this process's labeled images of a step, and of their partners."""
        if self.balanced:
            order = BalancedOrder(labels=self.labels[self.labeled], batch_size=self.batch_size, seed=self.seed)
        else:
            length, size = len(self.labeled), self.batch_size
            order = Order(length=length, batch_size=size, seed=self.seed, purpose=Purpose.LABELED_ORDER)
        return self.labeled[order(step)[self._labeled_positions(step)]]

    def _unlabeled_at(self, step: int) -> Int[Tensor, " U"]:
        """Positions, in the unlabeled set, of this process's unlabeled images of a step."""
        positions = self._positions(self.unlabeled_batch_size)
        if self._shard_order is not None:
            return self._shard_order(step, positions)
        length, size = len(self.unlabeled), self.unlabeled_batch_size
        order = Order(length=length, batch_size=size, seed=self.seed, purpose=Purpose.UNLABELED_ORDER)
        return order(step)[positions]

    @cached_property
    def _shard_order(self) -> ShardOrder | None:
        borders, size = self.shard_borders, self.unlabeled_batch_size
        if borders is None:
            return None
        return ShardOrder(borders=borders, batch_size=size, lanes=self._lanes, seed=self.seed)

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
    mean: Float[Tensor, " K"]
    std: Float[Tensor, " K"]
    """Of the channels, on the device."""
    batch_size: int
    place: Place
    progress: bool = False
    """Whether to show a progress bar."""

    def __getitem__(self, number: int) -> Pixels:
        return self.reader.center(self.index[self._at(number)])

    def __iter__(self) -> Iterator[tuple[Int[Tensor, " N"], Float[Tensor, "N K H W"]]]:
        """Places in `index`, and the images there as the network takes them."""
        numbers = range(-(-len(self._mine()) // self.batch_size))
        loaded = read_ahead(self, numbers, self.reader, self.place.device)
        for number, images in tqdm(loaded, total=len(numbers), unit="batch", disable=not self.progress):
            yield (
                self._at(number),
                augment.normalize(images.to(self.place.device, non_blocking=True), self.mean, self.std),
            )

    def _mine(self) -> Int[Tensor, " M"]:
        return torch.arange(len(self.index)).tensor_split(self.place.num_processes)[self.place.rank]

    def _at(self, number: int) -> Int[Tensor, " M"]:
        return self._mine()[number * self.batch_size : (number + 1) * self.batch_size]


@contextmanager
def dead_workers_told() -> Iterator[None]:
    """Tells people of a process that decodes images and has died; torch says so wherever this process then is.

    Raises:
        StoppedError: one has.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise StoppedError(
            f"a process that decodes images has died ({reason(error)}): "
            "if memory was short, take fewer by data.workers or --workers, and start again with --resume"
        ) from error


@dataclass(frozen=True, kw_only=True)
class Caught(Dataset):
    """A data set that returns what it would raise: a worker that raises adds its traceback to the message."""

    dataset: Dataset

    def __getitem__(self, number: int) -> Any:
        try:
            return self.dataset[number]
        except (InputError, StoppedError) as error:
            return error


def raising(items: Iterable) -> Iterator:
    """Raises what a `Caught` data set has returned instead."""
    for item in items:
        if isinstance(item, InputError | StoppedError):
            raise item
        yield item


def read_ahead(dataset: Dataset, numbers: range, reader: Reader, device: torch.device) -> Iterator[tuple[int, Any]]:
    """Items of a data set with their numbers; where files are decoded, workers do it in advance."""
    if reader.is_resident:
        yield from ((number, dataset[number]) for number in numbers)
    else:
        # More decoding processes than cores only get into each other's way.
        workers, pinned = min(reader.config.workers, os.cpu_count() or 1), device.type == "cuda"
        caught = Caught(dataset=dataset)
        loader = DataLoader(
            caught,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            pin_memory=pinned,
            worker_init_fn=ignore_signals,
        )
        yield from zip(numbers, raising(loader), strict=True)
