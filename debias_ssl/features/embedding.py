"""`embed`: features of images from a pretrained network, computed once and stored."""

import os
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from debias_ssl.contract import Place
from debias_ssl.data.reading.config import STANDARD, Decoding
from debias_ssl.data.reading.decode import in_threads
from debias_ssl.data.reading.features import VERSION
from debias_ssl.data.sources.below import names_below
from debias_ssl.data.sources.listing import FileNames, picked
from debias_ssl.data.sources.rows import RowNames
from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import ShardedNames, on_disk
from debias_ssl.distributed.collectives import all_sum_
from debias_ssl.features.making import Made, Planned, Target, kept, making, planned
from debias_ssl.features.preparing import Preparing
from debias_ssl.features.store import FeatureStore
from debias_ssl.features.views import KeptView
from debias_ssl.models.encoders import Encoder
from debias_ssl.system.errors import InputError, LeftToOthers

SHARD_SIZE = 1024
# Seconds between checks of the shards that other jobs make.
LOOKED_AT_EVERY = 1.0


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """Stored features of images; unreadable images have no features."""

    store: FeatureStore
    root: Path
    files: Sequence[str]
    """All images."""
    names: Sequence[str]
    """Paths of the images with features, relative to the root."""
    places: Int64[np.ndarray, " N"]
    """Positions of these images among all."""
    unreadable: dict[int, str]
    """Positions of the other images, with the reasons."""
    num_before: int
    """The number of images that had all of their features before."""

    @property
    def num_shards(self) -> int:
        return len(_shards(len(self.files)))

    @property
    def named_unreadable(self) -> dict[str, str]:
        """The unreadable images by their names relative to the root, with the reasons."""
        return {os.path.relpath(self.files[place], self.root): why for place, why in self.unreadable.items()}

    def chunks(self) -> Iterator[Float[Tensor, "n D"]]:
        """The features in the order of the names, read from the store chunk by chunk."""
        for number, shard in enumerate(_shards(len(self.files))):
            start, stop = np.searchsorted(self.places, (shard.start, shard.stop))
            if start == stop:
                continue  # none of its images can be read
            yield torch.from_numpy(self.store.read(number)[self.places[start:stop] - shard.start].astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class Logits:
    """Logits of images, computed from their features in each pass."""

    cache: FeatureCache
    weights: Float[Tensor, "D C"]
    """The class vectors, times the model's logit scale."""

    def __iter__(self) -> Iterator[Float[Tensor, "n C"]]:
        for features in self.cache.chunks():
            yield (features.to(self.weights.device) @ self.weights).cpu()


def embed(
    encoder: Encoder,
    files: Sequence[str],
    root: Path,
    store: FeatureStore,
    place: Place,
    *,
    views: Sequence[tuple[KeptView, FeatureStore]] = (),
    batch_size: int = 256,
    workers: int = 0,
    on_error: Literal["stop", "skip"] = "stop",
    decoding: Decoding = STANDARD,
    precision: str = "fp32",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    progress: bool = False,
    wait: bool = True,
) -> FeatureCache:
    """Features of images: read from a store if they are there, else computed and stored.

    Each process makes the shards of one contiguous part of the list, so that it reads few tar files. If several jobs
    work on one list, each shard is locked by the job that makes it. No batch crosses the border of a shard, and a
    complete shard is never made again. So any number of processes and interruptions gives the same bits.

    If a store has features of an earlier list of images, rows of unchanged images are copied. Only the other images of
    a shard pass through the network. Their batches are smaller than those of a new store, which may change the last
    bits of the new rows. Images that could not be read are tried again.

    Args:
        encoder: the network.
        files: the images, below `root`; they may be members of tar files.
        root: the folder that names are relative to.
        store: the store of the features.
        place: this process among those that share the work.
        views: views of the images whose features are made too, and their stores.
        batch_size: images that pass through the network at a time; at most those of a shard.
        workers: processes that decode; 0 decodes in this process.
        on_error: `stop` at an image that cannot be read, or `skip` it.
        decoding: how files become pixels.
        precision: the name of the precision of the network; features of another precision are not used.
        autocast: returns a context in which torch uses this precision.
        progress: whether to show a progress bar, and to print notes.
        wait: whether to wait for shards that other jobs make.

    Raises:
        InputError: a store has features of other images, network, precision or views, or an image cannot be read.
        LeftToOthers: other jobs make the remaining shards, and `wait` is false.
        StoppedError: a tar file or a shard of features was removed or has changed.
    """
    files = _absolute(files, root := Path(os.path.abspath(root)))
    targets = [
        Target(store=_claimed(kept_in, _manifest(encoder, view, root, decoding, precision), files, place), view=view)
        for view, kept_in in ((None, store), *views)
    ]
    store = targets[0].store
    if store.note and progress:
        print(f"note: {store.note}", file=sys.stderr)
    preparing = Preparing(files=files, preprocess=encoder.preprocess, decoding=decoding)
    make = partial(making, encoder, batch_size=batch_size, workers=workers, autocast=autocast, progress=progress)
    num_before = _made(make, targets, preparing, encoder.embed_dim, place, on_error, progress, wait)
    return _opened(store, root, on_error, preparing, num_before)


def _made(
    make: Callable[[Sequence[Planned], Preparing], Generator[Made, None, None]],
    targets: Sequence[Target],
    preparing: Preparing,
    dim: int,
    place: Place,
    on_error: Literal["stop", "skip"],
    progress: bool,
    wait: bool,
) -> int:
    """Makes and stores the missing features; returns how many images of all processes had all features before."""
    files = preparing.files
    plan = planned(targets, _shards(len(files)), dim, place)
    left, failed, known = plan.shards, len(files), 0
    while left and failed == len(files):
        # Closed before an error is printed: its progress bar would be in front of the message.
        with closing(make(left, preparing)) as made:
            failed, num_known = kept(made, len(files), on_error, stops=place.num_processes == 1)
        known += num_known
        before, left = len(left), [shard for shard in left if shard.is_lacking()]
        if left and len(left) == before and failed == len(files):
            if not wait:
                raise LeftToOthers(f"shards of features left to other processes: {len(left):,}")
            time.sleep(LOOKED_AT_EVERY)
    failed, known = int(_of_all(failed, place).min()), int(_of_all(known, place).sum())
    if known and progress:
        print(f"note: {known:,} images have known contents, and their stored features are used", file=sys.stderr)
    if failed < len(files):
        raise preparing.error(failed)
    num_lacked = int(_of_all(plan.num_lacking, place).sum())
    if place.rank == 0:
        for target in targets:
            target.store.finish()
    return len(files) - num_lacked


def _absolute(files: Sequence[str], root: Path) -> Sequence[str]:
    """The files with absolute paths; as arrays, if none is in a tar file."""
    prefix = os.path.join(root, "")
    if isinstance(files, FileNames) and (below := files.below(str(root))) is not None:
        return replace(below, prefix=prefix)
    if isinstance(files, ShardedNames | RowNames):
        return files
    if any(isinstance(file, Member) for file in files):
        # Members of tar files stay as they are: as plain text, they would lose their positions in the tar file.
        return [file if isinstance(file, Member) else os.path.abspath(file) for file in files]
    listed = ((os.path.relpath(file.path, root), file.size, file.mtime_ns, False) for file in on_disk(files))
    return FileNames.of(listed, prefix)


def _claimed(store: FeatureStore, manifest: dict[str, Any], files: Sequence[str], place: Place) -> FeatureStore:
    """The store of these features. The first process writes the manifest, and the others read it."""
    if place.rank == 0:
        store = store.claim(manifest, files, True)
    _of_all(0, place)
    return store if place.rank == 0 else store.claim(manifest, files, False)


def _opened(
    store: FeatureStore, root: Path, on_error: Literal["stop", "skip"], preparing: Preparing, num_before: int
) -> FeatureCache:
    """The cache of all shards, in which images that could not be read have rows of NaN."""
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
        names=names_below(_those(files, places) if lacking else files, root),
        places=places,
        num_before=num_before,
        unreadable=dict(zip(lacking, in_threads(preparing.reason, lacking), strict=True)),
    )


def _those(files: Sequence[str], places: Int64[np.ndarray, " N"]) -> Sequence[str]:
    """The files at some positions, which are ascending."""
    return files.part(places) if isinstance(files, ShardedNames) else picked(files, places)


def _shards(num_files: int) -> list[range]:
    return [range(first, min(first + SHARD_SIZE, num_files)) for first in range(0, num_files, SHARD_SIZE)]


def _manifest(
    encoder: Encoder, view: KeptView | None, root: Path, decoding: Decoding, precision: str
) -> dict[str, Any]:
    """The manifest of the features: the network, the view, the root and all settings that they depend on."""
    return {
        "version": VERSION,
        "model": {
            **encoder.description,
            **decoding.of_pixels,
            "precision": precision,
            **({} if view is None else {"view": view.description}),
        },
        "root": str(root),
        "shard_size": SHARD_SIZE,
        "dim": encoder.embed_dim,
    }


def _of_all(number: int, place: Place) -> Int64[Tensor, " processes"]:
    """The numbers of all processes; a process continues when all have called this."""
    numbers = torch.zeros(place.num_processes, dtype=torch.int64, device=place.device)
    numbers[place.rank] = number
    return all_sum_(numbers)
