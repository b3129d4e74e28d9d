"""Memory and time of the names of many images in `debias-ssl label`: from the folder to the names of the rows.

    python scripts/benchmarks/bench_listing.py --images 1000000

Makes a folder of hard links to small files (20 seconds a million), a thousand a folder, and features of 8 numbers for
them, which count for nothing beside the names. Then it prints for each step its seconds, the memory that the process
holds after it, and the most that it held on the way, in bytes a name above what it held before the first step.

- list: `read_request`, as the job does it without a truth.
- embed, first: of images without features, up to where the first image would be read. The list is written.
- embed, again: all features are there.
- embed, one more: a list with another image in front, so that all rows move by one.
"""

import argparse
import ctypes
import gc
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from debias_ssl.contract import Place
from debias_ssl.features import embedding
from debias_ssl.features.embedding import SHARD_SIZE, embed
from debias_ssl.features.store import FolderStore
from debias_ssl.labels.debiasing.config import DebiasConfig
from debias_ssl.labels.zero_shot.rows import Request, read_request
from debias_ssl.models.clip import Clip

DIM, IN_A_FOLDER = 8, 1000


def make_images(root: Path, number: int) -> None:
    for first in range(0, number, IN_A_FOLDER):
        folder = root / f"class_{first // IN_A_FOLDER:05d}"
        folder.mkdir(parents=True)
        image = folder / f"image_{first:08d}.jpg"
        image.write_bytes(b"nothing")
        for i in range(first + 1, min(first + IN_A_FOLDER, number)):
            os.link(image, folder / f"image_{i:08d}.jpg")


def memory(peak: bool) -> int:
    """Bytes that the process holds, or the most since `forget_peak`."""
    key = "VmHWM" if peak else "VmRSS"
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def step(name: str, number: int, before: int, do: Callable[[], Any]) -> Any:
    gc.collect()
    forget_peak()
    start = time.perf_counter()
    result = do()
    seconds, most = time.perf_counter() - start, (memory(True) - before) / number
    gc.collect()
    # What is freed may stay with the process.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pa.default_memory_pool().release_unused()
    held = (memory(False) - before) / number
    print(f"{name:<16}{seconds:8.1f} s {held:8.0f} bytes a name held {most:8.0f} at most", flush=True)
    return result


def request_of(root: Path, classes: Path) -> Request:
    return read_request(str(root), str(classes), "simple", DebiasConfig())


class NotNow(Exception):
    """In place of the first image that would be read."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000)
    number = parser.parse_args().images
    clip: Any = Clip.__new__(Clip)
    for name, value in {
        "embed_dim": DIM,
        "description": {"model": "none"},
        "preprocess": torch.as_tensor,
        "device": torch.device("cpu"),
    }.items():
        object.__setattr__(clip, name, value)
    with tempfile.TemporaryDirectory() as place:
        root, features, classes = (Path(place) / name for name in ("images", "features", "classes.txt"))
        classes.write_text("class_00000\nclass_00001\n")
        make_images(root, number)
        store, before = FolderStore(folder=features), memory(False)

        def stopped() -> None:
            def stop(*_: Any, **__: Any) -> Any:
                raise NotNow

            made, embedding.making = embedding.making, stop
            with suppress(NotNow):
                embed(clip, request.files, request.root, store, Place())
            embedding.making = made

        def whole() -> Any:
            return embed(clip, request.files, request.root, store, Place())

        request = step("list", number, before, lambda: request_of(root, classes))
        step("embed, first", number, before, stopped)
        for first in range(0, number, SHARD_SIZE):
            values = np.ones((min(SHARD_SIZE, number - first), DIM), dtype=np.float16)
            np.save(features / f"shard_{first // SHARD_SIZE:05d}.npy", values)
        cache = step("embed, again", number, before, whole)
        del cache, request
        (root / "a.jpg").write_bytes(b"nothing")
        request = step("list", number, before, lambda: request_of(root, classes))
        step("embed, one more", number, before, stopped)


if __name__ == "__main__":
    main()
