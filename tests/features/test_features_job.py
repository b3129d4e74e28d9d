"""`debias-ssl features`: made once by any network, with the same bits however; views are a function of the image."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from launched import Launched
from PIL import Image
from safetensors.torch import save_file
from small_clip import paint_images, save_clip

from debias_ssl import label
from debias_ssl.data.augment.config import AugmentConfig
from debias_ssl.data.augment.views import num_numbers, strong, weak
from debias_ssl.data.reading.contents import content_of
from debias_ssl.data.reading.decode import decode, decoded
from debias_ssl.data.reading.features import ViewKind, find_features, view_folder
from debias_ssl.data.sampling import keyed
from debias_ssl.features import embedding, preparing
from debias_ssl.features.__main__ import main
from debias_ssl.features.store import FolderStore
from debias_ssl.features.views import of_contents
from debias_ssl.models.encoders import TimmEncoder, load_encoder

CPU = torch.device("cpu")
VIEWS = ["weak_0", "weak_1", "strong_0", "strong_1"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    save_file(timm.create_model("test_efficientnet").state_dict(), path)
    return str(path)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.setattr(embedding, "SHARD_SIZE", 4)
    return paint_images(tmp_path / "images")


@pytest.fixture
def flags(tmp_path: Path, weights: str) -> list[str]:
    """A command line without --out."""
    given = {"images": tmp_path / "images", "model": "timm:test_efficientnet", "weights": weights}
    given |= {"image_size": 32, "workers": 0, "precision": "fp32", "batch_size": 3}
    return [text for name, value in given.items() for text in (f"--{name}", str(value))]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches that pass through the network."""
    sizes, encode = [], TimmEncoder.encode
    monkeypatch.setattr(TimmEncoder, "encode", lambda self, batch: sizes.append(len(batch)) or encode(self, batch))
    return sizes


