"""Makes the inputs of bench_memory.py: folders, tar files, lists and matrices with any number of rows."""

import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee")
MATRIX_CLASSES = 10
# A file may have 65,000 hard links.
IN_A_FOLDER, IN_A_SHARD = 1000, 100_000
# Rows of a matrix that are made at a time.
ROWS = 2**18


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The files of one size; each is made at its first use."""

    folder: Path
    rows: int

    def __call__(self, name: str) -> Path:
        path = self.folder / name
        if not path.exists():
            MADE[name](self, path)
        return path


def png(number: int) -> bytes:
    """An image of 8 x 8 pixels."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def name_of(number: int) -> str:
    return f"class_{number // IN_A_FOLDER:05d}/image_{number:08d}.png"


def make_images(inputs: Inputs, root: Path) -> None:
    """In each inner folder links to the first image of it."""
    for first in range(0, inputs.rows, IN_A_FOLDER):
        image = root / name_of(first)
        image.parent.mkdir(parents=True)
        image.write_bytes(png(first))
        for number in range(first + 1, min(first + IN_A_FOLDER, inputs.rows)):
            os.link(image, root / name_of(number))


def make_shards(inputs: Inputs, root: Path) -> None:
    root.mkdir()
    content = png(0)
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    for first in range(0, inputs.rows, IN_A_SHARD):
        with (root / f"{first // IN_A_SHARD:04d}.tar").open("wb") as file:
            for number in range(first, min(first + IN_A_SHARD, inputs.rows)):
                member = tarfile.TarInfo(name_of(number))
                member.size = len(content)
                file.write(member.tobuf(tarfile.USTAR_FORMAT) + content + padding)
            file.write(bytes(2 * tarfile.BLOCKSIZE))


def make_matrix(inputs: Inputs, path: Path) -> None:
    """Logits of fp16."""
    values = np.lib.format.open_memmap(path, "w+", np.float16, (inputs.rows, MATRIX_CLASSES))
    for first in range(0, inputs.rows, ROWS):
        part = values[first : first + ROWS]
        part[:] = np.random.default_rng(first).standard_normal(part.shape, dtype=np.float32)


def make_table(inputs: Inputs, path: Path) -> None:
    """Logits with names of rows, as text."""
    values = np.load(inputs("matrix.npy"), mmap_mode="r")
    with path.open("w") as file:
        file.write("path," + ",".join(f"p_{k}" for k in range(MATRIX_CLASSES)) + "\n")
        for first in range(0, inputs.rows, 1000):
            for number, row in enumerate(values[first : first + 1000].tolist(), first):
                file.write(f"{name_of(number)},{','.join(f'{value:.3f}' for value in row)}\n")


def make_truth(inputs: Inputs, path: Path) -> None:
    np.save(path, np.arange(inputs.rows) % MATRIX_CLASSES)


def lines(header: str, line: Callable[[int], str]) -> Callable[[Inputs, Path], None]:
    """Makes a text file of a header and a line for each row."""

    def make(inputs: Inputs, path: Path) -> None:
        with path.open("w") as file:
            file.write(header)
            file.writelines(line(number) for number in range(inputs.rows))

    return make


MADE: dict[str, Callable[[Inputs, Path], None]] = {
    "images": make_images,
    "shards": make_shards,
    "list.txt": lines("", lambda number: f"images/{name_of(number)}\n"),
    "labels.csv": lines("path,label\n", lambda number: f"images/{name_of(number)},{CLASSES[number % 2]}\n"),
    "truth_of_images.csv": lines("path,label\n", lambda number: f"{name_of(number)},{CLASSES[number % 2]}\n"),
    "matrix.npy": make_matrix,
    "other.npy": make_matrix,
    "table.csv": make_table,
    "truth.npy": make_truth,
    "truth.csv": lines("row,label\n", lambda number: f"{number},{number % MATRIX_CLASSES}\n"),
    "truth_of_table.csv": lines("path,label\n", lambda number: f"{name_of(number)},{number % MATRIX_CLASSES}\n"),
}


def save_run_images(root: Path) -> None:
    """A class tree of eight images."""
    for number in range(8):
        path = root / CLASSES[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
