"""Checks a data set for `debias-ssl data check`: counts, sizes, unreadable files and duplicates."""

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from debias_ssl.data.reading.config import STANDARD, Decoding
from debias_ssl.data.reading.decode import decode, in_threads, largest_of_sixteen
from debias_ssl.data.sources.images import Data, Images
from debias_ssl.data.splits import class_counts
from debias_ssl.system.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The findings about one list of images."""

    sizes: Counter[str]
    """The number of images of each size; a size is the text "width x height"."""
    unreadable: dict[str, str]
    """The names of the files that cannot be read, with the reasons."""
    hashes: dict[str, str]
    """The names of the other images, with hashes of their pixels."""
    sixteen_bits: tuple[int, int, int]
    """The number of gray images with 16 bits, the largest value in them, and the most bits that the reader assumes."""


def examine(images: Images, title: str, progress: bool = True, decoding: Decoding = STANDARD) -> Findings:
    """Decodes every image, and finds its size, or the reason why it cannot be decoded."""
    sizes: Counter[str] = Counter()
    unreadable, hashes = {}, {}
    sixteen: list[tuple[int, int]] = []

    def read(i: int) -> tuple[str, str, tuple[int, int] | None] | InputError:
        of_sixteen = None
        if images.pixels is not None:
            pixels = images.pixels[i]
        else:
            try:
                pixels = np.asarray(decode(images.names[i], decoding=decoding))
                of_sixteen = largest_of_sixteen(images.names[i], decoding)
            except InputError as error:
                return error
        size = f"{pixels.shape[1]} x {pixels.shape[0]}"
        return size, hashlib.sha256(size.encode() + pixels.tobytes()).hexdigest(), of_sixteen

    results = tqdm(
        in_threads(read, range(len(images))), title, len(images), disable=not progress, unit="img", leave=False
    )
    for name, result in zip(images.names, results, strict=True):
        if isinstance(result, InputError):
            unreadable[name] = str(result.__cause__)
        else:
            size, hashes[name], of_sixteen = result
            sizes[size] += 1
            sixteen += [] if of_sixteen is None else [of_sixteen]
    largest, bits = (max((pair[i] for pair in sixteen), default=0) for i in range(2))
    return Findings(sizes=sizes, unreadable=unreadable, hashes=hashes, sixteen_bits=(len(sixteen), largest, bits))


def scale_told(findings: Findings) -> str | None:
    """A text about the scale of images with 16 bits; None without such images."""
    number, largest, bits = findings.sixteen_bits
    if not number:
        return None
    told = f"{number} gray images with 16 bits; the largest value is {largest:,}, of {2**bits - 1:,} for {bits} bits"
    needed = max(8, largest.bit_length())
    if needed == bits:
        return told
    likely = next(each for each in (8, 10, 12, 14, 16) if each >= needed)
    problem = "everything above is white" if needed > bits else "dark" if likely < bits else None
    return told if problem is None else f"{told}: {problem}; if they hold {likely} bits, set data.bits {likely}"


def doubles(images: Images, hashes: dict[str, str]) -> tuple[list[tuple[str, str]], int]:
    """Pairs of an image and an earlier image with the same pixels, and the number of pairs with different labels."""
    first: dict[str, tuple[str, int]] = {}
    pairs, contradicting = [], 0
    for name, label in zip(images.names, images.labels.tolist(), strict=True):
        if name not in hashes:
            continue  # it cannot be read
        twin, known = first.setdefault(hashes[name], (name, label))
        if twin != name:
            pairs.append((name, twin))
            contradicting += label != known
    return pairs, contradicting


def parts_of(data: Data) -> dict[str, Images]:
    """The lists of images of a data set by name."""
    border = len(data.train) - data.num_separate
    parts = {"training": data.train.part(slice(border)), "unlabeled": data.train.part(slice(border, None))}
    return {name: images for name, images in {**parts, "test": data.test}.items() if len(images)}


def describe(images: Images, classes: tuple[str, ...]) -> str:
    """The number of images, and the sizes of the rarest and the most frequent class."""
    if not (images.labels >= 0).any():
        return f"{len(images)} images of unknown class"
    counts = class_counts(images.labels, len(classes))
    few, many = min(zip(counts, classes, strict=True)), max(zip(counts, classes, strict=True))
    return f"{len(images)} images, {few[0]} ({few[1]}) to {many[0]} ({many[1]}) a class"
