"""`debias-ssl predict`: rows are written as they come, and a job that was killed goes on."""

import csv
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import refused, run
from launched import Job, Launched
from PIL import Image

from debias_ssl import predict
from debias_ssl.contract import Place
from debias_ssl.runs.label_table import LabelTable, parts_folder
from debias_ssl.runs.trained import TrainedRun

NUM, BATCH = 23, 4


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("runs") / "a", "--steps", "2")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with names that a CSV file quotes, one with a line break."""
    folder, random = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(NUM):
        pixels = random.integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / (f'{i:02}, "a"\nb.png' if i % 5 == 0 else f"{i:02}.png"))
    return folder


def flags(finished: Path, images: Path, out: Path, *further: str) -> list[str]:
    given = ["--run", str(finished), "--images", str(images), "--out", str(out), "--workers", "0"]
    return [*given, "--batch_size", str(BATCH), *further]


@pytest.fixture(scope="module")
def whole(finished: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("whole") / "o.csv"
    predict.main(flags(finished, images, out))
    assert [path.name for path in out.parent.iterdir()] == ["o.csv"]
    return out.read_bytes()


def stop_after(batches: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes the job die after so many batches; returns the list of sizes of those that were labeled."""
    add, sizes = LabelTable.add, []

    def stopping(self: LabelTable, names: Any, *arguments: Any) -> None:
        if len(sizes) == batches:
            raise KeyboardInterrupt
        sizes.append(len(names))
        add(self, names, *arguments)

    monkeypatch.setattr(LabelTable, "add", stopping)
    return sizes


@pytest.mark.parametrize("batches", [0, 1, 3, 5])
def test_a_job_that_was_killed_goes_on(batches: int, finished: Path, images: Path, whole: bytes, tmp_path, monkeypatch):
    out = tmp_path / "o.csv"
    with monkeypatch.context() as patch:
        stop_after(batches, patch)
        with pytest.raises(SystemExit):
            predict.main(flags(finished, images, out))
    assert not out.exists()
    for part in parts_folder(out).glob("*.csv"):
        # It was killed in the middle of a row.
        part.write_bytes(part.read_bytes() + b'"23, ""a')
    with monkeypatch.context() as patch:
        sizes = stop_after(NUM, patch)
        predict.main(flags(finished, images, out))
    assert sum(sizes) == NUM - batches * BATCH and out.read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["o.csv"]


def changed_image(finished: Path, images: Path) -> list[str]:
    path = images / "01.png"
    Image.open(path).transpose(Image.Transpose.ROTATE_90).save(path)
    os.utime(path, (1, 1))
    return []


def changed_run(finished: Path, images: Path) -> list[str]:
    path = finished / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    return []


@pytest.mark.parametrize("change", [changed_image, changed_run, lambda *_: ["--batch_size", "5"]])
def test_parts_of_another_job_are_not_taken_for_its_own(change, finished, images, tmp_path, monkeypatch):
    import shutil

    finished, images = (Path(shutil.copytree(each, tmp_path / each.name)) for each in (finished, images))
    out = tmp_path / "out" / "o.csv"
    with monkeypatch.context() as patch:
        stop_after(3, patch)
        with pytest.raises(SystemExit):
            predict.main(flags(finished, images, out))
    further = change(finished, images)
    sizes = stop_after(NUM, monkeypatch)
    predict.main(flags(finished, images, out, *further))
    assert sum(sizes) == NUM
    assert [path.name for path in out.parent.iterdir()] == ["o.csv"]


def test_a_job_killed_at_any_time_goes_on(finished: Path, images: Path, whole: bytes, tmp_path: Path):
    out, log = tmp_path / "o.csv", tmp_path / "log"

    def written() -> list[str]:
        return [path.read_text() for path in parts_folder(out).glob("*.json")]

    for _ in range(2):
        before, until = written(), time.monotonic() + 60
        job = Job("predict", flags(finished, images, out), log)
        while job.is_running() and written() == before and time.monotonic() < until:
            time.sleep(0.001)
        job.kill()
    job = Job("predict", flags(finished, images, out), log)
    assert job.wait() == 0, log.read_text()
    assert out.read_bytes() == whole and "images were labeled before" in log.read_text()


