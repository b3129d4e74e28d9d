import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torchvision.datasets.stl10
import torchvision.datasets.svhn

from debias_ssl.contract import Place
from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.folder import find_files
from debias_ssl.data.sources.images import Images, fingerprint
from debias_ssl.data.sources.load import load_data, load_test
from debias_ssl.data.task import make_task
from debias_ssl.system.errors import InputError

Paint = Callable[..., Path]


def short(images: Images, root: Path) -> list[str]:
    return [Path(name).relative_to(root).as_posix() for name in images.names]


def write_rows(path: Path, *rows: str, encoding: str = "utf-8") -> str:
    path.write_text("\n".join(rows) + "\n", encoding=encoding)
    return str(path)


def equal(pixels: np.ndarray | None, expected: np.ndarray) -> bool:
    return pixels is not None and np.array_equal(pixels, expected)


# The embedded digits.


def test_digits_have_a_fixed_test_part_of_every_third_image():
    data = load_data(DataConfig())
    assert data.classes == tuple("0123456789") and data.num_separate == 0
    assert len(data.train) == 1198 and len(data.test) == 599
    numbers = [int(name.removeprefix("digits/")) for name in data.test.names]
    assert numbers == list(range(2, 1797, 3))
    assert sorted([*data.train.names, *data.test.names]) == sorted(f"digits/{i}" for i in range(1797))


def test_digits_are_scaled_from_sixteenths_to_bytes():
    from sklearn.datasets import load_digits

    digits = load_digits(return_X_y=True)
    data = load_data(DataConfig())
    assert data.train.pixels is not None and data.test.pixels is not None
    assert data.train.pixels.shape == (1198, 8, 8, 1) and data.train.pixels.dtype == np.uint8
    # Image 3 of the source is the third training image: 0, 1 and 3 come before 2, which is the first test image.
    assert data.train.labels[2] == digits[1][3] and data.test.labels[0] == digits[1][2]
    np.testing.assert_allclose(data.train.pixels[2].ravel(), digits[0][3] * 255 / 16, atol=0.5)
    assert data.train.pixels.min() == 0 and data.train.pixels.max() == 255


def test_statistics_of_digits_are_those_of_their_training_images():
    data = load_data(DataConfig())
    assert data.train.pixels is not None
    assert data.mean == pytest.approx((data.train.pixels.mean() / 255,), abs=1e-3)
    assert data.std == pytest.approx((data.train.pixels.std() / 255,), abs=1e-3)


def test_given_mean_and_std_beat_the_data_sets():
    data = make_task(DataConfig(mean=(0.25,), std=(0.5,)), seed=0, place=Place(), progress=False).data
    assert (data.mean, data.std) == ((0.25,), (0.5,))


# Folders.


def test_a_tree_is_read_in_the_order_of_class_and_file_names(tree: Path, config: DataConfig):
    data = load_data(config)
    assert data.classes == ("cat", "dog")
    assert short(data.train, tree)[:9] == [
        *(f"labeled/cat/{i}.png" for i in range(4)),
        *(f"labeled/dog/{i}.png" for i in range(5)),
    ]
    assert data.train.labels.tolist() == [0] * 4 + [1] * 5 + [-1] * 6
    assert short(data.test, tree) == ["test/cat/0.png", "test/cat/1.png", "test/dog/2.png", "test/dog/3.png"]
    assert data.test.labels.tolist() == [0, 0, 1, 1]


def test_unlabeled_images_come_last_and_from_any_depth(tree: Path, config: DataConfig):
    data = load_data(config)
    assert data.num_separate == 6
    assert [name.removeprefix("unlabeled/") for name in short(data.train, tree)[-6:]] == [
        *("0.png", "1.png", "a/2.png", "a/3.png", "a/b/4.png", "c/5.png")
    ]


def test_without_an_unlabeled_folder_there_is_no_set_of_its_own(config: DataConfig):
    data = load_data(replace(config, unlabeled=None))
    assert data.num_separate == 0 and len(data.train) == 9


def test_classes_that_are_all_numbers_are_ordered_by_value(tree: Path, config: DataConfig, paint: Paint):
    for part in ("labeled", "test"):
        shutil.rmtree(tree / part)
    for name in ("10", "9", "1", "01"):
        paint(tree / "labeled" / name / "x.png", int(name))
    paint(tree / "test" / "10" / "y.png", 50)
    data = load_data(config)
    assert data.classes == ("01", "1", "9", "10")
    assert data.test.labels.tolist() == [3]
    paint(tree / "labeled" / "x" / "x.png", 60)
    assert load_data(config).classes == ("01", "1", "10", "9", "x")


