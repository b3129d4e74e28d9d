"""Images in tar files: the same as in a folder, each read by its place, in an order that keeps processes apart."""

import gzip
import io
import os
import pickle
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from debias_ssl.contract import Batch, Place
from debias_ssl.data.config import DataConfig
from debias_ssl.data.reading.decode import decode
from debias_ssl.data.reading.reader import make_reader
from debias_ssl.data.sources import shard_index
from debias_ssl.data.sources.folder import find_files, images_in_shards
from debias_ssl.data.sources.images import UNKNOWN
from debias_ssl.data.sources.load import load_data
from debias_ssl.data.sources.shard_index import Member, Shard
from debias_ssl.data.sources.shards import ShardedNames, expanded, on_disk, open_shards, read_member, shard_paths
from debias_ssl.data.streams import TrainingStream
from debias_ssl.data.task import Task, make_task
from debias_ssl.methods import FixMatch
from debias_ssl.system.errors import InputError, StoppedError

CPU = torch.device("cpu")
Pack = Callable[..., Path]


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """Writes a tar file of members with their contents."""

    def pack(name: str, members: dict[str, bytes | Path], style: int = tarfile.USTAR_FORMAT) -> Path:
        path = tmp_path / "shards" / name
        path.parent.mkdir(exist_ok=True)
        with tarfile.open(path, "w", format=style) as tar:
            for member, content in members.items():
                add(tar, member, content.read_bytes() if isinstance(content, Path) else content)
        return path

    return pack


def add(tar: tarfile.TarFile, member: str, content: bytes) -> None:
    info = tarfile.TarInfo(member)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def in_folder(tree: Path) -> list[Path]:
    return sorted((tree / "unlabeled").rglob("*.png"), key=lambda path: path.relative_to(tree).as_posix())


@pytest.fixture
def packed(tree: Path, pack: Pack, config: DataConfig) -> DataConfig:
    """The data of `config`, with its six unlabeled images in three shards of 3, 1 and 2."""
    files = in_folder(tree)
    for number, part in enumerate((files[:3], files[3:4], files[4:])):
        pack(f"u-{number:03}.tar", {path.relative_to(tree / "unlabeled").as_posix(): path for path in part})
    where = tree.parent / "shards" / "u-{000..002}.tar"
    return replace(config, unlabeled=str(where), input="streaming", image_size=12)


def names_of(where: Path | str) -> list[str]:
    return [str(name) for name in open_shards(str(where), "data.unlabeled")[0]]


def member_at(names: ShardedNames, i: int) -> Member:
    member = names[i]
    assert isinstance(member, Member)
    return member


# What is in them.


def test_images_are_those_of_the_folder(packed: DataConfig, tree: Path):
    names, _, _ = open_shards(str(packed.unlabeled), "data.unlabeled")
    files = in_folder(tree)
    shard = tree.parent / "shards"
    assert names[1] == f"{shard}/u-000.tar/{files[1].relative_to(tree / 'unlabeled').as_posix()}"
    assert [member_at(names, i).inner for i in range(6)] == [
        path.relative_to(tree / "unlabeled").as_posix() for path in files
    ]
    assert [read_member(member_at(names, i)) for i in range(6)] == [path.read_bytes() for path in files]
    assert (np.asarray(decode(names[-1])) == np.asarray(decode(str(files[-1])))).all()
    assert len(names) == 6 and names[4:9] == [names[4], names[5]]
    with pytest.raises(IndexError):
        names[6]


def test_training_images_are_labeled_files_and_then_members(packed: DataConfig, config: DataConfig):
    data, plain = load_data(packed), load_data(config)
    assert data.num_separate == plain.num_separate == 6
    assert data.train.labels.tolist() == plain.train.labels.tolist()
    assert [*data.train.names][:9] == [*plain.train.names][:9]
    assert isinstance(data.train.names, ShardedNames) and data.train.names.borders.tolist() == [9, 12, 13, 15]
    index = torch.arange(15)
    sharded = make_reader(data.train, packed, CPU)
    assert not sharded.is_resident and sharded.center(index).equal(make_reader(plain.train, config, CPU).center(index))
    resident = make_reader(data.train, replace(packed, input="resident"), CPU, progress=False)
    assert resident.is_resident and resident.center(index).equal(sharded.center(index))
    assert not make_reader(data.train, replace(packed, input="auto"), CPU).is_resident


def test_members_keep_their_place_when_they_are_sent_to_a_worker(packed: DataConfig):
    names, _, _ = open_shards(str(packed.unlabeled), "data.unlabeled")
    sent = pickle.loads(pickle.dumps(member_at(names, 3)))
    assert sent == names[3] and read_member(sent) == read_member(member_at(names, 3))