def test_processes_write_parts_that_one_joins(finished: Path, images: Path, whole: bytes, tmp_path: Path):
    out = tmp_path / "o.csv"
    base = [*flags(finished, images, out)[:4], "--workers", "0", "--batch_size", str(BATCH)]
    launched = Launched(2, out, base=base, job="predict")
    launched.finish()
    assert out.read_bytes().count(b"\r\n") == NUM + 1
    rows, expected = (sorted(text.split(b"\r\n")) for text in (out.read_bytes(), whole))
    # Batches are of other images, so that last digits may differ.
    assert [row.split(b",p")[0][:12] for row in rows] == [row.split(b",p")[0][:12] for row in expected]
    assert not parts_folder(out).exists()


def test_parts_on_disks_that_are_not_shared_are_refused(tmp_path: Path):
    from debias_ssl.system.errors import InputError

    table = LabelTable(out=tmp_path / "o.csv", key="k", place=Place(num_processes=2))
    table.folder.mkdir()
    table.add(["a", "b"], Path(), ("x", "y"), torch.tensor([[0.5, 0.5], [0.2, 0.8]]), 2)
    with pytest.raises(InputError, match="must be on a disk that all processes share"):
        table.join(("x", "y"), 4)


def test_a_full_disk_is_told_and_what_was_labeled_stays(finished, images, whole, tmp_path, monkeypatch, capfd):
    out = tmp_path / "o.csv"
    with monkeypatch.context() as patch:
        fsync, number = os.fsync, [0]

        def full(handle: int) -> None:
            number[0] += 1
            # Two blocks say that there is room, and each batch is two files.
            if number[0] > 2 + 2 * 2:
                raise OSError(28, "No space left on device")
            fsync(handle)

        patch.setattr(os, "fsync", full)
        with pytest.raises(SystemExit) as exit_:
            predict.main(flags(finished, images, out))
    said = capfd.readouterr().err
    assert exit_.value.code == 1 and "No space left on device; the same command goes on" in said
    sizes = stop_after(NUM, monkeypatch)
    predict.main(flags(finished, images, out))
    assert sum(sizes) == NUM - 2 * BATCH and out.read_bytes() == whole
    assert f"note: {2 * BATCH} of {NUM} images were labeled before" in capfd.readouterr().err


def test_no_batch_is_refused(finished, images, tmp_path, capsys):
    arguments = flags(finished, images, tmp_path / "o.csv", "--batch_size", "0")
    assert "--batch_size is 0, must be at least 1" in refused(predict.main, arguments, capsys)


def test_rows_are_not_kept_in_memory(tmp_path: Path):
    """60,000 rows of 500 classes are 120 MB in fp32, and 960 MB as numbers of Python's."""
    import tracemalloc

    table = LabelTable(out=tmp_path / "o.csv", key="k", place=Place())
    table.folder.mkdir()
    probs = torch.full((500, 500), 1 / 500)
    names, classes = [str(i) for i in range(500)], tuple(map(str, range(500)))
    tracemalloc.start()
    for batch in range(4):
        table.add(names, Path(), classes, probs, 500 * (batch + 1))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 40e6
    table.join(classes, 2000)
    assert table.out.read_bytes().count(b"\r\n") == 2001


def test_nothing_of_a_run_gathers_all_rows(finished, images, tmp_path, monkeypatch):
    for name in ("predict", "probabilities"):
        monkeypatch.setattr(TrainedRun, name, lambda *_, **__: pytest.fail("all rows at once"))
    predict.main(flags(finished, images, tmp_path / "o.csv"))


def test_lists_of_absolute_paths_are_used_with_their_root(finished: Path, images: Path, whole: bytes, tmp_path, capsys):
    listed, out = tmp_path / "list.csv", tmp_path / "o.csv"
    with listed.open("w", newline="") as file:
        csv.writer(file).writerows([["image"], *([str(path)] for path in sorted(images.iterdir()))])
    message = refused(predict.main, flags(finished, listed, out), capsys)
    assert f"to read files there, pass --root {str(images)!r}" in message
    predict.main(flags(finished, listed, out, "--root", str(images)))
    assert out.read_bytes() == whole
    out.unlink()
    assert "--root works with lists" in refused(
        predict.main, flags(finished, images, out, "--root", str(images)), capsys
    )