def bytes_in(folder: Path) -> dict[str, bytes]:
    """All files of features, views included; the manifest says nothing of who made them."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(files)}


def spoil(path: Path) -> None:
    """Overwrites a file so that nothing but reading it would tell."""
    stat = path.stat()
    path.write_bytes(b"?" * stat.st_size)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def refused(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_a_second_run_reads_no_image_and_says_so(flags, images: list[Path], tmp_path: Path, encoded, capsys):
    out = tmp_path / "out"
    main([*flags, "--out", str(out)])
    said = capsys.readouterr().out
    assert f"features of 10 images in {out}: 256 numbers each, shards: 3; 0 images had theirs before" in said
    assert f"debias-ssl train --config FILE --data.features '[{out}]'" in said
    before = bytes_in(out)
    assert find_features([str(out)], [str(images[0])]).shape == (1, 256)
    for path in images:
        spoil(path)
    encoded.clear()
    main([*flags, "--out", str(out)])
    assert "10 images had theirs before" in capsys.readouterr().out
    assert bytes_in(out) == before and not encoded


def test_of_clip_label_takes_them_and_reads_no_image(images: list[Path], tmp_path: Path, monkeypatch, cache):
    monkeypatch.setattr(label, "_page", lambda *_: "")
    (tmp_path / "classes.txt").write_text("ant\nbee\n")
    common = ["--images", str(tmp_path / "images"), "--model", save_clip(tmp_path / "clip")]
    common += ["--workers", "0", "--precision", "fp32"]
    main([*common, "--out", str(tmp_path / "kept")])
    labeled = [*common, "--classes", str(tmp_path / "classes.txt")]
    label.main([*labeled, "--out", str(tmp_path / "own")])
    before = bytes_in(tmp_path / "kept")
    assert before == bytes_in(tmp_path / "own" / "features")
    for path in images:
        spoil(path)
    label.main([*labeled, "--out", str(tmp_path / "labels"), "--features", str(tmp_path / "kept")])
    assert (tmp_path / "labels" / "labels.csv").read_bytes() == (tmp_path / "own" / "labels.csv").read_bytes()
    assert bytes_in(tmp_path / "kept") == before


# Views.


def test_views_are_those_of_the_trainer_with_numbers_of_the_content(flags, images, tmp_path: Path, weights: str):
    out = tmp_path / "out"
    main([*flags, "--views", "2", "--seed", "5", "--out", str(out)])
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == sorted(VIEWS)
    encoder = load_encoder("timm:test_efficientnet", CPU, weights=weights, image_size=32)
    pixels = torch.stack([encoder.preprocess(decode(str(path))) for path in images])
    contents = torch.from_numpy(np.stack([content_of(str(path)) for path in images]))
    config = AugmentConfig(flip=True)
    for number in range(2):
        numbers = of_contents(5, keyed.Purpose.WEAK_VIEW + number, contents, 3)
        numbers_strong = of_contents(5, keyed.Purpose.STRONG_VIEW + number, contents, num_numbers(config))
        made: dict[ViewKind, torch.Tensor] = {
            "weak": weak(pixels, numbers, config),
            "strong": strong(pixels, numbers_strong, config),
        }
        for kind, seen in made.items():
            found = find_features([str(view_folder(out, kind, number))], [str(path) for path in images])
            expected = encoder.encode(seen)
            torch.testing.assert_close(torch.from_numpy(found).float(), expected, atol=5e-3, rtol=5e-3)
    plain = find_features([str(out)], [str(path) for path in images])
    values = [find_features([str(out / name)], [str(path) for path in images]) for name in VIEWS]
    assert all((one != other).any() for k, one in enumerate([plain, *values]) for other in [plain, *values][:k])


def test_numbers_of_a_content_are_philox_at_its_hash():
    contents = torch.tensor([[7 + (9 << 32), 1], [-1, 1]])
    found = of_contents(3, 2001, contents, 6)
    # Position 7 and step 9, as training has them.
    assert found[0].equal(keyed.uniform(3, 2001, 9, torch.tensor([7]), 6)[0])
    assert found[1].equal(keyed.uniform(3, 2001, keyed.WORD, torch.tensor([keyed.WORD]), 6)[0])


def test_each_image_is_decoded_once_for_all_of_its_views(flags, images, tmp_path: Path, monkeypatch, encoded):
    files = []
    monkeypatch.setattr(preparing, "decoded", lambda path, *rest: files.append(path) or decoded(path, *rest))
    main([*flags, "--views", "2", "--out", str(tmp_path / "out")])
    assert sorted(files) == sorted(map(str, images)) and sum(encoded) == 50
    # More of them later: what is there stays.
    before = bytes_in(tmp_path / "out")
    encoded.clear()
    main([*flags, "--views", "3", "--out", str(tmp_path / "out")])
    assert sum(encoded) == 20 and before.items() <= bytes_in(tmp_path / "out").items()


def test_moved_and_appended_images_keep_their_views(flags, images, tmp_path: Path, encoded):
    main([*flags, "--views", "1", "--out", str(tmp_path / "out")])
    folders = [tmp_path / "out", *(tmp_path / "out" / f"{kind}_0" for kind in ("weak", "strong"))]
    before = [find_features([str(folder)], list(map(str, images))) for folder in folders]
    moved = tmp_path / "moved"
    (tmp_path / "images").rename(moved)
    (moved / "ant").rename(moved / "emmet")
    Image.new("RGB", (20, 16), "red").save(moved / "new.png")
    paths = [str(moved / path.relative_to(tmp_path / "images")).replace("/ant/", "/emmet/") for path in images]
    encoded.clear()
    main([*flags, "--images", str(moved), "--views", "1", "--out", str(tmp_path / "out")])
    assert encoded == [1, 1, 1], "the new image and its views"
    for folder, rows in zip(folders, before, strict=True):
        assert (find_features([str(folder)], paths) == rows).all()
    # In another list, beside others, an image has the same views.
    main([*flags, "--images", str(moved / "emmet"), "--views", "1", "--out", str(tmp_path / "part")])
    some = [path for path in paths if "/emmet/" in path]
    for name in ("weak_0", "strong_0"):
        one, other = (find_features([str(tmp_path / each / name)], some) for each in ("part", "out"))
        np.testing.assert_allclose(one, other, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize(
    ("changed", "kept"),
    [("--seed=1", []), ("--data.augment.shift=0.25", []), ("--data.augment.num_ops=1", ["weak_0"])],
)
def test_views_of_other_settings_are_refused(flags, images, tmp_path: Path, changed, kept, capsys):
    out = tmp_path / "out"
    main([*flags, "--views", "1", "--out", str(out)])
    before = bytes_in(out)
    name = changed.partition("=")[0].rpartition(".")[2].removeprefix("--")
    said = refused([*flags, "--views", "1", changed, "--out", str(out)], capsys)
    place = out / ("strong_0" if kept else "weak_0")
    assert f"{str(place)!r} holds features of other views ({name} differ): choose another folder with --out" in said
    assert bytes_in(out) == before


# However they are made.


@pytest.mark.parametrize("views", [0, 1])
def test_a_kill_loses_at_most_one_shard(flags, images, tmp_path: Path, monkeypatch, encoded, views: int):
    arguments = [*flags, "--views", str(views)]
    main([*arguments, "--out", str(tmp_path / "whole")])
    expected, each = bytes_in(tmp_path / "whole"), 1 + 2 * views
    write: Callable = FolderStore.write
    for after in range(3 * each):
        calls, out = iter(range(100)), tmp_path / f"killed_{after}"

        def killed(self: FolderStore, number: int, rows: Any, calls=calls, after=after) -> None:
            if next(calls) == after:
                raise KeyboardInterrupt
            write(self, number, rows)

        with monkeypatch.context() as patched, pytest.raises(SystemExit):
            patched.setattr(FolderStore, "write", killed)
            main([*arguments, "--out", str(out)])
        encoded.clear()
        main([*arguments, "--out", str(out)])
        # Ten images in shards of four; what was written of a shard is not made again.
        assert sum(encoded) == sum(([4] * each + [4] * each + [2] * each)[after:])
        assert bytes_in(out) == expected
        shutil.rmtree(out)


def test_two_processes_and_workers_write_the_same_bytes(tmp_path: Path, flags, weights: str):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(1100):
        Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{i:04}.png")
    base = [*flags, "--views", "1", "--batch_size", "256"]
    two = Launched(2, tmp_path / "two", base=base, job="features.__main__")
    main([*base, "--workers", "1", "--out", str(tmp_path / "one")])
    two.finish()
    assert bytes_in(tmp_path / "one") == bytes_in(tmp_path / "two")
    assert two.log.read_text().count("features of 1,100 images") == 1


def test_a_process_may_come_before_the_first_has_made_the_folder(flags, images, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("debias_ssl.features.__main__.is_first", lambda: False)
    main([*flags, "--out", str(tmp_path / "out")])
    assert (tmp_path / "out" / "manifest.json").exists()


# What is wrong.


def test_images_that_cannot_be_read_stop_or_are_left_out(flags, images, tmp_path: Path, capsys):
    spoil(images[5])
    arguments = [*flags, "--views", "1", "--out", str(tmp_path / "out")]
    assert f"cannot read image {str(images[5])!r}" in refused(arguments, capsys)
    main([*arguments, "--on_error", "skip"])
    said = capsys.readouterr().out
    assert "features of 9 images" in said and "left out 1 files that cannot be read, such as 'bee/1.png'" in said


def test_what_is_no_folder_of_features_is_left_alone(flags, images, tmp_path: Path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("a: 1")
    said = refused([*flags, "--out", str(tmp_path / "out")], capsys)
    assert "holds config.yaml but no features: choose another folder" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["config.yaml"]
    assert "lies in --images" in refused([*flags, "--out", str(tmp_path / "images" / "out")], capsys)


def test_features_of_another_network_are_refused_with_flags_of_this_job(flags, images, tmp_path: Path, capsys):
    main([*flags, "--out", str(tmp_path / "out")])
    said = refused([*flags, "--image_size", "48", "--out", str(tmp_path / "out")], capsys)
    assert "holds features of another model (preprocessing differ): choose another folder with --out, or delete" in said
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["dim"] == 256


def test_features_that_16_bits_cannot_hold_are_none(flags, images, tmp_path: Path, monkeypatch, capsys):
    encode = TimmEncoder.encode
    monkeypatch.setattr(TimmEncoder, "encode", lambda self, batch: encode(self, batch) + 1e5 * torch.eye(256)[7])
    said = refused([*flags, "--out", str(tmp_path / "out")], capsys)
    assert f"the features of {str(images[0])!r} are not finite numbers" in said
