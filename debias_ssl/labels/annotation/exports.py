"""Writes the folder of each export format."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from debias_ssl import __version__
from debias_ssl.labels.annotation.dataset_files import given_labels_parts, shard_parts, shards_of, table_parts
from debias_ssl.labels.annotation.fiftyone_folder import METADATA, SAMPLES, metadata, sample_parts
from debias_ssl.labels.annotation.image_tree import FILES, TREE, How, check_on_disk, check_tree, write_tree
from debias_ssl.labels.annotation.label_studio import labeling_config, local_prefix, task_parts
from debias_ssl.labels.annotation.labeled_rows import LabeledRows
from debias_ssl.labels.tables.truth import read_labels
from debias_ssl.system.errors import InputError
from debias_ssl.system.files import write_array, writing_parts
from debias_ssl.system.outputs import Outputs

Format = Literal["label-studio", "fiftyone", "imagefolder", "hf", "cleanlab", "parquet"]
FORMATS: tuple[str, ...] = get_args(Format)
TASKS, CONFIG = "tasks.json", "label_config.xml"
GIVEN, PROBS, TABLE = "dataset.parquet", "pred_probs.npy", "labels.parquet"
# In the order in which they are removed.
NAMES = (TASKS, CONFIG, SAMPLES, METADATA, FILES, f"{TREE}/*", "data/*", GIVEN, PROBS, TABLE)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How labels are exported; each setting is for one format.

    Args:
        url_prefix: for Label Studio: the start of each image's address, before its path; None is the prefix of local
            files in a folder inside LOCAL_FILES_DOCUMENT_ROOT.
        model_version: for Label Studio: the name of the model that predicted.
        files: for class folders: links to the images, or copies.
        truth: for cleanlab: labels to check, as for `debias`; None checks the labels themselves.
    """

    url_prefix: str | None = None
    model_version: str | None = None
    files: How | None = None
    truth: str | None = None

    def check(self, to: str) -> None:
        """Raises InputError where a setting is not of the format."""
        own = {"url_prefix": "label-studio", "model_version": "label-studio", "files": "imagefolder"}
        for name, format_ in {**own, "truth": "cleanlab"}.items():
            if getattr(self, name) is not None and to != format_:
                raise InputError(f"--{name} works with --to {format_}, not with --to {to}: leave it out")


def outputs_in(out: Path) -> Outputs:
    """The files that an export writes into a folder."""
    return Outputs(folder=out, kind="exported labels", names=NAMES)


def write_export(
    rows: LabeledRows, to: str, config: ExportConfig, root: Path | None, given_root: str | None, out: Path
) -> list[str]:
    """Writes labels in a format.

    Args:
        rows: the labels.
        to: one of `FORMATS`.
        config: how.
        root: what paths are relative to; None is the folder of the table.
        given_root: the same as a user wrote it, perhaps for another system.
        out: the folder.

    Returns:
        What is to be said of it, line by line.

    Raises:
        InputError: the labels have not what the format needs; nothing is written then.
    """
    config.check(to)
    if to == "label-studio":
        return _label_studio(rows, config, root, given_root, out)
    if to == "cleanlab":
        return _cleanlab(rows, config, out)
    if to == "parquet":
        _write(out, {TABLE: table_parts(rows, rows.probabilities())})
        return []
    files = rows.files(root)
    notes = [f"note: {note}" for note in files.notes]
    paths = [*files.files]
    if to == "fiftyone":
        check_on_disk(paths, "FiftyOne does not read tar files: export --to imagefolder --files copy instead")
        text = metadata(rows, out.resolve().name)
        _write(out, {SAMPLES: sample_parts(rows, paths), METADATA: [text.encode()]})
    elif to == "hf":
        parts = shards_of(paths)
        names = [f"data/train-{k:05}-of-{len(parts):05}.parquet" for k in range(len(parts))]
        _write(out, {name: shard_parts(rows, paths, part) for name, part in zip(names, parts, strict=True)})
    else:
        how = config.files or "link"
        check_tree(rows.classes, paths, how)
        _begin(out, [TREE, FILES])
        if left := write_tree(rows, paths, out, how):
            notes.append(f"note: {left} of {len(rows)} images have no label: left out")
        outputs_in(out).complete()
    return notes


def _label_studio(
    rows: LabeledRows, config: ExportConfig, root: Path | None, given_root: str | None, out: Path
) -> list[str]:
    if not rows.has_paths:
        rows.files(root)
    prefix, lines = config.url_prefix, []
    if prefix is None:
        if root is None:
            raise InputError(
                f"the place of the images of {rows.table} is unknown: pass their folder as --root, or the start "
                "of their addresses as --url_prefix"
            )
        check_on_disk(rows.files(root).files, "Label Studio does not read tar files: pass --url_prefix of the images")
        prefix = local_prefix(root)
        served = f"LOCAL_FILES_SERVING_ENABLED=true LOCAL_FILES_DOCUMENT_ROOT={root.resolve().parent}"
        lines = [f"start Label Studio with {served}"]
    version = config.model_version or f"debias-ssl {__version__}: {rows.table.resolve().parent.name}"
    tasks = task_parts(rows, prefix, given_root, version)
    _write(out, {TASKS: tasks, CONFIG: [labeling_config(rows.classes).encode()]})
    return lines


def _cleanlab(rows: LabeledRows, config: ExportConfig, out: Path) -> list[str]:
    probs, lines = rows.probabilities(), []
    if probs is None:
        raise InputError(
            f"cleanlab needs the probabilities of all classes, but there are none beside {rows.table}: name a "
            "folder of label, debias or vote with probs.npy, or a file of predict"
        )
    label = rows.label
    if config.truth is not None:
        known = read_labels(Path(config.truth), rows.names, rows.classes)
        label, lines = known.labels, [*known.said]
    elif (label == probs.argmax(1)).all():
        lines.append(
            "note: each label is the class with the largest probability, so cleanlab will find no errors: pass "
            "the labels to check with --truth FILE"
        )
    known_rows = np.flatnonzero(label >= 0)
    if not len(known_rows):
        raise InputError(f"no row of {config.truth or rows.table} has a label to check")
    if left := len(rows) - len(known_rows):
        lines.append(f"note: {left} of {len(rows)} rows have no label: left out")
    given = replace(rows.part(known_rows), label=label[known_rows])
    _begin(out, [GIVEN, PROBS])
    write_array(out / PROBS, probs[known_rows])
    _write_parts(out / GIVEN, given_labels_parts(given))
    outputs_in(out).complete()
    return lines


def _begin(out: Path, names: Iterable[str]) -> None:
    outputs = outputs_in(out)
    outputs.begin_replacing()
    outputs.claim(*names)


def _write(out: Path, files: dict[str, Iterable[bytes]]) -> None:
    _begin(out, dict.fromkeys(name.split("/")[0] for name in files))
    for name, parts in files.items():
        _write_parts(out / name, parts)
    outputs_in(out).complete()


def _write_parts(path: Path, parts: Iterable[bytes]) -> None:
    with writing_parts(path) as write:
        for part in parts:
            write(part)
