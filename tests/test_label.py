"""`debias-ssl label`: images and class names in, labels out; the same by two processes, again, and with other names."""

import itertools
import json
import os
import re
import shutil
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from jobs import refused, rows_of
from launched import DIGITS, start_ranks
from PIL import Image
from safetensors.torch import save_file
from small_clip import PREPROCESSING, paint_images, save_clip
from torchvision.transforms.v2.functional import _geometry as geometry

from debias_ssl import label, predict, train
from debias_ssl.data.reading.decode import decode
from debias_ssl.data.sources import shards
from debias_ssl.data.sources.label_files import read_label_file
from debias_ssl.features import embedding as features
from debias_ssl.label import main
from debias_ssl.labels.names.class_names import class_list
from debias_ssl.labels.zero_shot.images import images_to_label
from debias_ssl.labels.zero_shot.prompts import read_templates
from debias_ssl.models.clip import Clip, load_clip, zero_shot_weights


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "SHARD_SIZE", 4)


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the seconds of drawing where a test is about something else."""
    monkeypatch.setattr(label, "_page", lambda *_: "")


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return paint_images(tmp_path / "images")


@pytest.fixture
def arguments(tmp_path: Path, model: str, images: list[Path]) -> Callable[..., list[str]]:
    """A command line; further settings by name."""

    def arguments(**settings: Any) -> list[str]:
        classes = tmp_path / "classes.txt"
        if not classes.exists():
            classes.write_text("ant\nbee\tbumble bee\n")
        given = {"images": tmp_path / "images", "classes": classes, "model": model, "out": tmp_path / "out"}
        given |= {"workers": 0, "precision": "fp32"} | settings
        return [text for name, value in given.items() for text in (f"--{name}", str(value))]

    return arguments


def expected_logits(model: str, images: list[Path], names: list[str]) -> torch.Tensor:
    clip = load_clip(model, None, torch.device("cpu"))
    weights = zero_shot_weights(clip, names, open_clip.SIMPLE_IMAGENET_TEMPLATES)
    found = clip.encode(torch.stack([clip.preprocess(decode(str(path))) for path in images]))
    return clip.logit_scale * found.half().float() @ weights


def test_labels_are_clips_without_its_preference(tmp_path, model, images, arguments, capsys):
    # Of ten images, less would be removed.
    main(arguments(strength=1))
    out = tmp_path / "out"
    probs = expected_logits(model, images, ["ant", "bumble bee"]).softmax(-1)
    rows = rows_of(out)
    assert [*rows[0]] == ["path", "label", "confidence", "top2_gap", "plain_label", "plain_confidence"]
    assert [row["path"] for row in rows] == [path.relative_to(tmp_path / "images").as_posix() for path in images]
    assert [row["plain_label"] for row in rows] == [("ant", "bee")[k] for k in probs.argmax(-1)]
    np.testing.assert_allclose([float(row["plain_confidence"]) for row in rows], probs.amax(-1), atol=2e-4)
    debiased = probs / probs.mean(0)
    debiased /= debiased.sum(-1, keepdim=True)
    np.testing.assert_allclose(np.load(out / "probs.npy"), debiased, atol=2e-3)
    assert [row["label"] for row in rows] == [("ant", "bee")[k] for k in debiased.argmax(-1)]
    assert json.loads((out / "classes.json").read_text()) == ["ant", "bee"]
    summary = json.loads((out / "summary.json").read_text())
    made_with = {"model": model, "pretrained": None, "templates": "simple", "num_unreadable": 0}
    assert {key: summary[key] for key in made_with} == made_with
    # The images' folders are their classes.
    right = [row["path"].startswith(row["label"]) for row in rows]
    assert summary["debiased"]["accuracy"] == pytest.approx(sum(right) / 10)
    assert (out / "report.html").read_text().startswith("<!")
    assert "accuracy" in capsys.readouterr().out


def test_two_images_and_classes_that_are_predicted_but_never_true(tmp_path, model, arguments):
    """One image for each of two classes: which of them is said of which is chance; the page is drawn in any case."""
    for number, classes in enumerate((("ant", "bee"), ("bee", "ant"))):
        images, out = tmp_path / f"few_{number}", tmp_path / f"out_{number}"
        paint_images(images, num=2, classes=classes)
        main(arguments(images=images, out=out))
        assert json.loads((out / "summary.json").read_text())["num"] == 2
        assert (out / "report.html").read_text().startswith("<!")


@pytest.mark.usefixtures("no_page")
def test_an_image_that_was_replaced_after_its_features_were_made_is_refused(tmp_path, images, arguments, capsys):
    main(arguments())
    data = {"name": "folder", "labeled": tmp_path / "out" / "labels.csv", "root": tmp_path / "images"}
    data |= {
        "test": tmp_path / "images",
        "features": json.dumps([str(tmp_path / "out" / "features")]),
        "labels_per_class": "null",
    }
    settings = [f"--data.{name}={value}" for name, value in data.items()]
    run = ["--config", str(DIGITS), "--model.name", "linear", "--steps", "2", "--batch_size", "2", *settings]
    train.main([*run, "--out", str(tmp_path / "run")])
    paint_images(tmp_path / "other", num=2)[1].replace(images[3])
    message = refused(train.main, [*run, "--out", str(tmp_path / "second")], capsys)
    assert repr(str(images[3])) in message and "debias-ssl features or label again" in message
    flags = ["--run", str(tmp_path / "run"), "--images", str(tmp_path / "images"), "--out", str(tmp_path / "p.csv")]
    message = refused(predict.main, [*flags, "--features", str(tmp_path / "out" / "features")], capsys)
    assert repr(str(images[3])) in message and not (tmp_path / "p.csv").exists()


@pytest.mark.usefixtures("no_page")
def test_a_copy_of_the_images_is_labeled_by_the_same_features(tmp_path, images, arguments, monkeypatch, capsys):
    """With other times, as `cp -r`, unzip and git leave them, and then with one image more."""
    main(arguments())
    shutil.copytree(tmp_path / "images", tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "images")
    encoded: list[int] = []
    encode = Clip.encode
    monkeypatch.setattr(Clip, "encode", lambda clip, batch: encoded.append(len(batch)) or encode(clip, batch))
    copy = {"images": tmp_path / "copy", "features": tmp_path / "out" / "features"}
    main(arguments(out=tmp_path / "again", **copy))
    for name in ("labels.csv", "probs.npy"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    # The blank image of the content-free prior, and no other.
    assert encoded == [1] and "10 images have known contents" in capsys.readouterr().err
    Image.new("RGB", (20, 16), "red").save(tmp_path / "copy" / "new.png")
    main(arguments(out=tmp_path / "more", **copy))
    assert encoded == [1, 1, 1] and len(rows_of(tmp_path / "more")) == 11
    assert "features of 10 of 10 images are used again; 1 images are new" in capsys.readouterr().err
    data = {"name": "folder", "labeled": tmp_path / "more" / "labels.csv", "root": tmp_path / "copy"}
    data |= {"test": tmp_path / "copy", "labels_per_class": "null", "features": json.dumps([str(copy["features"])])}
    # The trainer knows them by their contents, too.
    os.utime(tmp_path / "copy" / "new.png", ns=(0, 0))
    run = ["--config", str(DIGITS), "--model.name", "linear", "--steps", "2", "--batch_size", "2"]
    train.main([*run, *(f"--data.{name}={value}" for name, value in data.items()), "--out", str(tmp_path / "run")])


@pytest.mark.usefixtures("no_page")
def test_features_of_other_bits_are_others(tmp_path, arguments, capsys):
    main(arguments())
    again = arguments(out=tmp_path / "again", features=tmp_path / "out" / "features")
    assert "another model (bits differ)" in refused(main, [*again, "--bits", "12"], capsys)
    (tmp_path / "images").rename(tmp_path / "moved")
    main(arguments(out=tmp_path / "again", features=tmp_path / "out" / "features", images=tmp_path / "moved"))
    assert rows_of(tmp_path / "again") == rows_of(tmp_path / "out")


@pytest.mark.usefixtures("no_page")
def test_features_of_another_precision_are_told_with_the_flag_that_takes_them(tmp_path, arguments, capsys):
    main(arguments(precision="bf16"))
    again = {"out": tmp_path / "again", "features": tmp_path / "out" / "features"}
    message = refused(main, arguments(**again), capsys)
    assert "holds features of --precision bf16, not fp32: pass --precision bf16, choose another folder" in message
    main(arguments(**again, precision="bf16"))
    assert rows_of(tmp_path / "again") == rows_of(tmp_path / "out")
    # A run that was trained on them says so of others.
    main(arguments(out=tmp_path / "fp32"))
    features = [str(tmp_path / name / "features") for name in ("out", "fp32")]
    data = {"labeled": tmp_path / "out" / "labels.csv", "root": tmp_path / "images", "test": tmp_path / "images"}
    data |= {"name": "folder", "labels_per_class": "null"}
    run = ["--config", str(DIGITS), "--model.name", "linear", "--steps", "2", "--batch_size", "2"]
    run += [*(f"--data.{name}={value}" for name, value in data.items()), "--out", str(tmp_path / "run")]
    message = refused(train.main, [*run, "--data.features", json.dumps(features)], capsys)
    assert "hold features of different models (precision differ)" in message
    train.main([*run, "--data.features", json.dumps(features[:1])])
    flags = ["--run", str(tmp_path / "run"), "--images", str(tmp_path / "images"), "--overwrite"]
    for number, folder in enumerate(features):
        capsys.readouterr()
        predict.main([*flags, "--features", folder, "--out", str(tmp_path / "p.csv")])
        assert capsys.readouterr().err.count("from another model, precision or settings") == number


@pytest.mark.usefixtures("no_page")
def test_photos_are_labeled_upright_and_drawings_on_the_background(tmp_path, images, arguments, capsys):
    turned = Image.open(images[0]).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[274] = 6
    turned.save(tmp_path / "images" / "turned.png", exif=exif)
    Image.new("RGB", (20, 16), "lime").save(tmp_path / "images" / "plain.png")
    Image.new("RGBA", (20, 16), (9, 9, 9, 0)).save(tmp_path / "images" / "clear.png")
    flags = {"prior": "none", "background": "#00ff00"}
    main(arguments(**flags))
    rows = {row["path"]: row["confidence"] for row in rows_of(tmp_path / "out")}
    assert rows["turned.png"] == rows["ant/0.png"] and rows["clear.png"] == rows["plain.png"]
    white = {"out": tmp_path / "white", "features": tmp_path / "out" / "features"}
    assert "another model (background differ)" in refused(main, arguments(**white), capsys)
    message = refused(main, arguments(background="grren", out=tmp_path / "wrong"), capsys)
    assert "background is 'grren', must be the name of a color such as black, or '#rrggbb' in quotes" in message
    assert not (tmp_path / "wrong").exists()


@pytest.mark.usefixtures("no_page")
def test_a_strip_of_twenty_thousand_pixels_is_labeled_like_any_picture(tmp_path, arguments, monkeypatch):
    Image.new("RGB", (20_000, 1), "red").save(tmp_path / "images" / "strip.png")
    Image.new("RGB", (16, 16), "red").save(tmp_path / "images" / "square.png")
    resize, sizes = geometry.interpolate, []
    monkeypatch.setattr(
        geometry, "interpolate", lambda images, size, **more: sizes.append(size) or resize(images, size, **more)
    )
    main(arguments(prior="none"))
    rows = {row["path"]: row["confidence"] for row in rows_of(tmp_path / "out")}
    assert rows["strip.png"] == rows["square.png"]
    assert max(width * height for width, height in sizes) <= 17 * 16 * 16


@pytest.mark.usefixtures("no_page")
def test_the_models_logit_scale_is_used(tmp_path, arguments):
    main(arguments(prior="none"))
    sharper = save_clip(tmp_path / "sharper", scale=40.0)
    main(arguments(prior="none", model=sharper, out=tmp_path / "sharp", features=tmp_path / "out" / "features"))
    before, after = ([float(row["confidence"]) for row in rows_of(tmp_path / out)] for out in ("out", "sharp"))
    gaps = [np.log(np.array(each) / (1 - np.array(each))) for each in (before, after)]
    np.testing.assert_allclose(gaps[1], 4 * gaps[0], rtol=1e-3)


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


def test_imagenets_names_differ_and_its_prompts_are_open_clips():
    listed = class_list("imagenet")
    classes, prompts = listed.names, [prompt.text for (prompt,) in listed.prompts]
    assert len(set(classes)) == len(prompts) == 1000
    assert (classes[0], prompts[0]) == ("tench", "tench")
    assert [(classes[k], prompts[k]) for k in (657, 744)] == [
        ("missile (657)", "missile"),
        ("missile (744)", "missile"),
    ]


def test_templates_have_names():
    assert [len(read_templates(name)) for name in ("simple", "openai")] == [7, 80]


def work(rank: int, port: int, folder: Path, *commands: list[str]) -> None:
    """What torchrun starts: some commands, and what each process has read of tar files."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    features.SHARD_SIZE = 4
    label._page = lambda *_: ""
    opened: set[str] = set()
    read = shards.read_member
    shards.read_member = lambda member: opened.add(Path(member.shard.path).name) or read(member)
    for command in commands:
        main(command)
        (folder / f"opened_{rank}.json").write_text(json.dumps(sorted(opened)))