def test_only_images_count_whatever_the_case_of_their_suffix(tree: Path, config: DataConfig):
    cats = tree / "labeled" / "cat"
    (cats / "notes.txt").write_text("not an image")
    (cats / "folder.png").mkdir()
    (cats / "0.png").rename(cats / "0.PNG")
    (tree / "labeled" / ".thumbnails").mkdir()
    data = load_data(config)
    assert data.classes == ("cat", "dog")
    cats_found = [Path(name).name for name, k in zip(data.train.names, data.train.labels, strict=True) if k == 0]
    assert cats_found == ["0.PNG", "1.png", "2.png", "3.png"]


def test_an_empty_class_folder_is_named(tree: Path, config: DataConfig):
    (tree / "labeled" / "empty").mkdir()
    with pytest.raises(InputError, match=r"data\.labeled: class folder '.*/labeled/empty' has no images"):
        load_data(config)


def test_a_folder_without_class_folders_is_refused(tree: Path, config: DataConfig):
    with pytest.raises(InputError, match=r"data\.test is '.*cat': it must have a folder for each class"):
        load_data(replace(config, test=str(tree / "test" / "cat")))


def test_an_unlabeled_folder_without_images_is_refused(tmp_path: Path, config: DataConfig):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"data\.unlabeled is '.*/empty': it has no images"):
        load_data(replace(config, unlabeled=str(tmp_path / "empty")))


@pytest.mark.parametrize("setting", ["labeled", "unlabeled", "test"])
def test_a_missing_folder_is_named_with_its_setting(config: DataConfig, setting: str):
    with pytest.raises(InputError, match=rf"data\.{setting} is 'nowhere': there is no such folder or file"):
        load_data(replace(config, **{setting: "nowhere"}))


@pytest.mark.parametrize("setting", ["labeled", "test"])
def test_folders_that_are_not_set_are_asked_for(config: DataConfig, setting: str):
    with pytest.raises(InputError, match=r"needs data\.labeled and data\.test"):
        load_data(replace(config, **{setting: None}))


def test_a_class_of_the_test_images_that_no_label_has_is_named(tree: Path, config: DataConfig, paint: Paint):
    paint(tree / "test" / "bird" / "x.png", 0)
    with pytest.raises(InputError, match=r"/test has a class 'bird' that the labeled images do not have: cat, dog"):
        load_data(config)


def test_test_images_may_lack_a_class(tree: Path, config: DataConfig):
    shutil.rmtree(tree / "test" / "cat")
    assert load_data(config).test.labels.tolist() == [1, 1]


def test_test_images_alone_are_numbered_by_the_classes_of_a_model(config: DataConfig):
    alone = replace(config, labeled=None, unlabeled=None)
    assert load_test(alone, ("bird", "dog", "cat")).labels.tolist() == [2, 2, 1, 1]
    with pytest.raises(InputError, match=r"set data\.test"):
        load_test(replace(alone, test=None), ("cat", "dog"))


def test_test_images_of_other_classes_than_the_models_are_refused():
    assert len(load_test(DataConfig(), tuple("0123456789"))) == 599
    with pytest.raises(InputError, match=r"data\.name 'digits' has other classes than the model, such as '0'"):
        load_test(DataConfig(), ("cat", "dog"))
    with pytest.raises(InputError, match=r"has the classes of the model in another order"):
        load_test(DataConfig(), tuple("9876543210"))


# Label files and lists.


@pytest.fixture
def files(tmp_path: Path, paint: Paint) -> Path:
    """A folder with images of inconvenient names, and a tree to test on."""
    for i, name in enumerate(["a.png", "b, c.png", 'say "hi".png', "größe 大.png", "deep/d.png"]):
        paint(tmp_path / "files" / name, i)
    paint(tmp_path / "files" / "test" / "cat" / "t.png", 9)
    return tmp_path / "files"


def of_files(files: Path, labeled: str, **settings) -> DataConfig:
    return DataConfig(name="folder", labeled=labeled, test=str(files / "test"), **settings)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_label_file_may_have_a_mark_quotes_and_further_columns(files: Path, encoding: str):
    labels = write_rows(
        files / "labels.csv",
        "path,split,label",
        "a.png,train,dog",
        '"b, c.png",train,cat',
        '"say ""hi"".png",train, cat ',
        "größe 大.png,train,dog",
        "deep/../deep/d.png,train,größe",
        encoding=encoding,
    )
    data = load_data(of_files(files, labels))
    assert data.classes == ("cat", "dog", "größe")
    assert short(data.train, files) == ["a.png", "b, c.png", 'say "hi".png', "größe 大.png", "deep/d.png"]
    assert data.train.labels.tolist() == [1, 0, 0, 1, 2]