def test_parts_know_their_shards(packed: DataConfig):
    train = load_data(packed).train
    part = train.part([1, 2, 10, 11, 13])
    assert [*part.names] == [train.names[i] for i in (1, 2, 10, 11, 13)]
    assert isinstance(part.names, ShardedNames) and part.names.borders.tolist() == [2, 4, 4, 5]
    assert [*train.part(slice(10, None)).part([0, 3]).names] == [train.names[10], train.names[13]]
    assert [*train.part([3, 1]).names] == [train.names[3], train.names[1]]


def test_other_images_of_the_same_shards_are_other_data(packed: DataConfig):
    names = load_data(packed).train.names
    assert isinstance(names, ShardedNames)
    parts = [names.part(np.array(chosen)) for chosen in ([9, 10, 12], [9, 11, 12], [9, 10, 11])]
    assert len({tuple(on_disk(part)) for part in parts}) == 3
    assert [(os.path.basename(file.path), file.part) for file in [*on_disk(names)][9:]] == [
        ("u-000.tar", (3,)),
        ("u-001.tar", (1,)),
        ("u-002.tar", (2,)),
    ]


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_classes_are_in_cls_members_and_names_of_any_kind_are_read(pack: Pack, style: int):
    names = ["a.png", "b/c.v2.jpg", "ü\n,.png", "long/" * 15 + "d.JPEG"]
    members = {"./a.png": b"1", "a.cls": b"1\n", "b/c.cls": b"0", "b/": b"", names[2]: b"22", names[3]: b"333"}
    members |= {"b/c.v2.jpg": b"4444", ".hidden.png": b"5", "b/._a.png": b"6", "a.json": b"{}", "readme.txt": b""}
    where = pack("a.tar", members, style)
    images = images_in_shards(str(where), ("cat", "dog"), "data.unlabeled")
    found = dict(zip([name.removeprefix(f"{where}/") for name in images.names], images.labels.tolist(), strict=True))
    assert found == {names[0]: 1, names[1]: 0, names[2]: UNKNOWN, names[3]: UNKNOWN}
    assert {name.removeprefix(f"{where}/"): read_member(name) for name in images.names if isinstance(name, Member)} == {
        names[0]: b"1",
        names[1]: b"4444",
        names[2]: b"22",
        names[3]: b"333",
    }


def test_classes_are_names_or_else_numbers(pack: Pack):
    pack("n-0.tar", {"0.png": b"", "0.cls": b"2", "1.png": b"", "1.cls": b"1"})
    pack("n-1.tar", {"2.png": b"", "2.cls": b"3", "3.png": b"", "3.cls": b""})
    where = str(pack("n-2.tar", {"4.png": b"", "4.cls": b"1"})).replace("n-2", "n-{0..2}")
    assert images_in_shards(where, ("1", "2", "3"), "").labels.tolist() == [1, 0, 2, UNKNOWN, 0], "as names"
    assert images_in_shards(where, ("a", "2", "c", "d"), "").labels.tolist() == [2, 1, 3, UNKNOWN, 1], "as numbers"
    assert find_files(where, "--images").labels.tolist() == [UNKNOWN] * 5
    with pytest.raises(InputError, match=r"says '2', which is neither one of the classes, a, b, nor .* 0 to 1"):
        images_in_shards(where, ("a", "b"), "")


def test_patterns_are_bashs(pack: Pack):
    assert expanded("a-{008..011}.tar") == ["a-008.tar", "a-009.tar", "a-010.tar", "a-011.tar"]
    assert expanded("{2..0}{a,b}") == ["2a", "2b", "1a", "1b", "0a", "0b"]
    assert expanded("x{9..10}") == ["x9", "x10"]
    for name in ("b-1.tar", "a-2.tar", "a-1.tar"):
        pack(name, {"x.png": b""})
    folder = str(pack("{odd}.tar", {"x.png": b""}).parent)
    assert shard_paths(f"{folder}/?-*.tar", "") == [f"{folder}/{name}.tar" for name in ("a-1", "a-2", "b-1")]
    assert shard_paths(f"{folder}/{{b,a}}-1.tar", "") == [f"{folder}/b-1.tar", f"{folder}/a-1.tar"]
    assert shard_paths(f"{folder}/{{odd}}.tar", "") == [f"{folder}/{{odd}}.tar"], "a file of this very name"
    for wrong, message in (
        ("a-{3..4}.tar", r"there is no shard '.*a-3.tar'"),
        ("c*.tar", r"there is no shard '.*c\*.tar'"),
        ("{1-3}.tar", "braces must hold"),
        ("{1..99999999999}.tar", "1,000,000 are the most"),
        ("{0..99999}{0..99}.tar", "10,000,000 files"),
        ("a.tar.gz", "is compressed: uncompress it"),
    ):
        with pytest.raises(InputError, match=message):
            shard_paths(f"{folder}/{wrong}", "data.unlabeled")


# Training.


