"""CLIP's features of images, made once and kept."""

import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from debias_ssl.contract import Place
from debias_ssl.data.reading.config import STANDARD, Decoding
from debias_ssl.data.reading.decode import in_threads
from debias_ssl.data.reading.features import VERSION
from debias_ssl.data.reading.workers import Caught, raising
from debias_ssl.data.sources.below import names_below
from debias_ssl.data.sources.listing import FileNames, picked
from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import ShardedNames, on_disk
from debias_ssl.distributed.collectives import all_sum_
from debias_ssl.distributed.signals import ignore_signals
from debias_ssl.features.preparing import Batches, Preparing
from debias_ssl.features.store import FeatureStore, ShardRows
from debias_ssl.models.clip import Clip, encode
from debias_ssl.system.errors import InputError

SHARD_SIZE = 1024


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
    files = _absolute(files, root)
    store = _claimed(store, _manifest(clip, root, decoding, precision), files, place)
    if store.note and progress:
        print(f"note: {store.note}", file=sys.stderr)
    preparing = Preparing(files=files, preprocess=clip.preprocess, decoding=decoding)
    plan = _planned(store, len(files), clip.embed_dim, place)
    # Closed before an error is told: its progress bar would stand in front of the message.
    with closing(_made(clip, store, plan, preparing, batch_size, place.device, workers, autocast, progress)) as made:
        failed, known = _kept(store, made, len(files), on_error, stops=place.num_processes == 1)
    failed, known = int(_of_all(failed, place).min()), int(_of_all(known, place).sum())
    if known and progress:
        print(f"note: {known:,} images are of known content, and keep their features", file=sys.stderr)
    if failed < len(files):
        raise preparing.error(failed)
    if place.rank == 0:
        store.finish()
    return _opened(store, root, on_error, preparing)


def _absolute(files: Sequence[str], root: Path) -> Sequence[str]:
    """The same files by absolute paths, in arrays where none is in a tar file."""
    prefix = os.path.join(root, "")
    if isinstance(files, FileNames) and (below := files.below(str(root))) is not None:
        return replace(below, prefix=prefix)
    if isinstance(files, ShardedNames):
        return files
    if any(isinstance(file, Member) for file in files):
        # As text, the absolute path of a member would not know any more where in its tar file it is.
        return [file if isinstance(file, Member) else os.path.abspath(file) for file in files]
    listed = ((os.path.relpath(file.path, root), file.size, file.mtime_ns, False) for file in on_disk(files))
    return FileNames.of(listed, prefix)


def _claimed(store: FeatureStore, manifest: dict[str, Any], files: Sequence[str], place: Place) -> FeatureStore:
    """The store of these features; the first process says whose they are, and the others find what it has said."""
    if place.rank == 0:
        store = store.claim(manifest, files, True)
    _of_all(0, place)
    return store if place.rank == 0 else store.claim(manifest, files, False)


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
        lacking = rows.start + np.flatnonzero(np.isnan(store.known(number, rows, dim).features[:, 0]))
        is_whole = store.is_whole(number, (len(rows), dim))
        if len(lacking) or not is_whole:
            plan.append(_Planned(number=number, rows=rows, lacking=lacking, is_whole=is_whole))
    return plan


def _kept(
    store: FeatureStore,
    made: Iterable[tuple[_Planned, ShardRows, int]],
    num_files: int,
    on_error: Literal["stop", "skip"],
    *,
    stops: bool,
) -> tuple[int, int]:
    """Keeps shards that are made; the number of the first image that has no features, where it must.

    Also gives how many images have features of another image of their content.
    """
    failed, num_known = num_files, 0
    for shard, rows, known in made:
        num_known += known
        lacking = np.flatnonzero(np.isnan(rows.features[:, 0]))
        if on_error == "skip" or not len(lacking):
            if not shard.is_whole or len(lacking) < len(shard.lacking):
                store.write(shard.number, rows)
            continue
        failed = min(failed, shard.rows.start + int(lacking[0]))
        # Several processes go on to their end: those that are done wait for the others, but not for ever.
        if stops:
            break
    return failed, num_known


def _made(
    clip: Clip,
    store: FeatureStore,
    plan: Sequence[_Planned],
    preparing: Preparing,
    batch_size: int,
    device: torch.device,
    workers: int,
    autocast: Callable[[], AbstractContextManager],
    progress: bool,
) -> Generator[tuple[_Planned, ShardRows, int], None, None]:
    """The rows of the shards of a plan, and how many of them have the features of another image of their content."""
    cut = [[shard.lacking[i : i + batch_size] for i in range(0, len(shard.lacking), batch_size)] for shard in plan]
    batches = Batches(preparing=preparing, store=store, batches=[rows for of_shard in cut for rows in of_shard])
    if len(batches):
        # Before decoding processes are made: they share what is found here.
        _ = store.known_contents
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
            known = store.known(shard.number, shard.rows, clip.embed_dim)
            features, contents = torch.from_numpy(known.features.astype(np.float32)).to(device), known.contents.copy()
            num_known = 0
            for rows, batch in islice(loaded, len(own)):
                at = torch.from_numpy(rows) - shard.rows.start
                if len(batch.new):
                    with autocast():
                        encoded = encode(clip, batch.images.to(device, non_blocking=True))
                    features[at[batch.new].to(device)] = encoded
                if len(batch.known):
                    features[at[batch.known].to(device)] = batch.features.float().to(device)
                    num_known += len(batch.known)
                contents[at.numpy()] = batch.contents.numpy()
                bar.update(len(rows))
            yield shard, ShardRows(features=features.half().cpu().numpy(), contents=contents), num_known


def _opened(store: FeatureStore, root: Path, on_error: Literal["stop", "skip"], preparing: Preparing) -> FeatureCache:
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
        names=names_below(_those(files, places) if lacking else files, root),
        places=places,
        unreadable=dict(zip(lacking, in_threads(preparing.reason, lacking), strict=True)),
    )


def _those(files: Sequence[str], places: Int64[np.ndarray, " N"]) -> Sequence[str]:
    """The files at some places, which are ascending."""
    return files.part(places) if isinstance(files, ShardedNames) else picked(files, places)


def _shards(num_files: int) -> list[range]:
    return [range(first, min(first + SHARD_SIZE, num_files)) for first in range(0, num_files, SHARD_SIZE)]


def _manifest(clip: Clip, root: Path, decoding: Decoding, precision: str) -> dict[str, Any]:
    """Whose features these are."""
    return {
        "version": VERSION,
        "model": {**clip.description, **decoding.of_pixels, "precision": precision},
        "root": str(root),
        "shard_size": SHARD_SIZE,
        "dim": clip.embed_dim,
    }


def _of_all(number: int, place: Place) -> Int64[Tensor, " processes"]:
    """The numbers of all processes; none goes on before all have come here."""
    numbers = torch.zeros(place.num_processes, dtype=torch.int64, device=place.device)
    numbers[place.rank] = number
    return all_sum_(numbers)