@pytest.mark.usefixtures("no_page")
def test_two_processes_do_what_one_does(tmp_path, images, arguments):
    main(arguments(features=tmp_path / "one", out=tmp_path / "alone"))
    broken = tmp_path / "images_broken"
    (paint_images(broken)[5]).write_bytes(b"no image")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    good = arguments(features=tmp_path / "two", out=tmp_path / "together")
    for number, part in enumerate((images[:6], images[6:8], images[8:])):
        with tarfile.open(tmp_path / f"x-{number}.tar", "w") as tar:
            for path in part:
                tar.add(path, path.relative_to(tmp_path / "images").as_posix())
    packed = arguments(features=tmp_path / "four", out=tmp_path / "packed", images=tmp_path / "x-{0..2}.tar")
    bad = arguments(features=tmp_path / "three", out=tmp_path / "broken", images=broken)
    # The same images elsewhere, with other times and names, and one more at the front: their features are kept.
    shutil.copytree(tmp_path / "images", tmp_path / "more", copy_function=shutil.copyfile)
    (tmp_path / "more" / "ant").rename(tmp_path / "more" / "emmet")
    Image.new("RGB", (20, 16), "red").save(tmp_path / "more" / "0.png")
    shutil.copytree(tmp_path / "one", tmp_path / "older")
    main(arguments(features=tmp_path / "older", out=tmp_path / "one_more", images=tmp_path / "more"))
    joined = arguments(features=tmp_path / "two", out=tmp_path / "two_more", images=tmp_path / "more")
    context = start_ranks(work, port, tmp_path, good, joined, packed, bad)
    processes = [process for process in context.processes if process is not None]
    for process in processes:
        process.join()
    for number, kind in itertools.product(range(3), ("content", "shard")):
        name, later = (f"{kind}_{number:05d}.{rest}" for rest in ("npy", "1.npy"))
        assert (tmp_path / "older" / later).read_bytes() == (tmp_path / "two" / later).read_bytes()
        assert not (tmp_path / "two" / name).exists()
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "four" / name).read_bytes()
    assert (tmp_path / "alone" / "probs.npy").read_bytes() == (tmp_path / "packed" / "probs.npy").read_bytes()
    # Features are made in groups of four images: the first of three is one process's, the others are the other's.
    opened = [json.loads((tmp_path / f"opened_{rank}.json").read_text()) for rank in range(2)]
    assert opened == [["x-0.tar"], ["x-0.tar", "x-1.tar", "x-2.tar"]]
    for name in ("labels.csv", "probs.npy"):
        assert (tmp_path / "alone" / name).read_bytes() == (tmp_path / "together" / name).read_bytes()
    assert [process.exitcode for process in processes] == [2, 2]
    made = sorted(path.name for path in (tmp_path / "three").glob("shard_*.npy"))
    assert made == ["shard_00000.npy", "shard_00002.npy"]