def task_of(config: DataConfig, **place: Any) -> Task:
    return make_task(config, seed=0, place=Place(**place), progress=False)


def stream_of(task: Task, **settings: Any) -> TrainingStream:
    method = FixMatch(task.problem(num_features=4))
    standard = {"seed": 0, "batch_size": 4, "unlabeled_ratio": 1, "balanced": False}
    return task.training_stream(method, **standard | settings)


@pytest.mark.parametrize("includes_labeled", [True, False])
def test_the_global_batch_is_the_same_for_any_number_of_processes(packed: DataConfig, includes_labeled: bool):
    config = replace(packed, unlabeled_includes_labeled=includes_labeled)
    whole = [*stream_of(task_of(config)).batches(0, 4)]
    for num in (2, 4):
        tasks = [task_of(config, rank=rank, num_processes=num) for rank in range(num)]
        for step, batches in enumerate(zip(*(stream_of(task).batches(0, 4) for task in tasks), strict=True)):
            for name in ("index", "labels", "labeled", "truth"):
                assert torch.cat([getattr(batch, name) for batch in batches]).equal(getattr(whole[step], name))
            assert torch.cat([batch.weak[0] for batch in batches]).equal(whole[step].weak[0])
            assert torch.cat([batch.strong[0] for batch in batches]).equal(whole[step].strong[0])
    assert same(next(stream_of(task_of(config)).batches(3, 4)), whole[3]), "and resumes by arithmetic"
    assert same(next(stream_of(task_of(replace(config, input="resident"))).batches(3, 4)), whole[3])


def same(one: Batch, other: Batch) -> bool:
    return one.index.equal(other.index) and one.weak[0].equal(other.weak[0]) and one.strong[0].equal(other.strong[0])


def test_a_process_opens_its_own_shards_alone(packed: DataConfig, pack: Pack, paint, monkeypatch, tmp_path):
    for number in range(4):
        files = [paint(tmp_path / "new" / f"{number}{i}.png", 10 * number + i) for i in range(3)]
        pack(f"own-{number}.tar", {path.name: path for path in files})
    where = str(tmp_path / "shards" / "own-*.tar")
    config = replace(packed, unlabeled=where, unlabeled_includes_labeled=False)
    tasks = [task_of(config, rank=rank, num_processes=2) for rank in range(2)]
    opened: list[set[str]] = [set(), set()]
    rank = 0

    def read(member: Member) -> bytes:
        opened[rank].add(os.path.basename(member.shard.path))
        return read_member(member)

    monkeypatch.setattr("debias_ssl.data.sources.shards.read_member", read)
    for rank, task in enumerate(tasks):
        seen = torch.cat([batch.index for batch in stream_of(task).batches(0, 6)])
        assert seen.unique().tolist() == [*range(6 * rank, 6 * rank + 6)]
    assert opened == [{"own-0.tar", "own-1.tar"}, {"own-2.tar", "own-3.tar"}]


def test_lanes_that_do_not_fit_are_refused(packed: DataConfig):
    with pytest.raises(
        InputError, match=r"3 lanes do not divide an unlabeled batch of 4 and 1 processes: set data.lanes"
    ):
        stream_of(task_of(replace(packed, lanes=3)))
    with pytest.raises(InputError, match="2 lanes do not divide an unlabeled batch of 4 and 4 processes"):
        stream_of(task_of(replace(packed, lanes=2), num_processes=4))
    with pytest.raises(InputError, match="16 lanes need at least as many unlabeled images, but there are only 15"):
        stream_of(task_of(replace(packed, lanes=16)), batch_size=16)
    with pytest.raises(InputError, match=r"data.lanes is 0"):
        replace(packed, lanes=0)
    assert stream_of(task_of(packed), batch_size=64).lanes == 8, "of 15 images"
    assert stream_of(task_of(packed), batch_size=20).lanes == 10
    assert stream_of(task_of(replace(packed, lanes=2))).lanes == 2


