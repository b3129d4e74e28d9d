"""`debias-ssl import-labels`: what files say is merged into labels by path, with who said it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from jobs import refused, rows_of
from labeled_images import CLASSES, NUM, differing, labels_in, make_labels

from debias_ssl.data.sources.config import SourceConfig
from debias_ssl.data.sources.folder import read_folder
from debias_ssl.import_labels import main


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_labels(tmp_path_factory.mktemp("corrected"))


@pytest.fixture
def labels(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The labels, in the folder where jobs start; the images lie beside them."""
    shutil.copytree(whole.parent, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("labels")


def merged(*corrections: str, labels: str = "labels", out: str = "merged", flags: tuple[str, ...] = ()) -> Path:
    main([labels, "--corrections", *corrections, "--out", out, *flags])
    return Path(out) / "labels.csv"


def other(label: str, by: int = 1) -> str:
    return CLASSES[(CLASSES.index(label) + by) % len(CLASSES)]


def named(labels: Path) -> list[tuple[str, str]]:
    return [*labels_in(labels / "labels.csv").items()]


def write_table(name: str, rows: list[tuple[str, ...]], header: str = "path,label") -> str:
    lines = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    Path(name).write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return name


def annotation(path: str, label: str | None, who: Any = 3, time: str = "", **further: Any) -> dict[str, Any]:
    """A task of Label Studio with one annotation."""
    result = [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}]
    own = {"completed_by": who, "created_at": time, "result": result if label else []}
    return {"data": {"image": "x", "path": path}, "annotations": [own], **further}


def write_tasks(name: str, tasks: list[dict[str, Any]]) -> str:
    Path(name).write_text(json.dumps(tasks))
    return name


# -- what is merged, and who said it


def test_a_table_of_people_corrects_and_confirms(labels: Path, capsys):
    (a, label_a), (b, label_b), *_ = named(labels)
    file = write_table("ann.csv", [(a, other(label_a), "ann"), (b, label_b, "bob")], "path,label,annotator")
    path = merged(file)
    assert differing(path, labels / "labels.csv") == {a: other(label_a)}
    rows, before = rows_of(path.parent), rows_of(labels)
    assert [row["source"] for row in rows] == ["ann", "bob", *["model"] * (NUM - 2)]
    assert [row["confidence"] for row in rows] == ["1.000000", "1.000000", *[r["confidence"] for r in before[2:]]]
    assert [row["plain_label"] for row in rows] == [row["plain_label"] for row in before]
    assert (path.parent / "corrections.csv").read_text().splitlines()[1:] == [
        f"{a},{other(label_a)},{label_a},ann",
        f"{b},{label_b},{label_b},bob",
    ]
    assert json.loads((path.parent / "classes.json").read_text()) == CLASSES
    said = capsys.readouterr().out
    assert f"{label_a} -> {other(label_a)} (1)" in said and f"1 of {NUM} labels changed, 1 confirmed" in said


def test_a_copy_of_the_labels_says_something_where_it_was_changed(labels: Path):
    text = (labels / "labels.csv").read_text()
    (a, label), *_ = named(labels)
    assert f"{a},{label}," in text
    Path("edited.csv").write_text(text.replace(f"{a},{label},", f"{a},{other(label)},", 1))
    path = merged("edited.csv")
    assert differing(path, labels / "labels.csv") == {a: other(label)}
    assert [row["source"] for row in rows_of(path.parent)] == ["edited.csv", *["model"] * (NUM - 1)]


def test_a_second_round_keeps_who_said_what_before(labels: Path):
    (a, label_a), (b, label_b), *_ = named(labels)
    first = merged(write_table("one.csv", [(a, other(label_a), "ann")], "path,label,annotator"))
    second = merged(write_table("two.csv", [(b, other(label_b))]), labels="merged", out="again")
    assert differing(second, first) == {b: other(label_b)}
    assert [row["source"] for row in rows_of(second.parent)][:3] == ["ann", "two.csv", "model"]


def test_images_of_one_file_are_found_by_other_spellings_and_below_a_folder(labels: Path, capsys):
    (a, label_a), (b, label_b), *_ = named(labels)
    rows = [("C:\\photos\\" + a.replace("/", "\\"), other(label_a)), ("C:\\photos\\" + b.replace("/", "\\"), label_b)]
    path = merged(write_table("windows.csv", rows))
    assert differing(path, labels / "labels.csv") == {a: other(label_a)}
    assert "start with 'C:/photos/'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "address",
    [
        "/data/local-files/?d=photos/{}",
        "http://localhost:8080/data/local-files/?d=photos%5C{}",
        "s3://bucket/photos/{}",
        "https://host:1/some/{}?token=3",
    ],
)
def test_addresses_of_label_studio_are_paths(address: str, labels: Path):
    (a, label), *_ = named(labels)
    task = annotation("", other(label))
    task["data"] = {"image": address.format(a.replace(" ", "%20"))}
    assert differing(merged(write_tasks("e.json", [task])), labels / "labels.csv") == {a: other(label)}


