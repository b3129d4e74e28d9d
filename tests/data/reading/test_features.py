import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_folders import write_features

from debias_ssl.contract import Place
from debias_ssl.data.config import DataConfig
from debias_ssl.data.reading.features import find_features
from debias_ssl.data.sources.listing import find_images
from debias_ssl.data.task import Task, make_task
from debias_ssl.methods import CDMAD, DebiasPL, FixMatch
from debias_ssl.system.errors import InputError


def rows(*numbers: int) -> np.ndarray:
    return np.array([[number, 10 * number, 100 * number] for number in numbers], dtype=np.float16)


def test_features_are_found_by_path_in_any_order_and_in_several_folders(tmp_path: Path, monkeypatch):
    one = write_features(tmp_path / "one", tmp_path / "images", ["a.png", "b/c.png", "d.png"], rows(1, 2, 3))
    two = write_features(tmp_path / "two", tmp_path / "more", ["a.png", "e.png"], rows(4, 5))
    paths = [tmp_path / "more/e.png", tmp_path / "images/d.png", tmp_path / "images/a.png", tmp_path / "more/a.png"]
    found = find_features([one, two], [str(path) for path in paths])
    assert found.dtype == np.float16 and found.tolist() == rows(5, 3, 1, 4).tolist()
    monkeypatch.chdir(tmp_path)
    assert find_features([one], ["images/b/../b/c.png"]).tolist() == rows(2).tolist()


def test_the_first_of_several_folders_that_have_an_image_counts(tmp_path: Path):
    folders = [write_features(tmp_path / name, tmp_path, ["a.png"], rows(i)) for i, name in enumerate("xy")]
    assert find_features(folders, [str(tmp_path / "a.png")]).tolist() == rows(0).tolist()


def test_what_is_missing_or_does_not_fit_is_named(tmp_path: Path):
    one = write_features(tmp_path / "one", tmp_path, ["a.png", "b.png", "c.png"], rows(1, 2, 3))
    paths = [str(tmp_path / f"{name}.png") for name in "abc"]
    (tmp_path / "z.png").write_bytes(b"new")
    with pytest.raises(InputError, match=r"one lack features of '.*z\.png': run debias-ssl features or label on"):
        find_features([one], [*paths, str(tmp_path / "z.png")])
    with pytest.raises(InputError, match="holds no features of debias-ssl features or label"):
        find_features([str(tmp_path)], paths)
    other = write_features(tmp_path / "other", tmp_path, ["a.png"], rows(1), model={"model": "b"})
    with pytest.raises(InputError, match="features of different models"):
        find_features([one, other], paths)
    np.save(tmp_path / "one" / "shard_00001.npy", np.full((1, 3), np.nan, np.float16))
    with pytest.raises(InputError, match=r"c\.png' could not be read when its features were made"):
        find_features([one], paths)
    (tmp_path / "one" / "shard_00000.npy").write_bytes(b"\x93NUMPY no more")
    with pytest.raises(InputError, match=r"shard_00000\.npy' is missing or damaged: run debias-ssl features or label"):
        find_features([one], paths)
    (tmp_path / "one" / "manifest.json").write_text("[]")
    with pytest.raises(InputError, match=r"manifest\.json' cannot be read"):
        find_features([one], paths)


def replaced(path: Path) -> None:
    path.write_bytes(b"another picture")