COLORS = {"cherry": (200, 40, 40), "grass": (40, 180, 60), "sky": (60, 110, 220)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> str:
    """A model that has learned the names of three colors, and prefers the first of them."""
    folder = tmp_path_factory.mktemp("trained")
    clip = load_clip(save_clip(folder), None, torch.device("cpu"))
    network = clip.network.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    tokens, random = open_clip.tokenize([f"a photo of a {name}." for name in COLORS], 16), torch.Generator()
    colors = torch.tensor([*COLORS.values()]).view(3, 3, 1, 1) / 255
    mean, std = (torch.tensor(PREPROCESSING[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(60):
            labels = torch.randint(3, (24,), generator=random.manual_seed(len(COLORS) + _))
            images = (colors[labels] + 0.15 * torch.randn(24, 3, 16, 16)).clamp(0, 1)
            seen = network.encode_image((images - mean) / std, normalize=True)
            said = network.encode_text(tokens, normalize=True)
            loss = torch.nn.functional.cross_entropy(10 * seen @ said.T, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    network.logit_scale.data.fill_(10.0).log_()
    save_file(
        {name: each.contiguous() for name, each in network.state_dict().items()}, folder / "open_clip_model.safetensors"
    )
    return f"local-dir:{folder}"


def test_a_trained_model_labels_most_images_rightly(tmp_path, trained, arguments, capsys):
    """From images to a page, with truth from a file; the second time no image is read."""
    random, lines = np.random.default_rng(0), ["path,label"]
    (tmp_path / "colors").mkdir()
    for i in range(45):
        name = [*COLORS][i % 3]
        pixels = np.array(COLORS[name]) + random.normal(scale=40, size=(16, 20, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "colors" / f"{i}.png")
        lines.append(f"{i}.png,{name}")
    (tmp_path / "truth.csv").write_text("\n".join(lines))
    (tmp_path / "colors.txt").write_text("\n".join(COLORS))
    given = {"images": tmp_path / "colors", "classes": tmp_path / "colors.txt", "model": trained}
    given |= {"truth": tmp_path / "truth.csv", "templates": "openai"}
    main(arguments(**given))
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    right = [row["label"] == [*COLORS][int(row["path"].split(".")[0]) % 3] for row in rows_of(tmp_path / "out")]
    assert summary["debiased"]["accuracy"] == pytest.approx(np.mean(right)) and np.mean(right) > 0.9
    assert "Against the truth" in (tmp_path / "out" / "report.html").read_text()
    before = (tmp_path / "out" / "labels.csv").read_bytes()
    for path in (tmp_path / "colors").iterdir():
        stat = path.stat()
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    main([*arguments(**given), "--overwrite"])
    assert (tmp_path / "out" / "labels.csv").read_bytes() == before
