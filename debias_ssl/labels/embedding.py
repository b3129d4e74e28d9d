"""CLIP's features of images, made once and kept on disk; `data/reading/features.py` has the layout."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from debias_ssl.data.reading.decode import decode, unreadable
from debias_ssl.data.reading.features import MANIFEST, read_manifest, shard_path
from debias_ssl.data.reading.workers import Caught, raising
from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import ShardedNames, on_disk
from debias_ssl.distributed.collectives import all_sum_
from debias_ssl.models.clip import Clip, encode
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import read_array, write_array, write_aside

SHARD_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """A folder of features of images; those that could not be read have none."""

    folder: Path
    root: Path
    files: Sequence[str]
    """All images."""
    names: Sequence[str]
    """Of the images that have features, relative to the root."""
    places: Int64[np.ndarray, " N"]
    """Of these images among all."""
    unreadable: dict[str, str]
    """Names of the other images, with the reason."""

    def chunks(self) -> Iterator[Float[Tensor, "n D"]]:
        """The features, in the order of the names, read from disk as they are asked for."""
        for number, shard in enumerate(_shards(len(self.files))):
            start, stop = np.searchsorted(self.places, (shard.start, shard.stop))
            if start == stop:
                continue  # none of its images can be read
            values = np.load(shard_path(self.folder, number), mmap_mode="r", allow_pickle=False)
            yield torch.from_numpy(values[self.places[start:stop] - shard.start].astype(np.float32))


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
    folder: Path,
    place: Place,
    *,
    batch_size: int = 256,
    workers: int = 0,
    on_error: Literal["stop", "skip"] = "stop",
    autocast: Callable[[], AbstractContextManager] = nullcontext,
    progress: bool = False,
) -> FeatureCache:
    """Features of images, from a folder that has them, or made and kept there.

    Each process makes the shards of one stretch of the list, so that it reads few tar files where images are in them.
    No batch crosses a shard's border, and a whole shard is never made again: however many processes there are, and
    whenever they were stopped before, the shards have the same bits.

    Args:
        clip: the model.
        files: the images, below `root`; they may be members of tar files.
        root: what names in the folder are relative to.
        folder: where the features are kept.
        place: this process among those that share the work.
        batch_size: images that pass through the network at a time; those of a shard at most.
        workers: processes that decode; 0 decodes in this one.
        on_error: `stop` at an image that cannot be read, or `skip` it.
        autocast: the precision that the network runs in.
        progress: whether to show a progress bar.

    Raises:
        InputError: the folder holds features of other images or of another model, or an image cannot be read; every
            process raises it.
        StoppedError: a tar file is gone or has changed.
    """
    root = Path(os.path.abspath(root))
    if not isinstance(files, ShardedNames):
        # As text, the absolute path of a member would not know any more where in its tar file it is.
        files = [file if isinstance(file, Member) else os.path.abspath(file) for file in files]
    names = [os.path.relpath(file, root) for file in files]
    _claim(folder, clip, root, files, place)
    shards = _shards(len(files))
    first, stop = (rank * len(shards) // place.num_processes for rank in (place.rank, place.rank + 1))
    mine = range(first, stop)
    missing = [number for number in mine if not _is_whole(folder, number, (len(shards[number]), clip.embed_dim))]
    batches = [
        shards[number][i : i + batch_size] for number in missing for i in range(0, len(shards[number]), batch_size)
    ]
    loader = DataLoader(
        Caught(dataset=_Batches(files=files, preprocess=clip.preprocess, batches=batches)),
        sampler=range(len(batches)),
        batch_size=None,
        # More decoding processes than cores only get into each other's way.
        num_workers=min(workers, os.cpu_count() or 1, len(batches)),
        pin_memory=place.device.type == "cuda",
    )
    failed = len(files)
    num_images, is_quiet = sum(map(len, batches)), not (progress and batches)
    with tqdm(desc="features", total=num_images, unit="img", disable=is_quiet, leave=False) as bar:
        for number, loaded in groupby(
            zip(batches, raising(loader), strict=True), lambda pair: pair[0].start // SHARD_SIZE
        ):
            values = _encoded(clip, shards[number], loaded, place.device, autocast, bar)
            lacking = values[:, 0].isnan().nonzero()
            if on_error == "skip" or not len(lacking):
                write_array(shard_path(folder, number), values.half().cpu().numpy())
                continue
            failed = min(failed, shards[number].start + int(lacking[0]))
            # Several processes go on to their end: those that are done wait for the others, but not for ever.
            if place.num_processes == 1:
                break
    failed = _first_of_all(failed, place)
    if failed < len(files):
        raise _without_features(files[failed])
    return _opened(folder, root, files, names, on_error)


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
    folder: Path, root: Path, files: Sequence[str], names: Sequence[str], on_error: Literal["stop", "skip"]
) -> FeatureCache:
    """A folder with all of its shards, in which images that could not be read have rows that are no numbers."""
    has_features = np.concatenate(
        [
            np.isfinite(np.load(shard_path(folder, number), mmap_mode="r", allow_pickle=False)[:, 0])
            for number in range(len(_shards(len(files))))
        ]
    )
    lacking, places = np.flatnonzero(~has_features).tolist(), np.flatnonzero(has_features)
    if lacking and on_error == "stop":
        raise _without_features(files[lacking[0]])
    if not len(places):
        raise InputError(f"none of {len(files)} images can be read, such as {files[0]!r}")
    reasons = unreadable([files[i] for i in lacking], progress=False)
    return FeatureCache(
        folder=folder,
        root=root,
        files=files,
        names=[names[i] for i in places.tolist()],
        places=places,
        unreadable={names[i]: reasons.get(files[i], "its features are no numbers") for i in lacking},
    )


def _without_features(file: str) -> InputError:
    """The error to raise for an image that has no features."""
    try:
        decode(file)
    except InputError as error:
        return error
    return InputError(f"the features of {file!r} are no numbers; remove it or skip it (--on_error skip)")


def _shards(num_files: int) -> list[range]:
    return [range(first, min(first + SHARD_SIZE, num_files)) for first in range(0, num_files, SHARD_SIZE)]


def _claim(folder: Path, clip: Clip, root: Path, files: Sequence[str], place: Place) -> None:
    """Says in the folder whose features it holds, or checks what it says; all processes leave together."""
    own = {
        "version": 1,
        "model": clip.description,
        "root": str(root),
        "files": [[os.path.relpath(file.path, root), file.size, file.mtime_ns, *file.part] for file in on_disk(files)],
        "shard_size": SHARD_SIZE,
        "dim": clip.embed_dim,
    }
    if (folder / MANIFEST).exists() or shard_path(folder, 0).exists():
        found = read_manifest(folder)
        if differing := _difference(found, own):
            raise InputError(
                f"{str(folder)!r} holds features of {differing}: name another folder by --features, or delete that one"
            )
    elif place.rank == 0:
        try:
            write_aside(folder / MANIFEST, json.dumps(own))
        except OSError as error:
            raise InputError(
                f"cannot write to {str(folder)!r}: {error.strerror}; name another by --features"
            ) from error
    _first_of_all(0, place)


def _difference(found: dict[str, Any], own: dict[str, Any]) -> str | None:
    """What differs between two manifests, in words; None where nothing does."""
    if found["model"] != own["model"]:
        differing = [key for key in own["model"] if found["model"].get(key) != own["model"][key]]
        return f"another model ({' and '.join(differing)} differ)"
    if found["root"] != own["root"]:
        return f"images in {found['root']!r}, not in {own['root']!r}"
    before, now = ({name: rest for name, *rest in manifest["files"]} for manifest in (found, own))
    changes = [f"{name!r} was removed" for name in before if name not in now]
    changes += [f"{name!r} is new" for name in now if name not in before]
    changes += [f"{name!r} has changed" for name in now if name in before and before[name] != now[name]]
    if changes:
        return f"other images ({changes[0]}" + (f", and {len(changes) - 1} more differ)" if len(changes) > 1 else ")")
    if any(found[key] != own[key] for key in ("files", "shard_size", "dim")):
        return "these images in another order or layout"
    return None


def _first_of_all(number: int, place: Place) -> int:
    """The smallest of all processes' numbers; none goes on before all have come here."""
    numbers = torch.zeros(place.num_processes, dtype=torch.int64, device=place.device)
    numbers[place.rank] = number
    return int(all_sum_(numbers).min())


def _is_whole(folder: Path, number: int, shape: tuple[int, int]) -> bool:
    try:
        values = read_array(shard_path(folder, number), "r")
    except (OSError, ValueError):
        return False
    return values.shape == shape and values.dtype == np.float16


@dataclass(frozen=True, kw_only=True)
class _Batches(Dataset):
    """What workers send: the preprocessed images of a batch that can be read, and their places in it."""

    files: Sequence[str]
    preprocess: Callable[[Any], Tensor]
    batches: Sequence[range]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[Tensor, Int64[Tensor, " n"]]:
        images, good = [], []
        for i, row in enumerate(self.batches[number]):
            try:
                images.append(self.preprocess(decode(self.files[row])))
            except InputError:
                continue
            good.append(i)
        return torch.stack(images) if images else torch.empty(0), torch.tensor(good, dtype=torch.int64)