def replaced_by_as_many_bytes(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("change", [replaced, replaced_by_as_many_bytes])
def test_features_of_an_image_that_has_changed_are_refused(change, tmp_path: Path):
    one = write_features(tmp_path / "one", tmp_path, ["a.png", "b.png", "c.png"], rows(1, 2, 3))
    paths = [str(tmp_path / f"{name}.png") for name in "abc"]
    change(tmp_path / "b.png")
    assert find_features([one], paths[::2]).tolist() == rows(1, 3).tolist(), "it is not asked for"
    with pytest.raises(InputError, match=r"b\.png' has changed since its features .* features or label again"):
        find_features([one], paths)


def test_images_of_other_times_are_known_by_their_content(tmp_path: Path):
    one = write_features(tmp_path / "one", tmp_path / "images", ["a.png", "b/a.png", "c.png"], rows(1, 2, 3))
    paths = [tmp_path / "images" / name for name in ("a.png", "b/a.png", "c.png")]
    for path in paths[1:]:
        os.utime(path, ns=(0, 1))
    assert find_features([one], [str(path) for path in paths]).tolist() == rows(1, 2, 3).tolist()
    # All in another folder, too, as a copy without times has them.
    shutil.copytree(tmp_path / "images", tmp_path / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "images")
    copies = [str(tmp_path / "copy" / path.relative_to(tmp_path / "images")) for path in paths]
    assert find_features([one], copies).tolist() == rows(1, 2, 3).tolist()
    # What is not known of a content is no reason to believe it.
    np.save(tmp_path / "one" / "content_00001.npy", np.zeros((1, 2), dtype=np.int64))
    with pytest.raises(InputError, match=r"c\.png' has changed since its features"):
        find_features([one], copies)


def test_features_of_an_earlier_version_are_refused(tmp_path: Path):
    one = write_features(tmp_path / "one", tmp_path, ["a.png"], rows(1), version=2)
    with pytest.raises(InputError, match=r"holds features of another version of .* features or label make new"):
        find_features([one], [str(tmp_path / "a.png")])


def test_features_are_found_where_the_images_were_moved_to(tmp_path: Path):
    names = ["a.png", "b/a.png", "c/a.png"]
    one = write_features(tmp_path / "one", tmp_path / "images", names, rows(1, 2, 3))
    (tmp_path / "images").rename(tmp_path / "moved")
    paths = [str(tmp_path / "moved" / name) for name in names]
    assert find_features([one], paths[::-1]).tolist() == rows(3, 2, 1).tolist()
    # Another image of the same name is not it.
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes(b"another picture")
    with pytest.raises(InputError, match=r"lack features of '.*other/a\.png'"):
        find_features([one], [str(tmp_path / "other" / "a.png")])


def test_images_of_an_archive_are_not_taken_for_others_of_the_same_name(tmp_path: Path):
    """Names, sizes and times may all be the same, as those of train and test trees of one archive."""
    names = ["a/0.png", "a/1.png", "b/0.png"]
    for part, letter in (("train", b"x"), ("test", b"y")):
        for name in names:
            path = tmp_path / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(letter + name.encode())
            os.utime(path, ns=(0, 1_577_836_800 * 10**9))
    folders = [
        write_features(tmp_path / f"of_{part}", tmp_path / part, names, rows(*numbers))
        for part, numbers in (("train", (1, 2, 3)), ("test", (4, 5, 6)))
    ]
    tests = [str(tmp_path / "test" / name) for name in names]
    assert find_features(folders, tests).tolist() == rows(4, 5, 6).tolist()
    # Those of a moved tree are found by what they hold.
    (tmp_path / "train").rename(tmp_path / "elsewhere")
    moved = [str(tmp_path / "elsewhere" / name) for name in names]
    assert find_features(folders, [*moved, *tests]).tolist() == rows(1, 2, 3, 4, 5, 6).tolist()


def test_the_disk_is_not_asked_again_of_images_that_were_listed(tmp_path: Path):
    one = write_features(tmp_path / "one", tmp_path / "images", ["a.png", "b/c.png", "d.png"], rows(1, 2, 3))
    listed = find_images(tmp_path / "images")
    shutil.rmtree(tmp_path / "images")
    assert find_features([one], listed).tolist() == rows(1, 2, 3).tolist()
    assert find_features([one], listed.part(np.array([2, 0]))).tolist() == rows(3, 1).tolist()


@pytest.fixture
def task(tree: Path) -> Task:
    """Of nine labeled images with random features, six unlabeled ones and the test images."""
    names = sorted(str(path.relative_to(tree)) for path in tree.rglob("*.png"))
    values = np.random.default_rng(0).normal(3, 2, (len(names), 5))
    values[:, 4] = 1
    folder = write_features(tree.parent / "features", tree, names, values)
    parts: dict[str, Any] = {part: str(tree / part) for part in ("labeled", "unlabeled", "test")}
    config = DataConfig(name="folder", features=(folder,), **parts)
    return make_task(config, seed=0, place=Place(), progress=False)


def test_features_are_images_of_one_pixel_standardized_over_the_training_images(task: Task):
    assert task.channels == 5 and task.readers["train"].is_resident
    stream = task.training_stream(FixMatch(task.problem(5)), seed=0, batch_size=9, unlabeled_ratio=2, balanced=False)
    batch = next(stream.batches(0, 1))
    assert batch.labeled.shape == (9, 5, 1, 1) and batch.strong[0].shape == (18, 5, 1, 1)
    train = task.readers["train"].pixels
    assert train is not None
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (task.data.mean, task.data.std))
    standard = (train.flatten(1).double() - mean) / std
    zeros, ones = torch.zeros(5, dtype=torch.float64), torch.tensor([1.0] * 4 + [0.0], dtype=torch.float64)
    torch.testing.assert_close(standard.mean(0), zeros, atol=1e-12, rtol=0)
    torch.testing.assert_close(standard.std(0, correction=0), ones, atol=1e-12, rtol=0)
    # A feature that is the same for all images stays finite.
    assert task.data.std[4] == 1 and (batch.labeled[:, 4] == 0).all()
    everything = torch.cat([images for _, images in task.evaluation_stream("test", 3)])
    assert everything.shape == (len(task.data.test), 5, 1, 1)
    # The weak view is the features; the strong one is not.
    standard = standard.float()
    weak, strong = (torch.cdist(view[0].flatten(1), standard).amin(1) for view in (batch.weak, batch.strong))
    assert (weak < 1e-4).all() and (strong > 0.1).all()


def test_a_method_that_asks_for_a_blank_image_is_refused(task: Task):
    for method in (CDMAD(task.problem(5)), DebiasPL(task.problem(5), base=CDMAD)):
        with pytest.raises(InputError, match=r"for a blank image, .* leave out data\.features"):
            task.training_stream(method, seed=0, batch_size=9, unlabeled_ratio=2, balanced=False)
