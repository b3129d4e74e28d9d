"""The work of the decoding processes: each image file becomes a prepared image, or its stored features are found."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float16, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from debias_ssl.data.reading.config import Decoding
from debias_ssl.data.reading.contents import content_of
from debias_ssl.data.reading.decode import decoded
from debias_ssl.features.store import FeatureStore
from debias_ssl.models.pixels import Preprocessing
from debias_ssl.system.errors import InputError, reason

# Exceptions that resizing and cropping raise for images of unusual sizes.
UNPREPARED = (ValueError, MemoryError, RuntimeError)
# Bytes of pixels that may wait for other images of the same size.
TOGETHER = 3 * 2**20


@dataclass(frozen=True, kw_only=True)
class Preparing:
    """How image files become the input of the network."""

    files: Sequence[str]
    preprocess: Preprocessing
    decoding: Decoding

    def __call__(self, row: int) -> UInt8[Tensor, "H W K"]:
        """The prepared image of a row.

        Raises:
            InputError: it cannot be read, or cannot be resized and cropped for the model.
        """
        image = decoded(self.files[row], self.decoding)
        try:
            return self.preprocess(image)
        except UNPREPARED as error:
            height, width, _ = image.shape
            raise InputError(
                f"cannot prepare image {self.files[row]!r} of {width} x {height} pixels for the model: "
                f"{reason(error)}; remove it or skip it (--on_error skip)"
            ) from error

    def several(self, rows: Mapping[int, int]) -> dict[int, UInt8[Tensor, "H W K"]]:
        """Prepared images of rows, by their keys, without unreadable ones. Images of one size are prepared together."""
        found, waiting, number = {}, defaultdict(dict), 0
        for key, row in rows.items():
            with suppress(InputError):
                image = decoded(self.files[row], self.decoding)
                waiting[image.shape][key] = image
                number += image.size
            if number >= TOGETHER:
                found |= self._prepared(waiting)
                waiting, number = defaultdict(dict), 0
        found |= self._prepared(waiting)
        return {key: found[key] for key in rows if key in found}

    def _prepared(
        self, waiting: Mapping[Any, Mapping[int, UInt8[np.ndarray, "_ _ 3"]]]
    ) -> dict[int, UInt8[Tensor, "H W K"]]:
        """Prepared images, from images grouped by size."""
        found = {}
        for images in waiting.values():
            # Whether an image can be prepared depends on its size.
            with suppress(*UNPREPARED):
                found |= zip(images, self.preprocess.alike([*images.values()]), strict=True)
        return found

    def error(self, row: int) -> InputError:
        """The error to raise for an image that has no features."""
        try:
            self(row)
        except InputError as error:
            return error
        return InputError(
            f"the features of {self.files[row]!r} are not finite numbers; remove it or skip it (--on_error skip)"
        )

    def reason(self, row: int) -> str:
        """Why an image has no features."""
        return str(self.error(row).__cause__ or "its features are no numbers")


class Known(NamedTuple):
    """Images of a batch whose contents already have features in one of the stores."""

    positions: Int64[Tensor, " k"]
    features: Float16[Tensor, "k D"] | Float16[Tensor, " 0"]


class Prepared(NamedTuple):
    """A prepared batch. Positions are positions in the batch; an unreadable image has no position."""

    images: UInt8[Tensor, "n H W K"] | UInt8[Tensor, " 0"]
    """The images that must pass through the network, for at least one of the stores."""
    positions: Int64[Tensor, " n"]
    known: tuple[Known, ...]
    """The known images, for each store."""
    contents: Int64[Tensor, "B 2"]
    """Hashes of all images; zeros for images that cannot be read, and for stores without hashes."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images that lack the same features."""

    rows: Int64[np.ndarray, " B"]
    """Their positions among all images."""
    stores: Sequence[FeatureStore]
    """The stores of these features."""


@dataclass(frozen=True, kw_only=True)
class Batches(Dataset):
    """The images of a plan, batch by batch; each is decoded once for all of its features."""

    preparing: Preparing
    batches: Sequence[Batch]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Prepared:
        batch = self.batches[number]
        contents, lacking = np.zeros((len(batch.rows), 2), dtype=np.int64), {}
        found: list[dict[int, Tensor]] = [{} for _ in batch.stores]
        rows: list[int] = batch.rows.tolist()
        for i, row in enumerate(rows):
            path = self.preparing.files[row]
            content = _content(path, batch.stores[0])
            for store, of_store in zip(batch.stores, found, strict=True):
                features = _looked_up(content, store)
                if features is not None:
                    of_store[i] = torch.from_numpy(features)
            if not all(i in of_store for of_store in found):
                lacking[i] = row
            contents[i] = content
        images = self.preparing.several(lacking)
        contents[[i for i in lacking if i not in images]] = 0
        return Prepared(
            images=torch.stack([*images.values()]) if images else torch.empty(0, dtype=torch.uint8),
            positions=torch.tensor([*images], dtype=torch.int64),
            known=tuple(_known(of_store) for of_store in found),
            contents=torch.from_numpy(contents),
        )


def _known(found: dict[int, Tensor]) -> Known:
    positions = torch.tensor([*found], dtype=torch.int64)
    return Known(positions, torch.stack([*found.values()]) if found else torch.empty(0).half())


def _content(path: str, store: FeatureStore) -> Int64[np.ndarray, " 2"]:
    """The hash of an image's content, if the store has hashes."""
    return np.zeros(2, dtype=np.int64) if store.known_contents is None else content_of(path)


def _looked_up(content: Int64[np.ndarray, " 2"], store: FeatureStore) -> Float16[np.ndarray, " D"] | None:
    """The stored features of an image with this content; None if there are none."""
    place = None if store.known_contents is None else store.known_contents.find(content)
    return None if place is None else store.at(place)