def test_a_label_file_may_have_the_line_ends_of_any_system(files: Path):
    (files / "labels.csv").write_bytes(b"path,label\r\na.png,cat\r\n\r\ndeep/d.png,dog\r\n")
    data = load_data(of_files(files, str(files / "labels.csv")))
    assert short(data.train, files) == ["a.png", "deep/d.png"] and data.classes == ("cat", "dog")


def test_paths_are_relative_to_the_root_where_one_is_given(files: Path, tmp_path: Path):
    labels = write_rows(tmp_path / "labels.csv", "path,label", "deep/d.png,cat", f"{files}/a.png,cat")
    listed = write_rows(tmp_path / "list.txt", "b, c.png")
    data = load_data(of_files(files, labels, root=str(files), unlabeled=listed))
    assert short(data.train, files) == ["deep/d.png", "a.png", "b, c.png"]


@pytest.mark.parametrize("name", ["../secret.png", "deep/../../secret.png", "{outside}"])
@pytest.mark.parametrize("root", [None, "files"])
def test_paths_cannot_leave_the_root(
    files: Path, tmp_path: Path, paint: Paint, name: str, root: str | None, monkeypatch: pytest.MonkeyPatch
):
    outside = str(paint(tmp_path / "secret.png", 5))
    # Also with a relative root, where the parent of a label file is ".".
    monkeypatch.chdir(tmp_path if root else files)
    labels = write_rows(files / "labels.csv", "path,label", "a.png,cat", f"{name.format(outside=outside)},cat")
    config = of_files(files, labels if root else "labels.csv", root=root)
    with pytest.raises(
        InputError,
        match=r"labels\.csv, line 3: '.*secret\.png' lies outside .*; to read files there, set data\.root to",
    ):
        load_data(config)


def test_a_listed_file_that_is_not_there_is_named(files: Path):
    labels = write_rows(files / "labels.csv", "path,label", "a.png,cat", "gone.png,cat")
    with pytest.raises(InputError, match=r"labels\.csv, line 3: there is no file '.*gone\.png'"):
        load_data(of_files(files, labels))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["thing,label", "a.png,cat"], "the first line must name the columns, path and label"),
        (["path,Klasse", "a.png,cat"], r"must name the columns, path and label; it is \['path', 'Klasse'\]"),
        ([], "the first line must name the columns; it is empty"),
        (["path,label"], "lists no images"),
        (["path,label", "a.png,cat", "deep/d.png,"], r"deep/d\.png has no label"),
        (["path,label", "a.png"], r"a\.png has no label"),
        # A row that ends before the path.
        (["label,path", "cat,a.png", "cat"], "line 3: there is no path"),
    ],
)
def test_a_label_file_that_lacks_something_is_refused_by_name(files: Path, rows: list[str], message: str):
    labels = write_rows(files / "labels.csv", *rows)
    with pytest.raises(InputError, match=message) as caught:
        load_data(of_files(files, labels))
    assert "labels.csv" in str(caught.value)


def test_a_label_file_that_is_no_text_is_refused_by_name(files: Path):
    with pytest.raises(InputError, match=r"a\.png is not text"):
        load_data(of_files(files, str(files / "a.png")))


def test_unlabeled_rows_may_have_labels(files: Path):
    labels = write_rows(files / "labels.csv", "path,label", "a.png,cat", "deep/d.png,dog")
    rows = ["path,label", "größe 大.png,dog", "a.png,", '"b, c.png"']
    unlabeled = write_rows(files / "unlabeled.csv", *rows)
    data = load_data(of_files(files, labels, unlabeled=unlabeled))
    assert (data.num_shared, data.num_separate) == (1, 2)
    assert data.train.labels.tolist() == [1, 0, 1, -1]


def test_unlabeled_rows_need_no_label_column(files: Path):
    labels = write_rows(files / "labels.csv", "path,label", "a.png,cat")
    unlabeled = write_rows(files / "unlabeled.CSV", "path", "deep/d.png", "a.png")
    data = load_data(of_files(files, labels, unlabeled=unlabeled))
    # An image that is in both lists is one image.
    assert short(data.train, files) == ["a.png", "deep/d.png"] and (data.num_shared, data.num_separate) == (1, 1)
    assert data.train.labels.tolist() == [0, -1]


