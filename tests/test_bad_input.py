"""Files as they are found in the wild: each is read as it is meant, skipped as documented, or told in two lines."""

import csv
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import refused, run
from launched import DIGITS
from PIL import Image
from small_clip import paint_images, save_clip

from debias_ssl import evaluate, label, predict, report, train
from debias_ssl.data.config import DataConfig
from debias_ssl.data.reading.cache import without_unreadable
from debias_ssl.data.reading.decode import decode
from debias_ssl.data.reading.reader import make_reader
from debias_ssl.data.sources.label_files import read_label_file
from debias_ssl.data.sources.listing import find_images
from debias_ssl.debias import main as debias_main
from debias_ssl.finetune.__main__ import main as finetune
from debias_ssl.system.errors import InputError

pytestmark = pytest.mark.usefixtures("cache")


# Images.

RAMP = (np.arange(256).reshape(16, 16) * 257).astype(np.uint16)


def save(path: Path, image: Image.Image, **settings) -> None:
    image.save(path, **settings)


def noise(size: tuple[int, int] = (16, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def jpeg() -> bytes:
    file = io.BytesIO()
    noise().save(file, "JPEG")
    return file.getvalue()


def bomb() -> bytes:
    """A PNG that says that it has 60,000 x 60,000 pixels."""
    file = io.BytesIO()
    noise().save(file, "PNG")
    head = file.getvalue()
    import struct
    import zlib

    size = b"IHDR" + struct.pack(">II", 60_000, 60_000) + head[24:29]
    return head[:12] + size + struct.pack(">I", zlib.crc32(size)) + head[33:]


UNREADABLE = {
    "truncated.jpg": jpeg()[:300],
    "truncated_late.jpg": jpeg()[:-40],
    "empty.jpg": b"",
    "text.jpg": b"this is no image\n",
    "zeros.png": bytes(1000),
    "page.png": b"<html><body>404 Not Found</body></html>",
    "bomb.png": bomb(),
    "head.gif": b"GIF89a",
    "head.tif": b"II*\0\xff\xff\xff\xff",
    "head.webp": b"RIFF\xff\xff\xff\xffWEBPVP8 ",
    "head.bmp": b"BM" + bytes(range(60)),
    "head.pgm": b"P5\n99999999999 2\n255\n",
    "pickle.png": pickle.dumps({"a": 1}),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", UNREADABLE)
def test_images_that_cannot_be_read_are_named(name: str, tmp_path: Path):
    path = tmp_path / name
    path.write_bytes(UNREADABLE[name])
    with pytest.raises(InputError) as error:
        decode(str(path))
    assert repr(str(path)) in str(error.value) and len(str(error.value).splitlines()) <= 2


def test_any_part_of_an_image_is_read_or_refused(tmp_path: Path):
    """Every format, cut anywhere and with bytes changed anywhere."""
    random = np.random.default_rng(0)
    tried = refusals = 0
    for suffix in ("jpg", "png", "gif", "bmp", "tif", "webp", "pgm", "ppm"):
        whole = tmp_path / f"whole.{suffix}"
        noise().convert("L" if suffix == "pgm" else "RGB").save(whole)
        content = whole.read_bytes()
        for _ in range(25):
            broken = bytearray(content[: random.integers(len(content))] if random.random() < 0.5 else content)
            for place in random.integers(len(broken) + 1, size=3):
                if place < len(broken):
                    broken[place] = random.integers(256)
            path = tmp_path / f"broken.{suffix}"
            path.write_bytes(broken)
            tried += 1
            try:
                assert decode(str(path)).mode == "RGB"
            except InputError:
                refusals += 1
            except Warning:
                # Pillow's own words about what it has read all the same; the tests make them errors.
                continue
    assert tried == 200 and 80 < refusals < 200


def test_images_of_every_kind_are_read_as_they_look(tmp_path: Path):
    gray = np.asarray(Image.fromarray((RAMP >> 8).astype(np.uint8)).convert("RGB"))
    save(tmp_path / "16.png", Image.fromarray(RAMP))
    save(tmp_path / "16.tif", Image.fromarray(RAMP))
    save(tmp_path / "32.tif", Image.fromarray(RAMP.astype(np.int32)))
    save(tmp_path / "float.tif", Image.fromarray((RAMP / 65535).astype(np.float32)))
    for name in ("16.png", "16.tif", "32.tif", "float.tif"):
        np.testing.assert_array_equal(np.asarray(decode(str(tmp_path / name))), gray, err_msg=name)
    red = Image.new("RGB", (8, 8), (200, 0, 0))
    save(tmp_path / "cmyk.jpg", red.convert("CMYK"), quality=100)
    assert np.abs(np.asarray(decode(str(tmp_path / "cmyk.jpg"))).astype(int) - [200, 0, 0]).max() < 8
    palette = red.quantize(4)
    save(tmp_path / "palette.png", palette, transparency=b"\x80\x00\xff\xff")
    # Half of it is on white.
    assert (np.asarray(decode(str(tmp_path / "palette.png"))) == [227, 127, 127]).all()
    frames = [Image.new("RGB", (8, 8), color) for color in ((200, 0, 0), (0, 200, 0))]
    save(tmp_path / "animated.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (np.asarray(decode(str(tmp_path / "animated.gif"))) == [200, 0, 0]).all()
    save(tmp_path / "alpha.png", Image.new("RGBA", (8, 8), (200, 0, 0, 0)))
    assert (np.asarray(decode(str(tmp_path / "alpha.png"))) == 255).all()
    save(tmp_path / "bits.png", Image.new("1", (8, 8), 1))
    assert (np.asarray(decode(str(tmp_path / "bits.png"))) == 255).all()


def test_numbers_that_are_none_are_no_image(tmp_path: Path):
    save(tmp_path / "nan.tif", Image.fromarray(np.full((4, 4), np.nan, dtype=np.float32)))
    with pytest.raises(InputError, match="not all numbers"):
        decode(str(tmp_path / "nan.tif"))


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
@pytest.mark.parametrize("crop", ["shift", "resized"])
def test_images_of_any_shape_become_squares(size, crop, tmp_path: Path):
    from debias_ssl.data.sources.images import Images

    save(tmp_path / "a.png", noise(size))
    images = Images(pixels=None, labels=np.zeros(1, dtype=np.int64), names=[str(tmp_path / "a.png")])
    reader = make_reader(images, DataConfig(image_size=8, crop=crop, workers=0), torch.device("cpu"))
    numbers = [torch.tensor([[0.0, 0.5, 0.9, 0.9]]), torch.tensor([[1.0, 1.0, 0.0, 0.0]])]
    first = torch.tensor([0])
    for view in (reader.center(first), *(reader.crops(first, numbers) if crop == "resized" else ())):
        assert view.shape == (1, 8, 8, 3)


def test_hidden_files_are_left_out_and_links_are_not_followed(tmp_path: Path):
    for name in ("a.jpg", "deep/b.JPG", "deep/._b.JPG", "._a.jpg", ".thumbnails/a.jpg", "__MACOSX/._a.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg())
    (tmp_path / "images" / "deep" / "up").symlink_to(tmp_path / "images", target_is_directory=True)
    (tmp_path / "images" / "round.jpg").symlink_to(tmp_path / "images" / "trip.jpg")
    (tmp_path / "images" / "trip.jpg").symlink_to(tmp_path / "images" / "round.jpg")
    (tmp_path / "images" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "images" / "folder.jpg").mkdir()
    names = [Path(path).relative_to(tmp_path / "images").as_posix() for path in find_images(tmp_path / "images")]
    assert names == ["a.jpg", "deep/b.JPG"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="everything may be read here")
def test_an_image_that_may_not_be_read_is_named(tmp_path: Path):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    (tmp_path / "a.jpg").chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        decode(str(tmp_path / "a.jpg"))


ODD = ["two\nlines", "tab\there", 'quote"comma,', "<b>bold", "=1+1", "-flag", "ünïcödé", "trailing "]


def test_images_of_any_name_are_labeled(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(label, "_page", lambda *_: "")
    painted = paint_images(tmp_path / "images", num=4)
    names = [*(name.encode() for name in ODD), b"not \xff utf-8"]
    for i, name in enumerate(names):
        shutil.copyfile(painted[i % 4], os.path.join(os.fsencode(tmp_path / "images"), name + b".png"))
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    model = save_clip(tmp_path / "clip")
    flags = ["--images", str(tmp_path / "images"), "--classes", str(tmp_path / "classes.txt"), "--model", model]
    # Both classes are to be predicted.
    uniform = ["--target_prior", "uniform"]
    label.main([*flags, *uniform, "--out", str(tmp_path / "out"), "--workers", "0", "--precision", "fp32"])
    with (tmp_path / "out" / "labels.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        listed = {row["path"] for row in csv.DictReader(file)}
    assert {os.fsdecode(name + b".png") for name in names} <= listed and len(listed) == 4 + len(names)
    run = tmp_path / "run"
    flags = ["--steps", "1", "--checkpoint_every", "1", "--eval_every", "1", "--out", str(run)]
    train.main(["--config", str(DIGITS), *flags])
    images = str(tmp_path / "images")
    predict.main(["--run", str(run), "--images", images, "--workers", "0", "--out", str(tmp_path / "p.csv")])
    with (tmp_path / "p.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        assert {Path(row["path"]).name for row in csv.DictReader(file)} == {Path(path).name for path in listed}
    # What was written is read again: by the trainer's reader, as a list to label, and as truth.
    painted = {Path(os.path.abspath(tmp_path / "images" / name)) for name in listed}
    for file in (tmp_path / "out" / "labels.csv", tmp_path / "p.csv"):
        assert {Path(os.path.abspath(path)) for path in read_label_file(file, tmp_path / "images").files} == painted
    flags = ["--classes", str(tmp_path / "classes.txt"), "--model", model, "--workers", "0", "--precision", "fp32"]
    flags += ["--images", str(tmp_path / "out" / "labels.csv"), "--root", images, *uniform]
    capsys.readouterr()
    label.main([*flags, "--truth", str(tmp_path / "out" / "labels.csv"), "--out", str(tmp_path / "again")])
    number = len(painted)
    assert f"{number} of {number} rows of {tmp_path / 'out' / 'labels.csv'} matched" in capsys.readouterr().out
    assert (tmp_path / "again" / "labels.csv").read_bytes() == (tmp_path / "out" / "labels.csv").read_bytes()
    assert json.loads((tmp_path / "again" / "summary.json").read_text())["debiased"]["accuracy"] == 1
    data = {"labeled": tmp_path / "out" / "labels.csv", "test": tmp_path / "out" / "labels.csv", "root": images}
    data |= {"name": "folder", "image_size": 8, "labels_per_class": "null", "probs": tmp_path / "out"}
    settings = [f"--data.{name}={value}" for name, value in data.items()]
    flags = ["--steps", "1", "--checkpoint_every", "1", "--eval_every", "1", "--batch_size", "2", *settings]
    train.main(["--config", str(DIGITS), *flags, "--out", str(tmp_path / "assisted")])


def test_unreadable_files_are_skipped_whatever_their_names(tmp_path: Path):
    from debias_ssl.data.sources.images import Images

    (tmp_path / "images").mkdir()
    names = [os.fsencode(tmp_path / "images" / f"{name}.png") for name in ODD] + [
        b"%s/\xff.png" % os.fsencode(tmp_path)
    ]
    for name in names:
        Path(os.fsdecode(name)).write_bytes(b"no image")
    (tmp_path / "good.jpg").write_bytes(jpeg())
    files = [*(os.fsdecode(name) for name in names), str(tmp_path / "good.jpg")]
    images = Images(pixels=None, labels=np.zeros(len(files), dtype=np.int64), names=files)
    for _ in range(2):
        good, bad = without_unreadable(images, DataConfig(), progress=False)
        assert good.names == [str(tmp_path / "good.jpg")] and set(bad) == set(files[:-1])


# The cache of decoded images.


def pixels_of(tmp_path: Path) -> torch.Tensor:
    from debias_ssl.data.sources.images import Images

    files = find_images(tmp_path / "images")
    images = Images(pixels=None, labels=np.zeros(len(files), dtype=np.int64), names=files)
    pixels = make_reader(images, DataConfig(image_size=8), torch.device("cpu"), progress=False).pixels
    assert pixels is not None
    return pixels.clone()


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flipped(content: bytes) -> bytes:
    place = len(content) - 50
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def harmful(content: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("damage", [cut, flipped, harmful, lambda _: b"", lambda content: content + b"more"])
def test_a_damaged_cache_is_made_anew(damage, tmp_path: Path):
    paint_images(tmp_path / "images", num=3)
    expected = pixels_of(tmp_path)
    (cached,) = (tmp_path / "cache").rglob("*.npy")
    content = cached.read_bytes()
    cached.write_bytes(damage(content))
    assert torch.equal(pixels_of(tmp_path), expected) and cached.read_bytes() == content


@pytest.mark.parametrize("content", ["", "[1]", '{"a": 1}', '{"a'])
def test_a_damaged_list_of_unreadable_files_is_made_anew(content, tmp_path: Path):
    from debias_ssl.data.sources.images import Images

    paths = paint_images(tmp_path / "images", num=3)
    paths[1].write_bytes(b"no image")
    images = Images(pixels=None, labels=np.zeros(3, dtype=np.int64), names=[str(path) for path in paths])
    _, expected = without_unreadable(images, DataConfig(), progress=False)
    (cached,) = (tmp_path / "cache").rglob("*.json")
    cached.write_text(content)
    assert (
        without_unreadable(images, DataConfig(), progress=False)[1]
        == expected
        == {str(paths[1]): expected[str(paths[1])]}
    )


# Run folders.


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "a", "--data.validation_per_class", "2")


READ = ("config.yaml", "split.json", "model.json", "model.safetensors", "metrics.jsonl", "summary.json")
DAMAGES = {
    "cut": cut,
    "empty": lambda _: b"",
    "null": lambda _: b"null",
    "list": lambda _: b"[1]",
    "object": lambda _: b"{}",
    "binary": lambda _: bytes(range(256)),
    "flipped": flipped,
}


@pytest.mark.parametrize(
    "kind", [kind if kind == "cut" else pytest.param(kind, marks=pytest.mark.slow) for kind in DAMAGES]
)
@pytest.mark.parametrize("name", READ)
def test_a_damaged_run_folder_is_refused_or_read_without_what_is_damaged(name, kind, finished, tmp_path, capsys):
    folder = tmp_path / kind
    shutil.copytree(finished, folder)
    (folder / name).write_bytes(DAMAGES[kind]((folder / name).read_bytes()))
    jobs = {
        "evaluate": (evaluate.main, ["--run", str(folder), "--out", str(folder / "figures.json")]),
        "report": (report.main, [str(folder)]),
        "resume": (train.main, ["--out", str(folder), "--resume"]),
        "finetune": (finetune, ["--run", str(folder), "--out", str(tmp_path / f"{kind}-tuned")]),
    }
    for title, (job, arguments) in jobs.items():
        try:
            job(arguments)
        except SystemExit as exit_:
            error = capsys.readouterr().err.rpartition("error: ")[2]
            assert exit_.code in (1, 2), (kind, title, error)
            assert 1 <= len(error.splitlines()) <= 2, (kind, title, error)
        except Exception as error:
            raise AssertionError(f"{name} {kind}: {title} ended with {type(error).__name__}: {error}") from error


def test_a_run_whose_data_changed_is_not_resumed(tmp_path: Path, capsys):
    for part, num in (("labeled", 8), ("test", 4)):
        paint_images(tmp_path / part, num=num)
    flags = [f"--data.{part}={tmp_path / part}" for part in ("labeled", "test")]
    flags += ["--data.name=folder", "--data.image_size=8", "--data.labels_per_class=2", "--out", str(tmp_path / "a")]
    base = ["--config", str(DIGITS), "--steps", "4", "--batch_size", "2", "--unlabeled_ratio", "1", *flags]
    train.main(base)
    (tmp_path / "a" / "summary.json").unlink()
    one = sorted((tmp_path / "labeled").rglob("*.png"))[0]
    before = one.read_bytes()
    noise((30, 30)).save(one)
    assert "its fingerprint differs" in refused(train.main, [*base, "--resume"], capsys)
    one.unlink()
    assert "its fingerprint differs" in refused(train.main, [*base, "--resume"], capsys)
    one.write_bytes(before)
    train.main([*base, "--resume"])


# Matrices and the files beside them.


@pytest.fixture
def matrix(tmp_path: Path) -> Path:
    np.save(tmp_path / "logits.npy", np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32))
    return tmp_path / "logits.npy"


def test_any_part_of_a_matrix_is_read_or_refused(matrix: Path, tmp_path: Path, capsys, monkeypatch):
    """Every format, cut and changed anywhere, read as `debias` reads it."""
    import pandas as pd

    from debias_ssl.labels.matrix.predictions import read_predictions

    values, random, refusals = np.load(matrix), np.random.default_rng(0), 0
    frame = pd.DataFrame(values, columns=["a", "b", "c"])
    np.savez(tmp_path / "m.npz", logits=values)
    frame.to_csv(tmp_path / "m.csv", index=False)
    frame.to_parquet(tmp_path / "m.parquet")
    np.save(tmp_path / "m.npy", values)
    for suffix in ("npy", "npz", "csv", "parquet"):
        content = (tmp_path / f"m.{suffix}").read_bytes()
        for _ in range(50):
            broken = bytearray(content[: random.integers(len(content))] if random.random() < 0.5 else content)
            for place in random.integers(len(broken) + 1, size=2):
                if place < len(broken):
                    broken[place] = random.integers(256)
            path = tmp_path / f"broken.{suffix}"
            path.write_bytes(broken)
            try:
                found = read_predictions(path)
                assert found.values.ndim == 2 and all(chunk.isfinite().all() for chunk in found)
            except InputError as error:
                refusals += 1
                assert len(str(error).splitlines()) <= 2
    assert 90 < refusals < 200


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"a\na\nb\n", b'["a", "b"', b"a\n\nb\n", b"a\nb\nc\nd\n"])
@pytest.mark.parametrize("name", ["classes.txt", "classes.json"])
def test_damaged_class_files_are_refused(name, content, matrix: Path, tmp_path: Path, capsys):
    (tmp_path / "files").mkdir()
    path = tmp_path / "files" / name
    path.write_bytes(content)
    flags = ["--predictions", str(matrix), "--classes", str(path), "--out", str(tmp_path / "out")]
    message = refused(debias_main, flags, capsys)
    assert "classes" in message and not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"labeled": 1}', '{"labeled": [0], "unl', "null", "\0"])
def test_damaged_split_files_are_refused(content, tmp_path: Path, capsys):
    (tmp_path / "split.json").write_text(content)
    flags = ["--config", str(DIGITS), "--data.split", str(tmp_path / "split.json"), "--out", str(tmp_path / "a")]
    assert "split.json" in refused(train.main, flags, capsys) and not (tmp_path / "a").exists()


def test_a_setting_that_no_config_has_is_told_with_its_file(tmp_path: Path, capsys):
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("steps: 4\n")
    for text in (
        "stepz: 4\n",
        "data: {naem: digits}\n",
        "steps: many\n",
        "method: {class_path: DebiasPL, init_args: {x: 1}}",
    ):
        bad.write_text(text)
        message = refused(
            train.main, ["--config", str(good), "--config", str(bad), "--out", str(tmp_path / "a")], capsys
        )
        assert message.startswith(f"error: {bad}"), message
    assert str(good) not in refused(train.main, ["--config", str(good), "--stepz", "4"], capsys)


def test_json_of_a_summary_says_what_to_do(finished: Path, tmp_path: Path, capsys):
    folder = tmp_path / "a"
    shutil.copytree(finished, folder)
    (folder / "summary.json").write_text(json.dumps({"ema": {}}))
    assert "remove it" in refused(train.main, ["--out", str(folder), "--resume"], capsys)
