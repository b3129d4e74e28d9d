"""`LabelTable`: the CSV file of a trained run's labels, written batch by batch by several processes."""

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from debias_ssl import __version__
from debias_ssl.contract import Place
from debias_ssl.data.sources.shards import on_disk
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import READ_BYTES, check_new_file, replacing, write_aside, writes


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """A CSV file of path, label, confidence and p_CLASS of images, joined from one part of each process.

    A part grows batch by batch in a folder beside the file. After an interruption, the same job continues the parts.
    """

    out: Path
    """The file."""
    key: str
    """The result of `key_of` for the job, so that parts of other jobs are not read as parts of this one."""
    place: Place

    @property
    def folder(self) -> Path:
        """The folder of the parts."""
        return parts_folder(self.out)

    def rows_done(self) -> int:
        """The number of rows in this process's part. An incomplete batch at its end is removed."""
        rows, size = self._progress(self.place.rank)
        part = self._part(self.place.rank)
        if part.exists():
            with writes(part):
                os.truncate(part, size)
        return rows

    def all_rows_done(self) -> int:
        """The number of rows in the parts of all processes."""
        return sum(self._progress(rank)[0] for rank in range(self.place.num_processes))

    def add(
        self, names: Sequence[str], root: Path, classes: Sequence[str], probs: Float[Tensor, "n C"], done: int
    ) -> None:
        """Writes the rows of a batch.

        Args:
            names: paths of the images.
            root: the folder that written paths are relative to.
            classes: names of the columns of `probs`.
            probs: class probabilities.
            done: number of rows of the part, including these.
        """
        confidence, label = probs.max(-1)
        part = self._part(self.place.rank)
        # Names of files need not be text.
        with writes(part), part.open("a", newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.writer(file)
            for path, k, top, row in zip(names, label.tolist(), confidence.tolist(), probs.tolist(), strict=True):
                rows.writerow([os.path.relpath(path, root), classes[k], f"{top:.6f}", *(f"{p:.6g}" for p in row)])
            file.flush()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        write_aside(part.with_suffix(".json"), json.dumps({"rows": done, "bytes": size}))

    def join(self, classes: Sequence[str], number: int) -> None:
        """Joins the parts of all processes into the file, and removes them.

        Raises:
            InputError: the parts do not have `number` rows together.
        """
        if self.all_rows_done() != number:
            raise InputError(f"--out {str(self.out)!r} must be on a disk that all processes share")
        with replacing(self.out) as aside, aside.open("w+b") as file:
            header = ["path", "label", "confidence", *(f"p_{name}" for name in classes)]
            with os.fdopen(os.dup(file.fileno()), "w", newline="", encoding="utf-8", errors="surrogateescape") as text:
                csv.writer(text).writerow(header)
            for part in map(self._part, range(self.place.num_processes)):
                # A process without images has no part.
                if part.exists():
                    with part.open("rb") as rows:
                        shutil.copyfileobj(rows, file)
        _remove_parts(self.folder)

    def _part(self, rank: int) -> Path:
        return self.folder / f"{self.key}-{rank}.csv"

    def _progress(self, rank: int) -> tuple[int, int]:
        """The numbers of rows and bytes of the complete batches in a part."""
        part = self._part(rank)
        try:
            known = json.loads(part.with_suffix(".json").read_text())
            rows, size = int(known["rows"]), int(known["bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 0
        return (rows, size) if part.exists() and part.stat().st_size >= size else (0, 0)


def parts_folder(out: Path) -> Path:
    """The folder where the parts of a table grow."""
    return out.with_name(f".{out.name}.parts")


def check_table(out: Path, overwrite: bool) -> None:
    """Raises InputError if a table may not be written. Old parts of an existing table are removed.

    A job that is killed after the table is complete leaves its parts. Parts of a job that replaces the table are newer
    than the table, and are kept.
    """
    parts = parts_folder(out)
    if not overwrite and out.is_file() and parts.is_dir():
        latest = max((path.stat().st_mtime_ns for path in parts.iterdir()), default=0)
        if latest <= out.stat().st_mtime_ns:
            _remove_parts(parts)
            with suppress(OSError):
                parts.rmdir()
    check_new_file(out, "--out", overwrite)


def _remove_parts(folder: Path) -> None:
    with writes(folder):
        for path in (*folder.glob("*.csv"), *folder.glob("*.json")):
            path.unlink()


def key_of(run: Path, names: Sequence[str], *settings: Any) -> str:
    """A hash of everything that the rows of a table depend on.

    Args:
        run: the run folder.
        names: paths of the images.
        settings: other values that must be the same when a job continues.
    """
    digest = hashlib.sha256(repr((__version__, *settings)).encode())
    for name in ("config.yaml", "model.json", "model.safetensors", "method.safetensors"):
        if (run / name).exists():
            with (run / name).open("rb") as file:
                while part := file.read(READ_BYTES):
                    digest.update(part)
    for file in on_disk(names):
        fields = (os.path.abspath(file.path), file.size, file.mtime_ns, *file.part)
        digest.update("".join(f"{field}\0" for field in fields).encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]