def test_an_unlabeled_row_of_another_class_is_refused(files: Path):
    labels = write_rows(files / "labels.csv", "path,label", "a.png,cat")
    unlabeled = write_rows(files / "unlabeled.csv", "path,label", "deep/d.png,bird")
    with pytest.raises(InputError, match=r"unlabeled\.csv has a class 'bird'"):
        load_data(of_files(files, labels, unlabeled=unlabeled))


def test_unlabeled_images_may_be_a_list_of_paths(files: Path):
    labels = write_rows(files / "labels.csv", "path,label", "a.png,cat")
    listed = write_rows(files / "list.txt", "deep/d.png", "", "  b, c.png ", 'say "hi".png', encoding="utf-8-sig")
    data = load_data(of_files(files, labels, unlabeled=listed))
    assert short(data.train, files)[1:] == ["deep/d.png", "b, c.png", 'say "hi".png']
    assert data.train.labels[1:].tolist() == [-1, -1, -1]


def test_files_to_predict_have_no_labels_even_if_their_list_has(files: Path):
    rows = write_rows(files / "labels.csv", "path,label", "deep/d.png,cat")
    assert find_files(rows, "--images").labels.tolist() == [-1]
    with pytest.raises(InputError, match=r"--images is 'nowhere'"):
        find_files("nowhere", "--images")


# Fingerprints.


def test_fingerprint_is_that_of_a_copy_elsewhere(
    tree: Path, config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mark = fingerprint(load_data(config).train)
    shutil.copytree(tree, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    # Relative and absolute paths may be mixed.
    moved = replace(config, labeled="labeled", unlabeled=str(tmp_path / "copy" / "unlabeled"))
    assert fingerprint(load_data(moved).train) == mark
    monkeypatch.chdir(tmp_path / "copy" / "labeled")
    assert fingerprint(load_data(replace(config, labeled=".", unlabeled="../unlabeled")).train) == mark


def test_fingerprint_changes_with_name_size_label_and_number_of_files(tree: Path, config: DataConfig, paint: Paint):
    cats, marks = tree / "labeled" / "cat", []

    def mark() -> None:
        marks.append(fingerprint(load_data(config).train))

    mark()
    (cats / "0.png").rename(cats / "00.png")
    mark()
    (cats / "00.png").write_bytes((cats / "00.png").read_bytes() + b"\0")
    mark()
    (cats / "3.png").rename(tree / "labeled" / "dog" / "x.png")
    mark()
    paint(tree / "unlabeled" / "new.png", 9)
    mark()
    assert len(set(marks)) == 5


def test_fingerprint_of_a_label_file_changes_with_a_label(files: Path):
    marks = set()
    for label in ("cat", "dog"):
        labels = write_rows(files / "labels.csv", "path,label", "a.png,cat", "deep/d.png,dog", f"b, c.png,{label}")
        (files / "labels.csv").write_text(Path(labels).read_text().replace("b, c.png", '"b, c.png"'))
        marks.add(fingerprint(load_data(of_files(files, labels)).train))
    assert len(marks) == 2


def test_fingerprint_of_arrays_changes_with_a_pixel_and_a_label():
    images = load_data(DataConfig()).train
    assert images.pixels is not None
    pixels, labels = images.pixels.copy(), images.labels.copy()
    same = replace(images, pixels=pixels, labels=labels)
    assert fingerprint(same) == fingerprint(images)
    pixels[7, 3, 3] += 1
    assert fingerprint(replace(images, pixels=pixels)) != fingerprint(images)
    labels[7] += 1
    assert fingerprint(replace(images, labels=labels)) != fingerprint(images)


# torchvision's sets, in the formats in which they are distributed.


@pytest.mark.parametrize("name", ["CIFAR10", "CIFAR100", "STL10", "SVHN", "FashionMNIST"])
def test_a_set_that_is_not_there_is_told_in_one_line_with_the_mend(tmp_path: Path, name: str):
    with pytest.raises(InputError) as caught:
        load_data(DataConfig(name=name, root=str(tmp_path)))
    expected = f"{name} cannot be read from '{tmp_path}': pass --data.download true, or another --data.root"
    assert str(caught.value) == expected


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sizes = np.array(array.shape, dtype=">i4").tobytes()
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_fashion_mnist_gets_a_channel(tmp_path: Path):
    raw, pixels = tmp_path / "FashionMNIST" / "raw", noise(5, 28, 28)
    for part, chosen in (("train", slice(3)), ("t10k", slice(3, 5))):
        write_idx(raw / f"{part}-images-idx3-ubyte", pixels[chosen])
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.array([9, 0, 4, 7, 7], dtype=np.uint8)[chosen])
    data = load_data(DataConfig(name="FashionMNIST", root=str(tmp_path)))
    assert data.classes[0] == "T-shirt/top" and len(data.classes) == 10
    assert equal(data.train.pixels, pixels[:3, ..., None])
    assert equal(data.test.pixels, pixels[3:, ..., None])
    assert data.train.labels.tolist() == [9, 0, 4] and data.test.labels.tolist() == [7, 7]
    assert data.test.names == ["FashionMNIST/test/0", "FashionMNIST/test/1"]


def test_svhn_has_its_channels_last_and_its_zero_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # torchvision compares with the hash of the real files.
    monkeypatch.setattr(torchvision.datasets.svhn, "check_integrity", lambda path, md5=None: os.path.isfile(path))
    pixels = noise(4, 32, 32, 3)
    for part, chosen in (("train", slice(2)), ("test", slice(2, 4))):
        content = {"X": pixels[chosen].transpose(1, 2, 3, 0), "y": np.array([[10], [1], [2], [10]])[chosen]}
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", content)
    data = load_data(DataConfig(name="SVHN", root=str(tmp_path)))
    assert not data.flips
    assert equal(data.train.pixels, pixels[:2]) and equal(data.test.pixels, pixels[2:])
    assert data.train.labels.tolist() == [0, 1] and data.test.labels.tolist() == [2, 0]
    assert data.classes == tuple("0123456789")


@pytest.fixture
def stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[DataConfig, np.ndarray]:
    monkeypatch.setattr(torchvision.datasets.stl10, "check_integrity", lambda path, md5=None: os.path.isfile(path))
    folder, pixels = tmp_path / "stl10_binary", noise(8, 96, 96, 3)
    folder.mkdir()
    # The files hold channels first, and columns before rows.
    for part, chosen in (("train", slice(3)), ("test", slice(3, 5)), ("unlabeled", slice(5, 8))):
        pixels[chosen].transpose(0, 3, 2, 1).tofile(folder / f"{part}_X.bin")
        if part != "unlabeled":
            np.array([1, 10, 2, 3, 10], dtype=np.uint8)[chosen].tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"class {k}" for k in range(10)))
    (folder / "fold_indices.txt").write_text("0 1 \n0 2 \n")
    return DataConfig(name="STL10", root=str(tmp_path)), pixels


