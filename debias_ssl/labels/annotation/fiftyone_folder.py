"""FiftyOne: writes and reads folders that `fiftyone.Dataset.from_dir` opens as a `FiftyOneDataset`.

FiftyOne's current format is a dump of its database, with a version. A folder without the version is read in the format
that its documentation calls LegacyFiftyOneDataset, which every version reads. It has metadata.json, and samples.json
with an object for each image. The fields of an object are values, or labels with their class in `_cls`.
"""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from debias_ssl.labels.annotation.labeled_rows import LabeledRows, known_at
from debias_ssl.labels.annotation.statements import Statement
from debias_ssl.system.errors import InputError, reason
from debias_ssl.system.tables import read_text

METADATA, SAMPLES = "metadata.json", "samples.json"
FIELD = "label"
# Usual names of label fields, the most likely ones first.
FIELDS = (FIELD, "ground_truth", "classification", "predictions")


def metadata(rows: LabeledRows, name: str) -> str:
    """The text of metadata.json."""
    info = {"default_classes": list(rows.classes)}
    return json.dumps({"name": name, "media_type": "image", "info": info}) + "\n"


def sample_parts(rows: LabeledRows, files: Sequence[str]) -> Iterator[bytes]:
    """The samples as JSON, one a line: file, path, label and plain label with their confidences.

    Args:
        rows: labels of images.
        files: of the images.
    """
    for i, name in enumerate(rows.names):
        sample: dict[str, Any] = {"filepath": os.path.abspath(files[i]), "path": name}
        columns = ((FIELD, rows.label, rows.confidence), ("plain_label", rows.plain_label, rows.plain_confidence))
        for field, labels, confidences in columns:
            if labels is not None and labels[i] >= 0:
                sample[field] = {"_cls": "Classification", "label": rows.name_of(int(labels[i]))}
                if (confidence := known_at(confidences, i)) is not None:
                    sample[field]["confidence"] = confidence
        yield (b",\n" if i else b'{"samples": [\n') + json.dumps(sample).encode()
    yield b"\n]}\n"


def read_samples(path: Path, field: str | None) -> Iterator[Statement]:
    """The labels in a folder that `dataset.export` wrote as a FiftyOneDataset, or in its samples.json.

    Args:
        path: the folder or the file.
        field: the field of the labels; None finds it.

    Raises:
        InputError: it is no such folder, or has no such field.
    """
    file = path / SAMPLES if path.is_dir() else path
    try:
        samples = json.loads(read_text(file))["samples"]
        names = dict.fromkeys(
            name
            for sample in samples
            for name, value in sample.items()
            if isinstance(value, dict) and value.get("_cls") == "Classification"
        )
        found = field or next((name for name in FIELDS if name in names), None)
        if found is None or (field is not None and field not in names):
            raise InputError(f"{file} has no labels in the field {field or FIELD!r}: name one of {[*names]} by --field")
        for number, sample in enumerate(samples, start=1):
            label = (sample.get(found) or {}).get("label")
            if label:
                name = sample.get("path") or sample["filepath"]
                yield Statement(name=name, label=label, source="fiftyone", where=f"{file}, sample {number}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} is not a samples.json of FiftyOne: {reason(error)}") from error
