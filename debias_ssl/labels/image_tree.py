"""A folder for each class, with links to its images or copies of them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from debias_ssl.data.sources.shard_index import Member
from debias_ssl.labels.dataset_files import bytes_of
from debias_ssl.labels.labeled_rows import LabeledRows
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import replacing, writes

How = Literal["link", "copy"]


def check_tree(classes: Sequence[str], files: Sequence[str], how: How) -> None:
    """Before anything is written.

    Raises:
        InputError: a class is no name of a folder that shows, or images in tar files are to be linked.
    """
    for name in classes:
        if name.startswith(".") or name != os.path.basename(name) or "\\" in name or name != name.strip():
            raise InputError(f"class {name!r} is no name for a folder: rename it, or export --to hf")
    inside = next((file for file in files if isinstance(file, Member)), None)
    if how == "link" and inside is not None:
        raise InputError(f"{inside!r} lies in a tar file, which no link leads into: pass --files copy")


def write_tree(rows: LabeledRows, files: Sequence[str], folder: Path, how: How) -> int:
    """Writes CLASS/IMAGE for each row that has a label; the folders of an image's path are part of its name there.

    Args:
        rows: labels of images.
        files: of the images.
        folder: of the classes, which is new.
        how: whether files are linked to or copied.

    Returns:
        How many images have no label, and are left out.

    Raises:
        WriteError: a file cannot be written.
    """
    for (name, number), file in zip(_names(rows), files, strict=True):
        if number < 0:
            continue
        place = folder / rows.classes[number] / name
        if how == "link":
            with writes(place):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(os.path.abspath(file))
        else:
            data = bytes_of(file)
            with replacing(place) as aside:
                aside.write_bytes(data)
    return int((rows.label < 0).sum())


def _names(rows: LabeledRows) -> Iterator[tuple[str, int]]:
    """The name of each image in its class, and the class: with folders, as readers take the last folder for the class.

    Two rows with one name get their numbers in front.
    """
    taken: set[tuple[str, int]] = set()
    for i, (path, number) in enumerate(zip(rows.names, rows.label.tolist(), strict=True)):
        parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
        name = "__".join(parts).lstrip(".")
        if (name, number) in taken:
            name = f"{i}__{name}"
        taken.add((name, number))
        yield name, number
