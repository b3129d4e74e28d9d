"""Class folders with links to images or copies of them, and the labels that they mean after images were moved."""

import csv
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from debias_ssl.data.sources.shard_index import Member
from debias_ssl.labels.annotation.dataset_files import bytes_of
from debias_ssl.labels.annotation.labeled_rows import LabeledRows
from debias_ssl.labels.annotation.statements import Statement
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import replacing, writes
from debias_ssl.system.tables import read_table

TREE, FILES = "images", "files.csv"

How = Literal["link", "copy"]


def check_tree(classes: Sequence[str], files: Sequence[str], how: How) -> None:
    """Before anything is written.

    Raises:
        InputError: a class is no name of a folder that shows, or images in tar files are to be linked.
    """
    for name in classes:
        if name.startswith(".") or name != os.path.basename(name) or "\\" in name or name != name.strip():
            raise InputError(f"class {name!r} is not a valid folder name: rename it, or export --to hf")
    if how == "link":
        check_on_disk(files, "links into it are not possible: pass --files copy")


def check_on_disk(files: Sequence[str], mend: str) -> None:
    """Raises InputError, with what mends it, where an image is no file of its own."""
    inside = next((file for file in files if isinstance(file, Member)), None)
    if inside is not None:
        raise InputError(f"{str(inside)!r} lies in a tar file; {mend}")


def write_tree(rows: LabeledRows, files: Sequence[str], out: Path, how: How) -> int:
    """Writes images/CLASS/IMAGE for each row that has a label, and files.csv, which says whose file each of them is.

    Args:
        rows: labels of images.
        files: of the images.
        out: the folder.
        how: whether files are linked to or copied.

    Returns:
        How many images have no label, and are left out.

    Raises:
        WriteError: a file cannot be written.
    """
    lines = [["file", "path"]]
    for name, path, number, file in zip(_names(rows), rows.names, rows.label.tolist(), files, strict=True):
        if number < 0:
            continue
        lines.append([name, path])
        place = out / TREE / rows.classes[number] / name
        if how == "link":
            with writes(place):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(os.path.abspath(file))
        else:
            data = bytes_of(file)
            with replacing(place) as aside:
                aside.write_bytes(data)
    text = io.StringIO(newline="")
    csv.writer(text).writerows(lines)
    with replacing(out / FILES) as aside:
        aside.write_bytes(text.getvalue().encode("utf-8", "surrogateescape"))
    return len(rows) - len(lines) + 1


def is_tree(folder: Path) -> bool:
    """Whether `write_tree` wrote a folder."""
    return (folder / FILES).is_file() and (folder / TREE).is_dir()


def read_tree(folder: Path) -> Iterator[Statement]:
    """The classes whose folders the images lie in now; images that were taken away say nothing.

    Raises:
        InputError: a file of the folder cannot be read.
    """
    path_of = {cells[0]: cells[1] for _, cells in read_table(folder / FILES)}
    for place in sorted((folder / TREE).glob("*/*")):
        if (path := path_of.get(place.name)) is not None:
            yield Statement(name=path, label=place.parent.name, source="imagefolder", where=str(place))


def _names(rows: LabeledRows) -> Iterator[str]:
    """Names that differ, made of whole paths: readers take the folder that an image lies in for its class.

    Of rows whose names would be the same, the later ones get their numbers in front.
    """
    taken: set[str] = set()
    for i, path in enumerate(rows.names):
        parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        name = "__".join(parts).lstrip(".")
        if name in taken:
            name = f"{i}__{name}"
        taken.add(name)
        yield name
