"""CLIP's features of images, made once and kept."""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from itertools import groupby
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
from debias_ssl.data.reading.decode import decode, unreadable
from debias_ssl.data.reading.workers import Caught, raising
from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import ShardedNames, on_disk
from debias_ssl.distributed.collectives import all_sum_
from debias_ssl.distributed.signals import ignore_signals
from debias_ssl.labels.feature_store import FeatureStore
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
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    progress: bool = False,
) -> FeatureCache:
    """Features of images, which are there already, or made and kept.

    Each process makes the shards of one stretch of the list, so that it reads few tar files where images are in them.
    No batch crosses a shard's border, and a whole shard is never made again: however many processes there are, and
    whenever they were stopped before, the shards have the same bits.

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
        autocast: the precision that the network runs in.
        progress: whether to show a progress bar.

    Raises:
        InputError: the store holds features of other images or of another model, or an image cannot be read; every
            process raises it.
        StoppedError: a tar file is gone or has changed.
    """
    root = Path(os.path.abspath(root))
    if not isinstance(files, ShardedNames):
        # As text, the absolute path of a member would not know any more where in its tar file it is.
        files = [file if isinstance(file, Member) else os.path.abspath(file) for file in files]
    store.claim(_manifest(clip, root, files, decoding), place.rank == 0)
    _first_of_all(0, place)
    shards = _shards(len(files))
    first, stop = (rank * len(shards) // place.num_processes for rank in (place.rank, place.rank + 1))
    missing = [n for n in range(first, stop) if not store.is_whole(n, (len(shards[n]), clip.embed_dim))]
    batches = _Batches(
        files=files,
        preprocess=clip.preprocess,
        decoding=decoding,
        batches=_cut(missing, len(files), batch_size),
    )
    # Closed before an error is told: its progress bar would stand in front of the message.
    with closing(_made(clip, batches, place.device, workers, autocast, progress)) as made:
        failed = _kept(store, made, len(files), on_error, stops=place.num_processes == 1)
    failed = _first_of_all(failed, place)
    if failed < len(files):
        raise _without_features(files[failed], decoding)
    return _opened(store, root, files, on_error, decoding)


def _kept(
    store: FeatureStore,
    made: Iterable[tuple[int, Float[Tensor, "n D"]]],
    num_files: int,
    on_error: Literal["stop", "skip"],
    *,
    stops: bool,
) -> int:
    """Keeps shards that are made; the number of the first image that has no features, where it must."""
    failed = num_files
    for number, values in made:
        lacking = values[:, 0].isnan().nonzero()
        if on_error == "skip" or not len(lacking):
            store.write(number, values.half().cpu().numpy())
            continue
        failed = min(failed, number * SHARD_SIZE + int(lacking[0]))
        # Several processes go on to their end: those that are done wait for the others, but not for ever.
        if stops:
            break
    return failed


def _made(
    clip: Clip,
    batches: "_Batches",
    device: torch.device,
    workers: int,
    autocast: Callable[[], AbstractContextManager],
    progress: bool,
) -> Generator[tuple[int, Float[Tensor, "n D"]], None, None]:
    """The features of some shards, each with its number."""
    shards = _shards(len(batches.files))
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
        for number, loaded in groupby(
            zip(batches.batches, raising(loader), strict=True), lambda pair: pair[0].start // SHARD_SIZE
        ):
            yield number, _encoded(clip, shards[number], loaded, device, autocast, bar)


def _encoded(
    clip: Clip,
    shard: range,
    batches: Iterable[tuple[range, Any]],
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
    bar: tqdm,
) -> Float[Tensor, "n D"]:
    """The features of a shard's images; of those that could not be read, rows that are no numbers."""
    values = torch.full((len(shard), clip.embed_dim), torch.nan, device=device)
    for rows, (images, good) in batches:
        if len(good):
            with autocast():
                features = encode(clip, images.to(device, non_blocking=True))
            values[(rows.start - shard.start + good).to(device)] = features
        bar.update(len(rows))
    return values


def _opened(
    store: FeatureStore, root: Path, files: Sequence[str], on_error: Literal["stop", "skip"], decoding: Decoding
) -> FeatureCache:
    """All shards, in which images that could not be read have rows that are no numbers."""
    has_features = np.concatenate([np.isfinite(store.read(number)[:, 0]) for number in range(len(_shards(len(files))))])
    lacking, places = np.flatnonzero(~has_features).tolist(), np.flatnonzero(has_features)
    if lacking and on_error == "stop":
        raise _without_features(files[lacking[0]], decoding)
    if not len(places):
        raise InputError(f"none of {len(files)} images can be read, such as {files[0]!r}")
    reasons = unreadable([files[i] for i in lacking], progress=False, decoding=decoding)
    return FeatureCache(
        store=store,
        root=root,
        files=files,
        names=[os.path.relpath(files[i], root) for i in places.tolist()],
        places=places,
        unreadable={i: reasons.get(files[i], "its features are no numbers") for i in lacking},
    )


def _without_features(file: str, decoding: Decoding) -> InputError:
    """The error to raise for an image that has no features."""
    try:
        decode(file, decoding=decoding)
    except InputError as error:
        return error
    return InputError(f"the features of {file!r} are no numbers; remove it or skip it (--on_error skip)")


def _shards(num_files: int) -> list[range]:
    return [range(first, min(first + SHARD_SIZE, num_files)) for first in range(0, num_files, SHARD_SIZE)]


def _cut(missing: Sequence[int], num_files: int, batch_size: int) -> list[range]:
    """The batches of some shards."""
    shards = [_shards(num_files)[number] for number in missing]
    return [shard[i : i + batch_size] for shard in shards for i in range(0, len(shard), batch_size)]


def _manifest(clip: Clip, root: Path, files: Sequence[str], decoding: Decoding) -> dict[str, Any]:
    """Whose features these are."""
    bits = {} if decoding.bits is None else {"bits": decoding.bits}
    return {
        "version": 1,
        "model": {**clip.description, **bits},
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
class _Batches(Dataset):
    """What workers send: the preprocessed images of a batch that can be read, and their places in it."""

    files: Sequence[str]
    preprocess: Callable[[Any], Tensor]
    decoding: Decoding
    batches: Sequence[range]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[Tensor, Int64[Tensor, " n"]]:
        images, good = [], []
        for i, row in enumerate(self.batches[number]):
            try:
                images.append(self.preprocess(decode(self.files[row], decoding=self.decoding)))
            except InputError:
                continue
            good.append(i)
        return torch.stack(images) if images else torch.empty(0), torch.tensor(good, dtype=torch.int64)
