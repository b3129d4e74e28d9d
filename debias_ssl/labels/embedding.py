"""CLIP's features of images, made once and kept."""

import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from debias_ssl.contract import Place
from debias_ssl.data.reading.config import STANDARD, Decoding
from debias_ssl.data.reading.decode import decode, in_threads
from debias_ssl.data.reading.workers import Caught, raising
from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import ShardedNames, on_disk
from debias_ssl.distributed.collectives import all_sum_
from debias_ssl.distributed.signals import ignore_signals
from debias_ssl.labels.feature_store import FeatureStore
from debias_ssl.models.clip import Clip, encode
from debias_ssl.system.errors import InputError, reason

SHARD_SIZE = 1024
# What resizing and cropping have been seen to raise for images of odd sides.
UNPREPARED = (ValueError, MemoryError)


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """Features of images; those that could not be read have none."""

    store: FeatureStore
    root: Path
    files: Sequence[str]
    """All images."""
    names: Sequence[str]
    """Of the images that have features, relative to the root."""
    places: Int64[np.ndarray, " N"]
    """Of these images among all."""
    unreadable: dict[int, str]
    """Places of the other images, with the reason."""

    @property
    def named_unreadable(self) -> dict[str, str]:
        """The same by names relative to the root."""
        return {os.path.relpath(self.files[place], self.root): why for place, why in self.unreadable.items()}

    def chunks(self) -> Iterator[Float[Tensor, "n D"]]:
        """The features, in the order of the names, read from where they are kept as they are asked for."""
        for number, shard in enumerate(_shards(len(self.files))):
            start, stop = np.searchsorted(self.places, (shard.start, shard.stop))
            if start == stop:
                continue  # none of its images can be read
            yield torch.from_numpy(self.store.read(number)[self.places[start:stop] - shard.start].astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Logits:
    """Logits of images, computed from their features each time they are gone through."""

    cache: FeatureCache
    weights: Float[Tensor, "D C"]
    """Of the classes, times the model's logit scale."""

    def __iter__(self) -> Iterator[Float[Tensor, "n C"]]:
        for features in self.cache.chunks():
            yield (features.to(self.weights.device) @ self.weights).cpu()


def embed(
    clip: Clip,
    files: Sequence[str],
    root: Path,
    store: FeatureStore,
    place: Place,
    *,
    batch_size: int = 256,
    workers: int = 0,
    on_error: Literal["stop", "skip"] = "stop",
    decoding: Decoding = STANDARD,
    precision: str = "fp32",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    progress: bool = False,
) -> FeatureCache:
    """Features of images, which are there already, or made and kept.

    Each process makes the shards of one stretch of the list, so that it reads few tar files where images are in them.
    No batch crosses a shard's border, and a whole shard is never made again: however many processes there are, and
    whenever they were stopped before, the shards have the same bits. Where a store has features of an earlier list of
    images, rows of the same images are taken over as they are, and a shard's other images alone pass through the
    network: in smaller batches than of fresh features, which may change the last bits of the new rows, but in the same
    for any number of processes and kills. Images that could not be read are tried again.

    Args:
        clip: the model.
        files: the images, below `root`; they may be members of tar files.
        root: what names are relative to.
        store: where the features are kept.
        place: this process among those that share the work.
        batch_size: images that pass through the network at a time; those of a shard at most.
        workers: processes that decode; 0 decodes in this one.
        on_error: `stop` at an image that cannot be read, or `skip` it.
        decoding: how files become pixels.
        precision: that the network runs in, by its name: features of another one are others.
        autocast: the same, for torch.
        progress: whether to show a progress bar, and to print notes.

    Raises:
        InputError: the store holds features of other images, of another model or precision, or an image cannot be read.
        StoppedError: a tar file or a shard of features is gone or has changed.
    """
    root = Path(os.path.abspath(root))
    if not isinstance(files, ShardedNames):
        # As text, the absolute path of a member would not know any more where in its tar file it is.
        files = [file if isinstance(file, Member) else os.path.abspath(file) for file in files]
    store = _claimed(store, _manifest(clip, root, files, decoding, precision), place)
    if store.note and progress:
        print(f"note: {store.note}", file=sys.stderr)
    preparing = Preparing(files=files, preprocess=clip.preprocess, decoding=decoding)
    plan = _planned(store, len(files), clip.embed_dim, place)
    # Closed before an error is told: its progress bar would stand in front of the message.
    with closing(_made(clip, store, plan, preparing, batch_size, place.device, workers, autocast, progress)) as made:
        failed = _kept(store, made, len(files), on_error, stops=place.num_processes == 1)
    failed = _first_of_all(failed, place)
    if failed < len(files):
        raise preparing.error(failed)
    if place.rank == 0:
        store.finish()
    return _opened(store, root, on_error, preparing)


def _claimed(store: FeatureStore, manifest: dict[str, Any], place: Place) -> FeatureStore:
    """The store of these features; the first process says whose they are, and the others find what it has said."""
    if place.rank == 0:
        store = store.claim(manifest, True)
    _first_of_all(0, place)
    return store if place.rank == 0 else store.claim(manifest, False)


@dataclass(frozen=True, kw_only=True)
class _Planned:
    """A shard to make."""

    number: int
    rows: range
    lacking: Int64[np.ndarray, " n"]
    """The images among all that have to be read."""
    is_whole: bool
    """Whether it is there, so that it is written again only if an image can be read that could not be before."""


def _planned(store: FeatureStore, num_files: int, dim: int, place: Place) -> list[_Planned]:
    """The shards of this process that are not there, or in which images lack that could not be read."""
    shards, plan = _shards(num_files), []
    first, stop = (rank * len(shards) // place.num_processes for rank in (place.rank, place.rank + 1))
    for number in range(first, stop):
        rows = shards[number]
        lacking = rows.start + np.flatnonzero(np.isnan(store.known(number, rows, dim)[:, 0]))
        is_whole = store.is_whole(number, (len(rows), dim))
        if len(lacking) or not is_whole:
            plan.append(_Planned(number=number, rows=rows, lacking=lacking, is_whole=is_whole))
    return plan


def _kept(
    store: FeatureStore,
    made: Iterable[tuple[_Planned, Float[Tensor, "n D"]]],
    num_files: int,
    on_error: Literal["stop", "skip"],
    *,
    stops: bool,
) -> int:
    """Keeps shards that are made; the number of the first image that has no features, where it must."""
    failed = num_files
    for shard, values in made:
        lacking = values[:, 0].isnan().nonzero()
        if on_error == "skip" or not len(lacking):
            if not shard.is_whole or len(lacking) < len(shard.lacking):
                store.write(shard.number, values.half().cpu().numpy())
            continue
        failed = min(failed, shard.rows.start + int(lacking[0]))
        # Several processes go on to their end: those that are done wait for the others, but not for ever.
        if stops:
            break
    return failed


def _made(
    clip: Clip,
    store: FeatureStore,
    plan: Sequence[_Planned],
    preparing: "Preparing",
    batch_size: int,
    device: torch.device,
    workers: int,
    autocast: Callable[[], AbstractContextManager],
    progress: bool,
) -> Generator[tuple[_Planned, Float[Tensor, "n D"]], None, None]:
    """The features of the shards of a plan."""
    cut = [[shard.lacking[i : i + batch_size] for i in range(0, len(shard.lacking), batch_size)] for shard in plan]
    batches = _Batches(preparing=preparing, batches=[rows for of_shard in cut for rows in of_shard])
    loader = DataLoader(
        Caught(dataset=batches),
        sampler=range(len(batches)),
        batch_size=None,
        # More decoding processes than cores only get into each other's way.
        num_workers=min(workers, os.cpu_count() or 1, len(batches)),
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_signals,
    )
    num_images, is_quiet = sum(map(len, batches.batches)), not (progress and len(batches))
    with tqdm(desc="features", total=num_images, unit="img", disable=is_quiet, leave=False) as bar:
        loaded = zip(batches.batches, raising(loader), strict=True)
        for shard, own in zip(plan, cut, strict=True):
            values = torch.from_numpy(store.known(shard.number, shard.rows, clip.embed_dim).astype(np.float32))
            values = values.to(device)
            for rows, (images, good) in islice(loaded, len(own)):
                if len(good):
                    with autocast():
                        features = encode(clip, images.to(device, non_blocking=True))
                    values[(torch.from_numpy(rows)[good] - shard.rows.start).to(device)] = features
                bar.update(len(rows))
            yield shard, values


def _opened(store: FeatureStore, root: Path, on_error: Literal["stop", "skip"], preparing: "Preparing") -> FeatureCache:
    """All shards, in which images that could not be read have rows that are no numbers."""
    files = preparing.files
    has_features = np.concatenate([np.isfinite(store.read(number)[:, 0]) for number in range(len(_shards(len(files))))])
    lacking, places = np.flatnonzero(~has_features).tolist(), np.flatnonzero(has_features)
    if lacking and on_error == "stop":
        raise preparing.error(lacking[0])
    if not len(places):
        raise InputError(f"none of {len(files)} images can be read, such as {files[0]!r}: {preparing.reason(0)}")
    return FeatureCache(
        store=store,
        root=root,
        files=files,
        names=[os.path.relpath(files[i], root) for i in places.tolist()],
        places=places,
        unreadable=dict(zip(lacking, in_threads(preparing.reason, lacking), strict=True)),
    )


def _shards(num_files: int) -> list[range]:
    return [range(first, min(first + SHARD_SIZE, num_files)) for first in range(0, num_files, SHARD_SIZE)]


def _manifest(clip: Clip, root: Path, files: Sequence[str], decoding: Decoding, precision: str) -> dict[str, Any]:
    """Whose features these are."""
    return {
        "version": 2,
        "model": {**clip.description, **decoding.of_pixels, "precision": precision},
        "root": str(root),
        "files": [[os.path.relpath(file.path, root), file.size, file.mtime_ns, *file.part] for file in on_disk(files)],
        "shard_size": SHARD_SIZE,
        "dim": clip.embed_dim,
    }


def _first_of_all(number: int, place: Place) -> int:
    """The smallest of all processes' numbers; none goes on before all have come here."""
    numbers = torch.zeros(place.num_processes, dtype=torch.int64, device=place.device)
    numbers[place.rank] = number
    return int(all_sum_(numbers).min())


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


@dataclass(frozen=True, kw_only=True)
class _Batches(Dataset):
    """What workers send: the prepared images of a batch that can be read, and their places in it."""

    preparing: Preparing
    batches: Sequence[Int64[np.ndarray, " _"]]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[Tensor, Int64[Tensor, " n"]]:
        images, good = [], []
        for i, row in enumerate(self.batches[number].tolist()):
            try:
                images.append(self.preparing(row))
            except InputError:
                continue
            good.append(i)
        return torch.stack(images) if images else torch.empty(0), torch.tensor(good, dtype=torch.int64)