def test_stl10_has_its_unlabeled_images_apart(stl10: tuple[DataConfig, np.ndarray]):
    config, pixels = stl10
    data = load_data(config)
    assert equal(data.train.pixels, pixels[[0, 1, 2, 5, 6, 7]])
    assert equal(data.test.pixels, pixels[3:5])
    assert data.train.labels.tolist() == [0, 9, 1, -1, -1, -1] and data.num_separate == 3
    assert data.test.labels.tolist() == [2, 9]
    assert data.classes == tuple(f"class {k}" for k in range(10))


def test_a_fold_of_stl10_chooses_its_labeled_images(stl10: tuple[DataConfig, np.ndarray]):
    config, pixels = stl10
    data = load_data(replace(config, fold=1))
    assert equal(data.train.pixels, pixels[[0, 2, 5, 6, 7]])
    assert data.train.labels.tolist() == [0, 1, -1, -1, -1]


# Settings and lists of images.


@pytest.mark.parametrize(
    "settings",
    [
        {"fold": 10},
        {"fold": -1},
        {"image_size": 0},
        {"image_size": -32},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 0.2)},
        {"crop_scale": (0.5, 1.5)},
        {"std": (0.2, 0.0, 0.2)},
        {"workers": -1},
        {"labels_per_class": 0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(settings: dict):
    with pytest.raises(InputError, match=f"data.{next(iter(settings))} is "):
        DataConfig(**settings)


def test_parts_and_sums_of_images_keep_pixels_labels_and_names_together():
    pixels = noise(4, 2, 2, 1)
    images = Images(pixels=pixels, labels=np.array([3, 1, -1, 0]), names=["a", "b", "c", "d"])
    joined = images.part([2, 0]) + images.part(slice(3, None))
    assert equal(joined.pixels, pixels[[2, 0, 3]])
    assert joined.labels.tolist() == [-1, 3, 0] and joined.names == ["c", "a", "d"]
    assert len(images.part(slice(4, None))) == 0
