"""Programs that do with an export what people do in Label Studio and FiftyOne, by the packages of these tools.

Their requirements are others than those of this package: LABEL_STUDIO_PYTHON and FIFTYONE_PYTHON may name the Python of
an environment that has them. FiftyOne needs a MongoDB server; mongomock stands in for it.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Arguments: the export, a folder to write to, and JSON of path and new label of some tasks. Annotators submit each
# prediction as it is or with another choice; a third one skips a task.
LABEL_STUDIO = """
import json, sys
from pathlib import Path
from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface
export, out, changes = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
config = (export / "label_config.xml").read_text()
tasks = json.loads((export / "tasks.json").read_text())
interface = LabelInterface(config)
interface.validate()
for task in tasks:
    for prediction in task["predictions"]:
        assert interface.validate_prediction(prediction, return_errors=True) == [], task
    assert interface.validate_task({"data": task["data"]}, validate_regions_only=False) in (True, []), task
exported = []
for number, task in enumerate(tasks):
    result = [dict(each) for each in task["predictions"][0]["result"]] if task["predictions"] else []
    if task["data"]["path"] in changes:
        result = [{**result[0], "value": {"choices": [changes[task["data"]["path"]]]}}]
    time = f"2026-01-01T00:00:{number:02}Z"
    annotation = {"id": number + 1, "completed_by": {"id": 7, "email": "ann@example.org"}, "result": result}
    annotation.update(created_at=time, updated_at=time, was_cancelled=False)
    skipped = {"id": 1000 + number, "completed_by": {"id": 8, "email": "bob@example.org"}, "result": [],
               "created_at": time, "updated_at": time, "was_cancelled": True}
    exported.append({"id": number + 1, **task, "annotations": [annotation, skipped]})
out.mkdir()
(out / "export.json").write_text(json.dumps(exported))
converter = Converter(config, str(out), download_resources=False)
converter.convert_to_json_min(str(out / "export.json"), str(out / "min"), is_dir=False)
converter.convert_to_csv(str(out / "export.json"), str(out / "csv"), is_dir=False, csv_header=True, sep=",")
(out / "min" / "result.json").rename(out / "min.json")
(out / "csv" / "result.csv").rename(out / "table.csv")
"""

# The same arguments. Writes the dataset as FiftyOne exports it.
FIFTYONE = """
import json, os, sys
os.environ.update(FIFTYONE_DATABASE_URI="mongodb://localhost:27017", FIFTYONE_DATABASE_VALIDATION="false",
                  FIFTYONE_DISABLE_SERVICES="1", FIFTYONE_DO_NOT_TRACK="true")
import mongoengine, mongomock, pymongo
from mongomock.store import ServerStore
store, connect = ServerStore(), mongoengine.connect
class Client(mongomock.MongoClient):
    _closed = False
    def __init__(self, *arguments, **settings):
        for name in ("appname", "uuidRepresentation", "document_class"):
            settings.pop(name, None)
        super().__init__(*arguments, _store=store, **settings)
pymongo.MongoClient = Client
mongoengine.connect = lambda name, **settings: connect(name, mongo_client_class=Client)
import fiftyone as fo
dataset = fo.Dataset.from_dir(dataset_dir=sys.argv[1], dataset_type=fo.types.FiftyOneDataset)
changes = json.loads(sys.argv[3])
for sample in dataset:
    assert os.path.isfile(sample.filepath), sample.filepath
    assert isinstance(sample["label"], fo.Classification) and 0 <= sample["label"].confidence <= 1
    assert isinstance(sample["plain_label"], fo.Classification)
    if sample["path"] in changes:
        sample["label"].label = changes[sample["path"]]
        sample.save()
assert dataset.default_classes, "the classes are not there"
dataset.export(export_dir=sys.argv[2], dataset_type=fo.types.FiftyOneDataset, export_media=False)
"""


def python_with(setting: str, packages: str) -> str:
    """A Python that has some packages; skips the test where there is none."""
    python = os.environ.get(setting, sys.executable)
    if not _has(python, packages):
        pytest.skip(f"no {packages} in {python}; {setting} may name another Python")
    return python


@functools.cache
def _has(python: str, packages: str) -> bool:
    """Looks for the packages without importing them, which takes seconds."""
    program = f"import importlib.util, sys; sys.exit(not all(map(importlib.util.find_spec, {packages.split()})))"
    return subprocess.run([python, "-c", program], env=_environment(), check=False).returncode == 0


def run_program(python: str, program: str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [python, "-c", program, *map(str, arguments)], capture_output=True, text=True, env=_environment(), check=False
    )
    assert done.returncode == 0, done.stderr


def _environment() -> dict[str, str]:
    """Without the paths of this process, which another Python has no use for."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
