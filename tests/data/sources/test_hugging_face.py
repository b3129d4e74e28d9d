"""Data sets of Hugging Face: the batches of an image folder of the same images, splits, columns, what is refused."""

import io
import pickle
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hub_datasets import imported, of_files, save_arrow, save_parquet
from PIL import Image
from pyarrow import parquet

from debias_ssl.contract import Batch, Place
from debias_ssl.data.config import DataConfig
from debias_ssl.data.sources.config import SourceConfig
from debias_ssl.data.sources.dataset_rows import folder_of_hf, open_dataset, row_named, rows_of_hf
from debias_ssl.data.sources.hugging_face import read_hf
from debias_ssl.data.sources.images import UNKNOWN
from debias_ssl.data.sources.rows import RowNames
from debias_ssl.data.sources.shard_index import Member
from debias_ssl.data.sources.shards import read_member
from debias_ssl.data.task import Task, make_task
from debias_ssl.methods import FixMatch
from debias_ssl.system.errors import InputError

pytest.importorskip("datasets")
CLASSES = ("cat", "dog")


@pytest.fixture
def photos(tmp_path: Path) -> Callable[[str], list[Path]]:
    """JPEG and PNG files of several sizes in the folders of two classes, in the order of an image folder."""

    def photos(part: str) -> list[Path]:
        paths = []
        for k, (name, num) in enumerate({"cat": 7, "dog": 9}.items()):
            for i in range(num):
                path = tmp_path / "tree" / part / name / f"{i}.{'jpg' if i % 3 else 'png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                random = np.random.default_rng([len(part), k, i])
                Image.fromarray(random.integers(0, 256, (12 + i, 15, 3), dtype=np.uint8)).save(path)
                paths.append(path)
        return paths

    return photos


@pytest.fixture
def splits(photos: Callable[[str], list[Path]]) -> dict[str, list[Path]]:
    return {"train": photos("train"), "test": photos("test")}


@pytest.fixture
def arrow(tmp_path: Path, splits: dict[str, list[Path]]) -> Path:
    return save_arrow(tmp_path / "arrow", splits, CLASSES)


def source(path: Path, tmp_path: Path, **settings: Any) -> SourceConfig:
    return SourceConfig(name="hf", path=str(path), cache=str(tmp_path / "kept"), **settings)


def task_of(config: DataConfig) -> Task:
    return make_task(config, seed=0, place=Place(), progress=False)


def batches_of(task: Task, start: int) -> list[Batch]:
    method = FixMatch(task.problem(num_features=4))
    stream = task.training_stream(method, seed=0, batch_size=4, unlabeled_ratio=2, balanced=False)
    return [*stream.batches(start, 6)]


def same(one: Batch, other: Batch) -> bool:
    pairs = [(one.labeled, other.labeled), (one.labels, other.labels), (one.index, other.index)]
    pairs += [*zip(one.weak, other.weak, strict=True), *zip(one.strong, other.strong, strict=True)]
    return all(torch.equal(a, b) for a, b in pairs)


def bytes_of(names: RowNames) -> list[bytes]:
    return [read_member(name) for name in names if isinstance(name, Member)]


@pytest.mark.parametrize("reading", [{"input": "resident"}, {"input": "streaming"}, {"crop": "resized"}])
@pytest.mark.parametrize("save", [save_arrow, save_parquet])
def test_batches_are_those_of_an_image_folder_bit_for_bit(save, reading: dict[str, Any], splits, tmp_path: Path):
    path, tree = save(tmp_path / "saved", splits, CLASSES), tmp_path / "tree"
    config = DataConfig(image_size=12, labels_per_class=3, workers=0, cache=str(tmp_path / "kept"), **reading)
    folder = task_of(replace(config, name="folder", labeled=str(tree / "train"), test=str(tree / "test")))
    rows = task_of(replace(config, name="hf", path=str(path)))
    assert rows.data.classes == folder.data.classes
    assert (rows.data.train.labels == folder.data.train.labels).all()
    for one, other in zip(batches_of(rows, 0), batches_of(folder, 0), strict=True):
        assert same(one, other)
    # A resumed run goes on with the batches of the unbroken one.
    for one, other in zip(batches_of(rows, 3), batches_of(folder, 0)[3:], strict=True):
        assert same(one, other)
    tested = [next(iter(task.evaluation_stream("test", 50)))[1] for task in (rows, folder)]
    assert torch.equal(*tested)


