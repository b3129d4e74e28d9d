"""Labels of `debias-ssl label` are CLIP's without its preference, from features that belong to the images."""

import json
import os
import shutil

import numpy as np
import pytest
from jobs import refused, rows_of
from labeled_folders import expected_logits
from launched import DIGITS
from PIL import Image
from small_clip import paint_images, save_clip
from torchvision.transforms.v2.functional import _geometry as geometry

from debias_ssl import predict, train
from debias_ssl.label import main
from debias_ssl.models.clip import Clip


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
