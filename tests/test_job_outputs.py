"""All jobs: no output is an input, and what cannot be written is found before the work."""

import errno
import importlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from jobs import refused
from launched import DIGITS
from small_clip import paint_images

import debias_ssl.data.__main__ as data
import debias_ssl.finetune.__main__ as finetune
import debias_ssl.finetune.run as finetune_module
import debias_ssl.runs.run as run_module
from debias_ssl import (
    compare,
    distill,
    evaluate,
    export,
    export_labels,
    import_labels,
    predict,
    report,
    suggest,
    train,
    vote,
)

# Functions of the package have the names of these modules.
debias, label = (importlib.import_module(f"debias_ssl.{name}") for name in ("debias", "label"))

SHORT = ["--config", str(DIGITS), "--steps", "2", "--log_every", "1", "--eval_every", "2", "--batch_size", "4"]
SHORT += ["--unlabeled_ratio", "1"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A finished run (v), a matrix with its truth, labels made of it (p), and images."""
    place = tmp_path_factory.mktemp("jobs")
    train.main([*SHORT, "--data.validation_per_class", "2", "--out", str(place / "v")])
    paint_images(place / "images", num=4)
    (place / "classes.txt").write_text("ant\nbee\n")
    (place / "plain.yaml").write_text("steps: 2\n")
    np.save(place / "logits.npy", np.random.default_rng(0).normal(size=(40, 4)))
    np.save(place / "truth.npy", np.arange(40) % 4)
    debias.main(["--predictions", str(place / "logits.npy"), "--out", str(place / "p")])
    data.main(["split", *SHORT, "--out", str(place / "split.json")])
    return place


@pytest.fixture
def place(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same in a folder of its own, which is where jobs start."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


LABEL = (label.main, "--classes classes.txt --model nowhere --images")
EVALUATE = (evaluate.main, "--predictions logits.npy --truth truth.npy --calibrate --folds 2")
APART = [
    (distill.main, "--teacher v --config plain.yaml --out v --overwrite", "is --teacher itself"),
    (distill.main, "--teacher v --config plain.yaml --out v/student", "lies in --teacher"),
    (train.main, "--teacher v --config plain.yaml --out v/../v --overwrite", "is --teacher itself"),
    (train.main, "--config {config} --data.split v/split.json --out v --overwrite", "contains data.split"),
    (
        train.main,
        "--config {config} --data.name folder --data.labeled images --data.test images --out images",
        "itself",
    ),
    (compare.main, "--teacher v --config {config} --methods Distillation --out . --overwrite", "contains --teacher"),
    (compare.main, "--config v/config.yaml --methods FixMatch --out v --overwrite", "contains --config"),
    (finetune.main, "--run v --out v --overwrite", "is --run itself"),
    (finetune.main, "--run v --out v/d", "lies in --run"),
    (debias.main, "--predictions p/probs.npy --out p --overwrite", "contains --predictions"),
    (debias.main, "--predictions logits.npy --truth p/labels.csv --out p --overwrite", "contains --truth"),
    (LABEL[0], f"{LABEL[1]} images --out images", "is --images itself"),
    (LABEL[0], f"{LABEL[1]} images --out images/labels", "lies in --images"),
    (LABEL[0], f"{LABEL[1]} images --out .", "contains --images"),
    (predict.main, "--run v --images images --out v/labels.csv", "lies in --run"),
    (export.main, "--run v --out v/model.onnx", "lies in --run"),
    (export.main, "--run v --debiased p --out p --overwrite", "is --debiased itself"),
    (predict.main, "--run v --images p/labels.csv --out p/labels.csv --overwrite", "is --images itself"),
    (vote.main, "--runs v p --images images --out v/votes", "lies in --runs"),
    (vote.main, "--runs v p --images images --out p --overwrite", "is --runs itself"),
    (vote.main, "--runs v p --images images --truth p/labels.csv --out images", "is --images itself"),
    (export_labels.main, "p --to parquet --out p --overwrite", "is LABELS itself"),
    (export_labels.main, "p --to hf --root images --out images/hf", "lies in --root"),
    (import_labels.main, "p/labels.csv --corrections p/labels.csv --out p --overwrite", "contains LABELS"),
    (suggest.main, "--labels p --images images --out p/next.csv", "lies in --labels"),
    (suggest.main, "--images images --labeled p/labels.csv --out p/labels.csv --overwrite", "is --labeled itself"),
    (EVALUATE[0], f"{EVALUATE[1]} --out logits.npy --overwrite", "is --predictions itself"),
    (EVALUATE[0], f"{EVALUATE[1]} --report truth.npy --overwrite", "is --truth itself"),
    (EVALUATE[0], f"{EVALUATE[1]} --report new --out new", "are both"),
    (evaluate.main, "--run v --out v/summary.json --overwrite", "lies in --run"),
    (report.main, "v --out v/summary.json --overwrite", "lies in the run"),
    (data.main, "split --config {config} --data.split split.json --out split.json --overwrite", "data.split itself"),
]


@pytest.mark.parametrize(("main", "arguments", "words"), APART)
def test_no_output_is_an_input(main: Callable[[list[str]], None], arguments: str, words: str, place: Path, capsys):
    before = contents(place)
    message = refused(main, arguments.format(config=DIGITS).split(), capsys)
    assert words in message
    assert contents(place) == before


# The jobs, and what begins their work.
JOBS = [
    (train.main, "--config {config} --out OUT", (run_module, "make_trainer")),
    (finetune.main, "--run v --out OUT", (finetune_module, "prepare")),
    (debias.main, "--predictions logits.npy --out OUT", (debias, "read_predictions")),
    (LABEL[0], f"{LABEL[1]} images --out OUT", (label, "read_request")),
    (predict.main, "--run v --images images --out OUT", (predict, "load_trained")),
    (export.main, "--run v --format torch --out OUT", (export, "load_trained")),
    (vote.main, "--runs v p --images images --out OUT", (vote, "read_members")),
    (export_labels.main, "p --to parquet --out OUT", (export_labels, "read_labeled_rows")),
    (import_labels.main, "p --corrections p/labels.csv --out OUT", (import_labels, "read_labeled_rows")),
    (suggest.main, "--labels p --images images --out OUT", (suggest, "read_candidates")),
    (EVALUATE[0], f"{EVALUATE[1]} --out OUT", (evaluate, "read_predictions")),
    (EVALUATE[0], f"{EVALUATE[1]} --report OUT", (evaluate, "read_predictions")),
    (evaluate.main, "--run v --out OUT", (evaluate, "rows_of_run")),
    (report.main, "v --out OUT", (report, "write_report")),
    (data.main, "split --config {config} --out OUT", (data, "_print_split")),
]


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can get longer than it is."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def begun(*_arguments, **_settings):
    raise AssertionError("the work has begun")


@pytest.mark.parametrize(("main", "arguments", "work"), JOBS)
@pytest.mark.parametrize("out", ["mine.txt/out", "mine.txt/a/b/out"])
def test_a_file_in_the_place_of_a_folder_is_found_before_the_work(
    main: Callable[[list[str]], None], arguments: str, work, out: str, place: Path, monkeypatch, capsys
):
    monkeypatch.setattr(*work, begun)
    (place / "mine.txt").write_text("mine")
    message = refused(main, arguments.format(config=DIGITS).replace("OUT", out).split(), capsys)
    assert "cannot write to" in message and out in message and message.count("\n") == 1
    assert (place / "mine.txt").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="no limits of this kind")
@pytest.mark.parametrize(("main", "arguments", "work"), JOBS)
@pytest.mark.parametrize("out", ["new", "some/where/new"])
def test_a_full_disk_is_found_before_the_work(
    main: Callable[[list[str]], None], arguments: str, work, out: str, place: Path, monkeypatch, capsys
):
    monkeypatch.setattr(*work, begun)
    before = contents(place)
    with full_disk():
        message = refused(main, arguments.format(config=DIGITS).replace("OUT", out).split(), capsys)
    assert "cannot write to" in message and "File too large" in message and out in message
    assert contents(place) == before and not (place / "some").exists()


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (EVALUATE[0], f"{EVALUATE[1]} --out new"),
        (EVALUATE[0], f"{EVALUATE[1]} --report new"),
        (debias.main, "--predictions logits.npy --out new"),
        (export_labels.main, "p --to parquet --out new"),
        (predict.main, "--run v --images images --out new"),
        (export.main, "--run v --format torch --out new"),
        (report.main, "v --out new"),
        (data.main, "split --config {config} --out new"),
        (finetune.main, "--run v --method.steps 1 --out new"),
    ],
)
def test_a_disk_that_gets_full_during_the_work_is_told_in_a_line(
    main: Callable[[list[str]], None], arguments: str, place: Path, monkeypatch, capsys
):
    if main is predict.main:
        shutil.copytree(place / "images", place / "more")
    sync = os.fsync

    def failing(file: int) -> None:
        if "probe" not in os.readlink(f"/proc/self/fd/{file}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(SystemExit) as exit_:
        main(arguments.format(config=DIGITS).split())
    said = capsys.readouterr()
    error = said.err.rpartition("error: ")[2]
    assert exit_.value.code == 1 and error.startswith("cannot write to") and error.count("\n") == 1, said.err
    assert "No space left on device" in error and "Traceback" not in said.err
    # Nobody is told of a file that is not there.
    assert not said.out.endswith("new\n") and not (place / "new").is_file()


@pytest.mark.parametrize("error", [ConnectionError("the server is gone"), OSError(errno.ENOMEM, "no memory to fork")])
def test_an_error_of_something_else_is_not_said_to_be_of_the_disk(error: OSError, place: Path, monkeypatch):
    def failing(*_arguments):
        raise error

    with monkeypatch.context() as patch, pytest.raises(type(error)) as raised:
        patch.setattr(run_module.Learner, "forward", failing)
        train.main([*SHORT, "--out", "new"])
    assert raised.value is error
    with monkeypatch.context() as patch, pytest.raises(type(error)) as raised:
        patch.setattr(label, "read_request", failing)
        label.main(["--images", "images", "--classes", "classes.txt", "--model", "nowhere", "--out", "labels"])
    assert raised.value is error


def test_labels_stay_where_those_that_replace_them_cannot_be_made(place: Path, monkeypatch):
    def failing(*_arguments, **_settings):
        raise ConnectionError("the server is gone")

    before = contents(place / "p")
    monkeypatch.setattr("debias_ssl.labels.output.folder.label_rows", failing)
    with pytest.raises(ConnectionError):
        debias.main(["--predictions", "logits.npy", "--out", "p", "--overwrite", "--strength", "0"])
    assert contents(place / "p") == before


def test_the_page_of_a_run_is_made_anew_and_that_of_somebody_else_is_kept(place: Path, capsys):
    report.main(["v"])
    (place / "v" / "report.html").write_text("an older page")
    report.main(["v"])
    assert "<!doctype html>" in (place / "v" / "report.html").read_text().lower()
    shutil.copytree(place / "v", place / "w", ignore=shutil.ignore_patterns("report.html", "written.json"))
    (place / "w" / "report.html").write_text("mine")
    for flag in ([], ["--overwrite"]):
        assert "holds report.html, which" in refused(report.main, ["w", *flag], capsys)
    assert (place / "w" / "report.html").read_text() == "mine"
    # What belongs to a run is not in the way of the run.
    train.main([*SHORT, "--data.validation_per_class", "2", "--out", "v", "--overwrite"])
    assert not (place / "v" / "report.html").exists()


@pytest.mark.parametrize("name", ["checkpoints/epoch_1.pt", "predictions/test.npy", "report.html", "finetune.yaml"])
@pytest.mark.parametrize("flag", [[], ["--overwrite"]])
def test_stage_two_leaves_what_others_wrote(name: str, flag: list[str], place: Path, capsys):
    (place / "d" / name).parent.mkdir(parents=True)
    (place / "d" / name).write_text("mine")
    assert f"holds {name.split('/')[0]}, which" in refused(finetune.main, ["--run", "v", "--out", "d", *flag], capsys)
    assert contents(place / "d") == {name: b"mine"}


def test_labels_do_not_replace_a_run_nor_a_run_labels(place: Path, capsys):
    flags = ["--predictions", "logits.npy", "--out", "v", "--overwrite"]
    assert "holds summary.json, which" in refused(debias.main, flags, capsys)
    message = refused(train.main, [*SHORT, "--out", "p", "--overwrite"], capsys)
    assert "holds summary.json, report.html, which" in message