@pytest.mark.parametrize("num", [1, 3])
def test_images_are_the_bytes_of_the_files_in_any_number_of_arrow_files(num: int, splits, tmp_path: Path):
    path = save_arrow(tmp_path / "arrow", splits, CLASSES, num_shards={"train": num, "test": 1})
    names = open_dataset(str(path), "data.path").rows("train", "data.train_split").names
    assert len(names.shards) == num and names.lengths.tolist() == [file.stat().st_size for file in splits["train"]]
    assert bytes_of(names) == [file.read_bytes() for file in splits["train"]]
    assert [*names] == [f"{path}/train[{i}]" for i in range(16)]
    # Parts, sums and copies that go to other processes are of the same images.
    chosen = RowNames.joined([names.part(np.array([5, 2])), names.part(np.array([15]))])
    assert [*chosen] == [names[5], names[2], names[15]] and names[2:4] == [names[2], names[3]]
    assert bytes_of(pickle.loads(pickle.dumps(chosen))) == [splits["train"][i].read_bytes() for i in (5, 2, 15)]
    member: Any = pickle.loads(pickle.dumps(names[3]))
    assert member == names[3] and read_member(member) == splits["train"][3].read_bytes()


def test_memory_does_not_grow_with_the_images(tmp_path: Path):
    datasets = imported()
    pixels = [bytes(2**20)] * 48
    dataset = datasets.Dataset.from_dict({"image": pixels, "label": ["a"] * 48})
    dataset.to_parquet(tmp_path / "large.parquet")
    del pixels, dataset
    opened = open_dataset(str(tmp_path / "large.parquet"), "data.path", cache=str(tmp_path / "kept"))
    tracemalloc.start()
    rows = opened.rows("train", "data.train_split", "image", "label")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows.names.lengths.sum() == 48 * 2**20 and most < 2**20


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", [*range(16)]),
        ("train[:25%]", [*range(4)]),
        ("train[-2:]", [14, 15]),
        ("train[:2]+train[7:8]", [0, 1, 7]),
    ],
)
def test_splits_are_named_as_datasets_names_them(split: str, expected: list[int], arrow: Path, tmp_path: Path):
    rows = open_dataset(str(arrow), "data.path").rows(split, "data.train_split")
    assert [*rows.names] == [f"{arrow}/train[{i}]" for i in expected]
    assert rows.codes.tolist() == [int(i >= 7) for i in expected]


def test_an_unlabeled_split_may_hold_labeled_and_test_images(arrow: Path, tmp_path: Path):
    config = source(arrow, tmp_path, train_split="train[5:9]", unlabeled_split="train", test_split="train[:3]")
    data = read_hf(config)
    assert [*data.test.names] == [f"{arrow}/train[{i}]" for i in range(3)]
    assert (len(data.train), data.num_shared, data.num_separate) == (13, 4, 9)
    assert [*data.train.names[4:]] == [f"{arrow}/train[{i}]" for i in (3, 4, *range(9, 16))]
    assert data.notes == (
        "3 of 16 unlabeled images are also test images: left out",
        "4 of 16 unlabeled images are also labeled images: each counts once",
    )


def plain(path: Path, columns: dict[str, Any]) -> Path:
    """A Parquet file of another program: no types of Hugging Face."""
    parquet.write_table(pa.table(columns), path)
    return path