def test_an_uploaded_file_is_found_by_its_own_name(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table("given.csv", [("cat 1.png", "cat"), ("dog-2.png", "dog")])
    task = annotation("", "dog")
    task["data"] = {"image": "/data/upload/12/0a1b2c3d-cat%201.png"}
    assert labels_in(merged(write_tasks("e.json", [task]), labels="given.csv")) == {
        "cat 1.png": "dog",
        "dog-2.png": "dog",
    }


def test_a_path_that_begins_like_an_address_is_a_path(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table("given.csv", [("/data/a#1?.png", "cat"), ("/data/b.png", "dog")])
    path = merged(write_table("ann.csv", [("/data/a#1?.png", "dog")]), labels="given.csv")
    assert differing(path, Path("given.csv")) == {"/data/a#1?.png": "dog"}


def test_rows_that_have_numbers_are_found_by_them(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_table("given.csv", [("0", "cat"), ("1", "dog")], "row,label")
    path = merged(write_table("ann.csv", [("1", "cat")], "row,label"), labels="given.csv")
    assert path.read_text().splitlines() == ["row,label,source", "0,cat,given", "1,cat,ann.csv"]


def test_skipped_and_empty_annotations_say_nothing(labels: Path, capsys):
    (a, label), (b, _), *_ = named(labels)
    skipped = annotation(a, other(label))
    skipped["annotations"][0]["was_cancelled"] = True
    path = merged(write_tasks("e.json", [skipped, annotation(b, None), {"data": {"path": a}, "annotations": []}]))
    assert differing(path, labels / "labels.csv") == {}
    assert "without any label" in capsys.readouterr().err


# -- several labels for one image


def test_annotators_that_differ_are_a_question(labels: Path, capsys):
    (a, label), (b, label_b), *_ = named(labels)
    tasks = [annotation(a, other(label), 1, "2026-01-02T00:00:00Z"), annotation(a, label, 2, "2026-01-01T00:00:00Z")]
    tasks += [annotation(b, other(label_b), 1), annotation(b, other(label_b), 2)]
    file = write_tasks("e.json", tasks)
    message = refused(main, ["labels", "--corrections", file, "--out", "merged"], capsys)
    assert "label-studio:1" in message and "label-studio:2" in message and "--conflicts" in message
    assert not Path("merged").exists()
    last = merged(file, out="last", flags=("--conflicts", "last"))
    assert differing(last, labels / "labels.csv") == {a: other(label), b: other(label_b)}
    assert [row["source"] for row in rows_of(last.parent)][1] == "label-studio:1; label-studio:2"
    even = merged(file, out="even", flags=("--conflicts", "majority"))
    assert differing(even, labels / "labels.csv") == {b: other(label_b)}
    assert "1 images have no majority" in capsys.readouterr().err
    third = write_tasks("third.json", [annotation(a, other(label), 4)])
    most = merged(file, third, out="most", flags=("--conflicts", "majority"))
    assert differing(most, labels / "labels.csv") == {a: other(label), b: other(label_b)}


def test_the_last_file_wins_where_that_is_asked_for(labels: Path):
    (a, label), *_ = named(labels)
    files = [write_table(f"{k}.csv", [(a, other(label, k))]) for k in (1, 2)]
    for order, by in ((files, 2), (files[::-1], 1)):
        path = merged(*order, out=f"o{by}", flags=("--conflicts", "last"))
        assert differing(path, labels / "labels.csv") == {a: other(label, by)}


# -- what is not understood


def test_a_label_that_is_no_class_is_a_slip_or_a_new_class(labels: Path, capsys):
    (a, _), *_ = named(labels)
    file = write_table("new.csv", [(a, "emu")])
    message = refused(main, ["labels", "--corrections", file, "--out", "merged"], capsys)
    assert "new.csv, line 2: 'emu' is not a class" in message and "--new_classes" in message
    path = merged(file, flags=("--new_classes",))
    assert differing(path, labels / "labels.csv") == {a: "emu"}
    assert json.loads((path.parent / "classes.json").read_text()) == [*CLASSES, "emu"]


def test_files_of_other_images_and_other_kinds_are_refused(labels: Path, capsys):
    def message(file: str, *flags: str) -> str:
        return refused(main, ["labels", "--corrections", file, "--out", "merged", *flags], capsys)

    assert "names none of the images" in message(write_table("other.csv", [("nowhere.png", "ant")]))
    assert "there is no such file" in message("gone.json")
    assert "must name the columns" in message(write_table("t.csv", [("1", "2")], "a,b"))
    Path("broken.json").write_text("[{]")
    assert "is not JSON" in message("broken.json")
    Path("coco.json").write_text('{"images": []}')
    assert "neither an export" in message("coco.json")
    Path("numbers.json").write_text("[1, 2]")
    assert "not an export of Label Studio" in message("numbers.json")
    assert "has no samples.json" in message("images")
    Path("samples.json").write_text('{"samples": [{"filepath": "a.png", "animal": {"_cls": "Classification"}}]}')
    assert "name one of ['animal'] by --field" in message("samples.json")
    two = annotation("x", "ant")
    two["annotations"][0]["result"].append(
        {"from_name": "kind", "to_name": "image", "type": "choices", "value": {"choices": ["a", "b"]}}
    )
    assert "has 2 choices" in message(write_tasks("two.json", [two]), "--field", "kind")
    Path("issues.csv").write_text("path,is_label_issue\nx,True\n")
    assert "--issues unlabel" in message("issues.csv")


def test_some_images_that_are_not_there_are_told(labels: Path, capsys):
    (a, label), *_ = named(labels)
    merged(write_table("some.csv", [(a, other(label)), ("gone.png", "ant")]))
    assert "1 of 2 images are not in labels/labels.csv: 'gone.png'" in capsys.readouterr().err


@pytest.mark.parametrize("numbered", [False, True])
def test_cleanlabs_labels_are_names_or_numbers(numbered: bool, labels: Path):
    (a, label), (b, label_b), *_ = named(labels)
    names = [str(k) for k in range(len(CLASSES))] if numbered else CLASSES
    rows = [
        (path, str(path == a), "0.1", names[CLASSES.index(own)], names[CLASSES.index(other(own))])
        for path, own in ((a, label), (b, label_b))
    ]
    header = "path,is_label_issue,label_score,given_label,predicted_label"
    path = merged(write_table("issues.csv", rows, header))
    assert differing(path, labels / "labels.csv") == {a: other(label)}
    assert [row["source"] for row in rows_of(path.parent)][:2] == ["cleanlab", "model"]


def test_a_field_of_another_name_is_read_when_it_is_named(labels: Path):
    (a, label), *_ = named(labels)
    Path("samples.json").write_text(
        json.dumps({"samples": [{"filepath": a, "mine": {"_cls": "Classification", "label": other(label)}}]})
    )
    file = write_table("t.csv", [(a, other(label), label)], "path,mine,label")
    task = annotation(a, other(label))
    task["annotations"][0]["result"][0]["from_name"] = "mine"
    flat = {"path": a, "mine": other(label), "annotator": 1, "annotation_id": 2, "id": 3}
    files = ["samples.json", file, write_tasks("e.json", [task]), write_tasks("m.json", [flat])]
    for i, corrections in enumerate(files):
        path = merged(corrections, out=f"o{i}", flags=("--field", "mine"))
        assert differing(path, labels / "labels.csv") == {a: other(label)}, corrections


# -- what the trainer makes of it


def test_merged_labels_and_corrections_are_label_files(labels: Path):
    (a, label_a), (b, label_b), *_ = named(labels)
    path = merged(write_table("ann.csv", [(a, other(label_a)), (b, label_b)]))
    for file, number in ((path, NUM), (path.parent / "corrections.csv", 2)):
        data = read_folder(SourceConfig(name="folder", labeled=str(file), root="images", test=str(file)))
        names = [Path(name).relative_to("images").as_posix() for name in data.train.names]
        found = dict(zip(names, [data.classes[k] for k in data.train.labels], strict=True))
        assert len(found) == number and found == {name: labels_in(path)[name] for name in names}
    # Those of people are the sure ones.
    test = str(path.parent / "corrections.csv")
    config = SourceConfig(name="folder", labeled=str(path), root="images", test=test, min_confidence=1.0)
    assert (read_folder(config).train.labels >= 0).sum() == 2


def test_a_label_can_be_taken_away(labels: Path):
    (a, _), *_ = named(labels)
    file = write_table("issues.csv", [(a, "True")], "path,is_label_issue")
    path = merged(file, flags=("--issues", "unlabel"))
    assert differing(path, labels / "labels.csv") == {a: ""}
    assert rows_of(path.parent)[0]["confidence"] == "0.000000"
    assert (path.parent / "corrections.csv").read_text().splitlines()[1:] == []


def test_names_that_are_no_text_come_back(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("given.csv").write_bytes(b"path,label\n\xff.png,cat\nb.png,dog\n")
    Path("ann.csv").write_bytes(b"path,label\n\xff.png,dog\n")
    merged("ann.csv", labels="given.csv")
    assert b"\xff.png,dog,ann.csv" in Path("merged/labels.csv").read_bytes()
    assert Path("merged/corrections.csv").read_bytes().splitlines()[1] == b"\xff.png,dog,cat,ann.csv"


def test_merged_labels_are_replaced_only_when_asked(labels: Path, capsys):
    (a, label), *_ = named(labels)
    file = write_table("ann.csv", [(a, other(label))])
    merged(file)
    assert "pass --overwrite" in refused(main, ["labels", "--corrections", file, "--out", "merged"], capsys)
    before = Path("merged/labels.csv").read_bytes()
    message = refused(main, ["labels", "--corrections", "gone", "--out", "merged", "--overwrite"], capsys)
    assert "no such file" in message and Path("merged/labels.csv").read_bytes() == before
    merged(file, flags=("--overwrite",))
    assert Path("merged/labels.csv").read_bytes() == before
    assert "is LABELS itself" in refused(main, ["labels", "--corrections", file, "--out", "labels"], capsys)
