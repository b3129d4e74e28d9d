"""Batches of images for an evaluation, in the order of the images."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from debias_ssl.contract import Place
from debias_ssl.data.augment.views import Normalization, Pixels, normalize
from debias_ssl.data.reading.reader import Reader
from debias_ssl.data.reading.workers import read_ahead


@dataclass(frozen=True, kw_only=True)
class EvaluationStream(Dataset):
    """Images in order, each once, without augmentation.

    A process takes one contiguous part of the list, so that it opens few tar files.
    """

    reader: Reader
    index: Int[Tensor, " N"]
    """Positions among the reader's images."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Mean and standard deviation of each channel."""
    batch_size: int
    """Images of a batch in each process."""
    place: Place
    progress: bool = False
    """Whether to show a progress bar."""

    def __getitem__(self, number: int) -> Pixels:
        return self.reader.center(self.index[self._at(number)])

    def __iter__(self) -> Iterator[tuple[Int[Tensor, " N"], Float[Tensor, "N K H W"]]]:
        """Positions in `index`, and the normalized images."""
        normalization = Normalization.of(self.mean, self.std, self.place.device)
        numbers = range(-(-len(self._mine) // self.batch_size))
        loaded = read_ahead(self, numbers, self.reader, self.place.device)
        for number, images in tqdm(loaded, total=len(numbers), unit="batch", disable=not self.progress):
            images = images.to(self.place.device, non_blocking=True)
            yield self._at(number), normalize(images, normalization)

    @property
    def most_images(self) -> int:
        """The number of images in this process's largest batch."""
        return min(self.batch_size, len(self._mine))

    @property
    def _mine(self) -> range:
        """Positions of this process's images; the first processes may have one more than the others."""
        rank, (each, more) = self.place.rank, divmod(len(self.index), self.place.num_processes)
        first = rank * each + min(rank, more)
        return range(first, first + each + (rank < more))

    def _at(self, number: int) -> Int[Tensor, " M"]:
        batch = self._mine[number * self.batch_size : (number + 1) * self.batch_size]
        return torch.arange(batch.start, batch.stop)
