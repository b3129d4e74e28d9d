"""`debias-ssl suggest`: a list of images to label, from features alone, labels, predictions or a run."""

import csv
import importlib
from pathlib import Path

import numpy as np
import pytest
from feature_folders import write_features
from jobs import refused
from small_clip import paint_images, save_clip

from debias_ssl import train
from debias_ssl.data.reading.config import DECODER
from debias_ssl.data.sources.label_files import has_confidence, read_label_file
from debias_ssl.suggest import HEADER, main

# Functions of the package have the names of these modules.
debias, label = (importlib.import_module(f"debias_ssl.{name}") for name in ("debias", "label"))

CLASSES = ("ant", "bee", "cat")
NAMES = [f"{CLASSES[i % 3]}/{i:02}.png" for i in range(24)]
FEATURES = 5 * np.eye(3)[np.arange(24) % 3] + np.random.default_rng(0).normal(size=(24, 3))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with images, their features, and predictions of a model that does not know cats."""
    monkeypatch.chdir(tmp_path)
    made_by = {"model": "a", "decoder": DECODER}
    write_features(tmp_path / "features", tmp_path / "images", NAMES, FEATURES, model=made_by)
    probs = np.where(np.arange(24)[:, None] % 3 == 2, [[0.4, 0.35, 0.25]], 0.05 + 0.85 * np.eye(3)[np.arange(24) % 3])
    write_predictions(tmp_path / "predicted.csv", NAMES, probs)
    return tmp_path


def write_predictions(path: Path, names: list[str], probs: np.ndarray) -> None:
    lines = [[name, CLASSES[row.argmax()], row.max(), *row] for name, row in zip(names, probs, strict=True)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "confidence", *(f"p_{name}" for name in CLASSES)], *lines])


def suggested(out: str, *arguments: str) -> list[dict[str, str]]:
    main([*arguments, "--out", out])
    with Path(out).open(newline="") as file:
        return [*csv.DictReader(file)]


def labeled(rows: list[dict[str, str]], out: str) -> str:
    """The list with labels filled in."""
    with Path(out).open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *([*(row | {"label": row["path"][:3]}).values()] for row in rows)])
    return out


FIRST = ("--images", "images", "--features", "features", "--num", "3")
SECOND = ("--labels", "predicted.csv", "--images", "images", "--features", "features")


def test_without_labels_the_first_images_are_of_different_kinds(place, capsys):
    rows = suggested("a.csv", *FIRST)
    assert {row["path"].split("/")[0] for row in rows} == {*CLASSES}
    assert all(row["label"] == row["suggested_label"] == row["suggested_confidence"] == "" for row in rows)
    said = capsys.readouterr().out
    assert "3 images of 24 suggested in a.csv" in said and "relative to images" in said
    suggested("b.csv", *FIRST)
    assert Path("a.csv").read_bytes() == Path("b.csv").read_bytes()


def test_the_list_has_no_label_until_people_fill_it_in(place):
    rows = suggested("a.csv", *SECOND, "--num", "6")
    # Read as labels, guesses would be taken for what people have seen.
    listed = read_label_file(Path("a.csv"), Path("images"))
    assert listed.labels == [""] * 6 and not has_confidence(Path("a.csv"))
    assert read_label_file(Path(labeled(rows, "b.csv")), Path("images")).labels == [row["path"][:3] for row in rows]


def test_labeled_images_do_not_come_again_and_others_are_unlike_them(place, capsys):
    first = suggested("a.csv", *FIRST)
    others = suggested("b.csv", *FIRST, "--labeled", labeled(first, "labeled.csv"))
    assert not {row["path"] for row in first} & {row["path"] for row in others}
    # Of two files, and of one without any label.
    both = suggested("c.csv", *FIRST, "--labeled", "labeled.csv", labeled(others, "more.csv"))
    assert len({row["path"] for row in [*first, *others, *both]}) == 9
    assert suggested("d.csv", *FIRST, "--labeled", "a.csv") == first
    assert "3 of 3 rows of labeled.csv matched" in capsys.readouterr().out


def test_predictions_say_what_is_unsure_and_of_which_class(place, capsys):
    rows = suggested("a.csv", *SECOND, "--num", "1", "--per_class", "0")
    assert rows[0]["path"].startswith("cat") and rows[0]["suggested_label"] == "ant"
    assert rows[0]["suggested_confidence"] == "0.400000" and rows[0]["why"].startswith("ant or bee: stands for")
    labeled(rows, "labeled.csv")
    capsys.readouterr()
    rows = suggested("b.csv", *SECOND, "--num", "4", "--labeled", "labeled.csv")
    said = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: line.split() for line in said if line.split()[0] in CLASSES}
    # Nothing is predicted as cat.
    assert [row["why"].startswith("one of ") for row in rows] == [True, True, False, False]
    for k, name in enumerate(CLASSES):
        number = sum(row["suggested_label"] == name for row in rows)
        assert table[name][-3:] == [["16", "8", "0"][k], ["0", "0", "1"][k], str(number)]


def test_rows_in_any_order_and_of_some_images_alone_are_found(place, capsys):
    probs = np.tile([[0.5, 0.3, 0.2]], (24, 1))
    probs[6] = [0.34, 0.33, 0.33]
    write_predictions(place / "all.csv", NAMES, probs)
    write_predictions(place / "some.csv", [f"images/{name}" for name in NAMES[20:3:-1]], probs[20:3:-1])
    given = ("--images", "images", "--features", "features", "--num", "1", "--per_class", "0")
    rows = suggested("a.csv", "--labels", "all.csv", *given)
    assert suggested("b.csv", "--labels", "some.csv", *given)[0]["path"] in NAMES[4:21]
    assert "7 of 24 images have no row in 'some.csv'" in capsys.readouterr().err
    assert rows[0]["suggested_label"] == "ant"


def test_a_folder_of_debias_is_labels_too(place):
    debias.main(["--predictions", "predicted.csv", "--out", "labels", "--prior", "none"])
    given = ("--images", "images", "--features", "features", "--num", "5")
    by_folder, by_file = (
        suggested(f"{each[:3]}.csv", "--labels", each, *given) for each in ("labels", "predicted.csv")
    )
    assert [row["path"] for row in by_folder] == [row["path"] for row in by_file]


def test_a_folder_of_label_knows_its_images_and_features(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(label, "_page", lambda *_: "")
    paint_images(tmp_path / "images")
    Path("classes.txt").write_text("ant\nbee\n")
    model = save_clip(tmp_path / "clip")
    given = ["--images", "images", "--classes", "classes.txt", "--model", model, "--workers", "0", "--out", "labels"]
    label.main(given)
    rows = suggested("a.csv", "--labels", "labels", "--num", "4")
    assert len(rows) == 4 and all((tmp_path / "images" / row["path"]).is_file() for row in rows)
    assert all(row["suggested_label"] in ("ant", "bee") for row in rows)


def test_a_run_on_the_list_suggests_the_next_images(place):
    first = suggested("a.csv", *FIRST)
    labeled(first, "labeled.csv")
    listed = "".join(f"{name},{name[:3]}\n" for name in NAMES[:6])
    Path("test.csv").write_text(f"path,label\n{listed}")
    trees = ["--data.name", "folder", "--data.root", "images", "--data.unlabeled", "images", "--data.test", "test.csv"]
    short = ["--model.name", "linear", "--steps", "2", "--eval_every", "2", "--checkpoint_every", "2", "--out", "run"]
    train.main(
        [*trees, "--data.labeled", "labeled.csv", "--data.features", "[features]", "--precision", "fp32", *short]
    )
    rows = suggested("b.csv", "--labels", "run", "--images", "images", "--labeled", "labeled.csv", "--num", "5")
    assert len(rows) == 5 and all(row["suggested_label"] in CLASSES for row in rows)
    assert not {row["path"] for row in rows} & {row["path"] for row in first}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--features", "features"), "pass --images"),
        (("--labels", "predicted.csv", "--features", "features"), "pass --images: --labels 'predicted.csv' does not"),
        (("--images", "images"), "pass --features"),
        (("--images", "images", "--features", "other"), "holds no features"),
        (("--labels", "images", "--images", "images"), "--labels 'images' holds neither a run"),
        (("--labels", "strange.csv", *SECOND[2:]), "which are not among the images"),
        ((*SECOND, "--num", "0"), "--num is 0, must be at least 1"),
        ((*SECOND, "--per_class", "-1"), "--per_class is -1"),
        ((*SECOND, "--labeled", "strange.csv"), "strange.csv"),
        ((*SECOND, "--labeled", "all.csv"), "there is nothing to suggest"),
        ((*SECOND[:2], "--images", "features.csv", *SECOND[4:]), "features.csv"),
    ],
)
def test_what_is_wrong_is_told(place, capsys, arguments, words):
    probs = np.full((24, 3), 1 / 3)
    write_predictions(place / "strange.csv", [f"{i}.jpg" for i in range(24)], probs)
    write_predictions(place / "all.csv", NAMES, probs)
    assert words in refused(main, [*arguments, "--out", "a.csv"], capsys)
    assert not Path("a.csv").exists()


def test_a_list_is_replaced_only_where_that_is_asked_for(place, capsys):
    first = suggested("a.csv", *FIRST)
    assert "--overwrite" in refused(main, [*FIRST, "--out", "a.csv"], capsys)
    assert suggested("a.csv", *FIRST, "--overwrite") == first
    assert "lies in --images" in refused(main, [*FIRST, "--out", "images/a.csv"], capsys)