def test_parquet_files_of_other_programs_have_classes_as_text_or_numbers(splits, tmp_path: Path):
    files = splits["train"][:4]
    images = [{"bytes": file.read_bytes(), "path": None} for file in files]
    path = plain(tmp_path / "p.parquet", {"img": images, "Class_Name": ["owl", "10", None, "nan"], "id": [4, 5, 6, 7]})
    data = read_hf(source(path, tmp_path, test_split="train[:2]"))
    assert data.classes == ("10", "owl") and data.train.labels.tolist() == [1, 0, UNKNOWN, UNKNOWN]
    assert bytes_of(data.train.names) == [file.read_bytes() for file in files]  # pyright: ignore[reportArgumentType]
    path = plain(tmp_path / "q.parquet", {"img": images, "kind": [10, 9, -1, 9]})
    data = read_hf(source(path, tmp_path, label_column="kind", test_split="train[:2]"))
    assert data.classes == ("9", "10") and data.train.labels.tolist() == [1, 0, UNKNOWN, 0]


def test_one_of_several_columns_of_images_is_named(splits, tmp_path: Path):
    datasets = imported()
    dataset = of_files(splits["train"], CLASSES)
    features = datasets.Features(
        {"left": datasets.Image(), "right": datasets.Image(), "label": datasets.Value("string")}
    )
    columns = {
        "left": dataset.with_format("arrow")["image"][:],
        "right": dataset.with_format("arrow")["image"][:][::-1],
    }
    columns = {
        name: [{"bytes": each["bytes"].as_py(), "path": None} for each in some] for name, some in columns.items()
    }
    both = datasets.Dataset.from_dict({**columns, "label": ["x", "y"] * 8}, features=features)
    both.save_to_disk(tmp_path / "both")
    with pytest.raises(InputError, match=r"Set data.image_column: .* has the columns left \(Image\), right \(Image\)"):
        read_hf(source(tmp_path / "both", tmp_path))
    for column, step in (("left", 1), ("right", -1)):
        names = read_hf(source(tmp_path / "both", tmp_path, image_column=column, test_split="train")).train.names
        # Their names differ, so that what is kept in the cache for the one is not taken for the other.
        assert names[3] == f"{tmp_path}/both/train[3].{column}" == row_named(names[3])
        assert bytes_of(names) == [file.read_bytes() for file in splits["train"][::step]]  # pyright: ignore[reportArgumentType]


def test_an_image_is_found_by_its_name(arrow: Path, splits):
    member = row_named(f"{arrow}/test[4]")
    assert member is not None and read_member(member) == splits["test"][4].read_bytes()
    for name in (f"{arrow}/test[16]", f"{arrow}/other[0]", f"{arrow.parent}/tree[0]", "nowhere/train[0]", "a[0]"):
        assert row_named(name) is None


