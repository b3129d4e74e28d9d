"""What `debias-ssl label` takes and refuses: images, lists, classes, prompts, truth."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from jobs import refused, rows_of
from labeled_folders import expected_logits

from debias_ssl.data.sources.label_files import read_label_file
from debias_ssl.label import main
from debias_ssl.labels.zero_shot.images import images_to_label


@pytest.mark.usefixtures("no_page")
def test_other_classes_and_templates_read_no_image(tmp_path, model, images, arguments, capsys):
    expected = expected_logits(model, images, ["cat", "dog", "eel"])
    main(arguments())
    for path in images:
        stat = path.stat()
        path.write_bytes(b"?" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    names = tmp_path / "other.txt"
    names.write_text("cat\ndog\neel\n")
    assert "choose another --out, or pass --overwrite" in refused(main, arguments(classes=names), capsys)
    main([*arguments(classes=names, prior="none"), "--overwrite"])
    np.testing.assert_allclose(np.load(tmp_path / "out" / "probs.npy"), expected.softmax(-1), atol=2e-3)
    template = tmp_path / "templates.txt"
    template.write_text("a {}.\nthe {} there\n")
    main([*arguments(classes=names, templates=template), "--overwrite"])
    assert "truth" not in (tmp_path / "out" / "summary.json").read_text()


@pytest.mark.usefixtures("no_page")
def test_images_that_cannot_be_read_stop_or_are_left_out(tmp_path, images, arguments, capsys):
    images[6].write_bytes(b"no image")
    error = refused(main, arguments(), capsys)
    assert f"cannot read image '{images[6]}'" in error and "on_error" in error
    assert not (tmp_path / "out" / "labels.csv").exists()
    main(arguments(on_error="skip"))
    name = images[6].relative_to(tmp_path / "images").as_posix()
    assert "note: left out 1 files that cannot be read" in capsys.readouterr().err
    assert [*json.loads((tmp_path / "out" / "unreadable.json").read_text())] == [name]
    assert name not in [row["path"] for row in rows_of(tmp_path / "out")]
    assert np.load(tmp_path / "out" / "probs.npy").shape == (9, 2)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["num_unreadable"] == 1


@pytest.mark.usefixtures("no_page")
def test_truth_and_rows_to_tune_on_may_come_from_files(tmp_path, images, arguments):
    names = [path.relative_to(tmp_path / "images").as_posix() for path in images]
    truth, few = tmp_path / "truth.csv", tmp_path / "few.csv"
    truth.write_text("path,label\n" + "".join(f"{name},bee\n" for name in names))
    few.write_text(f"path,label\n{names[0]},ant\n{names[7]},bee\n")
    main(arguments(truth=truth, tune_on=few))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    said = [row["label"] == "bee" for row in rows_of(tmp_path / "out")]
    assert summary["num"] == 8
    assert summary["debiased"]["accuracy"] == pytest.approx(np.mean([*said[1:7], *said[8:]]))


@pytest.mark.usefixtures("no_page")
def test_a_blank_image_can_be_the_prior(tmp_path, arguments):
    main(arguments(prior="content_free"))
    prior = json.loads((tmp_path / "out" / "summary.json").read_text())["class_prior"]
    assert sum(prior.values()) == pytest.approx(1)
    assert prior["ant"] != pytest.approx(0.5, abs=1e-4)


def test_wrong_input_is_told_before_the_model_is_loaded(tmp_path, arguments, capsys, monkeypatch):
    monkeypatch.setattr("debias_ssl.label.load_clip", None)
    files = {"twice": "ant\nant\n", "blank": "ant\n\nbee\n", "one": "ant\n", "no_place": "a photo\n"}
    files |= {"two": "fine {}\n{} and {}\n", "shares.json": '{"ant": 1}', "empty": ""}
    paths = {name: tmp_path / name for name in files}
    for name, text in files.items():
        paths[name].write_text(text)
    for settings, message in (
        ({"classes": "nowhere"}, "--classes is 'nowhere': there is no such file"),
        ({"classes": paths["twice"]}, "lines 1 and 2 are both 'ant'"),
        ({"classes": paths["blank"]}, "line 2: the class name is blank"),
        ({"classes": paths["one"]}, "names one class, 'ant'; at least two"),
        ({"templates": "simpel"}, "--templates is 'simpel': neither simple, openai, nor a file"),
        ({"templates": paths["no_place"]}, "line 1: 'a photo' must have {} once"),
        ({"templates": paths["two"]}, "line 2: '{} and {}' must have {} once"),
        ({"templates": paths["empty"]}, "has no templates"),
        ({"target_prior": paths["shares.json"]}, "does not have the class 'bee'"),
        ({"images": "nowhere"}, "--images is 'nowhere': there is no such folder or file"),
        ({"batch_size": 0}, "batch_size is 0, must be at least 1"),
        ({"workers": -1}, "workers is -1, must be at least 0"),
        ({"prior": "marginals"}, "fixed_point"),
    ):
        assert message in refused(main, arguments(**settings), capsys)
    assert not (tmp_path / "out").exists()


# Fifteen tokens, of which the small model reads sixteen with two of its own.
LONG = "a very long description of a small animal that lives in the old wood "


@pytest.mark.parametrize(
    ("names", "why"),
    [
        (
            f"ant\t{LONG}and is black\nbee\t{LONG}and is yellow\n",
            "reads 16 tokens, and the prompts differ only after that",
        ),
        ("ant\tfly\nbee\tfly\n", "their names in prompts are the same"),
        ("ant\nAnt\n", "maps their names to the same tokens"),
    ],
)
def test_classes_that_the_model_cannot_tell_apart_are_refused_before_images_are_read(
    names, why, tmp_path, arguments, capsys
):
    (tmp_path / "classes.txt").write_text(names)
    message = refused(main, arguments(templates=_templates(tmp_path, "{}.")), capsys)
    first, second = (line.split("\t")[0] for line in names.splitlines())
    assert f"the classes {first!r} and {second!r} have the same prompts" in message and why in message
    assert not [*tmp_path.glob("out/features/*.npy")]


def test_prompts_that_are_cut_are_told(tmp_path, arguments, capsys):
    (tmp_path / "classes.txt").write_text(f"ant\nbee\t{LONG}\n")
    # Of the second sentence only that of the long name is too long; the end of the third is not read for either.
    main(arguments(templates=_templates(tmp_path, "{}", "an image of {}", f"{{}} {LONG}{LONG}")))
    told = "3 of 6 prompts are cut, because the model reads only 16 tokens; the first one is 'ant a very long"
    assert told in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["notes"][0].startswith(told)
    assert "3 of 6 prompts are cut" in (tmp_path / "out" / "report.html").read_text()


def _templates(folder: Path, *sentences: str) -> Path:
    (folder / "templates.txt").write_text("".join(f"{sentence}\n" for sentence in sentences))
    return folder / "templates.txt"


def test_a_wrong_model_leaves_nothing_behind(tmp_path, arguments, capsys):
    assert "near it: ViT-B-32" in refused(main, arguments(model="ViT-B32", pretrained="openai"), capsys)
    assert not (tmp_path / "out").exists()


def test_images_come_from_folders_lists_and_csv_files(tmp_path, images):
    classes = ("ant", "bee")
    root = tmp_path / "images"
    found, below = images_to_label(str(root), classes)
    assert (found.names, below) == ([str(path) for path in images], root)
    assert found.labels.tolist() == [0] * 5 + [1] * 5
    assert images_to_label(str(root), ("bee", "cat"))[0].labels.tolist() == [-1] * 5 + [0] * 5
    (root / "list.txt").write_text("bee/1.png\nant/0.png\n")
    found, below = images_to_label(str(root / "list.txt"), classes)
    assert (found.names, found.labels.tolist(), below) == ([str(images[5]), str(images[0])], [1, 0], root)
    (root / "labels.csv").write_text("path,label\nbee/1.png,ant\nant/0.png,\n")
    assert images_to_label(str(root / "labels.csv"), classes)[0].labels.tolist() == [0, -1]
    (root / "labels.csv").write_text("path\nbee/1.png\n")
    assert images_to_label(str(root / "labels.csv"), classes)[0].labels.tolist() == [1]


@pytest.mark.usefixtures("no_page")
def test_lists_of_absolute_paths_are_used_with_their_root(tmp_path, images, arguments, capsys):
    (tmp_path / "lists").mkdir()
    listed, csv_file = tmp_path / "lists" / "list.txt", tmp_path / "lists" / "list.csv"
    listed.write_text("".join(f"{path}\n" for path in images))
    message = refused(main, arguments(images=listed), capsys)
    root = tmp_path / "images"
    assert "line 1" in message and f"lies outside {str(listed.parent)!r}; to read files there, pass --root" in message
    assert "data.root" not in message
    main(arguments(images=listed, root=root))
    main(arguments(out=tmp_path / "of_folder"))
    assert rows_of(tmp_path / "out") == rows_of(tmp_path / "of_folder")
    rows = [f"../images/{path.relative_to(root)},{path.parent.name}" for path in images]
    csv_file.write_text("\n".join(["File;Class", *(row.replace(",", ";") for row in rows), ";", ""]), "utf-16")
    capsys.readouterr()
    main(arguments(images=csv_file, root=root, out=tmp_path / "of_table"))
    assert rows_of(tmp_path / "of_table") == rows_of(tmp_path / "of_folder")
    assert "1 empty rows are left out" in capsys.readouterr().err
    summaries = [json.loads((tmp_path / out / "summary.json").read_text()) for out in ("of_table", "of_folder")]
    assert summaries[0]["plain"] == summaries[1]["plain"]
    assert "--root works with lists" in refused(main, arguments(root=root, out=tmp_path / "x"), capsys)
    # The trainer finds them by the same root.
    found = read_label_file(tmp_path / "out" / "labels.csv", root)
    assert [Path(file) for file in found.files] == images


@pytest.mark.usefixtures("no_page")
def test_truth_below_another_folder_is_told(tmp_path, images, arguments, capsys):
    names = [path.relative_to(tmp_path / "images").as_posix() for path in images]
    truth = tmp_path / "truth.csv"
    truth.write_text("file,class\n" + "".join(f"data\\{name}, bee\n".replace("/", "\\") for name in names))
    main(arguments(truth=truth))
    said = capsys.readouterr()
    assert f"10 of 10 rows of {truth} matched" in said.out and "10 paths start with 'data/'" in said.err
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["num_known"] == 10


HINT = "no image's first folder below --images"


@pytest.mark.parametrize(
    ("moved", "named", "meant"),
    [
        ({"ant": "L/data/ant", "bee": "L/data/bee"}, "L", "L/data"),
        ({"ant": "L/a/b/ant", "bee": "L/a/b/bee"}, "L", "L/a/b"),
        # Parts of a data set: one of them is named.
        ({"ant": "L/train/ant", "bee": "L/test/bee"}, "L", "L/t"),
        # The images of one class.
        ({"ant": "L/ant", "bee": "L/bee"}, "L/ant", "L"),
        # Half of the images and no more, or one class alone.
        ({"ant": "L/data/ant", "bee": "L/data/wasp"}, "L", None),
        ({"ant": "L/ant", "bee": "L/wasp"}, "L/ant", None),
        ({"ant": "L/ant", "bee": "L/bee"}, "L", None),
    ],
)
def test_a_folder_one_level_off_is_told_with_the_one_that_is_meant(
    moved, named, meant, tmp_path, images, arguments, capsys, no_page
):
    for name, place in moved.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).rename(tmp_path / place)
    main(arguments(images=tmp_path / named))
    said = capsys.readouterr()
    notes = [line for line in said.err.splitlines() if HINT in line]
    assert (tmp_path / "out" / "labels.csv").exists()
    if meant is None:
        assert not notes
        return
    assert len(notes) == 1 and f"--images {str(tmp_path / named)!r}" in notes[0]
    assert f"folders of '{tmp_path / meant}" in notes[0]
    # Whoever follows the note has figures and no note.
    (folder,) = re.findall("folders of '(.*)' are", notes[0])
    main(arguments(images=folder, out=tmp_path / "again"))
    assert HINT not in capsys.readouterr().err
    assert "plain" in json.loads((tmp_path / "again" / "summary.json").read_text())


def test_a_file_of_true_classes_needs_no_hint(tmp_path, images, arguments, capsys, no_page):
    (tmp_path / "L").mkdir()
    (tmp_path / "images").rename(tmp_path / "L" / "data")
    (tmp_path / "truth.csv").write_text("path,label\ndata/bee/1.png,bee\n")
    main(arguments(images=tmp_path / "L", truth=tmp_path / "truth.csv"))
    assert HINT not in capsys.readouterr().err


def test_a_label_that_is_no_class_is_refused(tmp_path, images, arguments, capsys):
    listed = tmp_path / "images" / "labels.csv"
    listed.write_text("path,label\nbee/1.png,wasp\n")
    assert "line 2: 'wasp' is not a class of --classes" in refused(main, arguments(images=listed), capsys)
