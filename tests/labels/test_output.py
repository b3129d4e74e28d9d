"""The folder of labels: what is stored agrees with itself, whatever is read of it, and says when it is not whole."""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import rows_of
from killing import killed_after

from debias_ssl import debias_matrix
from debias_ssl.data.sources.label_files import read_probs
from debias_ssl.debias import main as debias
from debias_ssl.labels.matrix.predictions import read_predictions
from debias_ssl.labels.output.folder import stored
from debias_ssl.system.errors import InputError
from debias_ssl.system.outputs import MANIFEST


def stepwise(probs: np.ndarray) -> np.ndarray:
    """How many numbers of fp16 each stored one is from its rounded one, by NumPy's own rounding."""
    label = probs.argmax(1)
    kept = stored(torch.from_numpy(probs), label)
    rounded = probs.astype(np.float16)
    return kept.view(np.int16).astype(int) - rounded.view(np.int16)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 1000), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e-4, 1e-2, 0.3, 5.0, 60.0]))
def test_the_label_is_the_largest_stored_probability(num_classes: int, seed: int, scale: float):
    """Nearly equal logits, and some that are equal in fp32 too."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(20, num_classes)).astype(np.float32)
    logits[::3, rng.integers(num_classes)] = logits[::3].max(1)
    probs = torch.from_numpy(logits).softmax(-1)
    label = probs.max(-1).indices.numpy()
    kept = stored(probs, label)
    own = kept[np.arange(20), label]
    others = np.where(np.eye(num_classes, dtype=bool)[label], -1, kept)
    assert kept.dtype == np.float16 and (own > others.max(1)).all()
    assert (kept.argmax(1) == label).all() and (torch.from_numpy(kept).argmax(1).numpy() == label).all()
    # Nothing else changes, and that by the least that there is.
    steps = stepwise(probs.numpy())
    assert ((steps == 0) | (np.eye(num_classes, dtype=bool)[label] & (steps == 1))).all()


def test_where_nothing_ties_nothing_changes_and_labels_do_not_follow_the_rounding():
    probs = np.array([[0.5, 0.3, 0.2], [0.33331, 0.33332, 0.33337]], dtype=np.float32)
    assert probs.astype(np.float16)[1].argmax() == 0
    kept = stored(torch.from_numpy(probs), np.array([0, 2]))
    np.testing.assert_array_equal(kept[0], probs[0].astype(np.float16))
    third = np.float16(0.3333)
    np.testing.assert_array_equal(kept[1], [third, third, np.nextafter(third, np.float16(1))])


@pytest.fixture
def close(tmp_path: Path) -> Path:
    """Logits of 3,000 rows of three classes that are all but equal, and of which hundreds tie in fp16."""
    np.save(tmp_path / "logits.npy", 0.004 * np.random.default_rng(0).normal(size=(3000, 3)))
    (tmp_path / "classes.json").write_text('["c", "a", "b"]')
    return tmp_path


@pytest.mark.usefixtures("no_page")
def test_every_reader_of_a_folder_finds_its_labels(close: Path):
    out, classes = close / "o", ["c", "a", "b"]
    debias(["--predictions", str(close / "logits.npy"), "--out", str(out)])
    labels = [row["label"] for row in rows_of(out)]
    probs = np.load(out / "probs.npy")
    in_fp32 = debias_matrix(np.load(close / "logits.npy"))
    assert (in_fp32.probs.astype(np.float16).argmax(1) != in_fp32.label).sum() > 100
    # The API's are not rounded.
    assert (in_fp32.probs.argmax(1) == in_fp32.label).all()
    assert [classes[k] for k in probs.argmax(1)] == labels == [classes[k] for k in in_fp32.label]
    # Training on them, with its classes in another order.
    (close / "images").mkdir()
    lines = (out / "labels.csv").read_text().replace("row,", "path,", 1)
    (out / "labels.csv").write_text(lines)
    for i in range(3000):
        (close / "images" / f"{i}").touch()
    names = [str(close / "images" / f"{i}") for i in range(3000)]
    given = read_probs(out, close / "images", names, ("a", "b", "c"))
    assert ["abc"[k] for k in given.argmax(1)] == labels
    # Debiasing them again, with nothing to remove.
    again = close / "again"
    debias(["--predictions", str(out / "probs.npy"), "--prior", "none", "--out", str(again)])
    assert [row["label"] for row in rows_of(again)] == labels


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the seconds of drawing."""
    monkeypatch.setattr(importlib.import_module("debias_ssl.debias"), "_page", lambda *_: "a page")


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_labels_that_are_replaced_are_never_read_beside_others(stride: int, tmp_path: Path):
    """The job is killed before each of its steps with files; old and new labels differ in classes and in every row."""
    rng = np.random.default_rng(0)
    wanted = {}
    for name, classes in (("old", ["ant", "bee"]), ("new", ["cat", "dog", "eel"])):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(30, len(classes))))
        (tmp_path / f"{name}.txt").write_text("\n".join(classes))
        wanted[name] = ["--predictions", str(tmp_path / f"{name}.npy"), "--classes", str(tmp_path / f"{name}.txt")]
    images, out = tmp_path / "images", tmp_path / "o"
    images.mkdir()
    for i in range(30):
        (images / f"{i}").touch()
    names, number, seen, refusals = [str(images / f"{i}") for i in range(30)], 0, set(), 0
    debias([*wanted["old"], "--out", str(tmp_path / "before")])
    while True:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(tmp_path / "before", out)
        is_killed = killed_after(number, lambda: debias([*wanted["new"], "--out", str(out), "--overwrite"]))
        table = out / "labels.csv"
        if table.exists():
            table.write_text(table.read_text().replace("row,", "path,", 1))
        classes = json.loads((out / "classes.json").read_text()) if (out / "classes.json").exists() else ["ant", "bee"]
        try:
            found = read_probs(out, images, names, tuple(classes))
            predictions = read_predictions(out / "probs.npy")
        except InputError as error:
            refusals += 1
            assert "holds parts of labels, because the job that wrote them was interrupted: run it again" in str(error)
        else:
            seen.add(len(classes))
            labels = [row["label"] for row in rows_of(out)]
            assert [classes[k] for k in found.argmax(1)] == labels and list(predictions.classes) == classes
        if not is_killed:
            break
        number += stride
    assert seen == {2, 3} and refusals > 1


@pytest.mark.usefixtures("no_page")
def test_a_page_that_cannot_be_drawn_is_a_warning(close: Path, monkeypatch, capsys):
    def failing(*_):
        raise ZeroDivisionError("nothing to draw\nat all")

    monkeypatch.setattr(importlib.import_module("debias_ssl.debias"), "_page", failing)
    flags = ["--predictions", str(close / "logits.npy"), "--out", str(close / "o")]
    debias(flags)
    said = capsys.readouterr()
    assert "warning: no report.html: ZeroDivisionError: nothing to draw\n" in said.err
    assert said.out.endswith(f"{close / 'o'}\n")
    assert {path.name for path in (close / "o").iterdir()} == {
        "labels.csv",
        "probs.npy",
        "classes.json",
        "summary.json",
        MANIFEST,
    }
    # They are whole: another job does not replace them unless it is told to, and then no old page stays.
    with pytest.raises(SystemExit):
        debias(flags)
    assert "pass --overwrite to replace it" in capsys.readouterr().err
