"""Label files: which image has which class, how confidently, and the probabilities of all classes."""

import csv
import io
import json
import os.path
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float16, Float64, Int64

from debias_ssl.data.sources.shards import member_named
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.files import read_array
from debias_ssl.system.outputs import check_whole


def read_label_file(path: Path, root: Path | None) -> tuple[list[Path], list[str]]:
    """Paths and class names from a CSV file with the columns path and label; an empty or missing label is unknown.

    Further columns are ignored. Relative paths are relative to `root`, or to the file's folder, and cannot leave it.
    They may go on into tar files.
    """
    rows = csv.DictReader(io.StringIO(read_text(path)))
    if "path" not in (rows.fieldnames or []):
        raise InputError(f"{path}: the first line must name the columns, path and label; it is {rows.fieldnames}")
    paths, names = [], []
    for row in rows:
        paths.append(inside(row["path"] or "", root or path.parent, path))
        names.append((row.get("label") or "").strip())
    if not paths:
        raise InputError(f"{path} lists no images")
    return paths, names


def read_text(path: Path) -> str:
    check_whole(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text") from error


def inside(name: str, root: Path, listed_in: Path) -> Path:
    path = Path(os.path.normpath(root / name))
    if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root)):
        raise InputError(f"{listed_in}: {name!r} lies outside {str(root)!r}; set data.root to a folder that holds it")
    if not path.is_file() and member_named(str(path)) is None:
        raise InputError(f"{listed_in}: there is no file {str(path)!r}")
    return path


def read_confidence(path: Path) -> Float64[np.ndarray, " N"]:
    """The confidence column of a label file."""
    if not path.is_file():
        raise InputError(f"{str(path)!r} is not a CSV file with a confidence column, as debias-ssl label writes one")
    rows = csv.DictReader(io.StringIO(read_text(path)))
    if "confidence" not in (rows.fieldnames or []):
        raise InputError(f"{path} has no confidence column; its columns are {rows.fieldnames}")
    values = [row["confidence"] for row in rows]
    try:
        confidence = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: a confidence is not a number: {reason(error)}") from error
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise InputError(
            f"{path}: row {int(np.argmin((confidence >= 0) & (confidence <= 1))) + 1} has a confidence outside [0, 1]"
        )
    return confidence


def has_confidence(path: Path) -> bool:
    """Whether labels are a model's, which says how confident it is, and not what people have seen."""
    return path.is_file() and "confidence" in (csv.DictReader(io.StringIO(read_text(path))).fieldnames or [])


def read_classes(path: Path) -> tuple[str, ...]:
    """The class names of the folder that a label file lies in, some of which no row may have; none where unknown."""
    names = path.parent / "classes.json"
    if not names.is_file():
        return ()
    try:
        classes = json.loads(read_text(names))
    except ValueError as error:
        raise InputError(f"{names} is not a list of class names: {reason(error)}") from error
    if not isinstance(classes, list) or not all(isinstance(name, str) and name for name in classes):
        raise InputError(f"{names} is not a list of class names")
    return tuple(classes)


def confident(
    labels: Int64[np.ndarray, " N"],
    confidence: Float64[np.ndarray, " N"],
    num_classes: int,
    at_least: float | None,
    per_class: int | None,
) -> Bool[np.ndarray, " N"]:
    """Rows whose confidence is `at_least` so high, or else the `per_class` most confident rows of each class."""
    if at_least is not None:
        return (confidence >= at_least) & (labels >= 0)
    chosen = np.zeros(len(labels), dtype=bool)
    order = np.argsort(-confidence, kind="stable")
    for k in range(num_classes):
        chosen[order[labels[order] == k][:per_class]] = True
    return chosen


def read_probs(
    folder: Path, root: Path | None, names: Sequence[str], classes: tuple[str, ...]
) -> Float16[np.ndarray, "N C"]:
    """Class probabilities of images, from the labels.csv, probs.npy and classes.json of a folder.

    Args:
        folder: written by `debias-ssl label` or `debias`.
        root: what the paths in labels.csv are relative to; None is the folder.
        names: paths of the images; one that is not listed gets zeros.
        classes: the order of the columns.

    Raises:
        InputError: files are missing or do not fit together, or none of the images is listed.
    """
    check_whole(folder / "probs.npy")
    own = read_classes(folder / "labels.csv")
    if set(own) != set(classes):
        differing = sorted(set(own) ^ set(classes))
        raise InputError(f"data.probs: the classes of {str(folder)!r} are others, such as {differing[:1] or 'none'}")
    paths, _ = read_label_file(folder / "labels.csv", root)
    try:
        probs = read_array(folder / "probs.npy", "r")
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {str(folder / 'probs.npy')!r}: {reason(error)}") from error
    if probs.shape != (len(paths), len(own)):
        raise InputError(f"{str(folder / 'probs.npy')!r} is {probs.shape}, labels.csv and classes.json say otherwise")
    row = {os.path.abspath(path): i for i, path in enumerate(paths)}
    found = np.array([row.get(os.path.abspath(name), -1) for name in names])
    if (found < 0).all():
        raise InputError(
            f"data.probs: {str(folder)!r} lists none of the images, such as {names[0]!r}; is data.root right?"
        )
    given = np.zeros((len(names), len(classes)), dtype=np.float16)
    columns = [own.index(name) for name in classes]
    given[found >= 0] = probs[found[found >= 0]][:, columns]
    return given
