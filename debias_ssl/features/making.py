"""Computes the missing features: plans them shard by shard, and passes images and views through the network."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from debias_ssl.contract import Place
from debias_ssl.data.reading.workers import Caught, raising
from debias_ssl.distributed.signals import ignore_signals
from debias_ssl.features.preparing import Batch, Batches, Prepared, Preparing
from debias_ssl.features.store import FeatureStore, ShardRows
from debias_ssl.features.views import KeptView
from debias_ssl.models.encoders import Encoder


@dataclass(frozen=True, kw_only=True)
class Target:
    """Features to compute, and their store."""

    store: FeatureStore
    view: KeptView | None = None
    """The view of the images; None is the images without augmentation."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A shard to compute, for all targets that lack the same images of the shard."""

    number: int
    rows: range
    lacking: Int64[np.ndarray, " n"]
    """Positions of the images that must be read."""
    is_whole: bool
    """Whether the shard exists: it is then written again only if an image has become readable."""
    targets: tuple[Target, ...]
    dim: int
    """The number of features."""

    def is_lacking(self) -> bool:
        """Whether the shard was missing when it was planned, and still is."""
        shape = (len(self.rows), self.dim)
        return not self.is_whole and not all(target.store.is_whole(self.number, shape) for target in self.targets)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The shards that this process computes."""

    shards: Sequence[Planned]
    num_lacking: int
    """The number of its images that lack some features."""


@dataclass(frozen=True, kw_only=True)
class Made:
    """The results for a planned shard."""

    shard: Planned
    rows: tuple[ShardRows, ...]
    """The rows for each of its targets."""
    num_known: int
    """The number of its images that got the features of another image with the same content."""


def planned(targets: Sequence[Target], shards: Sequence[range], dim: int, place: Place) -> Plan:
    """The shards of this process that are missing, or that lack images because they could not be read."""
    plan, num_lacking = [], 0
    first, stop = (rank * len(shards) // place.num_processes for rank in (place.rank, place.rank + 1))
    for number in range(first, stop):
        rows, lacks = shards[number], np.zeros(len(shards[number]), dtype=bool)
        alike: dict[tuple[bytes, bool], list[Target]] = {}
        for target in targets:
            lacking = np.isnan(target.store.known(number, rows, dim).features[:, 0])
            is_whole = target.store.is_whole(number, (len(rows), dim))
            if lacking.any() or not is_whole:
                alike.setdefault((lacking.tobytes(), is_whole), []).append(target)
                lacks |= lacking
        for (lacking, is_whole), group in alike.items():
            at = rows.start + np.flatnonzero(np.frombuffer(lacking, dtype=bool))
            shard = Planned(number=number, rows=rows, lacking=at, is_whole=is_whole, targets=tuple(group), dim=dim)
            plan.append(shard)
        num_lacking += int(lacks.sum())
    return Plan(shards=plan, num_lacking=num_lacking)


def kept(made: Iterable[Made], num_files: int, on_error: Literal["stop", "skip"], *, stops: bool) -> tuple[int, int]:
    """Stores shards as they are made.

    Returns the number of the first image without features (relevant with on_error stop), and how many images got the
    features of another image with the same content.
    """
    failed, num_known = num_files, 0
    for each in made:
        num_known += each.num_known
        for target, rows in zip(each.shard.targets, each.rows, strict=True):
            lacking = np.flatnonzero(np.isnan(rows.features[:, 0]))
            if on_error == "skip" or not len(lacking):
                if not each.shard.is_whole or len(lacking) < len(each.shard.lacking):
                    target.store.write(each.shard.number, rows)
            else:
                failed = min(failed, each.shard.rows.start + int(lacking[0]))
        # Processes that are done wait for the others only for a limited time, so an error must end all soon.
        if stops and failed < num_files:
            break
    return failed, num_known


def making(
    encoder: Encoder,
    plan: Sequence[Planned],
    preparing: Preparing,
    *,
    batch_size: int,
    workers: int,
    autocast: Callable[[], AbstractContextManager],
    progress: bool,
) -> Generator[Made, None, None]:
    """The rows of the shards of a plan, without shards that another process makes or has made since the plan."""
    cut = _Cut(plan, batch_size)
    batches = Batches(preparing=preparing, batches=cut.batches)
    for store in {id(store): store for batch in batches.batches for store in batch.stores}.values():
        # Loaded before the decoding processes start, because they share the results.
        _ = store.known_contents
    num_images, is_quiet = sum(len(batch.rows) for batch in batches.batches), not (progress and len(batches))
    with tqdm(desc="features", total=num_images, unit="img", disable=is_quiet, leave=False) as bar, cut:
        loader = DataLoader(
            Caught(dataset=batches),
            sampler=cut.taken(bar.update),
            batch_size=None,
            # More decoding processes than cores would only slow each other down.
            num_workers=min(workers, os.cpu_count() or 1, len(batches)),
            pin_memory=encoder.device.type == "cuda",
            worker_init_fn=ignore_signals,
        )
        loaded = iter(raising(loader))
        ahead = next(loaded, None)
        while cut.shards:
            shard, own = cut.shards.popleft()
            rows = [_Rows.known(shard, target, encoder) for target in shard.targets]
            num_known = 0
            for batch in own:
                assert ahead is not None
                prepared = ahead
                at, images = torch.from_numpy(batch.rows) - shard.rows.start, prepared.images.to(encoder.device)
                for number, of_target in enumerate(rows):
                    of_target.fill(at, prepared, images, number, autocast)
                # All targets know the same contents, unless a job was killed in between.
                num_known += len(prepared.known[0].positions)
                bar.update(len(batch.rows))
                if batch is not own[-1]:
                    ahead = next(loaded)
            yield Made(shard=shard, rows=tuple(of_target.made() for of_target in rows), num_known=num_known)
            cut.give_back(shard)
            if own:
                ahead = next(loaded, None)


class _Cut:
    """The batches of a plan, shard by shard. A shard is locked when its first batch is requested."""

    def __init__(self, plan: Sequence[Planned], batch_size: int):
        self.plan = [
            (
                shard,
                [
                    Batch(rows=shard.lacking[i : i + batch_size], stores=[target.store for target in shard.targets])
                    for i in range(0, len(shard.lacking), batch_size)
                ],
            )
            for shard in plan
        ]
        self.batches = [batch for _, of_shard in self.plan for batch in of_shard]
        self.shards: deque[tuple[Planned, list[Batch]]] = deque()
        """Shards that are locked and not made yet."""
        self._locks: dict[int, ExitStack] = {}

    def taken(self, passed_over: Callable[[int], Any]) -> Iterator[int]:
        """The numbers of the batches of shards that no other process makes.

        Args:
            passed_over: called with the number of images that another process has made or makes.
        """
        first = 0
        for number, group in groupby(self.plan, lambda each: each[0].number):
            shards = [*group]
            lock = shards[0][0].targets[0].store.lock(number)
            if lock is not None and not any(shard.is_whole or shard.is_lacking() for shard, _ in shards):
                lock.close()
                lock = None
            num_batches = sum(len(own) for _, own in shards)
            if lock is None:
                passed_over(sum(len(shard.lacking) for shard, _ in shards))
            else:
                self._locks[number] = lock
                self.shards.extend(shards)
                yield from range(first, first + num_batches)
            first += num_batches

    def give_back(self, shard: Planned) -> None:
        """Unlocks a finished shard, when all of its planned parts are finished."""
        if all(other.number != shard.number for other, _ in self.shards):
            self._locks.pop(shard.number).close()

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        for lock in self._locks.values():
            lock.close()


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The rows of a shard for one target, while they are made."""

    target: Target
    encoder: Encoder
    features: Float[Tensor, "n D"]
    contents: Int64[np.ndarray, "n 2"]

    @classmethod
    def known(cls, shard: Planned, target: Target, encoder: Encoder) -> "_Rows":
        """Rows that begin with the known features."""
        found = target.store.known(shard.number, shard.rows, encoder.embed_dim)
        features = torch.from_numpy(found.features.astype(np.float32)).to(encoder.device)
        return cls(target=target, encoder=encoder, features=features, contents=found.contents.copy())

    def fill(
        self,
        at: Int64[Tensor, " B"],
        batch: Prepared,
        images: UInt8[Tensor, "n H W K"] | UInt8[Tensor, " 0"],
        number: int,
        autocast: Callable[[], AbstractContextManager],
    ) -> None:
        """Computes the features of a batch, and stores them in its rows.

        Args:
            at: the rows of its images in the shard.
            batch: the batch.
            images: its images, on the device.
            number: the number of this target among those of the batch.
            autocast: the precision of the network.
        """
        known, positions = batch.known[number], batch.positions
        if len(known.positions):
            self.features[at[known.positions].to(images.device)] = known.features.float().to(images.device)
            new = ~torch.isin(positions, known.positions)
            positions, images = positions[new], images[new.to(images.device)] if len(images) else images
        if len(positions):
            if self.target.view is not None:
                images = self.target.view(images, batch.contents[positions])
            with autocast():
                encoded = self.encoder.encode(images)
            self.features[at[positions].to(images.device)] = encoded
        self.contents[at.numpy()] = batch.contents.numpy()

    def made(self) -> ShardRows:
        values = self.features.half()
        # Numbers beyond 16 bits are invalid features, like numbers that are not finite.
        values[~values.isfinite().all(1)] = torch.nan
        return ShardRows(features=values.cpu().numpy(), contents=self.contents)
