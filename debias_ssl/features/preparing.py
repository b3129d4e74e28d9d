"""What decoding processes make of image files for CLIP: prepared images, or the features that they have already."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float16, Int64
from torch import Tensor
from torch.utils.data import Dataset

from debias_ssl.data.reading.config import Decoding
from debias_ssl.data.reading.contents import content_of
from debias_ssl.data.reading.decode import decode
from debias_ssl.features.store import FeatureStore
from debias_ssl.system.errors import InputError, reason

# What resizing and cropping have been seen to raise for images of odd sides.
UNPREPARED = (ValueError, MemoryError)


@dataclass(frozen=True, kw_only=True)
class Preparing:
    """How image files become what the network takes."""

    files: Sequence[str]
    preprocess: Callable[[Any], Tensor]
    decoding: Decoding

    def __call__(self, row: int) -> Float[Tensor, "K H W"]:
        """The image of a row.

        Raises:
            InputError: it cannot be read, or cannot be resized and cropped as the model wants it.
        """
        image = decode(self.files[row], decoding=self.decoding)
        try:
            return self.preprocess(image)
        except UNPREPARED as error:
            raise InputError(
                f"cannot prepare image {self.files[row]!r} of {image.width} x {image.height} pixels for the model: "
                f"{reason(error)}; remove it or skip it (--on_error skip)"
            ) from error

    def error(self, row: int) -> InputError:
        """The error to raise for an image that has no features."""
        try:
            self(row)
        except InputError as error:
            return error
        return InputError(f"the features of {self.files[row]!r} are no numbers; remove it or skip it (--on_error skip)")

    def reason(self, row: int) -> str:
        """Why an image has no features."""
        return str(self.error(row).__cause__ or "its features are no numbers")


class Prepared(NamedTuple):
    """A batch; positions are those in it, and an image that cannot be read has none."""

    images: Float[Tensor, "n K H W"] | Float[Tensor, " 0"]
    """Of the images that have to pass through the network."""
    new: Int64[Tensor, " n"]
    """Their positions."""
    features: Float16[Tensor, "k D"] | Float16[Tensor, " 0"]
    """Of the images whose content has features already."""
    known: Int64[Tensor, " k"]
    """Their positions."""
    contents: Int64[Tensor, "B 2"]
    """Of all images; zeros where they are not kept, and of images that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Batches(Dataset):
    """The images of a plan, batch by batch."""

    preparing: Preparing
    store: FeatureStore
    batches: Sequence[Int64[np.ndarray, " _"]]
    """Their places among all."""

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Prepared:
        batch: list[int] = self.batches[number].tolist()
        contents, images, features = np.zeros((len(batch), 2), dtype=np.int64), {}, {}
        for i, row in enumerate(batch):
            content, found = self._looked_up(self.preparing.files[row])
            if found is not None:
                features[i] = torch.from_numpy(found)
            else:
                try:
                    images[i] = self.preparing(row)
                except InputError:
                    continue
            contents[i] = content
        none, new, known = torch.empty(0), torch.tensor([*images]), torch.tensor([*features])
        return Prepared(
            images=torch.stack([*images.values()]) if images else none,
            new=new.long(),
            features=torch.stack([*features.values()]) if features else none.half(),
            known=known.long(),
            contents=torch.from_numpy(contents),
        )

    def _looked_up(self, path: str) -> tuple[Int64[np.ndarray, " 2"], Float16[np.ndarray, " D"] | None]:
        """The content of an image, where contents are kept, and the features that an image of this content has."""
        known = self.store.known_contents
        if known is None:
            return np.zeros(2, dtype=np.int64), None
        content = content_of(path)
        place = known.find(content)
        return content, None if place is None else self.store.at(place)