def test_what_the_flag_images_names(arrow: Path, splits, tmp_path: Path):
    rows = rows_of_hf(f"hf:{arrow}:test[:2]", "--images")
    assert [*rows.names] == [f"{arrow}/test[0]", f"{arrow}/test[1]"] and folder_of_hf(f"hf:{arrow}:test") == arrow
    assert rows.labels({"dog": 3, "cat": 8}).tolist() == [8, 8] and rows.labels({"dog": 3}).tolist() == [UNKNOWN] * 2
    with pytest.raises(InputError, match=r"has the splits train, test: name one, as in hf:.*arrow:train"):
        rows_of_hf(f"hf:{arrow}", "--images")
    with pytest.raises(InputError, match="--images is 'hf:': name a folder or a file after hf:"):
        rows_of_hf("hf:", "--images")
    of_files(splits["test"], CLASSES).save_to_disk(tmp_path / "a:b")
    assert len(rows_of_hf(f"hf:{tmp_path}/a:b", "--images").names) == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_split": "dev"}, "data.train_split is 'dev': .* has the splits train, test"),
        ({"train_split": "train[:0]"}, "has no rows"),
        ({"test_split": "validation"}, "data.test_split is 'validation'"),
        ({"image_column": "label"}, r"data.image_column is 'label': .* image \(Image\), label \(ClassLabel\)"),
        ({"label_column": "none"}, "its rows have no classes; set data.label_column"),
        ({"label_column": "image"}, "column 'image' has the type struct.*: classes must be texts or whole numbers"),
    ],
)
def test_what_does_not_fit_is_refused(settings: dict[str, Any], message: str, arrow: Path, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        read_hf(source(arrow, tmp_path, **settings))


def test_test_images_need_classes_and_no_others(splits, tmp_path: Path):
    datasets, (cat, *_), dog = imported(), splits["test"], splits["test"][-1]
    unknown = tmp_path / "tree" / "else" / "x.png"
    unknown.parent.mkdir()
    unknown.write_bytes(cat.read_bytes())
    path = save_arrow(tmp_path / "a", {"train": [cat, dog], "test": [cat, unknown]}, CLASSES)
    with pytest.raises(InputError, match=r"data.test_split is 'test': 1 of its 2 rows have no class"):
        read_hf(source(path, tmp_path))
    texts = {name: datasets.Dataset.from_dict({"x": [b""] * 2, "label": ["a", name]}) for name in ("train", "test")}
    datasets.DatasetDict(texts).save_to_disk(tmp_path / "b")
    with pytest.raises(InputError, match=r"data.test_split has a class 'test' that the model does not know: a, train"):
        read_hf(source(tmp_path / "b", tmp_path, image_column="x"))


def test_rows_that_name_files_are_refused(splits, tmp_path: Path):
    datasets = imported()
    columns = {"image": [str(file) for file in splits["train"]], "label": ["cat"] * 16}
    dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    dataset.save_to_disk(tmp_path / "saved")
    assert len(read_hf(source(tmp_path / "saved", tmp_path, test_split="train")).train) == 16
    dataset.to_parquet(tmp_path / "p.parquet")
    with pytest.raises(InputError, match="column 'image': row 0 has no bytes of an image"):
        read_hf(source(tmp_path / "p.parquet", tmp_path))


def test_places_that_are_no_data_set_are_refused(splits, tmp_path: Path):
    for path, message in (
        ("nowhere", "there is no such folder or file; .* pass --data.download true"),
        ("tree", "it is not a Hugging Face data set"),
        ("tree/train/cat/0.png", "it is not a Parquet or Arrow file"),
    ):
        with pytest.raises(InputError, match=message):
            read_hf(source(tmp_path / path, tmp_path))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"data.path: datasets cannot read '.*broken.parquet'"):
        read_hf(source(tmp_path / "broken.parquet", tmp_path))
    with pytest.raises(InputError, match=r"data.name 'hf' needs data.path"):
        read_hf(SourceConfig(name="hf"))


def test_a_readme_in_the_folder_sends_nobody_to_the_network(splits, tmp_path: Path):
    path = save_parquet(tmp_path / "saved", splits, CLASSES)
    (path / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files: https://example.invalid/x.parquet\n---\n"
    )
    assert len(read_hf(source(path, tmp_path)).train) == 16


def test_a_name_on_the_hub_is_loaded_where_that_is_allowed(arrow: Path, tmp_path: Path, monkeypatch):
    datasets, asked = imported(), []

    def load_dataset(*names: str, **settings: Any) -> Any:
        asked.append((names, settings))
        return datasets.load_from_disk(str(arrow))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = replace(source(arrow, tmp_path), path="owner/photos")
    with pytest.raises(InputError, match=r"pass --data.download true"):
        read_hf(config)
    assert not asked
    data = read_hf(replace(config, download=True))
    # Nothing beside the name and the folder, so that no code is trusted.
    assert asked == [(("owner/photos",), {"cache_dir": f"{tmp_path}/kept/huggingface"})]
    assert data.train.names[0] == "owner/photos/train[0]"


def test_without_the_package_it_is_said_how_to_install_it(arrow: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"data.path needs the package datasets: pip install 'debias-ssl\[hf\]'"):
        read_hf(source(arrow, tmp_path))


def test_compressed_and_damaged_arrow_files_are_refused(splits, tmp_path: Path):
    path = save_arrow(tmp_path / "arrow", splits, CLASSES)
    (file,) = (path / "train").glob("*.arrow")
    table = pa.ipc.open_stream(file.read_bytes()).read_all()
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    file.write_bytes(sink.getvalue())
    with pytest.raises(InputError, match="its Arrow file is compressed or damaged"):
        read_hf(source(path, tmp_path))