# The index, and what goes wrong.


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The tar files whose headers were gone through."""
    found: list[str] = []
    make = shard_index.make_index
    monkeypatch.setattr(shard_index, "make_index", lambda path: found.append(os.path.basename(path)) or make(path))
    yield found


def test_the_index_is_made_once_and_again_where_it_is_damaged(packed, cache: Path, made: list[str]):
    before = names_of(str(packed.unlabeled))
    assert sorted(made) == ["u-000.tar", "u-001.tar", "u-002.tar"]
    kept = sorted(cache.glob("*.index"))
    assert len(kept) == 3
    for damage in (b"", b"?" * 40, kept[0].read_bytes()[:-1], kept[0].read_bytes().replace(b"png", b"jpg")):
        made.clear()
        shard_index.read_index.cache_clear()
        whole = kept[0].read_bytes()
        kept[0].write_bytes(damage)
        assert names_of(str(packed.unlabeled)) == before
        assert len(made) == 1 and kept[0].read_bytes() == whole


def test_a_shard_that_is_gone_or_has_changed_stops_the_job(packed: DataConfig, tmp_path: Path):
    names, _, _ = open_shards(str(packed.unlabeled), "data.unlabeled")
    path = tmp_path / "shards" / "u-000.tar"
    os.utime(path, ns=(0, 0))
    with pytest.raises(StoppedError, match=r"u-000.tar' has changed since"):
        decode(names[0])
    path.unlink()
    with pytest.raises(StoppedError, match=r"cannot read shard .*u-000.tar': No such file"):
        decode(names[0])
    decode(names[4])
    task = task_of(replace(packed, unlabeled=str(tmp_path / "shards" / "u-00{1..2}.tar"), workers=2))
    (tmp_path / "shards" / "u-002.tar").unlink()
    with pytest.raises(StoppedError, match=r"^cannot read shard .*u-002.tar': No such file .*start again$"):
        list(stream_of(task).batches(0, 9))


def test_a_member_that_is_no_image_is_named(packed: DataConfig, pack: Pack, tree: Path):
    good = in_folder(tree)[:3]
    where = str(pack("bad.tar", {"0.png": good[0], "a/x.png": b"no image", "1.png": good[1], "2.png": good[2]}))
    config = replace(packed, unlabeled=where)
    with pytest.raises(InputError, match=r"cannot read image '.*bad.tar/a/x.png'"):
        list(stream_of(task_of(config)).batches(0, 4))
    for _ in range(2):
        task = task_of(replace(config, on_error="skip"))
        name = f"{where}/a/x.png"
        assert task.unreadable == {name: f"cannot identify image file {name!r}"}
        names = task.data.train.names
        assert isinstance(names, ShardedNames) and names.borders.tolist() == [9, 12]
        assert [name.rpartition("/")[2] for name in names[9:]] == ["0.png", "1.png", "2.png"]
        assert len([*stream_of(task).batches(0, 4)]) == 4


def test_links_devices_and_folders_are_left_out(pack: Pack, tmp_path: Path):
    path = pack("links.tar", {"a.png": b"1"})
    with tarfile.open(path, "a") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE):
            info = tarfile.TarInfo(f"{kind.decode()}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    assert names_of(path) == [f"{path}/a.png"]


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "a/../../x.png", "a/.."])
def test_names_that_lead_out_are_refused(pack: Pack, name: str):
    with pytest.raises(InputError, match=r"leads out of it"):
        names_of(pack("out.tar", {"a.png": b"1", name: b"2"}))


def test_damaged_tar_files_are_refused(pack: Pack, tree: Path):
    files = in_folder(tree)[:3]
    path = pack("x.tar", {f"{i}.png": file for i, file in enumerate(files)})
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        offsets = [member.offset for member in tar]
    cases = {
        "empty": b"",
        "in the last image": whole[: offsets[2] + 600],
        "in a header": whole[: offsets[2] + 100],
        "between two images": whole[: offsets[2]],
        "a header is spoiled": whole[: offsets[1]] + b"?" * 512 + whole[offsets[1] + 512 :],
        "no tar at all": b"text" * 1000,
        "compressed": gzip.compress(whole),
    }
    for case, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"x\.tar' (is damaged|cannot be read|is compressed)"):
            names_of(path)
            pytest.fail(case)


def test_shards_without_images_are_refused(pack: Pack, tmp_path: Path):
    with pytest.raises(InputError, match=r"none.tar' holds no images"):
        names_of(pack("none.tar", {"a.txt": b"", "a.cls": b"1"}))
    with pytest.raises(InputError, match=r"twice.tar' holds 'a.png' twice"):
        names_of(pack("twice.tar", {"a.png": b"", "./a.png": b""}))
    with pytest.raises(InputError, match=r"long.tar': 'a.cls' is too long"):
        names_of(pack("long.tar", {"a.png": b"", "a.cls": b"1" * 2000}))
    with pytest.raises(InputError, match=r"it has no images; for its tar files, write '.*/shards/\*.tar'"):
        find_files(str(tmp_path / "shards"), "--images")


def test_the_longest_list_needs_no_names_in_memory():
    names = ShardedNames(shards=tuple(Shard(f"{i}.tar", 1, 1, 10_000) for i in range(1000)))
    assert len(names) == 10_000_000 and names.part(np.arange(10, 9_999_999, 1000)).borders[-1] == 10_000


def test_a_member_takes_some_bytes_while_a_tar_file_is_gone_through(pack):
    """Python's tarfile would keep a kilobyte of each."""
    number = 3000
    path = pack("many.tar", {f"folder/{i:08d}.png": b"" for i in range(number)})
    tracemalloc.start()
    made = shard_index.make_index(str(path))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(made["offsets"]) == number and most / number < 500
