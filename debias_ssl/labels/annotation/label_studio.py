"""Label Studio: writes tasks with pre-annotations and the labeling configuration, and reads the annotations.

Formats: labelstud.io/guide/predictions, /guide/task_format and /guide/export.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from xml.sax.saxutils import quoteattr

from debias_ssl.labels.annotation.labeled_rows import LabeledRows, known_at
from debias_ssl.labels.annotation.statements import Statement
from debias_ssl.system.errors import InputError
from debias_ssl.system.tables import PATHS

# Of the choices in the labeling configuration; in exports that are tables it is the column of the labels.
FIELD = "label"
# The name in Label Studio's own template for images.
FIELDS = (FIELD, "choice")
LOCAL_FILES = "/data/local-files/?d="
# Before the files that Label Studio serves itself.
SERVED = ("/data/local-files/", "/data/upload/")
# Before the name of an uploaded file: eight digits that Label Studio adds.
UPLOADED = re.compile(r"upload/\d+/[0-9a-f]{8}-(.+)$")


def labeling_config(classes: Sequence[str]) -> str:
    """The labeling configuration: an image, and one choice among the classes."""
    choices = "\n".join(f"    <Choice value={quoteattr(name)}/>" for name in classes)
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <Choices name="{FIELD}" toName="image" choice="single" showInline="true">\n'
        f"{choices}\n  </Choices>\n</View>\n"
    )


def task_parts(rows: LabeledRows, prefix: str, root: str | None, model_version: str) -> Iterator[bytes]:
    """The tasks as JSON, one a line: each is an image whose label is a prediction with its confidence as score.

    A row without a label is a task without a prediction. `data.path` is the path of the row as its table has it, by
    which corrections find it again.

    Args:
        rows: labels of images.
        prefix: what the address of each image begins with.
        root: what is left out of absolute paths; None is nothing.
        model_version: what Label Studio shows as the maker of the predictions.
    """
    for i, name in enumerate(rows.names):
        data: dict[str, Any] = {"image": prefix + _address(name, prefix, root, rows.table), "path": name}
        if rows.plain_label is not None:
            data["plain_label"] = rows.name_of(int(rows.plain_label[i]))
        predictions = []
        if rows.label[i] >= 0:
            chosen = {"choices": [rows.name_of(int(rows.label[i]))]}
            result = {"id": "label", "from_name": FIELD, "to_name": "image", "type": "choices", "value": chosen}
            confidence = known_at(rows.confidence, i)
            score = {} if confidence is None else {"score": round(confidence, 6)}
            predictions.append({"model_version": model_version, **score, "result": [result]})
        yield (",\n" if i else "[\n").encode() + json.dumps({"data": data, "predictions": predictions}).encode()
    yield b"\n]\n"


def local_prefix(root: Path) -> str:
    """The address of files of a folder that lies directly in Label Studio's LOCAL_FILES_DOCUMENT_ROOT."""
    return f"{LOCAL_FILES}{quote(root.resolve().name)}/"


def _address(name: str, prefix: str, root: str | None, table: Path) -> str:
    """The part of an image's address after the prefix."""
    path = name
    # A backslash is a Windows path separator, unless a file name contains it.
    if "\\" in name and not os.path.exists(os.path.join(root or "", name)):
        path = PureWindowsPath(name).as_posix()
    if root is not None:
        path = path.removeprefix(PureWindowsPath(root).as_posix().rstrip("/") + "/")
    if path.startswith("/") or PureWindowsPath(path).drive:
        raise InputError(f"{table}: {name!r} is an absolute path: pass the folder at the start of such paths as --root")
    # Storage such as s3:// takes names without changes.
    is_url = prefix.startswith(("/", "http://", "https://"))
    return quote(path, errors="surrogateescape") if is_url else path


def read_tasks(tasks: Sequence[Any], path: Path, field: str | None) -> Iterator[Statement]:
    """The annotations in an export of the kind JSON or JSON-MIN, without skipped tasks.

    Args:
        tasks: the entries of the file.
        path: the file, for errors.
        field: the name of the choices; None finds it.

    Raises:
        InputError: the file is no such export, or an image has several choices.
    """
    if not all(isinstance(task, dict) for task in tasks):
        raise InputError(f"{path} is not an export of Label Studio: it must be a list of objects")
    is_whole = any("annotations" in task or "completions" in task for task in tasks)
    annotations = [*(_annotations(tasks) if is_whole else _flat_annotations(tasks, field))]
    names = {name for _, _, choices in annotations for name in choices}
    field = field or next((name for name in FIELDS if name in names), None) or (min(names) if len(names) == 1 else None)
    if field is None and names:
        raise InputError(f"{path} has several choices, {', '.join(sorted(names))}: name one by --field")
    for number, (data, said_by, choices) in enumerate(annotations, start=1):
        if not (chosen := choices.get(field or "")):
            continue
        where = f"{path}, annotation {number}"
        if len(chosen) > 1:
            raise InputError(f"{where} has {len(chosen)} choices, {', '.join(chosen)}: an image must have one label")
        yield Statement(
            name=_name_of(data, where),
            label=chosen[0],
            source=source_of(said_by),
            time=str(said_by.get("updated_at") or said_by.get("created_at") or ""),
            where=where,
        )


def source_of(said_by: Mapping[str, Any]) -> str:
    """The annotator: the address where the export has it, else the number."""
    who = said_by.get("completed_by", said_by.get("annotator"))
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    return "label-studio" if who in (None, "") else f"label-studio:{who}"


def path_in(address: str) -> str:
    """The path of an image in an address of Label Studio: of a local file, an uploaded one or a URL."""
    if "://" not in address and not address.startswith(SERVED):
        return address
    parts = urlsplit(address)
    if "d" in (query := parse_qs(parts.query)):
        return query["d"][-1]
    if uploaded := UPLOADED.search(parts.path):
        return uploaded[1]
    return parts.path.lstrip("/")


_Annotation = tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Sequence[str]]]
"""The data of a task, who annotated it and when, and what was chosen, by the names of the choices."""


def _annotations(tasks: Sequence[dict[str, Any]]) -> Iterator[_Annotation]:
    """Of an export JSON."""
    for task in tasks:
        for annotation in task.get("annotations", task.get("completions")) or []:
            if annotation.get("was_cancelled") or annotation.get("skipped"):
                continue
            choices = {
                result["from_name"]: result["value"]["choices"]
                for result in annotation.get("result") or []
                if result.get("type") == "choices"
            }
            yield task.get("data", {}), annotation, choices


def _flat_annotations(tasks: Sequence[dict[str, Any]], field: str | None) -> Iterator[_Annotation]:
    """Of an export JSON-MIN, where the data of the task and the choices are entries side by side."""
    own = {"annotator", "annotation_id", "created_at", "updated_at", "lead_time", "id", "agreement"}
    for task in tasks:
        choices = {}
        for name, value in task.items():
            if isinstance(value, dict) and "choices" in value:
                choices[name] = value["choices"]
            elif isinstance(value, str) and name in (field, *FIELDS):
                choices[name] = [value]
        if task.get("annotation_id") is not None or not own & {*task}:
            yield task, task, choices


def _name_of(data: Mapping[str, Any], where: str) -> str:
    """The path of the image in the data of a task."""
    usual = {re.sub(r"[\s_.-]", "", name).lower(): value for name, value in data.items() if isinstance(value, str)}
    found = next((usual[name] for name in PATHS if name in usual), None)
    if found is None:
        raise InputError(f"{where} has no path of an image among {[*data]}")
    return path_in(found)
